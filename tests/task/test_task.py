"""The user's class: what it gets for nothing, and how it is found in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rfast_zmq.errors import TaskError, UsageError
from rfast_zmq.settings import Settings
from rfast_zmq.task import Group, Task, load_task, make_task, positive


class Bare(Task):
    options = {"width": "8", "act": "relu"}


def test_everything_but_three_methods_has_a_default() -> None:
    task = Bare(Settings())
    for call in (task.configure_model, lambda: task.train_data(0, 1), lambda: task.training_step(nn.Tanh(), None)):
        with pytest.raises(NotImplementedError, match="Bare must define"):
            call()
    assert task.evaluate(nn.Tanh()) is None
    assert task.lr_schedule(3.5) == 1.0
    assert task.weight() == 1.0
    assert task.parameter_group("a", nn.Parameter(torch.zeros(2, 2))) == Group(True)
    assert task.parameter_group("a", nn.Parameter(torch.zeros(2))) == Group(False)
    task.on_start(), task.on_report(None), task.on_evaluate({}), task.on_stop()


def test_options_are_read_and_unknown_ones_refused() -> None:
    task = Bare(Settings(task_options={"width": "16"}))
    assert (task.option("width"), task.option("width", int), task.option("act")) == ("16", 16, "relu")
    with pytest.raises(UsageError, match=r"--depth: Bare has no such option; it has --width \(default 8\), --act"):
        Bare(Settings(task_options={"depth": "2"}))
    with pytest.raises(UsageError, match=r"--width wide: .*such as --width 8"):
        Bare(Settings(task_options={"width": "wide"})).option("width", int)
    with pytest.raises(UsageError, match="none of its own"):
        Task(Settings(task_options={"depth": "2"}))
    assert Bare(Settings()).option("width", positive) == 8
    with pytest.raises(UsageError, match=r"--width 0: must be 1 or more; such as --width 8"):
        Bare(Settings(task_options={"width": "0"})).option("width", positive)


class Whole(Bare):
    def configure_model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def train_data(self, rank: int, nodes: int) -> Tensor:
        return torch.ones(4, 1)

    def training_step(self, model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        return model(batch[0]).mean()


def test_make_task_resolves_the_defaults_and_wraps_what_the_user_raises() -> None:
    class Mine(Whole):
        defaults = {"lr": 0.5}

    class Broken(Whole):
        def __init__(self, settings: Settings, rank: int = 0) -> None:
            raise KeyError("oops")

    assert make_task(Mine, Settings()).settings.lr == 0.5
    assert make_task(Mine, Settings(lr=0.25)).settings.lr == 0.25
    with pytest.raises(TaskError, match="rank 2: the task raised KeyError: 'oops'"):
        make_task(Broken, Settings(), 2)


def takes_nothing(self: Task) -> None:
    return None


@pytest.mark.parametrize(
    ("methods", "says"),
    [
        (
            {"configure_model": Task.configure_model},
            r"Odd has no configure_model\(\): a task must define configure_model,",
        ),
        ({"training_step": Task.training_step}, r"Odd has no training_step\(\)"),
        ({"train_data": takes_nothing}, r"Odd\.train_data is called with \(rank, nodes\): too many"),
        ({"on_evaluate": takes_nothing}, r"Odd\.on_evaluate is called with \(metrics\): too many"),
        ({"weight": lambda self, rank: 1.0}, r"Odd\.weight is called with \(\): missing a required argument: 'rank'"),
        ({"on_stop": None}, r"Odd\.on_stop is called with \(\): None is not a callable object"),
        ({"__init__": takes_nothing}, r"Odd\.__init__ is called with \(settings, rank\): too many"),
        ({"__init__": lambda self, *_: None}, r"Odd\.__init__ does not call super\(\)\.__init__\(settings, rank\)"),
    ],
)
def test_a_task_that_cannot_be_called_as_it_will_be(methods: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make_task(type("Odd", (Whole,), methods), Settings())


def test_other_names_and_more_arguments_than_needed_are_the_users_affair() -> None:
    odd = {"train_data": lambda self, *args, **more: None, "evaluate": staticmethod(lambda net, often=3: None)}
    assert isinstance(make_task(type("Odd", (Whole,), odd), Settings()), Whole)


def test_shards_of_all_ranks_are_a_partition_and_weigh_by_their_size() -> None:
    labels = np.arange(300) % 10
    for how in ("iid", "label", "dirichlet:0.3"):
        tasks = [Bare(Settings(nodes=4, split=how, seed=3), rank) for rank in range(4)]
        shards = [t.shard(torch.tensor(labels)) for t in tasks]
        assert sorted(np.concatenate(shards).tolist()) == list(range(300))
        weights = [t.weight() for t in tasks]
        assert sum(weights) == pytest.approx(4)
        if how == "dirichlet:0.3":
            assert weights == pytest.approx([len(s) * 4 / 300 for s in shards])
        else:
            assert weights == [1.0] * 4


GOOD = "from rfast_zmq.task import Task\nclass A(Task):\n    pass\n"


def test_a_task_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "helper_of_a.py").write_text("VALUE = 7\n")
    (tmp_path / "mine.py").write_text(GOOD + "    from helper_of_a import VALUE\nAlias = A\n")
    here = load_task(str(tmp_path / "mine.py"))
    assert here.__name__ == "A"
    assert here.VALUE == 7  # type: ignore[attr-defined]
    monkeypatch.chdir(tmp_path)
    relative = load_task("mine.py")
    assert relative.__module__ != here.__module__
    assert load_task("mine.py:A").__name__ == "A"
    (tmp_path / "two.py").write_text(GOOD + "class B(A):\n    pass\n")
    assert load_task("two.py:B").__name__ == "B"


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("absent.py", None, "no such file"),
        ("task.txt", GOOD, "not a Python file"),
        (".", None, "not a Python file"),
        ("none.py", "x = 1\n", "no class derived from rfast_zmq.Task; define one"),
        ("imported.py", "from rfast_zmq.task import Task\n", "no class derived"),
        ("two.py", GOOD + "class B(A):\n    pass\n", r"several tasks, A, B; say which: .*two\.py:A"),
        ("one.py:B", GOOD, "no Task subclass 'B'; it has A"),
        ("one.py:Task", GOOD, "no Task subclass 'Task'"),
        ("one.py:", GOOD, r"no class after the colon; give one\.py or one\.py:Class"),
        ("null.py", "x = 1\0\n", "null.py: it holds null bytes"),
        ("syntax.py", "x = 1\ndef f(:\n", "syntax.py, line 2"),
        ("exits.py", "raise SystemExit(3)\n", "__main__"),
        ("says.py", "from rfast_zmq.errors import UsageError\nraise UsageError('my words')\n", "my words"),
    ],
)
def test_a_file_that_will_not_do_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, text: str | None, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    if text is not None:
        (tmp_path / path.split(":")[0]).write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        load_task(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_raises_gives_its_own_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    file = tmp_path / "raises.py"
    file.write_text("import nothing_of_that_name\n")
    with pytest.raises(TaskError) as caught:
        load_task(str(file))
    assert caught.value.rank == -1
    assert f'"{file}", line 1' in caught.value.traceback
