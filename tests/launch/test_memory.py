"""What a node's process asks of the system, asked in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux has it")


def told(line: str) -> str:
    return subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True).stdout.strip()


@linux
def test_a_node_that_shares_its_cores_interrupts_nobody_and_so_do_its_threads() -> None:
    assert (
        told(
            "import os, threading\n"
            "from rfast_zmq.launch.memory import share_cores\n"
            "took = share_cores()\n"
            "found = []\n"
            "thread = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0) == os.SCHED_BATCH))\n"
            "thread.start(); thread.join()\n"
            "print(took, os.sched_getscheduler(0) == os.SCHED_BATCH, found)"
        )
        == "True True [True]"
    )


def test_a_system_that_has_no_such_thing_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from rfast_zmq.launch.memory import share_cores

    monkeypatch.delattr(os, "SCHED_BATCH", raising=False)
    assert not share_cores()
