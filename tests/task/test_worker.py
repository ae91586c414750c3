"""A node's worker: the same start everywhere, gradients at the model it is given, scores on a copy."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rfast_zmq.errors import TaskError, UsageError
from rfast_zmq.settings import Settings
from rfast_zmq.task import Task, Worker

SETTINGS = Settings(nodes=2, global_batch=16, seed=5)


class Small(Task):
    """Least squares with a norm, a dropout and a frozen layer, so that there is something of everything."""

    def configure_model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        model[0].bias.requires_grad_(False)
        return model

    def train_data(self, rank: int, nodes: int) -> tuple[Tensor, Tensor]:
        x = torch.arange(30.0).view(10, 3) + rank
        return x, x.sum(1, keepdim=True)

    def training_step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.seen = batch
        x, y = batch
        return nn.functional.mse_loss(model(x), y)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"loss": model(torch.ones(1, 3)).item(), "mean": model[1].running_mean[0]}


class Ends(Small):
    def training_step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        raise self.what  # type: ignore[attr-defined]


@pytest.mark.parametrize("what", [SystemExit("over"), KeyboardInterrupt("over")])
def test_a_task_that_ends_the_process_has_raised(what: BaseException) -> None:
    """But a Ctrl-C, where Python answers it with KeyboardInterrupt, is the user's."""
    made = worker(Ends)
    made.task.what = what  # type: ignore[attr-defined]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(TaskError, match=f"rank 0: the task raised {type(what).__name__}: over"):
            made.gradient(made.initial(), 4)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt if isinstance(what, KeyboardInterrupt) else TaskError):
            made.gradient(made.initial(), 4)
    finally:
        signal.signal(signal.SIGINT, before)


def worker(cls: type[Task] = Small, rank: int = 0, **more: Any) -> Worker:
    return Worker(cls(SETTINGS, rank), SETTINGS, rank, **more)


def test_every_node_starts_at_the_same_model_and_the_callers_draws_are_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second = worker(rank=0), worker(rank=1)
    assert torch.equal(torch.rand(3), expected)
    assert first.layout == second.layout
    assert all(torch.equal(a, b) for a, b in zip(first.initial(), second.initial(), strict=True))
    other = Worker(Small(Settings(seed=6)), Settings(seed=6), 0)
    assert not torch.equal(first.initial()[0], other.initial()[0])


def test_a_gradient_is_at_the_given_model_over_the_next_samples() -> None:
    class Plain(Small):
        def configure_model(self) -> nn.Module:
            return nn.Linear(3, 1)

    w = worker(Plain)
    w.prefetch()
    model = (torch.tensor([1.0, 2.0, 3.0, 0.5]),)
    gradient, loss, done = w.gradient(model, 7)
    x, y = w.task.seen  # type: ignore[attr-defined]
    assert done == len(x) == 7
    error = x @ model[0][:3, None] + 0.5 - y
    torch.testing.assert_close(gradient[0], torch.cat([2 * (error * x).mean(0), 2 * error.mean(0)]))
    assert loss == pytest.approx(error.square().mean().item(), rel=1e-5)
    assert model[0].tolist() == [1.0, 2.0, 3.0, 0.5]
    w.gradient(model, 3)
    assert len({tuple(r.tolist()) for r in torch.cat([x, w.task.seen[0]])}) == 10  # type: ignore[attr-defined]


def test_scores_are_of_the_given_model_with_its_averages_on_a_copy() -> None:
    w = worker()
    model = tuple(torch.full((s,), 0.1) for s in w.layout.sizes)
    first = w.evaluate(model)
    assert first == w.evaluate(model)  # no dropout
    assert first["mean"] == pytest.approx(0.1)
    gradient, _, _ = w.gradient(w.initial(), 8)
    assert first == w.evaluate(model)
    w.evaluate(tuple(torch.zeros(s) for s in w.layout.sizes))
    averages = w.layout.buckets[-1]
    assert averages.kind == "averages"
    before = w.gradient(w.initial(), 8)[0][-1]
    assert not torch.equal(before, gradient[-1])  # the node's own averages move on, evaluation does not reset them
    state = w.state_dict(model)
    assert set(state) == set(w.task.configure_model().state_dict())
    assert torch.equal(state["3.weight"], torch.full((1, 4), 0.1))
    assert int(state["1.num_batches_tracked"]) == 2  # buffers that are no averages are the training model's


def test_evaluation_may_run_beside_gradients() -> None:
    w = worker()
    model = w.initial()
    alone = w.evaluate(model)
    found: list[dict[str, float]] = []
    thread = threading.Thread(target=lambda: found.extend(w.evaluate(model) for _ in range(30)))
    thread.start()
    for _ in range(60):
        w.gradient(tuple(torch.randn(s) for s in w.layout.sizes), 4)
    thread.join()
    assert found == [alone] * 30


