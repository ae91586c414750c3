"""What the benchmarks share: paired seeds, medians with their spread, a table, one JSON object at the end.

Time in these files is emulated: a node computes the real gradient and then waits up to a drawn duration, the same draw
for everything compared. Ratios are of two runs with the same seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from rfast_zmq.assembly import Plan
from rfast_zmq.launch import Run, run
from rfast_zmq.settings import Settings
from rfast_zmq.simulate import Simulation, Simulator

ROOT = Path(__file__).parents[1]
DIGITS, MNIST = str(ROOT / "nodes" / "digits.py"), str(ROOT / "nodes" / "mnist.py")


def arguments(about: str | None, seeds: int, *, data: bool = True) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", type=int, default=seeds, help=f"paired seeds, from --first-seed on (default {seeds})"
    )
    parser.add_argument("--first-seed", type=int, default=0)
    if data:
        parser.add_argument("--data", required=True, help="MNIST: a .npz with x uint8 (N, 28, 28) and y (N,)")
    return parser


def seeds_of(args: argparse.Namespace) -> range:
    return range(args.first_seed, args.first_seed + args.seeds)


def simulated(task: str, *, bytes_per_s: float = inf, **settings: Any) -> Simulation:
    """One run in virtual time.

    Args:
        task: which.
        bytes_per_s: of each node's outgoing and of its incoming line.
        settings: of the run.
    """
    return Simulator(Plan.make(task, Settings(**settings)), bytes_per_s=bytes_per_s).run()


def real(task: str, **settings: Any) -> Run:
    """One run with a process a node."""
    return run(Plan.make(task, Settings(**settings)))


def one_machine(task: str, **settings: Any) -> Simulation:
    """One machine alone: every step a whole batch B, all the data, the same optimiser, lr, batch and schedule."""
    batch = Plan.make(task, Settings(**settings)).settings.global_batch
    alone = {
        "nodes": 1,
        "topology": "line",
        "split": "iid",
        "report_batch": batch,
        "straggler": (),
        "algorithm": "rfast-tree",
    }
    alone |= {"drop": 0.0, "duplicate": 0.0, "reorder": 0.0, "compute": "constant:0.1"}
    return simulated(task, **{**settings, **alone})


def total_rate(task: str, **settings: Any) -> float:
    """Samples a second of all nodes together if none of them ever waits."""
    plan = Plan.make(task, Settings(**settings))
    share = plan.settings.share
    return sum(plan.speeds.mean_rate(rank, share) for rank in range(plan.topology.nodes))


def spread(values: Iterable[float | None]) -> str:
    """``median (least to most)``; a value that was not reached counts as never."""
    found = sorted(float("inf") if v is None else v for v in values)
    return f"{median(found):.3g} ({found[0]:.3g} to {found[-1]:.3g})"


def middle(values: Iterable[float | None]) -> float | None:
    """The median, None if it was not reached."""
    found = median(float("inf") if v is None else v for v in values)
    return None if found == float("inf") else found


def ratio(a: float | None, b: float | None) -> float | None:
    """a ÷ b, None where either was not reached."""
    return None if a is None or not b else a / b


def tell(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A Markdown table on standard output."""
    print("| " + " | ".join(header) + " |")
    print("|" + " --- |" * len(header))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


def last_line(**found: object) -> None:
    """The last line of standard output: one JSON object."""
    print(json.dumps(found))
