"""The project's own errors: what a user did or met, as against a bug of ours.

The CLI prints an error of these types as one line and leaves the traceback out;
anything else is a bug and keeps its traceback.
"""


class FaiscaError(ValueError):
    """Bad input: the message names the offending value and the remedy (exit status 2)."""


class VerificationError(FaiscaError):
    """Something was checked and did not hold (exit status 1)."""
