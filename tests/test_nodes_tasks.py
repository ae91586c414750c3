"""Each file of nodes/ trains, on one machine with a plain loop, to what it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rfast_zmq.errors import UsageError
from rfast_zmq.settings import Settings
from rfast_zmq.task import Worker, load_task, make_task

NODES = Path(__file__).parents[1] / "nodes"


def workers(name: str, **settings: Any) -> list[Worker]:
    cls = load_task(str(NODES / f"{name}.py"))
    tasks = [make_task(cls, Settings(**settings), rank) for rank in range(settings["nodes"])]
    return [Worker(t, t.settings, rank) for rank, t in enumerate(tasks)]


def train(nodes: list[Worker], rounds: int, lr: float, samples: int, momentum: float = 0.0) -> dict[str, float]:
    """Synchronous descent along the weighted mean of the nodes' gradients; the scores afterwards."""
    layout = nodes[0].layout
    x, u = layout.join(nodes[0].initial()), torch.zeros(layout.total)
    for _ in range(rounds):
        total = sum(w.weight * layout.join(w.gradient(layout.split(x), samples)[0]) for w in nodes)
        u = momentum * u + total / sum(w.weight for w in nodes)
        x = x - lr * u
    return nodes[0].evaluate(layout.split(x))


def test_every_file_is_here_is_short_and_explains_itself() -> None:
    files = sorted(NODES.glob("*.py"))
    assert [f.name for f in files] == ["charlm.py", "cifar10.py", "digits.py", "mnist.py", "quadratic.py"]
    for file in files:
        text = file.read_text()
        assert text.startswith('"""')
        assert len(text.splitlines()) <= 116
        assert "main(" in text
        cls = load_task(str(file))
        Settings().resolved(cls.defaults)


@pytest.mark.parametrize("split", ["iid", "label"])
def test_digits(split: str) -> None:
    scores = train(workers("digits", nodes=3, split=split), rounds=300, lr=0.05, samples=21, momentum=0.9)
    assert scores["accuracy"] >= 0.94
    assert scores["loss"] < 0.3


@pytest.mark.parametrize("weights", ["even", "uneven"])
def test_quadratic_goes_to_the_optimum_of_the_weighted_mean(weights: str) -> None:
    nodes = workers("quadratic", nodes=4, task_options={"weights": weights, "dim": "5"})
    assert train(nodes, rounds=150, lr=0.3, samples=4)["error"] < 1e-6
    other = workers("quadratic", nodes=4, task_options={"weights": "even", "dim": "5"}, seed=1)
    assert train(other, rounds=1, lr=0.3, samples=4)["error"] > 0.01


def test_quadratic_noise_cancels_over_an_epoch() -> None:
    nodes = workers("quadratic", nodes=2, task_options={"noise": "1"})
    assert train(nodes, rounds=100, lr=0.3, samples=256)["error"] < 1e-5
    assert train(nodes, rounds=100, lr=0.3, samples=2)["error"] > 1e-3
    for options, said in (
        ({"dim": "many"}, "--dim many"),
        ({"dim": "0"}, "--dim 0: must be 1 or more"),
        ({"weights": "x"}, "--weights x: even or uneven"),
    ):
        with pytest.raises(UsageError, match=said):
            workers("quadratic", nodes=1, task_options=options)


def test_digits_says_how_wide_it_can_be() -> None:
    with pytest.raises(UsageError, match="--hidden 0: must be 1 or more"):
        workers("digits", nodes=1, task_options={"hidden": "0"})


@pytest.fixture
def made(tmp_path: Path) -> str:
    """300 images of which each shows its label as a bright row, in noise."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 300)
    x = rng.integers(0, 120, (300, 28, 28))
    x[np.arange(300), 2 * y + 3] += 120
    np.savez(tmp_path / "made.npz", x=x.astype(np.uint8), y=y)
    return str(tmp_path / "made.npz")


@pytest.mark.parametrize("model", ["mlp", "logreg"])
def test_mnist(made: str, model: str) -> None:
    nodes = workers("mnist", nodes=2, data=made, task_options={"model": model})
    assert nodes[0].layout.total == (784 * 128 + 128 + 1290 if model == "mlp" else 7850)
    assert train(nodes, rounds=80, lr=0.05, samples=16, momentum=0.9)["accuracy"] >= 0.95


def test_mnist_logreg_has_the_l2_term_in_its_loss(made: str) -> None:
    (node,) = workers("mnist", nodes=1, data=made, task_options={"model": "logreg"})
    x = torch.zeros(7850)
    x[-10:] = 7.0  # equal biases: a uniform softmax
    gradient, loss, _ = node.gradient(node.layout.split(x), 10)
    assert loss == pytest.approx(np.log(10) + 0.5e-4 * 490, rel=1e-5)
    assert node.layout.join(gradient)[-10:].sum().item() == pytest.approx(1e-4 * 70, rel=1e-2)


def test_mnist_says_what_data_it_wants(tmp_path: Path, made: str) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    np.savez(tmp_path / "flat.npz", x=np.zeros((9, 784)), y=np.zeros(9))
    for data, said in (
        (None, "--data is missing"),
        (str(tmp_path / "absent.npz"), "No such file"),
        (str(tmp_path / "text.npz"), r"text\.npz: cannot be read as arrays; give"),
        (str(tmp_path / "other.npz"), "x is not a file"),
        (str(tmp_path / "flat.npz"), r"x is \(9, 784\)"),
    ):
        with pytest.raises(UsageError, match=f"{said}.*arrays x, uint8"):
            workers("mnist", nodes=1, data=data)
    with pytest.raises(UsageError, match="--model cnn: no such model; mlp or logreg"):
        workers("mnist", nodes=1, data=made, task_options={"model": "cnn"})
