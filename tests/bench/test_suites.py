"""``rfast bench run`` and ``report``: the search, what is stored and resumed, what the tables say, what is refused."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import pickle
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from math import inf, log2
from pathlib import Path
from shutil import copytree
from statistics import median
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfast_zmq.bench.suites import catalogue, runner, workers
from rfast_zmq.bench.suites.block import Aim, Block, Suite
from rfast_zmq.bench.suites.catalogue import SUITES, contents
from rfast_zmq.bench.suites.ground import ALONE, Cell, Contestant, Ground, Job, no_wait_rate
from rfast_zmq.bench.suites.perform import Incomplete, perform
from rfast_zmq.bench.suites.report import section, side_by_side, write
from rfast_zmq.bench.suites.runner import FIXED, OWN, Choice, Runner, chosen_blocks, entries
from rfast_zmq.bench.suites.standings import ratios, reached, spread, tables_of
from rfast_zmq.bench.suites.store import RUNS, Store
from rfast_zmq.bench.suites.tuning import AS_GOOD, HOPELESS, Score, best_batch, best_lr
from rfast_zmq.cli import main
from rfast_zmq.errors import RfastError, TaskError, UsageError

# ------------------------------------------------------------------------------------------ search


@given(best=st.floats(-9, 9), start=st.floats(-3, 3))
def test_the_search_ends_within_a_quarter_octave_of_the_best_lr_and_never_at_the_end_of_its_grid(
    best: float, start: float
) -> None:
    async def ask(batch: int, lr: float, until_s: float) -> Score:
        return abs(log2(lr) - best), 0.0

    tuned = asyncio.run(best_lr(ask, 64, 2**start))
    lrs = [lr for _, lr in tuned.tried]
    if not tuned.open_end:
        assert min(lrs) < tuned.lr < max(lrs)
        assert abs(log2(tuned.lr) - best) <= 0.25 * AS_GOOD + 1e-9
    else:
        assert abs(best - start) > 7, "so far from the start is as far as the grid is made longer"


def test_a_grid_whose_end_stays_the_best_says_so() -> None:
    async def the_smaller_the_better(batch: int, lr: float, until_s: float) -> Score:
        return lr, 0.0

    assert asyncio.run(best_lr(the_smaller_the_better, 64, 1.0)).open_end


def test_of_neighbours_that_few_seeds_cannot_tell_apart_the_middle_is_taken() -> None:
    """Not the one before the cliff, though it was a little faster by chance."""
    seconds = {-2.0: 14.0, -1.5: 12.0, -1.0: 10.2, -0.5: 10.1, 0.0: 10.3, 0.5: 10.0, 1.0: 80.0}

    async def ask(batch: int, lr: float, until_s: float) -> Score:
        return seconds[round(2 * log2(lr)) / 2], 0.0

    tuned = asyncio.run(best_lr(ask, 64, 1.0))
    assert log2(tuned.lr) == pytest.approx(-0.5)
    assert tuned.score == (10.1, 0.0)


def test_where_the_target_is_never_reached_the_accuracy_decides() -> None:
    async def ask(batch: int, lr: float, until_s: float) -> Score:
        return inf, abs(log2(lr) - 2)

    assert asyncio.run(best_lr(ask, 64, 1.0)).lr == pytest.approx(4.0)


def test_against_another_optimiser_the_search_goes_on_where_all_were_broken_off() -> None:
    """By where they stood then the middle one looked best; but three steps further is what beats the other."""
    seconds = {0.5: 30.0, 1.0: 25.0, 2.0: 24.0, 4.0: 9.0, 8.0: 5.0, 16.0: 40.0, 5.657: 7.0, 11.314: 11.0}
    standing = {0.25: 0.5, 0.5: 0.92, 1.0: 0.928, 2.0: 0.9275}

    async def ask(batch: int, lr: float, until_s: float) -> Score:
        lr = round(lr, 3)
        s = seconds.get(lr, inf)
        return (s, -0.93) if s <= until_s else (inf, -standing.get(lr, 0.0))

    for best_s in (10.0, inf):
        found = asyncio.run(best_lr(ask, 64, 1.0, best_s))
        assert (found.lr, found.score[0], found.open_end) == (8.0, 5.0, False)


@given(
    seconds=st.lists(
        st.lists(st.one_of(st.floats(1, 100), st.just(inf)), min_size=4, max_size=4), min_size=45, max_size=45
    ),
    seeds=st.integers(1, 4),
)
def test_runs_that_are_broken_off_change_nothing_of_what_is_found(seconds: list[list[float]], seeds: int) -> None:
    """Whatever each lr gives with each seed (where all are never there, accuracies are alike)."""

    async def whole(batch: int, lr: float, until_s: float) -> Score:
        return median(seconds[22 + round(2 * log2(lr))][:seeds]), 0.0

    async def cut(batch: int, lr: float, until_s: float) -> Score:
        there = [s if s <= until_s else inf for s in seconds[22 + round(2 * log2(lr))][:seeds]]
        return median(there), 0.0

    found, wanted = (asyncio.run(best_lr(ask, 64, 1.0)) for ask in (cut, whole))
    assert (found.lr, found.score, found.open_end) == (wanted.lr, wanted.score, wanted.open_end)


def test_what_is_hopeless_beside_the_best_so_far_is_broken_off() -> None:
    """A cliff: of what lies behind it nothing runs longer than it must."""
    limits: dict[float, float] = {}

    async def ask(batch: int, lr: float, until_s: float) -> Score:
        limits[round(lr, 3)] = until_s
        return (10 / lr if lr <= 1 else inf), 0.0

    asyncio.run(best_lr(ask, 64, 0.5))
    assert limits == {
        0.5: inf,
        0.25: HOPELESS * 20,
        1.0: HOPELESS * 20,
        2.0: HOPELESS * 10,
        0.707: HOPELESS * 10,
        1.414: HOPELESS * 10,
    }


def test_each_batch_has_its_own_best_lr_and_none_is_smaller_than_allowed() -> None:
    async def ask(batch: int, lr: float, until_s: float) -> Score:
        return 1 + abs(log2(lr * 256 / batch)) + abs(log2(batch / 32)), 0.0

    async def search(least: int) -> tuple[int, float]:
        found = await best_batch(ask, await best_lr(ask, 256, 1.0), least)
        assert all(batch >= least for batch, _ in found.tried)
        return found.batch, found.lr

    assert asyncio.run(search(8)) == (32, pytest.approx(1 / 8))
    assert asyncio.run(search(64)) == (64, pytest.approx(1 / 4))


# ------------------------------------------------------------------------------------- a toy suite

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


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a toy suite that has been run."""
    folder = tmp_path_factory.mktemp("toy")
    simulate(folder)
    return folder


