"""What every test stands on: one torch thread, a hypothesis profile, no process left behind, an end to every wait.

Sockets and contexts that are left open need no fixture here: pyzmq warns of them when they are collected, and warnings
are errors (pyproject.toml).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_timeout
import torch
from hypothesis import HealthCheck, settings

# One thread: tests run on 2 cores, often side by side, and small tensors gain nothing from more.
torch.set_num_threads(1)

settings.register_profile("ci", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")

# A shell that has no job control starts what goes to the background with Ctrl-C ignored, and so would be what we start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

GRACE_S = 5.0


def _children() -> set[tuple[int, str]]:
    """(pid, command) of this process's children, dead ones that nobody waited for included; Linux only, else none."""
    found = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        try:
            children = listing.read_text().split()
        except OSError:  # a thread that has just ended
            continue
        for pid in children:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if "resource_tracker" not in command and "forkserver" not in command:  # multiprocessing keeps its own
                found.add((int(pid), command))
    return found


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Fail a test that leaves a child process behind."""
    before = {pid for pid, _ in _children()}
    yield
    end = time.monotonic() + GRACE_S
    while left := {c for c in _children() if c[0] not in before}:
        if time.monotonic() > end:
            pytest.fail(f"child processes left behind: {sorted(left)}")
        time.sleep(0.02)


_WATCHES: dict[str, threading.Timer] = {}


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """A test that took too long is left by an exception, and may then wait, in a ``with``, for a process that never
    ends: a little later its children are killed. (None: pytest-timeout sets its own timer as well.)"""
    if pytest_timeout.is_debugging():
        return
    before = {pid for pid, _ in _children()}

    def end_the_wait() -> None:
        for pid, _ in _children():
            if pid not in before:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    _WATCHES[item.nodeid] = watch = threading.Timer(settings.timeout + GRACE_S, end_the_wait)
    watch.daemon = True
    watch.start()


def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    if (watch := _WATCHES.pop(item.nodeid, None)) is not None:
        watch.cancel()
        watch.join()
