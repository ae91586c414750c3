"""``nodes/cifar10.py`` on made-up images whose colour tells their label."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rfast_zmq import Plan, Settings, Simulator
from rfast_zmq.errors import UsageError
from rfast_zmq.task import Worker, load_task, make_task

FILE = str(Path(__file__).parents[1] / "nodes" / "cifar10.py")


def images(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noise, reddish where the label is 0, greenish for 1, bluish for 2."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count)
    x = 150 * np.eye(3, dtype=int)[y][:, None, None] + rng.integers(0, 100, (count, 32, 32, 3))
    return x.astype(np.uint8), y


@pytest.fixture
def made(tmp_path: Path) -> str:
    x, y = images(300, seed=1)
    np.savez(tmp_path / "made.npz", x=x, y=y)
    return str(tmp_path / "made.npz")


def worker(data: str | None, **options: str) -> Worker:
    settings = Settings(nodes=1, data=data, device="cpu", task_options={"width": "2", **options})
    task = make_task(load_task(FILE), settings)
    return Worker(task, task.settings, 0)


def train(data: str, **changes: Any) -> Any:
    settings: dict[str, Any] = {"nodes": 3, "data": data, "samples": 48 * 15, "global_batch": 48, "lr": 0.02}
    settings |= {"report_batch": 8, "evaluate_every": 15.0, "compute": "constant:0.1", "device": "cpu"}
    settings["task_options"] = {"width": "2"}
    return Simulator(Plan.make(FILE, Settings(**{**settings, **changes}))).run()


def test_three_nodes_learn_the_colours(made: str) -> None:
    run = train(made)
    assert run.points[0].loss > 2.0
    assert run.result.loss < 1.0
    assert run.result.accuracy > 0.9


def test_a_file_with_images_to_test_on_is_tested_on_those(tmp_path: Path) -> None:
    """Their labels are one higher than what is trained: what is learnt is then always wrong."""
    (x, y), (x_test, y_test) = images(200, seed=1), images(60, seed=2)
    np.savez(tmp_path / "two.npz", x_train=x, y_train=y, x_test=x_test, y_test=(y_test + 1) % 10)
    run = train(str(tmp_path / "two.npz"))
    assert run.result.accuracy < 0.1


def test_the_size_and_its_option(made: str) -> None:
    layout = worker(made, width="16").layout
    assert 200_000 < layout.parameters < 400_000
    assert layout.total > layout.parameters  # BatchNorm's averages
    assert worker(made).layout.total < layout.total / 20


def test_the_random_flips_and_shifts_replay_and_evaluation_has_none(made: str) -> None:
    one, other = worker(made), worker(made)
    x = one.initial()
    first = one.gradient(x, 240)  # the whole shard, so that only what is drawn differs from gradient to gradient
    torch.rand(5)
    again = other.gradient(x, 240)
    assert first[1] == again[1]
    assert all(torch.equal(a, b) for a, b in zip(first[0], again[0], strict=True))
    assert abs(one.gradient(x, 240)[1] - first[1]) > 1e-5
    assert one.evaluate(x) == one.evaluate(x)


def test_an_image_is_flipped_or_not_and_moved_by_two_pixels_at_most() -> None:
    jitter = sys.modules[load_task(FILE).__module__].jitter
    image = torch.from_numpy(images(1, seed=3)[0][0])
    wide = [torch.nn.functional.pad(i, (0, 0, 2, 2, 2, 2)) for i in (image, image.flip(1))]
    could_be = [w[dy : dy + 32, dx : dx + 32] for w in wide for dy in range(5) for dx in range(5)]
    torch.manual_seed(0)
    seen = {next(i for i, c in enumerate(could_be) if torch.equal(j, c)) for j in jitter(image.expand(500, -1, -1, -1))}
    assert seen == set(range(50))


def test_it_says_what_data_it_wants(tmp_path: Path) -> None:
    x, y = images(9, seed=1)
    (tmp_path / "text.npz").write_text("no archive")
    made: dict[str, dict[str, NDArray[Any]]] = {
        "other": {"images": x},
        "half": {"x_train": x, "y_train": y},
        "floats": {"x": x / 255, "y": y},
        "grey": {"x": x[..., 0], "y": y},
        "fewer": {"x": x, "y": y[:8]},
        "high": {"x": x, "y": y + 10},
        "real": {"x": x, "y": y / 2},
    }
    for name, arrays in made.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    for data, said in (
        (None, "--data is missing"),
        ("absent", "No such file"),
        ("text", r"text\.npz: cannot be read as arrays; give"),
        ("other", "x_train is not a file"),
        ("half", "x_test is not a file"),
        ("floats", r"x is float64 \(9, 32, 32, 3\)"),
        ("grey", r"x is uint8 \(9, 32, 32\)"),
        ("fewer", r"y is \(8,\)"),
        ("high", r"y is int64, 1\d to 1\d"),
        ("real", "y is float64"),
    ):
        with pytest.raises(UsageError, match=rf"{said}.*arrays x_train, x_test \(or x alone\)"):
            worker(None if data is None else str(tmp_path / f"{data}.npz"))


def test_it_refuses_a_width_that_is_none(made: str) -> None:
    for width, said in (("0", "must be 1 or more"), ("wide", "invalid literal")):
        with pytest.raises(UsageError, match=f"--width {width}: {said}.*such as --width 16"):
            worker(made, width=width)
    with pytest.raises(UsageError, match=r"--depth: Cifar10 has no such option; it has --width .*, --norm "):
        worker(made, depth="3")
    with pytest.raises(UsageError, match=r"--norm layer: no such normalisation; one of batch, group; .*--norm batch"):
        worker(made, norm="layer")


def test_with_group_norm_no_image_depends_on_the_others_of_its_batch_and_no_average_travels(made: str) -> None:
    layout = worker(made, norm="group").layout
    assert layout.total == layout.parameters
    scores = []
    for norm in ("group", "batch"):
        module = worker(made, norm=norm).task.configure_model().train()
        x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        scores.append((module(x)[:4], module(x[:4])))
    assert worker(made, norm="group", width="3").layout.parameters > 0  # halves of an odd number there are not
    assert torch.allclose(*scores[0], atol=1e-5)
    assert not torch.allclose(*scores[1], atol=1e-2)


def test_nodes_with_one_colour_each_learn_all_of_them_with_group_norm(made: str) -> None:
    options = {"width": "2", "norm": "group"}
    run = train(made, nodes=5, split="label", samples=48 * 40, task_options=options)
    assert run.result.accuracy > 0.9
