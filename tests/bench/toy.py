"""A suite that is run in seconds, for the tests of what runs suites and of what reports on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rfast_zmq.bench.suites.block import Aim, Block, Suite
from rfast_zmq.bench.suites.ground import ALONE, Cell, Contestant, Ground
from rfast_zmq.bench.suites.runner import Choice, Runner
from rfast_zmq.bench.suites.store import Store

TOY = Ground(name="toy", title="digits", task="digits.py", nodes=3, batch=48, target=0.8, samples=6000, share_s=0.05)
OURS = Contestant(label="rfast-tree", algorithm="rfast-tree", topology="line", optimizer="sgd", lr=0.5, report=0.5)
RING = Contestant(label="ring-allreduce", algorithm="ring-allreduce", topology="ring", optimizer="sgd", lr=0.5)
SINGLE = Contestant(label=ALONE, algorithm="rfast-tree", topology="line", optimizer="sgd", lr=0.5)
CELL = Cell(split="iid")
AIM = Aim(what="ours", ours=("rfast-tree",), over="ring-allreduce", cell=CELL, least=1.0)
BLOCK = Block(
    ground=TOY,
    contestants=(OURS, RING, SINGLE),
    cells=(CELL, replace(CELL, loss=0.3)),
    reference="ring-allreduce",
    tuning_seeds=1,
    aims=(AIM, replace(AIM, what="limit", kind="limit", over=ALONE)),
)
CHOICE = Choice(data={}, seeds=3, jobs=2)


def toy(*blocks: Block) -> Suite:
    return Suite(name="toy", about="", costs="", blocks=blocks)


def simulate(folder: Path, block: Block = BLOCK, choice: Choice = CHOICE) -> tuple[Store, list[str]]:
    said: list[str] = []
    suite = toy(block)
    Runner(suite, choice, Store(folder, "toy"), said.append).run()
    return Store(folder, "toy"), said
