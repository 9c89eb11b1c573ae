"""Who may ask: this machine's browser, from the page itself, with the token of its address.

Another web page in the same browser can send requests to this machine too. It cannot read the token; and where
it learns it, or lets its own name point here (DNS rebinding), what the browser says of a request gives it away.
"""

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""of every answer: nothing of another origin, nobody else's frame, no address handed on"""
NAMES = ("127.0.0.1", "localhost")


class Guard:
    """Pass on what begins with /TOKEN/, without it; refuse everything else in a line."""

    def __init__(self, app: App, token: str, port: int) -> None:
        self.app = app
        self._token = token.encode()
        self._hosts = {f"{name}:{port}".encode() for name in NAMES}
        self._origins = {b"http://" + host for host in self._hosts}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served here")

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        first, slash, rest = scope["path"].removeprefix("/").partition("/")
        if problem := self._problem(scope["headers"], first if slash else ""):
            await _refuse(problem, send_guarded)
            return
        path = "/" + rest
        await self.app({**scope, "path": path, "raw_path": path.encode()}, receive, send_guarded)

    def _problem(self, headers: list[tuple[bytes, bytes]], token: str) -> str:
        """Why a request is refused; empty where it is not."""
        found: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            found.setdefault(name, []).append(value)
        if len(hosts := found.get(b"host", [])) != 1 or hosts[0] not in self._hosts:
            return "this address is not the page's own: open the one that faisca play has printed"
        if not set(found.get(b"origin", [])) <= self._origins:
            return "a page of another origin has no business here"
        if not set(found.get(b"sec-fetch-site", [])) <= {b"same-origin", b"none"}:
            return "a page of another site has no business here: type the address"
        if not secrets.compare_digest(token.encode("utf-8", "surrogatepass"), self._token):
            return "the address has no token, or not this one: open the one that faisca play has printed"
        return ""


async def _refuse(problem: str, send: Send) -> None:
    body = problem.encode() + b"\n"
    kind = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": kind})
    await send({"type": "http.response.body", "body": body})