@pytest.fixture(autouse=True)
def toy_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalogue.SUITES, "toy", toy(BLOCK))


def test_every_run_says_how_it_was_made_and_what_it_gave(done: Path) -> None:
    rows = [json.loads(line) for line in (done / RUNS).read_text().splitlines()]
    assert len({row["key"] for row in rows}) == len(rows)
    for row in rows:
        assert row["versions"]["torch"]
        assert row["settings"]["seed"] == row["seed"]
        if "stops" in row:
            assert (row["contestant"], row["settings"]["drop"]) == ("ring-allreduce", 0.3)
            continue
        assert row["simulated"]
        assert row["points"][-1][1] == row["samples"]
        if row["target_s"] is not None:
            reached_at = next(p for p in row["points"] if p[3] >= TOY.target)
            assert [reached_at[0], reached_at[1], reached_at[2]] == pytest.approx(
                [row["target_s"], row["target_samples"], row["target_bytes"]], rel=1e-6
            )


def test_tuning_and_reported_seeds_are_apart_and_each_runs_at_its_best_lr(done: Path) -> None:
    store = Store(done, "toy")
    best = {(r["contestant"], r["cell"]): r["lr"] for r in store.tuned()}
    for row in store.runs.values():
        if row["seed"] < 1000:
            assert row["seed"] in range(3)
            cell = "iid/even" if row["contestant"] == ALONE else row["cell"]
            assert row["lr"] == pytest.approx(best[row["contestant"], cell], rel=1e-5)  # it is kept to six places
    for contestant, seeds in (("rfast-tree", {1000}), ("ring-allreduce", {1000, 1001, 1002, 1003})):
        tuning = {row["seed"] for row in store.runs.values() if row["contestant"] == contestant and row["seed"] >= 1000}
        assert tuning == seeds, "what times are divided by is tuned with the most"
    losses = {row["cell"] for row in store.runs.values() if row["seed"] >= 1000}
    assert losses == {"iid/straggler", "iid/even"}, "the lr is that of the cell without loss"


