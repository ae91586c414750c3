"""``nodes/charlm.py`` on made-up texts."""

from __future__ import annotations

from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rfast_zmq import Plan, Settings, Simulator
from rfast_zmq.errors import UsageError
from rfast_zmq.task import Worker, load_task, make_task

FILE = str(Path(__file__).parents[1] / "nodes" / "charlm.py")
SMALL = {"context": "16", "layers": "1", "dim": "16", "heads": "2"}
WORDS = ["winter ", "made ", "glorious ", "summer ", "by ", "this "]


@pytest.fixture
def made(tmp_path: Path) -> str:
    """2,000 words in random order: some 11,000 characters."""
    (tmp_path / "made.txt").write_text("".join(np.random.default_rng(0).choice(WORDS, 2000)))
    return str(tmp_path / "made.txt")


def task(data: str | None, rank: int = 0, split: str = "iid", nodes: int = 1, **options: str) -> Any:
    settings = Settings(nodes=nodes, data=data, split=split, device="cpu", task_options={**SMALL, **options})
    return make_task(load_task(FILE), settings, rank)


@pytest.mark.parametrize("split", ["iid", "label"])
def test_three_nodes_learn_the_words(made: str, split: str) -> None:
    settings: dict[str, Any] = {"nodes": 3, "data": made, "split": split, "global_batch": 24, "samples": 24 * 60}
    settings |= {"lr": 0.02, "report_batch": 4, "evaluate_every": 60.0, "compute": "constant:0.1", "device": "cpu"}
    run = Simulator(Plan.make(FILE, Settings(**settings, task_options=SMALL))).run()
    assert run.points[0].loss == pytest.approx(log(len(set("".join(WORDS)))), rel=0.05)
    assert run.result.loss is not None
    assert run.result.accuracy is not None
    assert run.result.loss < 1.2
    assert run.result.accuracy > 0.6


def test_it_is_tested_on_the_last_tenth_alone(tmp_path: Path) -> None:
    """The text ends in a tenth of one other letter, which is then what is scored, and never trained."""
    (tmp_path / "ends.txt").write_text("ab" * 900 + "z" * 200)
    charlm = task(str(tmp_path / "ends.txt"))
    worker = Worker(charlm, charlm.settings, 0)
    data = charlm.train_data(0, 1)
    assert len(data) == 1800 - 16
    assert sorted(set(torch.stack([data[i] for i in range(len(data))]).flatten().tolist())) == [0, 1]
    flat = torch.zeros(worker.layout.total)
    assert worker.evaluate(worker.layout.split(flat))["loss"] == pytest.approx(log(3))  # no letter above another
    model = charlm.configure_model()
    before, after = model.characters.weight[2].detach().clone(), model.blocks[-1]
    torch.nn.init.zeros_(after.weight)
    after.bias.data.copy_(100 * before / before.square().sum())  # what is said is z, wherever and whatever comes before
    assert charlm.evaluate(model.eval())["accuracy"] == 1


def test_nothing_is_known_of_what_comes_later(made: str) -> None:
    model = task(made, layers="2").configure_model().eval()
    x = torch.arange(16)[None] % 10
    y = x.clone()
    y[0, 9:] = 3
    with torch.no_grad():
        first, second = model(x), model(y)
    assert torch.allclose(first[0, :9], second[0, :9], atol=1e-6)
    assert not torch.allclose(first[0, 9], second[0, 9], atol=1e-3)


def test_matrices_decay_and_the_output_is_the_embedding(made: str) -> None:
    charlm = task(made, dim="8")
    layout = Worker(charlm, charlm.settings, 0).layout
    assert all(layout.groups[e.group].decay == (len(e.shape) == 2) for e in layout.entries)
    letters = len(set("".join(WORDS)))
    assert [e.name for e in layout.entries if letters in e.shape] == ["characters.weight"]


def test_under_label_each_node_has_its_own_part_of_the_text(made: str) -> None:
    """Under iid windows from everywhere; either way no window twice."""
    parts = [task(made, rank, "label", 4).train_data(rank, 4).indices for rank in range(4)]
    assert all(part == list(range(part[0], part[0] + len(part))) for part in parts)
    assert all(one[-1] + 1 == other[0] for one, other in pairwise(parts))
    mixed = [task(made, rank, "iid", 4).train_data(rank, 4).indices for rank in range(4)]
    whole = sorted(i for shard in mixed for i in shard)
    assert whole == [i for part in parts for i in part]
    assert all(np.mean(shard) == pytest.approx(np.mean(whole), rel=0.1) for shard in mixed)


def test_the_learning_rate_goes_up_then_down_a_cosine(made: str) -> None:
    charlm = task(made)
    total = charlm.settings.samples / charlm.settings.global_batch
    rates = [charlm.lr_schedule(total * i / 100) for i in range(101)]
    assert rates[0] == 0
    assert max(rates) == rates[5] == pytest.approx(1, abs=0.01)
    assert all(a > b for a, b in pairwise(rates[5:]))
    assert rates[-1] == charlm.lr_schedule(2 * total) == pytest.approx(0.1)
    assert charlm.lr_schedule(0.025 * total) == pytest.approx(0.5, abs=0.01)


def test_it_says_what_data_it_wants(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("to be or not to be")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe" * 500)
    for data, said in (
        (None, "--data is missing: "),
        ("absent.txt", "No such file.*"),
        (".", "Is a directory.*"),
        ("bytes.txt", "bytes.txt: .*can't decode.*"),
        ("short.txt", "short.txt: 18 characters; "),
    ):
        with pytest.raises(UsageError, match=f"{said}give a text file in UTF-8"):
            task(None if data is None else str(tmp_path / data))
    with pytest.raises(UsageError, match="of 170 or more, or a smaller --context"):
        task(str(tmp_path / "short.txt"))


def test_it_refuses_sizes_that_cannot_be(made: str) -> None:
    for name in SMALL:
        for value, said in (("0", "must be 1 or more"), ("many", "invalid literal")):
            options: dict[str, Any] = {name: value}
            with pytest.raises(UsageError, match=f"--{name} {value}: {said}.*such as --{name} "):
                task(made, **options)
    with pytest.raises(UsageError, match="--heads 3: must divide --dim 16"):
        task(made, heads="3")
    with pytest.raises(UsageError, match="--width: CharLM has no such option; it has --context"):
        task(made, width="3")
