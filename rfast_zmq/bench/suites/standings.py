"""What the runs of a suite say: each contestant in each cell, medians over paired seeds, and the figures to reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import median
from typing import Any

from rfast_zmq.bench.suites.block import Aim, Block, Suite
from rfast_zmq.bench.suites.ground import ALONE, Cell, Contestant, no_wait_rate
from rfast_zmq.bench.suites.runner import ALONE_CELL, FIXED, OWN, TUNING_SEEDS
from rfast_zmq.bench.suites.store import Store
from rfast_zmq.bench.suites.tuning import Score

Row = dict[str, Any]
NOT_RUN, NOTHING = "not run", "neither got there on an equal seed"
PAIRS_LEAST = 5
"""Paired seeds that a figure is judged by."""


@dataclass
class Standing:
    """A contestant in a cell.

    Attributes:
        contestant: which.
        batch, lr: with which it ran.
        runs: by seed.
        open_end: the best lr is at the end of its grid.
        tuned: how good it was on the seeds for tuning, the smaller the better.
    """

    contestant: Contestant
    batch: int
    lr: float
    runs: dict[int, Row]
    open_end: bool = False
    tuned: Score = (inf, inf)

    @property
    def stops(self) -> str | None:
        """Why the algorithm does not run under these conditions; None: it does."""
        return next((row["stops"] for row in self.runs.values() if "stops" in row), None)

    def values(self, name: str) -> dict[int, float | None]:
        """One of a run's numbers, by seed."""
        return {seed: row.get(name) for seed, row in self.runs.items() if "stops" not in row}

    @property
    def nevers(self) -> int:
        """Seeds with which the target was not reached."""
        return list(self.values("target_s").values()).count(None)

    def median_s(self) -> float:
        """To the target; infinite where it was not reached."""
        found = [inf if v is None else v for v in self.values("target_s").values()]
        return median(found) if found else inf


@dataclass
class Table:
    """All contestants in one cell of a ground, at the given B or at each one's own.

    Attributes:
        block: the ground and what runs on it.
        cell: the conditions.
        kind: ``fixed`` or ``own``.
        standings: in the order of the block, those that have runs; one machine is not among them.
        alone: one machine; None: it was not run.
    """

    block: Block
    cell: Cell
    kind: str
    standings: list[Standing] = field(default_factory=list)
    alone: Standing | None = None

    def named(self, label: str) -> Standing | None:
        return next((s for s in self.standings if s.contestant.label == label), None)

    @property
    def seeds(self) -> int:
        """The most that a contestant has runs of."""
        return max(len(s.runs) for s in self.standings)

    def limit_s(self) -> dict[int, float | None]:
        """By seed, the seconds that it takes if nobody ever waits and every sample counts as on one machine."""
        if self.alone is None:
            return {}
        rate = no_wait_rate(self.block.ground, self.cell)
        return {seed: v and v / rate for seed, v in self.alone.values("target_samples").items()}

    def computed(self, standing: Standing) -> dict[int, float | None]:
        """By seed, the samples a second of a run over those that all nodes together do if none ever waits. Where nobody
        waits it is 1, if the machine keeps the emulated pace."""
        rate = no_wait_rate(self.block.ground, self.cell)
        runs = standing.values("samples").items()
        wall_s = standing.values("wall_s")
        return {seed: samples / (over * rate) if samples and (over := wall_s[seed]) else None for seed, samples in runs}

    def best_of_each_algorithm(self) -> list[Standing]:
        """Of an algorithm on several topologies, or with gradients of several sizes, the fastest on the seeds for
        tuning."""
        best: dict[str, Standing] = {}
        for standing in self.standings:
            key = standing.contestant.algorithm + standing.contestant.wire
            if key not in best or standing.tuned < best[key].tuned:
                best[key] = standing
        return list(best.values())


@dataclass(frozen=True)
class Reached:
    """A figure to reach, and what was found: by seed; empty if there is nothing to compare, and ``why``. Below
    :data:`PAIRS_LEAST` there is no verdict."""

    aim: Aim
    label: str
    values: list[float]
    why: str = ""

    @property
    def value(self) -> float:
        return median(self.values)

    @property
    def reached(self) -> bool | None:
        """None: too few seeds to tell."""
        if len(self.values) < PAIRS_LEAST:
            return None
        return self.value <= self.aim.least if self.aim.kind in ("cpu", "accuracy") else self.value >= self.aim.least


