"""Bad input: one clear line that names the thing, the value and what would do; status 2; no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rfast_zmq.cli import main

ROOT = Path(__file__).parents[2]
QUADRATIC = str(ROOT / "nodes" / "quadratic.py")
MNIST = str(ROOT / "nodes" / "mnist.py")
HOSTS = str(ROOT / "topologies" / "two-hosts.toml")

RAISES = """
import os
import signal
import sys

import torch
from rfast_zmq import Task, main

class Raises(Task):
    defaults = {"samples": 1000, "global_batch": 32}
    options = {"where": "nowhere"}

    def raise_at(self, place):
        if self.option("where") == place and self.rank == 1:
            raise ValueError(f"this {place} is bad")

    def configure_model(self):
        self.raise_at("model")
        return torch.nn.Linear(4, 1)

    def train_data(self, rank, nodes):
        self.raise_at("data")
        self.steps = 0
        return torch.randn(64, 4), torch.randn(64, 1)

    def training_step(self, model, batch):
        self.raise_at("step")
        self.steps += 1
        if self.option("where") == "exit" and self.rank == 1:
            sys.exit("no data left")
        if self.option("where") == "ctrl-c" and self.rank == 1:
            raise KeyboardInterrupt
        if self.option("where") == "killed" and self.rank == 0 and self.steps > 20:
            os.kill(os.getpid(), signal.SIGKILL)
        loss = (model(batch[0]) - batch[1]).square().mean()
        return loss * float("nan") if self.option("where") == "nan" and self.rank == 1 and self.steps > 20 else loss

    def evaluate(self, model):
        return {} if self.option("where") == "unscored" else {"loss": 1.0, "accuracy": 0.5}

    def on_stop(self):
        self.raise_at("stop")

main(Raises)
"""


def status_of(argv: list[str]) -> int:
    """The exit status of ``rfast ARGV…``, in this process."""
    try:
        main(argv)
    except SystemExit as end:
        return -1 if not isinstance(end.code, int) else end.code
    return 0


@pytest.fixture
def task(tmp_path: Path) -> str:
    file = tmp_path / "raises.py"
    file.write_text(RAISES)
    return str(file)


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run ``rfast ARGV…``; the one line it says."""
    assert status_of(argv) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    lines = said.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("rfast: ")
    return lines[0]


