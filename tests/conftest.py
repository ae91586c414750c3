"""What every test stands on: one torch thread, a hypothesis profile, and no process left behind.

Sockets and contexts that are left open need no fixture here: pyzmq warns of them when they are collected, and warnings
are errors (pyproject.toml).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# One thread: tests run on 2 cores, often side by side, and small tensors gain nothing from more.
torch.set_num_threads(1)

settings.register_profile("ci", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")

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
