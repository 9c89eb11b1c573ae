"""Standard output that ends no program: neither a character that its encoding lacks, nor a reader that has left."""

import errno
import os
import sys
from typing import Any


def prepare_output() -> None:
    """Let `?` stand for what the encoding of standard output lacks (standard error writes escapes already)."""
    if sys.stdout is None:  # closed by who started the program
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def is_of_output(error: OSError) -> bool:
    """Whether an error comes from printing: nobody reads it any more, or there is no room; those of files name them."""
    return error.errno in (errno.EPIPE, errno.EIO, errno.ENOSPC) and error.filename is None


def discard_output() -> None:
    """Let standard output go nowhere from here on, what it still holds too: else the interpreter complains at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class LastingOutput:
    """Standard output for a run: once it cannot be written, `lost` says why, and what follows goes nowhere."""

    lost = ""

    def write(self, text: str) -> int:
        """Write to standard output as it is now."""
        try:
            return int(self._stream.write(text))
        except OSError as error:
            return self._lose(error)

    def flush(self) -> None:
        """Put on its way what was written."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> int:
        self.lost = error.strerror or type(error).__name__
        discard_output()
        return 0

    @property
    def _stream(self) -> Any:
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # a live bar puts itself in its place

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
