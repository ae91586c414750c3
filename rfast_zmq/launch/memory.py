"""What a node's process asks of the C library's allocator and of the scheduler."""

from __future__ import annotations

import ctypes
import os
import sys
import threading

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEEP_BYTES = 256 << 20
MMAP_FROM_BYTES = 32 << 20  # the most that glibc accepts
SECOND = 2
"""Steps of niceness."""


def keep_freed_memory() -> bool:
    """Let the process reuse the pages of freed buckets instead of giving them back to the system.

    Every message and every relayed model is a fresh buffer of up to 1 MB. glibc would map and unmap each, and the page
    faults cost more than the arithmetic. What is kept is bounded by what was in use at once, by all threads together:
    from here on there is one arena for all threads, since what ZeroMQ's thread allocates another frees, and what is
    freed in one arena serves no other (those that other threads of a user's process have already stay). Does nothing
    where the C library is not glibc.

    Returns:
        Whether it took effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    asked = ((M_MMAP_THRESHOLD, MMAP_FROM_BYTES), (M_TRIM_THRESHOLD, KEEP_BYTES), (M_ARENA_MAX, 1))
    return all(bool(mallopt(*what)) for what in asked)


def share_cores() -> bool:
    """Tell the scheduler that this process need not run the instant it could (Linux: ``SCHED_BATCH``).

    Where several nodes share a core, one that wakes would otherwise interrupt another in the middle of its arithmetic,
    and both go on with cold caches. What a node gains by running half a millisecond earlier is less.

    Returns:
        Whether it took effect.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return False
    try:
        if os.sched_getscheduler(0) != os.SCHED_OTHER:  # somebody chose
            return False
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError:
        return False
    return True


def come_second() -> bool:
    """Tell the scheduler that this thread comes after the others of its process (Linux: two steps of niceness, or
    two parts of a core to another's three): where a user's loop and its node share a core, the loop hardly notices.

    Returns:
        Whether it took effect.
    """
    if not sys.platform.startswith("linux"):  # elsewhere it would be the whole process
        return False
    try:
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + SECOND)
    except OSError:
        return False
    return True
