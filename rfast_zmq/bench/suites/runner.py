"""Runs a suite: the search for each contestant's best lr, then the runs that are reported. What is there stays.

Virtual time goes first, several runs side by side in processes of their own. Real runs follow one after the other, the
contestants in turn within each seed, so that what else the machine does meets all of them alike.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf, isfinite
from pathlib import Path
from statistics import median

from rfast_zmq.bench.suites.block import Block, Suite
from rfast_zmq.bench.suites.ground import ALONE, Cell, Contestant, Ground, Job
from rfast_zmq.bench.suites.perform import Row, code, perform, score
from rfast_zmq.bench.suites.store import Store
from rfast_zmq.bench.suites.tuning import Score, Tuned, best_batch, best_lr
from rfast_zmq.bench.suites.workers import Workers
from rfast_zmq.errors import RfastError, TaskError, UsageError
from rfast_zmq.launch.namespaces import Namespaces

TUNING_SEEDS = (1000, 1001, 1002, 1003)
ALONE_CELL = Cell(split="iid", speeds="even")
FIXED, OWN = "fixed", "own"
"""The two tables: B given and lr at its best; B and lr at their best."""
OWN_SEEDS_MOST = 2
"""So many seeds an lr is tried with for the second, which tries many more of them."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What of a suite is run.

    Attributes:
        seeds: how many that are reported; None: as many as the suite says.
        first_seed: the first of them.
        parts: of the suite; empty: all.
        only: labels of contestants; empty: all.
        cells: keys of cells; empty: all.
        tables: of :data:`FIXED` and :data:`OWN`.
        jobs: simulated runs at a time.
        data: paths of the data files by name.
    """

    seeds: int | None = None
    first_seed: int = 0
    parts: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()
    tables: tuple[str, ...] = (FIXED, OWN)
    jobs: int = os.cpu_count() or 1
    data: Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """A contestant in a cell of a block, in one of the tables."""

    block: Block
    cell: Cell
    contestant: Contestant
    table: str

    @property
    def ground(self) -> Ground:
        return self.block.ground


def tuning_seeds(entry: Entry) -> int:
    """How many seeds are run for one lr: all there are for what times are divided by, since every ratio hangs on it."""
    if entry.table == OWN:
        return min(entry.block.tuning_seeds, OWN_SEEDS_MOST)
    references = {c.searched_as for c in entry.block.contestants if c.label == entry.block.reference}
    return len(TUNING_SEEDS) if entry.contestant.searched_as in references else entry.block.tuning_seeds


class Runner:
    """One suite, or the chosen part of it.

    Args:
        suite: which.
        choice: what of it.
        store: where results go, and come from.
        tell: called with a line of progress.

    Raises:
        UsageError: as of :func:`chosen_blocks`.
    """

    def __init__(self, suite: Suite, choice: Choice, store: Store, tell: Callable[[str], None]) -> None:
        self.choice, self.store, self._tell = choice, store, tell
        self.blocks = chosen_blocks(suite, choice)
        self._searches: dict[str, asyncio.Task[Tuned]] = {}
        self._asked: dict[tuple[str, float], asyncio.Task[Row]] = {}
        self._cancel: Callable[[], object] | None = None  # ends what is under way in virtual time
        self._interrupted = False
        self._began, self._ran, self._skipped, self._of_other_code = time.monotonic(), 0, 0, False

    def run(self) -> None:
        """To the end. Ctrl-C, or SIGTERM, loses only the runs that are under way."""
        heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._interrupt) for number in heeded}
        try:
            self._run()
        finally:
            for number, handler in before.items():  # one more would meet the end of the program, which is on its way
                signal.signal(number, signal.SIG_IGN if self._interrupted else handler)

    def _interrupt(self, number: int, frame: object) -> None:
        """Once is enough. While the loop runs nothing is raised: where that hits the loop itself, a task that was to go
        on never does, and where it hits the start of a process, nobody knows of it."""
        if self._interrupted:
            return
        self._interrupted = True
        if self._cancel is None:
            raise KeyboardInterrupt
        self._cancel()

    def _run(self) -> None:
        try:
            later = asyncio.run(self._in_virtual_time())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            self._cancel = None
        if self._interrupted:
            raise KeyboardInterrupt
        once: list[Job] = []
        for jobs, again in ((later, once), (once, [])):
            for left, job in zip(range(len(jobs), 0, -1), jobs, strict=True):
                try:
                    row = perform(job)
                except (UsageError, TaskError):  # so it would be every time
                    raise
                except RfastError as error:  # a process was killed, or did not end: the others may still run
                    self._tell(f"{self._clock()} {job.title}: nothing of this run is kept: {error}")
                    again.append(job)
                else:
                    self._note(job, row, f", {left - 1} left" if left > 1 else "")
        self._tell(f"{self._clock()} done: {self._ran} runs, {self._skipped} were there")
        if again:
            raise RfastError(f"{len(again)} runs failed twice; the same command tries them again")

    # ------------------------------------------------------------------------------- virtual time

    async def _in_virtual_time(self) -> list[Job]:
        """Everything that is simulated; what is left to do in real processes, in order."""
        loop, this = asyncio.get_running_loop(), asyncio.current_task()
        assert this is not None
        self._cancel = lambda: None if loop.is_closed() else loop.call_soon_threadsafe(this.cancel)
        with Workers(self.choice.jobs) as self._workers:
            try:
                tuned = await asyncio.gather(*map(self._enter, self._entries()))
            except BaseException:
                others = asyncio.all_tasks() - {asyncio.current_task()}
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)
                raise
        later: dict[str, Job] = {}
        for block in self.blocks:
            for cell in dict.fromkeys((*block.cells, *block.own_cells)):
                for seed in self._seeds(block):
                    for entry, found in tuned:
                        if entry.block is block and entry.cell == cell and not _virtual(entry):
                            job = self._job(entry, found.batch, found.lr, seed, simulated=False)
                            later[job.key] = job
        left = [job for job in later.values() if self._there(job) is None]
        self._skipped += len(later) - len(left)
        return left

    def _entries(self) -> Iterable[Entry]:
        for block in self.blocks:
            yield from entries(block, self.choice)

    async def _enter(self, entry: Entry) -> tuple[Entry, Tuned]:
        """Find the best optimiser and lr, then run all seeds in virtual time if that is where this ground is."""
        found: dict[str, Tuned] = {}
        for name, _ in entry.contestant.optimizers:  # one by one: each has to beat those before it
            one = replace(entry, contestant=entry.contestant.with_optimizer(name))
            found[name] = await self._tuned(one, min((t.score[0] for t in found.values()), default=inf))
        optimizer = min(found, key=lambda name: found[name].score)
        tuned = found[optimizer]
        best = replace(entry, contestant=entry.contestant.with_optimizer(optimizer))
        first = self._job(best, tuned.batch, tuned.lr, self.choice.first_seed, simulated=_virtual(entry))
        self.store.add_tuned(
            {
                "series": first.series,
                "ground": entry.ground.name,
                "cell": entry.cell.key,
                "contestant": entry.contestant.label,
                "table": entry.table,
                "optimizer": optimizer,
                "batch": tuned.batch,
                "lr": tuned.lr,
                "open_end": tuned.open_end,
                "tried": {
                    name: [[b, lr, s if isfinite(s) else None, -a] for (b, lr), (s, a) in sorted(one.tried.items())]
                    for name, one in found.items()
                },
            }
        )
        if _virtual(entry):
            seeds = self._seeds(entry.block)
            jobs = [self._job(best, tuned.batch, tuned.lr, seed, simulated=True) for seed in seeds]
            await asyncio.gather(*map(self._simulated, jobs))
        return best, tuned

    async def _tuned(self, entry: Entry, best_s: float = inf) -> Tuned:
        """One search for all cells of a split and speeds; ``best_s``: what another optimiser takes to the target."""
        who = f"{entry.contestant.label} {entry.contestant.optimizer}"
        name = f"{entry.ground.name} {entry.cell.tuned_as.key} {who} {entry.table}"
        if name not in self._searches:
            one = replace(entry, cell=entry.cell.tuned_as)
            self._searches[name] = asyncio.create_task(self._search(one, best_s))
        return await self._searches[name]

    async def _search(self, entry: Entry, best_s: float) -> Tuned:
        async def ask(batch: int, lr: float, until_s: float) -> Score:
            seeds = TUNING_SEEDS[: tuning_seeds(entry)]
            jobs = [replace(self._job(entry, batch, lr, seed, simulated=True), until_s=until_s) for seed in seeds]
            scores = [score(row) for row in await asyncio.gather(*map(self._simulated, jobs))]
            return median(s if s <= until_s else inf for s, _ in scores), median(a for _, a in scores)

        if entry.table == FIXED:
            return await best_lr(ask, entry.ground.batch, entry.contestant.lr, best_s)
        first = await self._tuned(replace(entry, table=FIXED))
        first = await best_lr(ask, first.batch, first.lr, best_s)
        return await best_batch(ask, first, entry.ground.nodes, best_s)

    async def _simulated(self, job: Job) -> Row:
        if (asked := (job.key, job.until_s)) not in self._asked:
            self._asked[asked] = asyncio.create_task(self._simulate(job))
        return await self._asked[asked]

    async def _simulate(self, job: Job) -> Row:
        if (there := self._there(job)) is not None:
            self._skipped += 1
            return there
        row = await self._workers.perform(job)
        self._note(job, row)
        return row

    # ------------------------------------------------------------------------------------ both

    def _there(self, job: Job) -> Row | None:
        """The run as it was made before, by the same code, and broken off no sooner than it may be now."""
        row = self.store.runs.get(job.key)
        if row is not None and row.get("cut_s", inf) < job.until_s:
            return None
        if row is None or row.get("code") == code(job.ground.task, job.simulated):
            return row
        if not self._of_other_code:
            self._tell(f"{self.store.folder} has runs of other code, or of another torch: they are made again")
        self._of_other_code = True
        return None

    def _job(self, entry: Entry, batch: int, lr: float, seed: int, *, simulated: bool) -> Job:
        lr = float(f"{lr:.6g}")
        data = None if entry.ground.data is None else self.choice.data[entry.ground.data]
        return Job(
            ground=entry.ground, cell=entry.cell, contestant=entry.contestant, lr=lr, batch=batch, seed=seed,
            simulated=simulated, data=data,
        )  # fmt: skip

    def _seeds(self, block: Block) -> range:
        count = self.choice.seeds or block.seeds or (10 if block.ground.simulated else 5)
        return range(self.choice.first_seed, self.choice.first_seed + count)

    def _note(self, job: Job, row: Row, left: str = "") -> None:
        self.store.add(row)
        self._ran += 1
        unit = "virtual s" if job.simulated else "s"
        if "stops" in row:
            found = "stops"
        elif row["target_s"] is not None:
            found = f"{row['target_s']:.3g} {unit} to {job.ground.target:g}"
        elif row["trouble"] is not None:
            found = f"diverged at rank {row['trouble']}"
        elif "cut_s" in row:
            found = f"broken off after {row['cut_s']:.3g} {unit}: others are far ahead"
        else:
            found = f"{row['accuracy'] or 0:.3f} after {row['samples']:,} samples, {row['wall_s']:.3g} {unit}"
        kind = "tuning, " if job.seed in TUNING_SEEDS else ""
        self._tell(f"{self._clock()} run {self._ran}: {kind}{job.title}: {found}{left}")

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def chosen_blocks(suite: Suite, choice: Choice) -> list[Block]:
    """The blocks of which something is chosen, with everything that was given checked against what there is.

    Raises:
        UsageError: a name that there is not, nothing chosen, a data file or the means for namespaces that are missing.
    """
    parts = list(dict.fromkeys(block.part for block in suite.blocks if block.part))
    for part in choice.parts:
        if part not in parts:
            has = f"{suite.name} has {', '.join(parts)}" if parts else f"{suite.name} has no parts; leave it out"
            raise UsageError(f"--part {part}: {has}")
    blocks = [block for block in suite.blocks if not choice.parts or block.part in choice.parts]
    labels = list(dict.fromkeys(c.label for block in blocks for c in block.contestants if not c.alone))
    cells = list(dict.fromkeys(cell.key for block in blocks for cell in (*block.cells, *block.own_cells)))
    for flag, given, there in (("only", choice.only, labels), ("cells", choice.cells, cells)):
        for name in given:
            if name not in there:
                raise UsageError(f"--{flag} {name}: one of {'; '.join(there)}")
    if choice.seeds is not None and choice.seeds < 1:
        raise UsageError(f"--seeds {choice.seeds}: must be 1 or more")
    last = choice.first_seed + (choice.seeds or 10)
    if choice.first_seed < 0 or (choice.first_seed < TUNING_SEEDS[-1] + 1 and last > TUNING_SEEDS[0]):
        raise UsageError(
            f"--first-seed {choice.first_seed} and --seeds {last - choice.first_seed}: seeds {TUNING_SEEDS[0]} to"
            f" {TUNING_SEEDS[-1]} are for tuning; begin at 0, with at most {TUNING_SEEDS[0]} of them"
        )
    if choice.jobs < 1:
        raise UsageError(f"--jobs {choice.jobs}: must be 1 or more")
    for table in choice.tables:
        if table not in (FIXED, OWN):
            raise UsageError(f"--tables {table}: {FIXED} or {OWN}")
    blocks = [block for block in blocks if any(not e.contestant.alone for e in entries(block, choice))]
    if not blocks:
        raise UsageError(f"{suite.name}: nothing is left of it by --part, --only, --cells and --tables; leave one out")
    left = [e for block in blocks for e in entries(block, choice) if not e.contestant.alone]
    runs = {"only": {e.contestant.label for e in left}, "cells": {e.cell.key for e in left}}
    for flag, given in (("only", choice.only), ("cells", choice.cells)):
        for name in given:
            if name not in runs[flag]:
                raise UsageError(f"--{flag} {name}: nothing is left of it by --part, --only, --cells and --tables")
    for ground in (block.ground for block in blocks):
        if ground.data is not None and ground.data not in choice.data:
            raise UsageError(f"--{ground.data} is missing: {ground.title} needs the file; see nodes/{ground.task}")
        if ground.data is not None and not Path(choice.data[ground.data]).is_file():
            raise UsageError(f"--{ground.data} {choice.data[ground.data]}: no such file; see nodes/{ground.task}")
        if ground.hosts and (reason := Namespaces.why_not()) is not None:
            raise UsageError(f"{ground.title}: {reason}")
    return blocks


def entries(block: Block, choice: Choice) -> Iterable[Entry]:
    """What of a block is chosen."""
    for table in choice.tables:
        cells = block.cells if table == FIXED else block.own_cells
        cells = tuple(c for c in cells if not choice.cells or c.key in choice.cells)
        for contestant in block.contestants:
            if choice.only and contestant.label not in (*choice.only, ALONE):
                continue
            if block.ground.nodes > contestant.nodes_most:
                continue
            for cell in (ALONE_CELL,) if contestant.alone and cells else cells:
                yield Entry(block, cell, contestant, table)


def _virtual(entry: Entry) -> bool:
    return entry.ground.simulated or entry.contestant.alone
