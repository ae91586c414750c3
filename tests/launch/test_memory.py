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


@linux
def test_a_thread_that_comes_second_leaves_the_others_of_its_process_where_they_are() -> None:
    assert (
        told(
            "import os, threading\n"
            "from rfast_zmq.launch.memory import come_second\n"
            "found, before = [], os.getpriority(os.PRIO_PROCESS, 0)\n"
            "mine = lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) - before\n"
            "thread = threading.Thread(target=lambda: found.extend([come_second(), mine()]))\n"
            "thread.start(); thread.join()\n"
            "print(found, mine())"
        )
        == "[True, 2] 0"
    )


@linux
def test_what_one_thread_frees_another_uses_again() -> None:
    """Buckets that one thread allocates and another frees, as ZeroMQ's thread and a node do: memory does not grow by
    what each has had at once."""
    growth = told(
        "import torch\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from rfast_zmq.launch.memory import keep_freed_memory\n"
        "def kilobytes():\n"
        "    return int(next(line for line in open('/proc/self/status') if line.startswith('VmRSS')).split()[1])\n"
        "torch.ones(1)\n"
        "assert keep_freed_memory()\n"
        "held, before, threads = [], kilobytes(), [ThreadPoolExecutor(1) for _ in range(4)]\n"
        "for thread in threads:\n"
        "    thread.submit(lambda: held.extend(torch.ones(250_000) for _ in range(40))).result()\n"
        "    held.clear()\n"
        "print((kilobytes() - before) / 40_000)"
    )
    assert float(growth) < 2.0