RUN, SIMULATE = ["run", QUADRATIC], ["simulate", QUADRATIC]
EMULATED = ["--compute", "constant:0.1"]
NODE = ["node", QUADRATIC, "--topology", HOSTS]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([*RUN, "--topology", "binry-tree"], ["'binry-tree'", "did you mean 'binary-tree'"]),
        ([*RUN, "--topology", "nope.toml"], ["nope.toml", "no such file"]),
        (["topology", "mehs"], ["'mehs'", "did you mean 'mesh'"]),
        (["run", "nope.py"], ["task nope.py", "no such file", "give the path of a Python file"]),
        (["run", HOSTS], ["not a Python file"]),
        ([*RUN, "--nodes", "0"], ["--nodes 0", "1 or more"]),
        ([*RUN, "--nodes", "-3"], ["--nodes -3", "1 or more"]),
        ([*RUN, "--nodes", "many"], ["--nodes many", "whole number"]),
        ([*RUN, "--nodes", "2.7"], ["--nodes 2.7", "whole number"]),
        ([*SIMULATE, "--samples", "inf"], ["--samples inf", "whole number"]),
        ([*NODE, "--report-batch", "1e-1"], ["--report-batch 1e-1", "whole number"]),
        (["topology", "line", "--nodes", "2.7"], ["--nodes 2.7", "whole number"]),
        (["topology", "random:2", "--seed", "0.5"], ["--seed 0.5", "whole number"]),
        (["topology", "random:2", "--seed", "-1"], ["--seed -1", "0 or more"]),
        ([*RUN, "--seed", str(2**63)], [f"--seed {2**63}", f"at most {2**63 - 1}"]),
        (["topology", "line", "--out", "x.jpg"], ["--out x.jpg", ".png"]),
        (["topology"], ["NAME requires an argument"]),
        ([*RUN, "--nodes", "3", "--nodes", "4"], ["--nodes", "multiple times"]),
        ([*RUN, *EMULATED, "--straggler", "9:5"], ["--straggler 9:5", "0..6"]),
        ([*RUN, *EMULATED, "--straggler", "1:2", "--straggler", "7:5"], ["--straggler 7:5", "0..6"]),
        ([*RUN, "--straggler", "1:5"], ["--straggler 1:5", "--compute"]),
        ([*RUN, "--drop", "1"], ["--drop 1", "below 1"]),
        ([*RUN, "--drop=-0.1"], ["--drop -0.1", "at least 0"]),
        ([*RUN, "--split", "labels"], ["labels", "label"]),
        ([*RUN, "--optimizer", "adamw"], ["--optimizer adamw", "adam"]),
        ([*RUN, "--algorithm", "rfastest"], ["rfastest", "rfast-tree"]),
        ([*RUN, "--compute", "fast"], ["--compute fast", "constant:S"]),
        ([*RUN, "--device", "tpu9"], ["--device tpu9", "cpu"]),
        ([*SIMULATE, "--device", "meta"], ["--device meta", "cpu"]),
        ([*SIMULATE, "--device", "xpu"], ["--device xpu", "cpu"]),
        ([*RUN, "--straggler", "3"], ["--straggler 3:", "RANK:FACTOR"]),
        ([*RUN, "--samples", "0"], ["--samples 0", "above 0"]),
        ([*RUN, "--target", "1.5"], ["--target 1.5", "at most 1"]),
        ([*RUN, "--require", "94"], ["--require 94", "at most 1"]),
        ([*SIMULATE, "--require", "94"], ["--require 94", "at most 1"]),
        ([*RUN, "--config", "nope.json"], ["--config nope.json", "No such file", "config.json"]),
        ([*RUN, "--config", "tests"], ["--config tests", "config.json"]),
        ([*SIMULATE, "--config", QUADRATIC], ["--config", "not the config.json of a run"]),
        ([*RUN, "--data", "nope.npz"], ["--data nope.npz", "no such file"]),
        ([*RUN, "--data", str(ROOT / "nodes")], ["--data", "a folder"]),
        ([*RUN, "--out", "/proc/nope/x"], ["--out /proc/nope/x", "cannot be made"]),
        ([*RUN, "--nodse", "3"], ["--nodse", "did you mean", "--nodes"]),
        ([*RUN, "--jsn"], ["--jsn", "did you mean --json?"]),
        ([*RUN, "--diim", "3"], ["--diim", "did you mean --dim?"]),
        ([*RUN, "--wings", "2"], ["--wings", "Quadratic has --dim (default 16), --noise (default 0)"]),
        ([*SIMULATE, "--rank", "0"], ["--rank belongs to rfast node"]),
        ([*SIMULATE, "--run_id", "x"], ["--run-id belongs to rfast node"]),
        ([*SIMULATE, "--insecure"], ["--insecure belongs to rfast node"]),
        ([*RUN, "--latency", "1"], ["--latency belongs to rfast simulate"]),
        ([*RUN, "--bandwidth", "1mbit"], ["--bandwidth belongs to rfast simulate"]),
        ([*RUN, "--halt"], ["--halt belongs to rfast simulate"]),
        ([*NODE, "--rank", "0", "--require", "0.9"], ["--require belongs to rfast run and rfast simulate"]),
        ([*NODE, "--baseline"], ["--baseline belongs to rfast run and rfast simulate"]),
        ([*NODE, "--run-id"], ["--run-id requires an argument"]),
        ([*RUN, "--help=1"], ["--help takes no value"]),
        ([*RUN, "-x"], ["-x: no such option"]),
        ([*RUN, "--dim"], ["--dim: no such option, unless it is the task's own and lacks its value"]),
        (["topology", "line", "--nodse", "3"], ["--nodse", "Did you mean --nodes"]),
        (["rnu"], ["rnu", 'Did you mean "run"']),
        (["run"], ["requires an argument", "rfast run --help"]),
        (["run", "a.py", "b.py"], ["b.py", "not expected"]),
        ([*SIMULATE, "--dim", "x"], ["--dim x", "such as --dim 16"]),
        ([*SIMULATE, "--latency", "-1"], ["--latency -1", "0 or more"]),
        ([*SIMULATE, "--bandwidth", "10 mb"], ["--bandwidth 10 mb", "bytes a second above 0, or as 10mbit"]),
        ([*SIMULATE, "--bandwidth", "0"], ["--bandwidth 0", "above 0"]),
        ([*RUN, "--pace", "fast"], ["--pace fast", "a number of seconds, or auto"]),
        ([*RUN, "--pace", "-1"], ["--pace -1", "0 or more seconds"]),
        ([*RUN, "--bucket-bytes", "100"], ["--bucket-bytes 100", "from 1024 to 16777216"]),
        ([*NODE, "--bucket-bytes", "33554432"], ["--bucket-bytes 33554432", "from 1024 to 16777216"]),
        ([*RUN, "--bucket-bytes", "2048.5"], ["--bucket-bytes 2048.5", "whole number"]),
        ([*SIMULATE, "--compute", "none"], ["--compute none", "constant:0.1"]),
        ([*SIMULATE, "--trace", "/nope/trace"], ["--trace /nope/trace", "No such file"]),
        ([*SIMULATE, "--trace", str(ROOT)], [f"--trace {ROOT}", "Is a directory"]),
        ([*SIMULATE, "--dim", "0"], ["--dim 0: must be 1 or more; such as --dim 16"]),
        ([*SIMULATE, "--weights", "x"], ["--weights x: even or uneven"]),
        (["simulate", MNIST], ["--data is missing", ".npz"]),
        ([*NODE, "--rank", "2"], ["--rank 2", "0 (big), 1 (small)"]),
        ([*NODE, "--rank", "bgi"], ["--rank bgi", "0 (big), 1 (small)"]),
        ([*NODE, "--name", "bgi"], ["--name bgi", "0 (big), 1 (small)"]),
        (NODE, ["--rank or --name", "0 (big), 1 (small)"]),
        ([*NODE, "--rank", "0", "--name", "big"], ["give one"]),
        (["node", QUADRATIC, "--rank", "0"], ["--topology binary-tree", "TOML"]),
        (["replay", "nope.json"], ["nope.json", "no such file"]),
        (["plot", "nope"], ["nope: no such folder", "--out"]),
        (["plot", QUADRATIC], ["quadratic.py: not a folder", "--out"]),
        (["run", f"{QUADRATIC}:"], ["no class after the colon"]),
    ],
    ids=lambda value: " ".join(Path(word).name for word in value) if value and value[0].islower() else None,
)
def test_one_line_says_what_is_wrong_and_what_would_do(
    argv: list[str], says: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(argv, capsys)
    for words in says:
        assert words in line


@pytest.mark.parametrize(
    ("verb", "name", "text", "says"),
    [
        (["topology"], "bad.toml", "nodes = [", "not valid TOML"),
        ([*RUN, "--topology"], "bad.toml", "nodes = 3", "bad.toml"),
        (["replay"], "bad.json", '{"W": [[1.0', "bad.json"),
        (["replay"], "odd.json", "[1, 2]", "odd.json"),
        (["run"], "bad.py", "def f(:\n", "line 1"),
        (["run"], "none.py", "x = 1\n", "define one"),
    ],
)
def test_a_broken_file(
    verb: list[str], name: str, text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text)
    assert says in refused([*verb, str(tmp_path / name)], capsys)


def test_two_graphs_without_a_common_root_are_refused_with_both_root_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rootless.toml"
    file.write_text("nodes = 2\n[pull]\nedges = [[0, 1]]\n[push]\nedges = [[0, 1]]\n")
    line = refused(["topology", str(file)], capsys)
    assert "root" in line
    assert "0" in line
    assert "1" in line


def test_data_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "odd.npz", x=np.zeros((3, 2)), y=np.zeros(3))
    assert "odd.npz" in refused(["simulate", MNIST, "--data", str(tmp_path / "odd.npz")], capsys)
    (tmp_path / "text.npz").write_text("not a zip")
    assert "text.npz" in refused(["simulate", MNIST, "--data", str(tmp_path / "text.npz")], capsys)