def test_a_suite_that_was_cut_off_is_resumed_and_gives_the_same(done: Path, tmp_path: Path) -> None:
    whole = (done / RUNS).read_text().splitlines()
    kept = random.Random(1).sample(whole, len(whole) - 4)
    Store(tmp_path, "toy")
    torn = whole[0][: len(whole[0]) // 2]
    (tmp_path / RUNS).write_text("\n".join([*kept, torn]))
    store, said = simulate(tmp_path)
    assert f"done: 4 runs, {len(whole) - 4} were there" in said[-1]
    assert store.runs == Store(done, "toy").runs


def test_a_search_breaks_off_what_is_hopeless_and_a_run_cut_too_short_is_made_again(tmp_path: Path) -> None:
    """Whatever is reported has run to its end."""
    block = replace(BLOCK, contestants=(replace(OURS, lr=0.02), RING, SINGLE), cells=(CELL,))
    store, said = simulate(tmp_path, block)
    cut = [row for row in store.runs.values() if "cut_s" in row]
    assert cut
    assert all(row["seed"] >= 1000 and row["target_s"] is None and row["wall_s"] == row["cut_s"] for row in cut)
    assert sum("broken off" in line for line in said) == len(cut)
    best = {r["contestant"]: r["tried"]["sgd"] for r in store.tuned()}
    for row in cut:
        times = [s for _, _, s, _ in best[row["contestant"]] if s is not None]
        assert row["cut_s"] >= HOPELESS * min(times)
    assert "done: 0 runs" in simulate(tmp_path, block)[1][-1], "all are long enough"
    shorter = {**cut[0], "cut_s": cut[0]["cut_s"] / 2}
    store.add(shorter)
    assert store.runs[shorter["key"]] == cut[0], "the longer of two stays"
    assert Store(tmp_path, "toy").runs[shorter["key"]] == cut[0]
    rows = [row for row in store.runs.values() if row["key"] != shorter["key"]]
    (tmp_path / RUNS).write_text("".join(json.dumps(row) + "\n" for row in [*rows, shorter]))
    again, said = simulate(tmp_path, block)
    assert "done: 1 runs" in said[-1]
    assert again.runs[shorter["key"]] == cut[0]


def test_a_run_that_is_broken_off_above_the_target_has_not_reached_it() -> None:
    """It would have at its next evaluation; the score as it was broken off is none."""
    ground = replace(TOY, evaluate_every=20.0)
    job = Job(
        ground=ground, cell=CELL, contestant=OURS, lr=0.5, batch=48, seed=3, simulated=True, data=None
    )  # fmt: skip
    whole = perform(job)
    cut = perform(replace(job, until_s=whole["target_s"] - 1e-6))
    assert cut["accuracy"] >= TOY.target
    assert cut["target_s"] is None
    assert cut["cut_s"] == cut["wall_s"] == whole["target_s"] - 1e-6
    later = perform(replace(job, until_s=whole["target_s"] + 1e-6))
    assert (later["target_s"], later["target_samples"]) == (whole["target_s"], whole["target_samples"])
    assert "cut_s" not in later


def test_the_tables_say_what_the_runs_say(done: Path, tmp_path: Path) -> None:
    store = Store(done, "toy")
    plain, lossy = tables_of(toy(BLOCK), store)
    ours, ring = plain.named("rfast-tree"), plain.named("ring-allreduce")
    assert ours
    assert ring
    rows = {
        (row["contestant"], row["seed"]): row
        for row in store.runs.values()
        if row["seed"] < 1000 and row["cell"] in (CELL.key, "iid/even")
    }
    times = [[rows[label, seed]["target_s"] for seed in range(3)] for label in ("rfast-tree", "ring-allreduce")]
    assert ours.median_s() == median(times[0])
    figure, limit = reached([plain])
    assert figure.value == median(theirs / mine for mine, theirs in zip(*times, strict=True))
    assert figure.value > 1, "a ring of three waits for its straggler"
    rate = TOY.batch / 3 / TOY.share_s * (2 + 1 / 5)  # three nodes, of which one is five times slower
    assert no_wait_rate(replace(TOY, nodes=3), replace(CELL, speeds="straggler")) == pytest.approx(rate)
    alone = [rows[ALONE, seed]["target_samples"] / rate for seed in range(3)]
    assert limit.value == pytest.approx(median(a / mine for a, mine in zip(alone, times[0], strict=True)))
    kept, waits = (median(plain.computed(of).values()) for of in (ours, ring))  # type: ignore[type-var]
    assert kept == pytest.approx(1.0, abs=0.15), "nobody waits, and virtual time keeps every pace"
    assert waits == pytest.approx(3 / 5 / 2.2, rel=0.15), "all go at the pace of the slowest"
    assert lossy.named("ring-allreduce").stops  # type: ignore[union-attr]

    files = write(done)
    text = files[0].read_text()
    assert re.search(rf"`rfast-tree` \| sgd [\d.]+ \| {median(times[0]):.3g} \(", text)
    assert "`ring-allreduce` | " in text
    assert "| stops |" in text
    assert "no-wait limit" in text
    for picture in files[1:]:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"]({picture.name})" in text


def test_what_was_run_of_another_series_or_with_too_few_seeds_is_no_verdict(done: Path, tmp_path: Path) -> None:
    copytree(done, tmp_path, dirs_exist_ok=True)
    suite, runs = toy(BLOCK), tmp_path / RUNS
    before = tables_of(suite, Store(done, "toy"))[0]
    rows = [json.loads(line) for line in runs.read_text().splitlines()]
    ours = [row for row in rows if row["contestant"] == "rfast-tree" and row["cell"] == CELL.key and row["seed"] == 2]
    others = [{**row, "key": f"other {row['key']}", "series": "of other data", "target_s": 1e-3} for row in rows]
    runs.write_text("".join(json.dumps(row) + "\n" for row in rows + others))
    assert tables_of(suite, Store(tmp_path, "toy"))[0] == before
    runs.write_text("".join(json.dumps(row) + "\n" for row in rows if row not in ours))
    table = tables_of(suite, Store(tmp_path, "toy"))[0]
    assert [f.reached for f in reached([table])] == [None, None]
    text = write(tmp_path)[0].read_text()
    assert "`rfast-tree` (2 of 3 seeds) |" in text
    assert "`ring-allreduce` |" in text
    assert "| 2 pairs of seeds are too few to say |" in text


def test_a_page_is_written_between_its_marks_and_stays_as_it_is_elsewhere(done: Path, tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("before\n<!-- toy/toy -->\nold\n<!-- end toy/toy -->\nafter\n")
    for _ in range(2):
        files = write(done, page)
        text = page.read_text()
        assert text.startswith("before\n<!-- toy/toy -->")
        assert text.endswith("<!-- end toy/toy -->\nafter\n")
        assert "old" not in text
        assert text.count("**iid split, one 5× straggler**") == 1
        assert all(path.parent == tmp_path / "images" / "bench" for path in files[1:])
        assert "](images/bench/toy-toy-times.png)" in text


def test_tables_of_ones_own_b_have_a_place_of_their_own_on_a_page_that_gives_them_one(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is there stays, where there are no new ones."""
    block = replace(BLOCK, own_cells=(CELL,), aims=(AIM, replace(AIM, what="ours at its best", table=OWN)))
    monkeypatch.setitem(catalogue.SUITES, "toy", toy(block))
    both, page = tmp_path / "both", tmp_path / "benchmarks.md"
    copytree(done, both)
    tuned = [json.loads(line) for line in (both / "tuned.jsonl").read_text().splitlines()]
    with (both / "tuned.jsonl").open("a") as file:
        file.writelines(f"{json.dumps({**line, 'table': OWN})}\n" for line in tuned)
    marks = "<!-- toy/toy -->\n<!-- end toy/toy -->\nbetween\n<!-- toy/toy/own -->\nold\n<!-- end toy/toy/own -->\n"
    page.write_text(marks)
    write(both, page)
    fixed, own = page.read_text().split("\nbetween\n")
    for kind, other, title in ((fixed, own, "each at its best lr"), (own, fixed, "each at its own best B and lr")):
        assert kind.count(f"{title}\n") == 1
        assert f"{title}\n" not in other
    assert "toy-toy-times-own.png" in own
    assert "toy-toy-times.png" in fixed
    assert "ours at its best" in own
    assert "ours at its best" not in fixed
    assert "old" not in own
    page.write_text(marks)
    write(done, page)
    fixed_alone, own = page.read_text().split("\nbetween\n")
    assert fixed_alone == fixed
    assert own == "<!-- toy/toy/own -->\nold\n<!-- end toy/toy/own -->\n"


def test_grounds_of_more_and_more_nodes_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the number of nodes, a column each; whoever does not run on so many is said not to."""
    few, many = (
        replace(
            BLOCK,
            part=str(nodes),
            ground=replace(TOY, name=f"toy-{nodes}", nodes=nodes),
            contestants=(OURS, replace(RING, nodes_most=3), SINGLE),
            cells=(CELL,),
            reference=ALONE,
            aims=(),
        )
        for nodes in (3, 4)
    )
    suite = toy(few, many)
    monkeypatch.setitem(catalogue.SUITES, "toy", suite)
    for part in ("3", "4"):
        Runner(suite, replace(CHOICE, seeds=1, parts=(part,)), Store(tmp_path, "toy"), lambda _: None).run()
    table, wider = tables_of(suite, Store(tmp_path, "toy"))
    text = (report := write(tmp_path))[0].read_text()
    assert "3 to 4 nodes, in virtual time" in text
    assert "| 3 nodes | 4 nodes |" in text
    ours, theirs = (t.named("rfast-tree") for t in (table, wider))
    assert ours and theirs  # noqa: PT018
    assert f"| `rfast-tree` | {ours.median_s():.3g} | {theirs.median_s():.3g} |" in text
    assert re.search(r"\| `ring-allreduce` \| [\d.]+ \| not run \|", text)
    assert tmp_path / "toy-nodes.png" in report
    page = tmp_path / "page.md"
    page.write_text("<!-- toy/nodes -->\n<!-- end toy/nodes -->\n")
    write(tmp_path, page)
    assert "| 3 nodes | 4 nodes |" in page.read_text()


def test_over_the_number_of_nodes_it_is_said_how_many_seeds_never_got_there(done: Path) -> None:
    (table, *_) = tables_of(toy(BLOCK), Store(done, "toy"))
    (ours,) = (s for s in table.standings if s.contestant.label == "rfast-tree")

    def told(times: dict[int, float | None], **more: object) -> list[str]:
        """The row of times and that of MB of somebody who took so long."""
        rows = {
            seed: {**ours.runs[0], "seed": seed, "target_s": t, "target_bytes": t and t * 1e6, "accuracy": 0.5, **more}
            for seed, t in times.items()
        }
        table.standings = [replace(ours, runs=rows)]
        return [line for line in side_by_side([table], "x.png").splitlines() if line.startswith("| `rfast-tree`")]

    assert told({0: 2.0, 1: 1676.8, 2: 999.6}) == ["| `rfast-tree` | 1,000 (2 to 1,677) |"] * 2
    assert told({0: 2.0, 1: None, 2: 3.0})[0] == "| `rfast-tree` | 3 (2 to never), 1 of 3 seeds never |"
    assert told({0: None, 1: None, 2: 3.0})[0] == "| `rfast-tree` | never (0.500 at the end), 2 of 3 seeds never |"
    assert told({0: None, 1: None})[0] == "| `rfast-tree` | never (0.500 at the end) |"
    assert told({0: None}, stops="no answer to loss") == ["| `rfast-tree` | stops |", "| `rfast-tree` |  |"]


def test_only_conditions_that_occur_are_told(done: Path) -> None:
    (table, *_) = tables_of(toy(BLOCK), Store(done, "toy"))
    said = section(TOY, [table], [], [])
    assert "with a straggler, node 2 takes 5 times" in said
    assert "lognormal" not in said
    assert "compared seed by seed" in said
    table.cell = replace(table.cell, speeds="lognormal")
    table.standings = [s for s in table.standings if s.contestant.label != BLOCK.reference]
    said = section(TOY, [table], [], [])
    assert "straggler, node" not in said
    assert "lognormal: each share" in said
    assert "compared seed by seed" not in said


def test_a_seed_that_was_never_at_the_target_counts_as_never() -> None:
    assert spread([1.0, None, 3.0], "{:.0f}".format) == "3 (1 to never)"
    assert ratios({0: 4.0, 1: None, 2: 1.0, 3: None}, {0: 2.0, 1: 2.0, 2: None, 3: None}) == [2.0, inf, 0.0]


def test_who_gets_there_where_the_others_never_do_is_not_said_to_be_never_there(done: Path) -> None:
    (table, *_) = tables_of(toy(BLOCK), Store(done, "toy"))
    theirs = table.named(BLOCK.reference)
    assert theirs is not None
    theirs.runs[0]["target_s"] = None
    lines = section(TOY, [table], [], []).splitlines()
    (ours,) = (line for line in lines if line.startswith("| `rfast-tree` |"))
    assert " to ∞) |" in ours
    assert "never" not in ours


@pytest.mark.parametrize("kind", [FIXED, OWN])
def test_real_processes_follow_at_the_lr_found_in_virtual_time(done: Path, tmp_path: Path, kind: str) -> None:
    """At the block's B, and, in a block that has nothing else, at the B that was found."""
    copytree(done, tmp_path, dirs_exist_ok=True)
    cells = {"cells": (CELL,)} if kind == FIXED else {"cells": (), "own_cells": (CELL,)}
    real = replace(BLOCK, ground=replace(TOY, simulated=False), contestants=(OURS, SINGLE), aims=(), **cells)
    store, said = simulate(tmp_path, real, replace(CHOICE, seeds=1, tables=(kind,)))
    if kind == FIXED:  # else the search for B has more to do than what is there
        assert "done: 1 runs" in said[-1]
    (table,) = tables_of(toy(real), store)
    assert [len(s.runs) for s in table.standings] == [1]
    (row,) = (r for r in store.runs.values() if not r["simulated"])
    assert (row["contestant"], row["seed"]) == ("rfast-tree", 0)
    assert row["cpu_s"] > 0
    assert row["bytes"] > 0
    assert row["missing"] == []
    assert any("rfast-tree" in line and " virtual" not in line for line in said)


def test_a_run_that_did_not_end_by_itself_is_tried_again_and_does_not_stop_the_others(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copytree(done, tmp_path, dirs_exist_ok=True)
    real = replace(BLOCK, ground=replace(TOY, simulated=False), cells=(CELL,), contestants=(OURS, RING))
    tried: list[tuple[str, int]] = []

    def perform(job: Job) -> dict[str, Any]:
        tried.append((job.contestant.label, job.seed))
        if job.contestant.label == "rfast-tree" and (job.seed == 1 or tried.count(tried[-1]) == 1):
            killed = RfastError("rank 2 ended before the run began (exit status -9)")
            raise killed if job.seed else Incomplete("rank 2 did not end by itself")
        row = {
            "key": job.key,
            "series": job.series,
            "seed": job.seed,
            "code": runner.code(job.ground.task, job.simulated),
        }
        return {**row, "target_s": 1.0, "simulated": False, "contestant": job.contestant.label}

    monkeypatch.setattr(runner, "perform", perform)
    with pytest.raises(RfastError, match="1 runs failed twice"):
        simulate(tmp_path, real, replace(CHOICE, seeds=2))
    assert sorted(tried) == sorted([("rfast-tree", 0), ("rfast-tree", 1)] * 2 + [("ring-allreduce", s) for s in (0, 1)])
    kept = {(r["contestant"], r["seed"]) for r in Store(tmp_path, "toy").runs.values() if not r["simulated"]}
    assert kept == {("rfast-tree", 0), ("ring-allreduce", 0), ("ring-allreduce", 1)}


def test_runs_of_other_code_are_made_again_and_a_report_of_both_says_so(done: Path, tmp_path: Path) -> None:
    copytree(done, tmp_path, dirs_exist_ok=True)
    rows = [json.loads(line) for line in (tmp_path / RUNS).read_text().splitlines()]
    old = [
        row for row in rows if row["contestant"] == "ring-allreduce" and row["seed"] == 0 and row["cell"] == CELL.key
    ]
    assert old
    rows = [row | {"code": "another"} if row in old else row for row in rows]
    (tmp_path / RUNS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "more than one state of the code" in write(tmp_path)[0].read_text()
    store, said = simulate(tmp_path)
    assert sum("runs of other code" in line for line in said) == 1
    assert f"done: {len(old)} runs" in said[-1]
    assert store.runs == Store(done, "toy").runs
    assert "more than one state of the code" not in write(tmp_path)[0].read_text()


def test_runs_of_other_data_side_by_side_are_pointed_out(done: Path, tmp_path: Path) -> None:
    copytree(done, tmp_path, dirs_exist_ok=True)
    rows = [json.loads(line) for line in (tmp_path / RUNS).read_text().splitlines()]
    for name, warned in (("one", False), ("another", True)):
        for row in rows:
            row["data"] = name if row["contestant"] == ALONE else "one"
        (tmp_path / RUNS).write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert ("more than one data file" in write(tmp_path)[0].read_text()) == warned


def test_a_page_that_cannot_be_written_is_said_in_one_line(done: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- toy/toy -->\n<!-- end toy/toy -->\n")
    (tmp_path / "page.md.new").mkdir()
    with pytest.raises(UsageError, match=r"page\.md\.new: Is a directory"):
        write(done, page)
    assert "<!-- end toy/toy -->" in page.read_text(), "and what was there is"


def test_who_was_searched_anew_and_has_not_run_since_stands_there_as_before(done: Path, tmp_path: Path) -> None:
    copytree(done, tmp_path, dirs_exist_ok=True)
    before = tables_of(toy(BLOCK), Store(done, "toy"))
    store = Store(tmp_path, "toy")
    store.add_tuned({**store.tuned()[0], "lr": 1e-9, "series": "of another lr"})
    assert tables_of(toy(BLOCK), Store(tmp_path, "toy")) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to write to")
def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path, "toy")
    (tmp_path / RUNS).symlink_to("/dev/full")
    with pytest.raises(RfastError, match=r"runs\.jsonl: No space left on device; what was done before is kept"):
        store.add({"key": "a"})


def test_a_figure_that_was_not_measured_stands_in_the_report_with_the_reason(done: Path) -> None:
    aims = [
        (replace(AIM, ours=("rfast",)), "not run"),
        (replace(AIM, over="ddp"), "`ddp` was not run"),
        (replace(AIM, cell=replace(CELL, loss=0.3)), "`ring-allreduce` stops"),
        (replace(AIM, cell=replace(CELL, speeds="even")), "not run"),
    ]
    block = replace(BLOCK, aims=tuple(aim for aim, _ in aims))
    tables = tables_of(toy(block), Store(done, "toy"))
    assert [f.why for f in reached(tables)] == [why for _, why in aims]
    lines = section(TOY, tables, reached(tables), []).splitlines()
    assert [line.split(" | ")[2] for line in lines if line.startswith("| ours")] == [why for _, why in aims]


def test_on_its_best_topology_is_what_the_seeds_for_tuning_say(done: Path) -> None:
    (table, *_) = tables_of(toy(BLOCK), Store(done, "toy"))
    ours = table.named("rfast-tree")
    assert ours
    lucky = replace(ours, contestant=replace(OURS, label="lucky"), tuned=(ours.tuned[0] * 2, 0.0))
    lucky.runs = {seed: row | {"target_s": row["target_s"] / 2} for seed, row in ours.runs.items()}
    table.standings.append(lucky)
    block = replace(BLOCK, aims=(replace(AIM, ours=("lucky", "rfast-tree")),))
    table.block = block
    (figure,) = reached([table])
    assert figure.label == "rfast-tree"
    assert lucky not in table.best_of_each_algorithm()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_was_done_and_says_so_in_one_line(number: signal.Signals, times: int, tmp_path: Path) -> None:
    program = "from test_suites import *; SUITES['toy'] = toy(BLOCK); main()"
    command = [sys.executable, "-c", program, "bench", "run", "toy", "--seeds", "100", "--out", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parent, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as suite:
        assert suite.stderr
        first = suite.stderr.readline()
        for again in range(times):
            time.sleep(0.02 * again)  # the first is being dealt with
            if number == signal.SIGINT:
                os.killpg(suite.pid, number)  # as a terminal does: to the whole group
            else:
                suite.send_signal(number)
        rest = suite.stderr.read()
    assert "run 1: tuning, toy" in first
    assert suite.returncode == 130
    assert [line for line in rest.splitlines() if " run " not in line] == ["rfast: interrupted"]
    assert Store(tmp_path, "toy").runs


def test_an_interrupt_as_a_process_is_started_leaves_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def start(self: workers.Workers) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return begin(self)

    before, begin = signal.getsignal(signal.SIGINT), workers.Workers._start
    monkeypatch.setattr(workers.Workers, "_start", start)
    try:
        with pytest.raises(KeyboardInterrupt):
            simulate(tmp_path)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert multiprocessing.active_children() == []


# ---------------------------------------------------------------------------------- the real suites


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files that look like the real ones."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    np.savez(folder / "m.npz", x=rng.integers(0, 255, (50, 28, 28), np.uint8), y=np.arange(50) % 10)
    np.savez(folder / "c.npz", x=rng.integers(0, 255, (50, 32, 32, 3), np.uint8), y=np.arange(50) % 10)
    (folder / "t.txt").write_text("all the world's a stage " * 99)
    return {"mnist": str(folder / "m.npz"), "cifar10": str(folder / "c.npz"), "text": str(folder / "t.txt")}


def every_job(data: dict[str, str]) -> Iterator[Job]:
    for suite in SUITES.values():
        for block in suite.blocks:
            for cell in dict.fromkeys((*block.cells, *block.own_cells)):
                for contestant in block.contestants:
                    if block.ground.nodes <= min(contestant.nodes_most, 64):
                        yield Job(
                            ground=block.ground, cell=cell, contestant=contestant, lr=0.01, batch=block.ground.batch,
                            seed=0, simulated=block.ground.simulated or contestant.alone,
                            data=data.get(block.ground.data or ""),
                        )  # fmt: skip


def test_every_run_of_every_suite_can_be_made_or_stops_under_loss(data: dict[str, str]) -> None:
    made: dict[str, Job] = {}
    for job in every_job(data):
        before = made.setdefault(job.key, job)  # one run may stand in the tables of two grounds
        assert (before.settings(), before.cell, before.simulated) == (job.settings(), job.cell, job.simulated)
        if job.cell.loss and job.contestant.algorithm not in ("rfast", "rfast-tree"):
            assert "every message" in perform(job)["stops"]
        else:
            assert job.plan().settings.seed == 0
    assert len(made) > 300


def test_a_run_has_one_key_on_grounds_that_differ_in_name_alone(data: dict[str, str]) -> None:
    jobs = [j for j in every_job(data) if j.ground.name == "mlp" and j.cell.key == "iid/straggler"]
    for job in jobs:
        assert replace(job, ground=replace(job.ground, name="other", title="other")).key == job.key
        assert replace(job, contestant=replace(job.contestant, nodes_most=8)).key == job.key, "it would be the same run"
        assert replace(job, ground=replace(job.ground, target=0.5)).key != job.key
    assert len({job.key for job in jobs}) == len(jobs) > 5


def test_the_figures_to_reach_are_of_contestants_and_cells_that_there_are() -> None:
    for suite in SUITES.values():
        assert len({block.ground.name for block in suite.blocks}) == len(suite.blocks)
        for block in suite.blocks:
            labels = [c.label for c in block.contestants]
            assert len(set(labels)) == len(labels)
            assert block.reference in labels
            assert block.cells or block.own_cells
            assert not block.cells or set(block.own_cells) <= set(block.cells)
            for aim in block.aims:
                assert {*aim.ours, aim.over} <= set(labels)
                assert aim.cell in (block.cells if aim.table == FIXED else block.own_cells)
                assert aim.table in (FIXED, OWN)


def test_cells_differ_from_the_base_cell_in_one_factor_or_in_the_split_too() -> None:
    """One factor at a time, so that a suite ends; both splits of each kind of speeds where the issue is bias."""
    for suite in SUITES.values():
        for block in suite.blocks:
            for cell in (*block.cells, *block.own_cells):
                assert (cell.speeds != "straggler") + (cell.loss > 0) <= 1


@pytest.mark.parametrize("name", SUITES)
def test_what_a_suite_is_said_to_hold_is_what_run_takes(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every name by itself, with the part and the kind of table that it is said of."""
    monkeypatch.setattr(runner.Namespaces, "why_not", lambda: None)
    data = dict.fromkeys(("mnist", "cifar10", "text"), __file__)
    main(["bench", "suites", name])
    paragraphs = capsys.readouterr().out.split("\n\n")
    blocks = SUITES[name].blocks
    assert len(paragraphs) == len(blocks)
    for paragraph, block in zip(paragraphs, blocks, strict=True):
        head, how, *flags = paragraph.splitlines()
        part = re.match(r"--part (\w+): ", head)
        assert (part[1] if part else "") == block.part
        assert block.ground.title in head
        assert (f"B = {block.ground.batch:,}" in how) == bool(block.cells)
        choice = Choice(data=data, parts=(block.part,) if block.part else ())
        told: dict[str, set[str]] = {"fixed": set(), "own": set(), "only": set()}
        for words in map(shlex.split, flags):
            flag = "only" if words[0] == "--only" else words[1]
            told[flag] = set(words[1:] if flag == "only" else words[3:])
            for word in told[flag]:
                wanted = {"only": (word,)} if flag == "only" else {"tables": (flag,), "cells": (word,)}
                assert any(b is block for b in chosen_blocks(SUITES[name], replace(choice, **wanted)))  # type: ignore[arg-type]
        assert told["fixed"] == {c.key for c in block.cells}
        assert told["own"] == {c.key for c in block.own_cells}
        assert told["only"] == {e.contestant.label for e in entries(block, choice) if not e.contestant.alone}


def test_what_runs_to_the_end_is_said_to() -> None:
    *_, end, _ = contents(SUITES["paper"]).split("\n\n")
    assert "label/even/end" in end
    assert "all of 90,000 samples" in end
    assert "accuracy of" not in end


def test_every_suite_is_listed_with_the_data_that_it_wants(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "suites"])
    listed = capsys.readouterr().out.splitlines()
    for suite in (s for s in SUITES.values() if s.name != "toy"):
        (at,) = [i for i, line in enumerate(listed) if line.split()[:1] == [suite.name]]
        assert suite.costs
        assert suite.about in listed[at]
        assert suite.costs in listed[at + 1]
        wants = {f"--{b.ground.data}" for b in suite.blocks if b.ground.data}
        assert set(re.findall(r"--\w+", listed[at + 1])) == wants


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["bench", "run", "quik", "--out", "{}"], "quik: no such suite; one of quick, paper"),
        (["bench", "suites", "quik"], "quik: no such suite; one of quick, paper"),
        (["bench", "run", "paper", "--out", "{}"], "--mnist is missing"),
        (["bench", "run", "paper", "--part", "d", "--out", "{}"], "--part d: paper has a, b, c"),
        (["bench", "run", "quick", "--part", "a", "--out", "{}"], "--part a: quick has no parts"),
        (["bench", "run", "quick", "--only", "adam", "--out", "{}"], "--only adam: one of rfast-tree"),
        (["bench", "run", "quick", "--cells", "x/y", "--out", "{}"], "--cells x/y: one of label/straggler"),
        (["bench", "run", "quick", "--tables", "own", "--out", "{}"], "quick: nothing is left of it"),
        (["bench", "run", "paper", "--mnist", "no.npz", "--part", "a", "--out", "{}"], "--mnist no.npz: no such file"),
        (["bench", "run", "quick", "--tables", "both", "--out", "{}"], "--tables both: fixed or own"),
        (["bench", "run", "quick", "--seeds", "0", "--out", "{}"], "--seeds 0: must be 1 or more"),
        (["bench", "run", "quick", "--jobs", "0", "--out", "{}"], "--jobs 0: must be 1 or more"),
        (
            ["bench", "run", "quick", "--first-seed", "995", "--out", "{}"],
            "--first-seed 995 and --seeds 10: seeds",
        ),
        (["bench", "run", "quick", "--seeds", "2000", "--out", "{}"], "--first-seed 0 and --seeds 2000: seeds 1000"),
        (
            ["bench", "run", "scale", "--part", "512", "--only", "rfast-tree", "osgp", "--out", "{}"],
            "--only osgp: nothing is left of it",
        ),
        (
            ["bench", "run", "paper", "--tables", "own", "--cells", "iid/straggler", "label/lognormal", "--out", "{}"],
            "--cells label/lognormal: nothing is left of it",
        ),
        (["bench", "report", "{}"], "holds no suite"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word.format(tmp_path / "out") for word in words])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert named in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists(), "the folder is not claimed by what was refused"


def test_a_process_is_replaced_after_so_many_runs_and_every_run_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "RUNS_MOST", 2)
    jobs = [
        Job(ground=replace(TOY, samples=96), cell=CELL, contestant=RING, lr=0.5, batch=48, seed=seed, simulated=True,
            data=None)
        for seed in range(5)
    ]  # fmt: skip

    async def all_of_them() -> tuple[list[dict[str, object]], int]:
        with workers.Workers(1) as of_one:
            rows = [await of_one.perform(job) for job in jobs]
            return rows, len(of_one._all)

    rows, left = asyncio.run(all_of_them())
    assert [row["seed"] for row in rows] == list(range(5))
    assert left == 1


def test_what_a_task_raised_comes_whole_out_of_another_process() -> None:
    error = pickle.loads(pickle.dumps(TaskError(3, "Traceback\nValueError: no")))
    assert (error.rank, error.traceback, str(error)) == (
        3, "Traceback\nValueError: no", "rank 3: the task raised ValueError: no"
    )  # fmt: skip


def test_a_folder_holds_one_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path, "scale")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "suite.json").write_text('{"sui')
    with pytest.raises(UsageError, match="does not say which suite"):
        Store(tmp_path / "torn", "scale")
    with pytest.raises(SystemExit) as ended:
        main(["bench", "run", "quick", "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert f"--out {tmp_path}: holds the suite scale" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "report", str(tmp_path)])
    assert "no run of scale is done yet" in capsys.readouterr().err
