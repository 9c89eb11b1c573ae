"""Whether all processes are alive: each sends a beat over a connection of its own to process 0.

A process that waits for a dead one in its engine may wait for ever: MLX's ring does, and so does any engine for a
process that is stopped. So a thread watches. Where a process ends before its time, or is silent, the first that can
says so in one line, and all of them end; what process 0 saved last is on disk. The launcher's own death asks for a
stop, as `kill` does.
"""

import contextlib
import os
import selectors
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field

BEAT = 1.0
"""seconds between two beats"""
SILENCE = 20.0
"""seconds without one after which a process is taken for lost"""
OWN_ERROR = 3.0
"""seconds in which a process that fails may say so itself"""
STATUS = 2
"""of the exit"""


@dataclass
class Peer:
    """A process at the other end of a connection."""

    rank: int
    line: socket.socket
    host: str = ""
    pid: int = 0
    heard: float = field(default_factory=time.monotonic)
    done: bool = False
    rest: bytes = b""

    def send(self, text: str) -> None:
        """A line, unless nobody is there any more."""
        with contextlib.suppress(OSError):
            self.line.sendall(text.encode() + b"\n")

    def receive(self) -> list[str] | None:
        """The lines that have come; None at the end of the connection."""
        try:
            data = self.line.recv(65536)
        except OSError:
            return None
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def end(self) -> None:
        """Kill it where it is on this machine: one that is stopped ends in no other way."""
        if self.pid and self.host == socket.gethostname():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Watch:
    """The thread that watches; what it says in an emergency goes to standard error, also where that was hushed."""

    def __init__(self, rank: int, peers: list[Peer], remedy: str) -> None:
        self.rank, self.peers, self.remedy = rank, peers, remedy
        self._failing, self._ended = threading.Event(), threading.Event()
        self._parent, self._stderr = os.getppid(), sys.__stderr__
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def finished(self) -> None:
        """All is done here: the end of the connections says nothing any more."""
        self._ended.set()
        for peer in self.peers:
            peer.send("done")
        self._thread.join(2 * BEAT)

    def failed(self, words: str) -> None:
        """This process cannot go on. Process 0 prints that itself; another tells it, and waits to be ended."""
        self._failing.set()
        for peer in self.peers:
            peer.send(f"failed {' '.join(words.splitlines())}")
        if self.rank:
            time.sleep(2 * OWN_ERROR)

    def may_be_lost(self) -> None:
        """Wait for the thread to see why an exchange failed; if a process was lost, it ends this one meanwhile."""
        time.sleep(OWN_ERROR)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer in self.peers:
                selector.register(peer.line, selectors.EVENT_READ, peer)
            checked = time.monotonic()
            while not self._ended.is_set():
                for key, _ in selector.select(BEAT / 2):
                    self._hear(key.data, selector)
                now = time.monotonic()
                if now - checked > SILENCE / 2:  # this process slept itself, with its machine perhaps
                    for peer in self.peers:
                        peer.heard = now
                if now - checked >= BEAT:  # not at every beat of another's, which would answer in turn
                    checked = now
                    self._check(now)

    def _hear(self, peer: Peer, selector: selectors.BaseSelector) -> None:
        lines = peer.receive()
        if lines is None:
            selector.unregister(peer.line)
            if not peer.done:
                peer.done = True
                self._lost(peer, "has ended")
            return
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "done":
                peer.done = True
            elif word == "failed":
                self._failed_there(peer, rest)

    def _check(self, now: float) -> None:
        for peer in self.peers:
            peer.send("beat")
            if not peer.done and now - peer.heard > SILENCE:
                self._lost(peer, f"has not answered for {SILENCE:.0f} s")
        if os.getppid() != self._parent:
            self._parent = os.getppid()
            os.kill(os.getpid(), signal.SIGTERM)  # the launcher has gone: save and stop

    def _lost(self, peer: Peer, how: str) -> None:
        if self.rank == 0:
            self._end(f"process {peer.rank} {how}, so all {len(self.peers) + 1} do: {self.remedy}")
        time.sleep((self.rank - 1) * BEAT)  # the first that is left says it
        self._end(f"process 0 {how}, so all others do: {self.remedy}")

    def _failed_there(self, peer: Peer, words: str) -> None:
        if self.rank:  # process 0 says what it is
            os._exit(STATUS)
        if not self._failing.wait(OWN_ERROR):  # it has no error of its own to print
            self._end(f"process {peer.rank}: {words}")

    def _end(self, words: str) -> None:
        show = "\x1b[?25h" if self._stderr is not None and self._stderr.isatty() else ""  # a live bar hides the cursor
        with contextlib.suppress(OSError, ValueError):
            os.write(2, f"{show}faisca: {words}\n".encode())
        for peer in self.peers:
            peer.send(f"failed {words}")
            peer.end()
        os._exit(STATUS)


def listen() -> tuple[socket.socket, int]:
    """Where process 0 waits for the others, and the port."""
    server = socket.create_server(("", 0), family=socket.AF_INET, backlog=1024)
    return server, server.getsockname()[1]


def accept(server: socket.socket, size: int) -> list[Peer]:
    """The connections of all others."""
    peers = []
    with server:
        server.settimeout(SILENCE)
        for _ in range(1, size):
            line, _ = server.accept()
            rank, pid, host = _first_line(line).split(" ", 2)
            peers.append(Peer(int(rank), line, host, int(pid)))
            peers[-1].send(f"{os.getpid()} {socket.gethostname()}")
    return sorted(peers, key=lambda peer: peer.rank)


def connect(rank: int, host: str, port: int) -> list[Peer]:
    """The connection to process 0."""
    line = socket.create_connection((host, port), timeout=SILENCE)
    line.settimeout(None)
    line.sendall(f"{rank} {os.getpid()} {socket.gethostname()}\n".encode())
    pid, first_host = _first_line(line).split(" ", 1)
    return [Peer(0, line, first_host, int(pid))]


def _first_line(line: socket.socket) -> str:
    """Up to the line's end and not a byte more, for the next ones are the watch's."""
    data = b""
    while not data.endswith(b"\n") and (byte := line.recv(1)):
        data += byte
    return data.decode().rstrip("\n")
