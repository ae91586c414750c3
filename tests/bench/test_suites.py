"""``rfast bench run``: what is stored, resumed, broken off, tried again and refused."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from rfast_zmq.bench.suites import runner, workers
from rfast_zmq.bench.suites.ground import ALONE, Job
from rfast_zmq.bench.suites.perform import perform
from rfast_zmq.bench.suites.report import write
from rfast_zmq.bench.suites.runner import FIXED, OWN
from rfast_zmq.bench.suites.standings import tables_of
from rfast_zmq.bench.suites.store import RUNS, Store
from rfast_zmq.bench.suites.tuning import HOPELESS
from rfast_zmq.cli import main
from rfast_zmq.errors import RfastError, TaskError, UsageError

from .toy import BLOCK, CELL, CHOICE, OURS, RING, SINGLE, TOY, simulate, toy


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
            raise killed if job.seed else RfastError("rank 2 did not end by itself")
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to write to")
def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path, "toy")
    (tmp_path / RUNS).symlink_to("/dev/full")
    with pytest.raises(RfastError, match=r"runs\.jsonl: No space left on device; what was done before is kept"):
        store.add({"key": "a"})


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_was_done_and_says_so_in_one_line(number: signal.Signals, times: int, tmp_path: Path) -> None:
    program = (
        "from rfast_zmq.bench.suites.catalogue import SUITES; from rfast_zmq.cli import main;"
        " from tests.bench.toy import BLOCK, toy; SUITES['toy'] = toy(BLOCK); main()"
    )
    command = [sys.executable, "-c", program, "bench", "run", "toy", "--seeds", "100", "--out", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True, start_new_session=True
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