def tables_of(suite: Suite, store: Store) -> list[Table]:
    """Every table that has runs, in the order of the suite."""
    series: dict[str, dict[int, Row]] = {}
    for row in store.runs.values():
        if row["seed"] not in TUNING_SEEDS:
            series.setdefault(row["series"], {})[row["seed"]] = row
    # Who was searched anew and has not run with what was found stands there as before.
    there = [r for r in store.tuned() if r["series"] in series]
    tuned = {(r["ground"], r["cell"], r["contestant"], r["table"]): r for r in there}

    def standing(block: Block, cell: Cell, contestant: Contestant, kind: str) -> Standing | None:
        best = tuned.get((block.ground.name, cell.key, contestant.label, kind))
        if best is None:
            return None
        runs = dict(sorted(series[best["series"]].items()))
        optimizer, batch, lr = best["optimizer"], best["batch"], best["lr"]
        scores = {(b, of): (inf if s is None else s, -a) for b, of, s, a in best["tried"][optimizer]}
        own = contestant.with_optimizer(optimizer)
        return Standing(own, batch, lr, runs, best["open_end"], scores.get((batch, lr), (inf, inf)))

    found = []
    for block in suite.blocks:
        for kind in (FIXED, OWN):
            for cell in block.cells if kind == FIXED else block.own_cells:
                table = Table(block, cell, kind)
                for contestant in block.contestants:
                    if contestant.alone:
                        table.alone = standing(block, ALONE_CELL, contestant, kind)
                    elif (one := standing(block, cell, contestant, kind)) is not None:
                        table.standings.append(one)
                if table.standings:
                    found.append(table)
    return found


def reached(tables: Sequence[Table]) -> list[Reached]:
    """Every figure to reach of the blocks of ``tables``."""
    found = []
    for block in {id(t.block): t.block for t in tables}.values():
        for aim in block.aims:
            of = next((t for t in tables if t.block is block and t.cell == aim.cell and t.kind == aim.table), None)
            found.append(_reached(aim, of))
    return found


def _reached(aim: Aim, table: Table | None) -> Reached:
    ours = [s for label in aim.ours if table and (s := table.named(label)) and not s.stops]
    if table is None or not ours:
        return Reached(aim, aim.ours[0], [], NOT_RUN)
    best = min(ours, key=lambda s: s.tuned)
    theirs = table.named(aim.over)
    label = best.contestant.label
    if aim.kind == "limit":
        values = ratios(table.limit_s(), best.values("target_s"))
        return Reached(aim, label, values, "" if values else f"`{ALONE}` was {NOT_RUN}")
    if theirs is None or theirs.stops:
        return Reached(aim, label, [], f"`{aim.over}` stops" if theirs else f"`{aim.over}` was {NOT_RUN}")
    if aim.kind == "cpu":
        values = ratios(best.values("cpu_s"), theirs.values("cpu_s"))
    elif aim.kind == "accuracy":
        pairs = paired(theirs.values("accuracy"), best.values("accuracy"))
        values = [100 * (a - b) for a, b in pairs if a is not None and b is not None]
    else:
        values = ratios(theirs.values("target_s"), best.values("target_s"))
    return Reached(aim, label, values, "" if values else NOTHING)


def paired(a: dict[int, float | None], b: dict[int, float | None]) -> list[tuple[float | None, float | None]]:
    """Of the seeds that both have."""
    return [(a[seed], b[seed]) for seed in a if seed in b]


def ratios(a: dict[int, float | None], b: dict[int, float | None]) -> list[float]:
    """a ÷ b of each seed that both have; None is never, which is infinite. Where neither got there, there is none."""
    found = []
    for over, under in paired(a, b):
        if under is None and over is not None:
            found.append(0.0)
        elif over is None and under is not None:
            found.append(inf)
        elif over is not None and under:
            found.append(over / under)
    return found


def spread(values: Iterable[float | None], show: Callable[[float], str], infinite: str = "never") -> str:
    """``median (least to most)``; ``infinite`` stands for None and infinite. Empty: a dash."""
    found = sorted(inf if v is None else v for v in values)
    if not found:
        return "–"
    middle, least, most = (show(v) if v < inf else infinite for v in (median(found), found[0], found[-1]))
    return middle if least == middle == most else f"{middle} ({least} to {most})"
