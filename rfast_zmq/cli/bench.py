"""``rfast bench``: the node beside plain PyTorch and ZeroMQ; the algorithms side by side."""

from __future__ import annotations

import json as jsons
import os
import sys
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from rfast_zmq.cli.flags import WHOLE

if TYPE_CHECKING:
    from rfast_zmq.bench import Figures

bench = App(
    name="bench",
    help="The node beside plain PyTorch and ZeroMQ, and the algorithms side by side, on this machine.",
    default_parameter=Parameter(negative=(), consume_multiple=True),
)


@bench.command
def transport(
    *,
    megabytes: float = 100.0,
    models: Annotated[int, WHOLE] = 10,
    relayed: Annotated[int, WHOLE] = 250,
    repeats: Annotated[int, WHOLE] = 5,
    json: bool = False,
) -> None:
    """A model from process to process beside bare pyzmq and gloo; the age of a model that is passed on.

    Parameters
    ----------
    megabytes
        Size of the model, in 10^6 bytes.
    models
        How often it is sent in one measurement.
    relayed
        How many models are passed on in one measurement of their age.
    repeats
        Measurements of each kind, in turn; medians are given.
    json
        Print one JSON object, the last line of standard output.
    """
    from rfast_zmq.bench.transport import TransportOptions
    from rfast_zmq.bench.transport import transport as measure

    options = TransportOptions(megabytes=megabytes, models=models, relayed=relayed, repeats=repeats)
    _show(measure(options, _tell), json)


@bench.command
def overhead(
    *,
    parameters: Annotated[int, WHOLE] = 25_000_000,
    gradient_ms: float = 50.0,
    optimizer: str = "nadam",
    steps: Annotated[int, WHOLE] = 40,
    reports: Annotated[int, WHOLE] = 10_000,
    repeats: Annotated[int, WHOLE] = 5,
    device: str = "cpu",
    json: bool = False,
) -> None:
    """A training loop of one's own as a node among others, beside the same loop by itself: time, memory, imports.

    Parameters
    ----------
    parameters
        Of the model.
    gradient_ms
        Milliseconds that forward and backward pass take at least, the core busy all the while.
    optimizer
        sgd, momentum, adamw or nadam, on both sides.
    steps
        Counted in one measurement.
    reports
        After so many the memory of an inner node is looked at again.
    repeats
        Measurements of each kind, in turn; medians are given.
    device
        Of the loop that is measured: cpu, cuda, cuda:1, …; the other nodes are always on the CPU.
    json
        Print one JSON object, the last line of standard output.
    """
    from rfast_zmq.bench.overhead import OverheadOptions
    from rfast_zmq.bench.overhead import overhead as measure

    options = OverheadOptions(
        parameters=parameters,
        gradient_ms=gradient_ms,
        optimizer=optimizer,
        steps=steps,
        reports=reports,
        repeats=repeats,
        device=device,
    )
    _show(measure(options, _tell), json)


@bench.command
def stall(
    *,
    seconds: float = 30.0,
    positions: tuple[str, ...] = ("root", "inner", "leaf"),
    gradient_ms: float = 100.0,
    repeats: Annotated[int, WHOLE] = 1,
    json: bool = False,
) -> None:
    """One of seven nodes is stopped for a while: the others' pace meanwhile, and how soon it counts again.

    Parameters
    ----------
    seconds
        For how long.
    positions
        Which node is stopped, one after the other: of root, inner and leaf.
    gradient_ms
        Emulated milliseconds of a gradient.
    repeats
        Runs of each position; medians are given.
    json
        Print one JSON object, the last line of standard output.
    """
    from rfast_zmq.bench.stall import StallOptions, parse_positions
    from rfast_zmq.bench.stall import stall as measure

    options = StallOptions(
        seconds=seconds, positions=parse_positions(positions), gradient_ms=gradient_ms, repeats=repeats
    )
    _show(measure(options, _tell), json)


@bench.command
def suites(suite: str | None = None, /) -> int:
    """The suites that rfast bench run takes, and what they cost; of one, its parts, cells and contestants.

    Parameters
    ----------
    suite
        quick, paper, rivals, charlm, slow-links or scale; if not given, a line about each.
    """
    from rfast_zmq.bench.suites.catalogue import contents, listed
    from rfast_zmq.bench.suites.catalogue import suite as named

    print(listed() if suite is None else contents(named(suite)))
    return 0


@bench.command
def run(
    suite: str,
    /,
    *,
    out: Path,
    part: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    cells: tuple[str, ...] = (),
    tables: tuple[str, ...] = ("fixed", "own"),
    seeds: Annotated[int | None, WHOLE] = None,
    first_seed: Annotated[int, WHOLE] = 0,
    jobs: Annotated[int | None, WHOLE] = None,
    mnist: Path | None = None,
    cifar10: Path | None = None,
    text: Path | None = None,
) -> int:
    """The algorithms side by side on the same ground: each at its best lr, over paired seeds. It can be resumed.

    Parameters
    ----------
    suite
        quick, paper, rivals, charlm, slow-links or scale (rfast bench suites says what they are).
    out
        Folder of the results; what is there already is not run again.
    part
        Of the suite paper: a, b, c; of slow-links: a, b.
    only
        These algorithms only, by their name in the tables.
    cells
        These conditions only, such as label/straggler or iid/even.
    tables
        fixed: the same B for all, each at its best lr; own: each at its best B and lr.
    seeds
        How many are reported; if not given, 10 in virtual time (5 where runs are long) and 5 in real processes.
    first_seed
        The first of them; 1000 to 1003 are for tuning.
    jobs
        Simulated runs at a time; if not given, one for each CPU.
    mnist
        MNIST, a .npz file (see nodes/mnist.py).
    cifar10
        CIFAR-10, a .npz file (see nodes/cifar10.py).
    text
        A text file (see nodes/charlm.py).
    """
    from rfast_zmq.bench.suites.catalogue import suite as named
    from rfast_zmq.bench.suites.runner import Choice, Runner, chosen_blocks
    from rfast_zmq.bench.suites.store import Store

    files = {"mnist": mnist, "cifar10": cifar10, "text": text}
    chosen = named(suite)
    choice = Choice(
        seeds=seeds,
        first_seed=first_seed,
        parts=part,
        only=only,
        cells=cells,
        tables=tables,
        jobs=(os.cpu_count() or 1) if jobs is None else jobs,
        data={name: str(path) for name, path in files.items() if path is not None},
    )
    chosen_blocks(chosen, choice)  # refuses what cannot be, before the folder is the suite's
    Runner(chosen, choice, Store(out, chosen.name), _tell).run()
    return 0


@bench.command
def report(folder: Path, /, *, page: Path | None = None) -> int:
    """Tables and pictures of what a suite found.

    Parameters
    ----------
    folder
        What was given to --out of rfast bench run; report.md and the pictures are written there.
    page
        A Markdown page whose parts between the marks of this suite are replaced; its pictures go to images beside it.
    """
    from rfast_zmq.bench.suites.report import write

    for path in write(folder, page):
        print(f"written: {path}")
    return 0


def own_options() -> list[str]:
    """The names of all flags of this verb, without dashes."""
    verbs = (transport, overhead, stall, suites, run, report)
    found = [p for verb in verbs for p in signature(verb).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return sorted({p.name.replace("_", "-") for p in found})


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show(figures: Figures, json: bool) -> None:
    if json:
        print(jsons.dumps(figures.json()))
        return
    for name, value, aim, what in figures.table():
        print(f"{name:<28} {value:<28} {aim:<14} {what}".rstrip())
    for name, value in figures.conditions.items():
        print(f"{name}: {value}")
