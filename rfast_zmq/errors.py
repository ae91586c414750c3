"""What can go wrong, split by who erred: the user, the user's own code, or a peer on the wire."""

from __future__ import annotations


class RfastError(Exception):
    """Base of every error this package raises on purpose."""


class UsageError(RfastError):
    """The user asked for something that cannot be. The text names the thing, the value, and what would do.

    The command line prints it as one line, without a traceback, and exits with status 2.
    """


class TaskError(RfastError):
    """The user's own task raised. Carries the rank and the traceback of the user's code.

    Args:
        rank: the node on which it happened.
        traceback: the formatted traceback, as :func:`traceback.format_exc` gives it.
    """

    def __init__(self, rank: int, traceback: str) -> None:
        last = traceback.strip().splitlines()[-1] if traceback.strip() else "unknown error"
        super().__init__(f"rank {rank}: the task raised {last}")
        self.rank = rank
        self.traceback = traceback

    def __reduce__(self) -> tuple[type[TaskError], tuple[int, str]]:
        """From one process to another it goes as what it was made of."""
        return TaskError, (self.rank, self.traceback)


class Refused(RfastError):
    """A peer sent something that is not a well-formed message of this run. Counted by reason, never fatal.

    Args:
        reason: a short fixed word (``"malformed"``, ``"run"``, ``"layout"``, …) under which it is counted.
        detail: what was found, for the log.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