def test_a_broken_metrics_file_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"time_s": 0, "samples": 0}\n{"time_s": ')
    assert "metrics.jsonl, line 2" in refused(["plot", str(tmp_path)], capsys)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('defaults = {"samples": "many"}', "the task's defaults: samples is 'many': want a whole number"),
        ('defaults = ["lr"]', "the task's defaults are ['lr']: want a dict"),
        ('options = {"lr": "64"}', "Odd.options has 'lr': --lr is rfast's own; choose another name"),
        ('options = {"run_id": "64"}', "Odd.options has 'run_id': --run-id is rfast's own"),
        ('options = ["lr"]', "Odd.options is ['lr']: want a dict"),
        ("configure_model = Task.configure_model", "Odd has no configure_model()"),
        ("def train_data(self): pass", "Odd.train_data is called with (rank, nodes): too many positional arguments"),
        (
            "def training_step(self, model, batch): return 1.0",
            "training_step() gave a float: must give a scalar tensor",
        ),
        (
            'def evaluate(self, model): return {"accuracy": 97.0}',
            "evaluate() gave an accuracy of 97: must be from 0 to 1",
        ),
    ],
)
def test_a_task_that_will_not_do(line: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd.py").write_text(f"{RAISES.replace('main(Raises)', '')}class Odd(Raises):\n    {line}\n")
    argv = ["simulate", f"{tmp_path / 'odd.py'}:Odd", "--nodes", "2", "--json"]
    assert says in refused(argv, capsys)


def test_what_is_required_of_an_accuracy_that_is_none_or_no_number(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--nodes", "2", "--samples", "100", "--require", "0.5"]
    assert status_of(["simulate", task, *argv, "--where", "unscored"]) == 1
    assert capsys.readouterr().err == "rfast: --require 0.5: the task's evaluate() gave no accuracy\n"
    (tmp_path / "nan.py").write_text(RAISES.replace('"accuracy": 0.5', '"accuracy": float("nan")'))
    assert status_of(["simulate", str(tmp_path / "nan.py"), *argv]) == 1
    assert capsys.readouterr().err == "rfast: --require 0.5: the accuracy ended at nan\n"


@pytest.mark.parametrize("place", ["model", "data", "step"])
def test_a_task_that_raises_is_shown_with_its_own_traceback_and_the_rank(
    place: str, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(["simulate", task, "--nodes", "2", "--where", place]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert f'raises.py", line {RAISES[: RAISES.index("raise ValueError")].count(chr(10)) + 1}' in said
    assert said.endswith(f"rfast: rank 1: the task raised ValueError: this {place} is bad\n")
    assert "rfast_zmq/" not in said  # whoever reads it wrote none of that


@pytest.mark.parametrize("place", ["step", "stop"])
def test_a_task_that_raises_in_its_process_and_the_model_that_the_root_has(
    place: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert status_of(["run", task, "--nodes", "2", "--where", place, "--out", str(out), "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "raises.py" in said.err
    assert f"the newest model is kept: {out / 'model.safetensors'}\n" in said.err
    assert said.err.endswith(f"rfast: rank 1: the task raised ValueError: this {place} is bad\n")
    assert (out / "config.json").exists()
    assert (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("verb", "place", "says"),
    [
        ("run", "exit", "SystemExit: no data left"),
        ("simulate", "exit", "SystemExit: no data left"),
        ("run", "ctrl-c", "KeyboardInterrupt"),
    ],
)
def test_a_task_that_exits_raises_too(
    verb: str, place: str, says: str, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of([verb, task, "--nodes", "2", "--where", place, "--compute", "constant:0.01", "--json"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith(f"rfast: rank 1: the task raised {says}\n")


def test_a_target_that_nothing_can_reach_is_refused_when_that_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "raises.py"
    file.write_text(RAISES.replace('"samples": 1000, ', ""))
    argv = ["run", str(file), "--nodes", "2", "--where", "unscored", "--target", "0.9", "--json"]
    line = refused(argv, capsys)
    assert "--target 0.9: the task's evaluate() gives no accuracy" in line
    assert "--samples" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full")
def test_a_trace_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*SIMULATE, "--nodes", "2", "--samples", "300", "--trace", "/dev/full", "--json"]
    assert status_of([*argv, "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == "rfast: --trace /dev/full: cannot be written: No space left on device"
    assert (tmp_path / "model.safetensors").exists()


def test_a_root_that_is_killed_leaves_no_model_and_a_status(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ["run", task, "--nodes", "2", "--where", "killed", "--samples", "1000000", "--compute", "constant:0.05"]
    assert status_of([*argv, "--out", str(out), "--json"]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == (
        "rfast: node 0, the root, died: no model could be saved; the other results are kept"
    )
    assert json.loads(said.out)["missing"] == [0]
    assert (out / "result.json").exists()
    assert not (out / "model.safetensors").exists()


def test_a_file_that_raises_when_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "early.py").write_text("raise KeyError('early')\n")
    assert status_of(["run", str(tmp_path / "early.py")]) == 2
    said = capsys.readouterr().err
    assert "early.py" in said
    assert said.endswith("rfast: the task raised KeyError: 'early'\n")


@pytest.mark.parametrize("verb", ["simulate", "run"])
def test_a_loss_that_is_not_finite_names_the_node_and_keeps_the_model_before_it(
    verb: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    argv = [verb, task, "--nodes", "2", "--where", "nan", "--compute", "constant:0.05", "--out", str(tmp_path / "out")]
    assert status_of(argv) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "rfast: node 1: its loss is not a finite number" in said
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert set(kept) == {"weight", "bias"}
    assert all(bool(t.isfinite().all()) for t in kept.values())
