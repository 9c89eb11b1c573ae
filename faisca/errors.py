"""The project's own errors: what a user did or met, as against a bug of ours.

The CLI prints an error of these types as one line and leaves the traceback out;
anything else is a bug and keeps its traceback.
"""

import re


class FaiscaError(ValueError):
    """Bad input: the message names the offending value and the remedy (exit status 2)."""


class VerificationError(FaiscaError):
    """Something was checked and did not hold (exit status 1)."""


def shortened(text: str, limit: int = 300) -> str:
    """The text; beyond `limit` characters its beginning and an ellipsis, so that a cut shows."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def in_one_line(error: Exception, without: str = "^$") -> str:
    """What another library's error says, on one line and not too long; its type where that says nothing.

    `without` is a pattern of words that only hide what matters.
    """
    words = re.sub(without, "", " ".join(str(error).split()))
    text = shortened("".join(filter(str.isprintable, words)))
    return text if text and not isinstance(error, KeyError) else f"{type(error).__name__} {text}".strip()
