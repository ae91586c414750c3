"""What one node of a run over hosts shows: only what it knows."""

from __future__ import annotations

import os
import pty
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rfast_zmq.assembly import Plan
from rfast_zmq.cli.outcome import Outcome, finish
from rfast_zmq.cli.progress import Progress, Screen
from rfast_zmq.launch import Run
from rfast_zmq.settings import Settings

ROOT = Path(__file__).parents[2]
BIG, SMALL = 0, 1


@pytest.fixture
def plan() -> Plan:
    settings = Settings(topology=str(ROOT / "topologies" / "two-hosts.toml"), samples=5000)
    return Plan.make(str(ROOT / "nodes" / "quadratic.py"), settings)


def report(rank: int, **more: Any) -> dict[str, Any]:
    """A node's standing before anything has happened, but for ``more``."""
    nothing = {"rounds": 0.0, "samples": 0, "own_samples": 0, "gradients": 0, "loss": nan, "staleness_rounds": 0.0}
    nothing |= {"pace": 0.0, "slowest_rank": -1, "slowest_pace": inf, "set_aside": [], "accepted": 0, "bytes_sent": 0}
    return {**nothing, "rank": rank, "time_s": 0.5, "samples_per_s": 0.0, **more}


def shown(progress: Progress) -> str:
    """The live panel as text."""
    console = Console(width=200, highlight=False)
    with console.capture() as capture:
        console.print(progress)
    return capture.get()


def line(progress: Progress, capsys: pytest.CaptureFixture[str], **more: Any) -> str:
    """The line that is due after one more report."""
    capsys.readouterr()
    progress.started([])
    progress._next_line_s = 0.0
    progress.report(report(progress._main, **more))
    return capsys.readouterr().out


WORKING = {"gradients": 9, "own_samples": 90, "samples": 140, "rounds": 12.4, "loss": 0.5, "pace": 100.0, "accepted": 5}


def test_a_node_that_has_no_model_yet_says_whom_it_waits_for(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(plan, rank=SMALL) as progress:
        said = line(progress, capsys)
        assert said == "0.5 s  waiting for the first model from node big (rank 0)\n"
        assert "waiting for the first model from node big (rank 0)" in shown(progress)
        assert "waiting for the first gradient" in line(progress, capsys, accepted=1)
        for text in (line(progress, capsys, **WORKING), shown(progress)):
            assert "waiting" not in text


def test_away_from_the_root_a_node_shows_its_own_samples_and_no_staleness(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(plan, rank=SMALL) as progress:
        progress.report(report(SMALL))
        said = line(progress, capsys, time_s=2.5, **WORKING)
        for text in (said, shown(progress)):
            assert "90 own samples  the run's round 12" in text
            assert "45 samples/s" in text
            assert "140" not in text
            assert "5,000" not in text
            assert "staleness" not in text
            assert "nan" not in text


def test_the_root_shows_the_run(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(plan, rank=BIG) as progress:
        said = line(progress, capsys, time_s=2.5, **WORKING)
        assert "140 of 5,000 samples  round 12" in said
        assert "staleness 0.00 rounds" in said


@pytest.mark.parametrize(("rank", "root"), [(BIG, True), (SMALL, False)])
def test_the_summary_of_one_node(rank: int, root: bool, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(replace(plan.result(simulated=False), samples=140, rounds=12.4))
    run.result.per_node.append({"rank": rank, "samples": 90, "gradients": 9, "pace": 100.0})
    assert finish(Outcome(plan, run, rank=rank), None, json=False) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("samples 140 in 12.4 rounds of" in said) is root
    assert ("staleness" in said) is root
    assert ("own samples 90 the run 12.4 rounds of" in said) is not root


def test_a_node_that_was_interrupted_itself_ends_with_130(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (BIG, SMALL):
        run = Run(plan.result(simulated=False), interrupted=True)
        assert finish(Outcome(plan, run, interrupted=run.interrupted, rank=rank), None, json=True) == 130
        run = Run(plan.result(simulated=False))
        assert finish(Outcome(plan, run, interrupted=run.interrupted, rank=rank), None, json=True) == 0


def test_what_is_written_to_a_terminal_that_was_closed_goes_nowhere_and_other_failures_are_told() -> None:
    terminal, ours = pty.openpty()
    with open(ours, "w") as stream:
        screen = Screen(stream)
        screen.write("seen\n")
        screen.flush()
        assert os.read(terminal, 100) == b"seen\r\n"
        assert screen.isatty()
        os.close(terminal)
        screen.write("lost\n")
        screen.flush()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # what is still kept back is written as the stream is closed
        os.close(nowhere)
    with open("/dev/full", "w") as full:
        Screen(full).write("x")
        with pytest.raises(OSError, match="No space left"):
            Screen(full).flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
