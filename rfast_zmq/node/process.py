"""What every process of a run does alike, whoever trains in it: a node of ours, or torch's DDP, or hivemind."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

REPORT_S = 0.5
"""Seconds between two reports of a node to whoever watches it."""


def peak_memory_bytes() -> int:
    """The most memory this process has had resident; 0 where the platform does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


async def unless_gone(
    wanted: Awaitable[Any],
    gone: asyncio.Event,
    fault: Callable[[], BaseException | None],
    started: Callable[[], bool],
) -> None:
    """Await ``wanted``, but not once the process was told to go.

    Args:
        wanted: cancelled if it is not done by then.
        gone: set where it was told to go, or something failed.
        fault: what failed; None: nothing.
        started: whether the run has begun.

    Raises:
        BaseException: what failed, or what ``wanted`` raised.
        asyncio.CancelledError: told to go before the run began.
    """
    task, going = asyncio.ensure_future(wanted), asyncio.ensure_future(gone.wait())
    await asyncio.wait({task, going}, return_when=asyncio.FIRST_COMPLETED)
    for pending in (task, going):
        pending.cancel()
    await asyncio.gather(task, going, return_exceptions=True)
    if (failed := fault()) is not None:
        raise failed
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
    if gone.is_set() and not started():
        raise asyncio.CancelledError
