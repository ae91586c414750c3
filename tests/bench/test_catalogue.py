"""The real suites: what they hold can be run, and is what they are said to hold."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from rfast_zmq.bench.suites import runner
from rfast_zmq.bench.suites.catalogue import SUITES, contents
from rfast_zmq.bench.suites.ground import Job
from rfast_zmq.bench.suites.perform import perform
from rfast_zmq.bench.suites.runner import FIXED, OWN, Choice, chosen_blocks, entries
from rfast_zmq.cli import main


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
