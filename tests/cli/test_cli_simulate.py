"""``rfast simulate``: what it shares with ``rfast run``, and Ctrl-C."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rfast_zmq.cli import main
from rfast_zmq.simulate import Simulator

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "nodes" / "digits.py")

INTERRUPTED = """
import torch
from rfast_zmq import Task

class Interrupted(Task):
    defaults = {"samples": 400, "global_batch": 32}

    def configure_model(self):
        self.evaluations = 0
        return torch.nn.Linear(2, 1)

    def train_data(self, rank, nodes):
        return (torch.ones(8, 2),)

    def training_step(self, model, batch):
        return model(batch[0]).square().mean()

    def evaluate(self, model):
        self.evaluations += 1
        if self.evaluations == 4:
            raise KeyboardInterrupt  # as Python's own handler of SIGINT does
        return {"accuracy": 0.5}
"""


def test_it_is_held_against_one_machine_and_against_what_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["simulate", DIGITS, "--nodes", "3", "--samples", "2000", "--baseline", "--json"]
    main([*argv, "--require", "0.3"])
    result = json.loads(capsys.readouterr().out)
    assert result["simulated"] is True
    assert result["accuracy"] > 0.3
    assert result["baseline_accuracy"] > 0.3
    with pytest.raises(SystemExit) as end:
        main([*argv, "--require", "1.0"])
    assert end.value.code == 1
    said = capsys.readouterr()
    assert json.loads(said.out) == result
    assert "--require 1.0: the accuracy ended at" in said.err


def test_who_waits_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["simulate", DIGITS, "--nodes", "3", "--topology", "ring", "--samples", "1000", "--optimizer", "sgd"]
    argv += ["--compute", "constant:0.1", "--straggler", "2:5", "--lr", "0.05"]
    main([*argv, "--algorithm", "d-psgd"])
    said = capsys.readouterr().out
    assert "waited for others" in said
    assert "identity" not in said
    (straggler,) = (line for line in said.splitlines() if line.startswith("2 "))
    assert straggler.endswith("0% of the time  ")
    main([*argv, "--algorithm", "rfast"])
    assert "waited" not in capsys.readouterr().out


@pytest.fixture
def task(tmp_path: Path) -> str:
    file = tmp_path / "interrupted.py"
    file.write_text(INTERRUPTED)
    return str(file)


def test_ctrl_c_saves_what_there_is(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, out = tmp_path / "trace.jsonl", tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        main(["simulate", task, "--nodes", "2", "--trace", str(trace), "--out", str(out)])
    assert end.value.code == 130
    said = capsys.readouterr()
    assert said.err == "rfast: interrupted\n"
    points = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [point["accuracy"] for point in points] == [0.5] * 3
    assert (out / "model.safetensors").exists()
    assert (out / "config.json").exists()
    assert not (out / "result.json").exists()
    assert all(json.loads(line) for line in trace.read_text().splitlines())


def test_ctrl_c_in_the_baseline_keeps_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    once = Simulator.run
    runs = []

    def interrupted_at_the_second(simulator: Simulator) -> object:
        runs.append(simulator)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return once(simulator)

    monkeypatch.setattr(Simulator, "run", interrupted_at_the_second)
    with pytest.raises(SystemExit) as end:
        main(["simulate", DIGITS, "--nodes", "2", "--samples", "500", "--baseline", "--out", str(tmp_path), "--json"])
    assert end.value.code == 130
    result = json.loads(capsys.readouterr().out)
    assert result["samples"] >= 500
    assert result["baseline_accuracy"] is None
    assert (tmp_path / "model.safetensors").exists()
