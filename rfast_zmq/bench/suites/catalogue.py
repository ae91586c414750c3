"""The suites by their names, and what they hold."""

from __future__ import annotations

from shlex import quote

from rfast_zmq.bench.suites.block import Suite
from rfast_zmq.bench.suites.others import CHARLM, QUICK, RIVALS, scale
from rfast_zmq.bench.suites.paper import (
    PAPER_A,
    PAPER_B,
    PAPER_B_END,
    PAPER_B_OWN,
    PAPER_B_OWN_EVEN,
    PAPER_B_SPEEDS,
    PAPER_C,
)
from rfast_zmq.bench.suites.slow_links import SLOW_HOSTS, SLOW_LINKS
from rfast_zmq.errors import UsageError

SUITES = {
    s.name: s
    for s in (
        Suite(
            name="quick",
            about="the paper's algorithms on digits, in virtual time",
            costs="about 4 minutes",
            blocks=(QUICK,),
        ),
        Suite(
            name="paper",
            about="the paper's claims: (a) softmax regression over five topologies, in virtual time; (b) a perceptron"
            " in real processes; (c) a ResNet, in virtual time",
            costs="about 15 hours by estimate, of which (a) 2 and (c) 2½",
            blocks=(PAPER_A, PAPER_B, PAPER_B_SPEEDS, PAPER_B_OWN, PAPER_B_OWN_EVEN, PAPER_B_END, PAPER_C),
        ),
        Suite(
            name="rivals",
            about="every algorithm here on the perceptron, in virtual time",
            costs="about 50 minutes by estimate",
            blocks=(RIVALS,),
        ),
        Suite(
            name="charlm",
            about="a transformer on text, in virtual time",
            costs="about 2 hours by estimate",
            blocks=(CHARLM,),
        ),
        Suite(
            name="slow-links",
            about="lines on which an all-reduce takes as long as the gradient: (a) in virtual time; (b) in network"
            " namespaces, as root",
            costs="4 hours by estimate, of which (b) 2½",
            blocks=(SLOW_LINKS, SLOW_HOSTS),
        ),
        Suite(
            name="scale",
            about="8 to 1,024 nodes, in virtual time; --part: the number of nodes",
            costs="about 1½ hours",
            blocks=tuple(scale(nodes) for nodes in (8, 32, 128, 512, 1024)),
        ),
    )
}


def suite(name: str) -> Suite:
    """
    Raises:
        UsageError: no such suite.
    """
    if name not in SUITES:
        raise UsageError(f"{name}: no such suite; one of {', '.join(SUITES)}")
    return SUITES[name]


def listed() -> str:
    """Every suite with what it is, the data it wants and what it costs, for a terminal."""
    lines = []
    for s in SUITES.values():
        wants = sorted({f"--{block.ground.data}" for block in s.blocks if block.ground.data})
        lines += [
            f"{s.name:<12}{s.about}",
            f"{'':<12}needs {', '.join(wants) or 'no data'}; whole, on two cores: {s.costs}",
        ]
    return "\n".join([*lines, "", "rfast bench suites SUITE tells what --part, --cells and --only may name."])


def contents(s: Suite) -> str:
    """Its parts with their cells and contestants, as the flags of ``rfast bench run`` take them, for a terminal."""
    lines = []
    for block in s.blocks:
        ground = block.ground
        part = f"--part {block.part}: " if block.part else ""
        where = "virtual time" if ground.simulated else "real processes"
        batch = f"B = {ground.batch:,}" if block.cells else "each at its own best B"
        end = f"to an accuracy of {ground.target:g} or {ground.samples:,} samples"
        if all(cell.to_the_end for cell in (*block.cells, *block.own_cells)):
            end = f"all of {ground.samples:,} samples"
        run = [c for c in block.contestants if not c.alone and ground.nodes <= c.nodes_most]
        lines += [f"{part}{ground.title}", f"  {where}, {ground.nodes} nodes, {batch}, {end}"]
        cells = {"--tables fixed --cells": block.cells, "--tables own --cells": block.own_cells}
        lines += [f"  {flag} {' '.join(cell.key for cell in of_kind)}" for flag, of_kind in cells.items() if of_kind]
        lines += [f"  --only {' '.join(quote(c.label) for c in run)}", ""]
    return "\n".join(lines[:-1])