def test_a_worker_that_never_evaluates_has_no_second_model() -> None:
    w = worker(evaluates=False)
    w.gradient(w.initial(), 2)
    with pytest.raises(RuntimeError, match="evaluates=False"):
        w.evaluate(w.initial())


@pytest.mark.parametrize("method", ["configure_model", "train_data", "training_step", "evaluate"])
def test_what_the_users_code_raises_carries_the_rank_and_its_own_traceback(method: str) -> None:
    def oops(self: Task, *args: Any) -> Any:
        raise ZeroDivisionError("a user's mistake")

    cls = type("Broken", (Small,), {method: oops})

    def use() -> None:
        w = worker(cls, rank=1)
        w.gradient(w.initial(), 2)
        w.evaluate(w.initial())

    with pytest.raises(TaskError, match="rank 1: the task raised ZeroDivisionError: a user's mistake") as caught:
        use()
    assert "in oops" in caught.value.traceback


def test_usage_errors_of_the_task_stay_usage_errors() -> None:
    def wanting(self: Task, *args: Any) -> Any:
        raise UsageError("--data is missing")

    with pytest.raises(UsageError, match="--data is missing"):
        worker(type("Wanting", (Small,), {"train_data": wanting}))
    with pytest.raises(UsageError, match=r"weight\(\) is 0\.0"):
        worker(type("Weightless", (Small,), {"weight": lambda self: 0.0}))


@pytest.mark.parametrize(
    ("method", "gives", "says"),
    [
        ("configure_model", None, r"configure_model() gave None: must give a torch.nn.Module"),
        ("configure_model", {}, "configure_model() gave a dict: must give a torch.nn.Module"),
        ("parameter_group", 3, "parameter_group('0.weight', …) gave 3: must give a rfast_zmq.task.Group"),
        ("weight", "heavy", "weight() gave 'heavy': must give a number"),
        ("training_step", torch.ones(3), "training_step() gave a tensor of shape (3,): must give a scalar tensor"),
        ("lr_schedule", float("nan"), "lr_schedule(2.5) gave nan: must give a finite number"),
        ("lr_schedule", "x", "lr_schedule(2.5) gave 'x': must give a number"),
        ("evaluate", 0.5, "evaluate() gave 0.5: must give a dict of numbers"),
        ("evaluate", {1: 0.5}, "evaluate() gave a dict: must give a dict of numbers"),
        ("evaluate", {"accuracy": "high"}, "evaluate()['accuracy'] gave 'high': must give a number"),
        ("evaluate", {"loss": torch.ones(2)}, "evaluate()['loss'] gave a tensor of shape (2,): must give a number"),
        ("evaluate", {"accuracy": 97.0}, "evaluate() gave an accuracy of 97: must be from 0 to 1"),
        ("evaluate", {"accuracy": -0.1}, "evaluate() gave an accuracy of -0.1: must be from 0 to 1"),
    ],
)
def test_what_the_users_code_must_not_give_is_named_in_one_line(method: str, gives: Any, says: str) -> None:
    def use() -> None:
        w = worker(type("Odd", (Small,), {method: lambda self, *args: gives}))
        w.gradient(w.initial(), 2)
        w.lr_schedule(2.5)
        w.evaluate(w.initial())

    with pytest.raises(UsageError) as refused:
        use()
    assert str(refused.value).startswith(says)


def test_accuracies_at_the_ends_or_of_no_model_are_taken() -> None:
    """Rounding may bring a mean a little over 1, and a model that is not finite may have no accuracy."""
    for accuracy in (0, 1, 1.00001, torch.tensor(1.0), float("nan")):
        w = worker(type("Ends", (Small,), {"evaluate": lambda self, model, a=accuracy: {"accuracy": a}}))
        assert str(w.evaluate(w.initial())["accuracy"]) == str(float(accuracy))


def test_no_scores_are_an_empty_dict() -> None:
    w = worker(type("Silent", (Small,), {"evaluate": Task.evaluate}))
    assert w.evaluate(w.initial()) == {}


class Draws(Small):
    """Keeps what torch's global generator gave in each step."""

    def training_step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.drawn = [*getattr(self, "drawn", []), torch.rand(()).item()]
        return super().training_step(model, batch)


def draws(rank: int, seed: int) -> list[float]:
    settings = Settings(nodes=2, global_batch=16, seed=seed)
    worker = Worker(Draws(settings, rank), settings, rank)
    for _ in range(3):
        torch.rand(7)  # whoever else draws meanwhile changes nothing
        worker.gradient(worker.initial(), 4)
    assert isinstance(worker.task, Draws)
    return worker.task.drawn


def test_a_steps_random_numbers_go_by_seed_rank_and_step_alone() -> None:
    first = draws(0, 5)
    assert len(set(first)) == 3
    assert draws(0, 5) == first
    assert not set(first) & set(draws(1, 5))
    assert not set(first) & set(draws(0, 6))
