"""The class a user writes, and how it is found in a file.

A task needs three methods; everything else has a default::

    class Mine(Task):
        def configure_model(self):
            return torch.nn.Linear(4, 3)

        def train_data(self, rank, nodes):
            mine = self.shard(labels)  # this node's samples, by --split
            return features[mine], labels[mine]

        def training_step(self, model, batch):
            x, y = batch
            return torch.nn.functional.cross_entropy(model(x), y)
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from rfast_zmq.errors import RfastError, TaskError, UsageError
from rfast_zmq.settings import DEFAULTS, Settings
from rfast_zmq.task.layout import Group, default_group
from rfast_zmq.task.splits import split

T = TypeVar("T")
REQUIRED = ("configure_model", "train_data", "training_step")
_loaded = count()


class Task:
    """What is trained, on which data. One instance lives on each node.

    Attributes:
        settings: the run's settings.
        rank: this node, 0 ≤ rank < settings.nodes.
        options_given: the task's own options as the user gave them.

    Args:
        settings: the run's settings, resolved with :attr:`defaults`.
        rank: this node.

    Raises:
        UsageError: an option that the task does not have.
    """

    defaults: ClassVar[dict[str, Any]] = {}
    """Settings this task wants unless the user says otherwise: ``{"lr": 0.004, "global_batch": 64}``. Default: none."""
    options: ClassVar[dict[str, str]] = {}
    """The task's own options and their defaults: ``{"model": "mlp"}`` gives ``--model``. Default: none."""

    def __init__(self, settings: Settings, rank: int = 0) -> None:
        self.settings = settings
        self.rank = rank
        self.options_given = dict(settings.task_options)
        self._weight = 1.0
        for name in self.options_given:
            if name not in self.options:
                known = ", ".join(f"--{o} (default {d})" for o, d in self.options.items()) or "none of its own"
                raise UsageError(f"--{name}: {type(self).__name__} has no such option; it has {known}")

    @overload
    def option(self, name: str) -> str: ...
    @overload
    def option(self, name: str, kind: Callable[[str], T]) -> T: ...
    def option(self, name: str, kind: Callable[[str], Any] = str) -> Any:
        """The value of one of the task's :attr:`options`: what the user gave, else the default.

        Args:
            name: of the option.
            kind: makes it what is wanted, such as ``int`` or :func:`positive`; it raises ValueError on text that will
                not do.

        Raises:
            UsageError: ``kind`` would not have it.
        """
        text = self.options_given.get(name, self.options[name])
        try:
            return kind(text)
        except ValueError as error:
            raise UsageError(f"--{name} {text}: {error}; such as --{name} {self.options[name]}") from None

    # ------------------------------------------------------------------------------------ to be written

    def configure_model(self) -> nn.Module:
        """The module to train, float32. Called once a node, with torch seeded by ``--seed``: equal on every node."""
        raise NotImplementedError(f"{type(self).__name__} must define configure_model()")

    def train_data(self, rank: int, nodes: int) -> Any:
        """This node's training data.

        Args:
            rank: this node.
            nodes: number of nodes.

        Returns:
            One of: a tuple of tensors (or arrays) of equal length, whose batch is the tuple of their chosen rows; a
            map-style ``torch.utils.data.Dataset``, whose samples are collated; an iterable of ready batches (a
            ``DataLoader``), gone through again and again, where a gradient is over one batch as it comes.
        """
        raise NotImplementedError(f"{type(self).__name__} must define train_data(rank, nodes)")

    def training_step(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss over ``batch``: a scalar tensor that depends on the model's parameters.

        Args:
            model: what :meth:`configure_model` gave, in training mode.
            batch: from :meth:`train_data`, on the model's device.

        Returns:
            Shape (): its gradient is taken.
        """
        raise NotImplementedError(f"{type(self).__name__} must define training_step(model, batch)")

    # ------------------------------------------------------------------------------------ may be written

    def evaluate(self, model: nn.Module) -> dict[str, float] | None:
        """Score the model, in eval mode and without gradients. May run in another thread than :meth:`training_step`.

        Args:
            model: a copy of the module, with the parameters and running averages to be judged.

        Returns:
            Named numbers, among them ``"loss"`` and, where there is one, ``"accuracy"`` in [0, 1] (``--target`` looks
            at it). Default: None, no evaluation.
        """
        return None

    def parameter_group(self, name: str, parameter: nn.Parameter) -> Group:
        """How the optimiser treats a parameter. Default: weight decay if it has 2 dimensions or more (not on biases and
        norms), learning rate × 1.

        Args:
            name: as ``named_parameters()`` has it.
            parameter: float32, of any shape.
        """
        return default_group(name, parameter)

    def lr_schedule(self, rounds: float) -> float:
        """Factor on the learning rate, finite, after so many rounds of B samples. Default: 1.0, constant."""
        return 1.0

    def weight(self) -> float:
        """This node's weight in the mean over nodes, from 1e-6 to 1e6. Default: 1.0; after a :meth:`shard` of uneven
        sizes, the shard's share of the samples × nodes, so that each *sample* counts the same.
        """
        return self._weight

    def on_start(self) -> None:
        """Called once, before the first gradient. Default: nothing."""

    def on_report(self, status: Any) -> None:
        """Called at each progress report of this node. Default: nothing.

        Args:
            status: :class:`rfast_zmq.core.interface.Status`.
        """

    def on_evaluate(self, metrics: dict[str, float]) -> None:
        """Called after each evaluation (on the root), with what :meth:`evaluate` gave. Default: nothing."""

    def on_stop(self) -> None:
        """Called once, after the last gradient. Default: nothing."""

    # ------------------------------------------------------------------------------------ helpers

    def shard(self, labels: ArrayLike) -> NDArray[np.int64]:
        """The indices of this node's samples under ``--split``, drawn from ``--seed``; sets :meth:`weight` too.

        Args:
            labels: shape (samples,): of the whole training set, the same on every node.

        Returns:
            Shape (samples of this node,), int64.

        Raises:
            UsageError: no such split, or fewer samples than nodes.
        """
        shards = split(labels, self.settings.count, self.settings.split or DEFAULTS["split"], self.settings.seed)
        sizes = [len(s) for s in shards]
        even = max(sizes) - min(sizes) <= 1
        self._weight = 1.0 if even else sizes[self.rank] * len(sizes) / sum(sizes)
        return shards[self.rank]


def positive(text: str) -> int:
    """For :meth:`Task.option`: a whole number, 1 or more.

    Raises:
        ValueError: it is none.
    """
    if (number := int(text)) < 1:
        raise ValueError("must be 1 or more")
    return number


def load_task(path: str) -> type[Task]:
    """Import the task in a Python file.

    The file's folder is put at the end of ``sys.path``, so that it can import its neighbours.

    Args:
        path: ``FILE.py``, in which exactly one :class:`Task` subclass is defined, or ``FILE.py:Class``.

    Raises:
        UsageError: no such file, not a .py, one that is no text, a syntax error, or not one task class in it.
        TaskError: the file raised while it was imported (rank −1: on no node yet).
    """
    stem, _, wanted = path.rpartition(".py:")
    file = f"{stem}.py" if stem else path
    wanted = wanted if stem else ""
    if stem and not wanted:
        raise UsageError(f"task {file}: no class after the colon; give {file} or {file}:Class")
    where = Path(file).expanduser().resolve()
    if where.suffix != ".py":
        raise UsageError(f"task {path}: not a Python file; give FILE.py or FILE.py:Class")
    if not where.is_file():
        raise UsageError(f"task {path}: no such file ({where}); give the path of a Python file with a Task in it")
    module = _import(where)
    if wanted:
        cls = getattr(module, wanted, None)
        if not (isinstance(cls, type) and issubclass(cls, Task) and cls is not Task):
            raise UsageError(f"task {path}: {where.name} has no Task subclass {wanted!r}; it has {_names(module)}")
        return cls
    classes = _tasks(module)
    if len(classes) != 1:
        found = "no class derived from rfast_zmq.Task" if not classes else f"several tasks, {_names(module)}"
        would_do = "define one" if not classes else f"say which: {file}:{classes[0].__name__}"
        raise UsageError(f"task {path}: {found}; {would_do}")
    return classes[0]


def make_task(cls: type[Task], settings: Settings, rank: int = 0) -> Task:
    """An instance of the user's task on one node.

    Args:
        cls: from :func:`load_task`.
        settings: the run's settings; what they leave open is taken from ``cls.defaults``.
        rank: the node.

    Raises:
        UsageError: an option the task does not have or cannot read, a default that is no setting, a method that is not
            there or does not take what it is given.
        TaskError: the task's own ``__init__`` raised.
    """
    resolved = settings.resolved(cls.defaults)
    _check_takes(f"{cls.__name__}.__init__", cls, "settings", "rank")
    try:
        task = cls(resolved, rank)
    except RfastError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(rank, traceback.format_exc()) from error
    if "_weight" not in vars(task):
        raise UsageError(
            f"{cls.__name__}.__init__ does not call super().__init__(settings, rank): it must, first of all"
        )
    _check_methods(task)
    return task


def _check_methods(task: Task) -> None:
    """Whether what the user wrote can be called as it will be.

    Raises:
        UsageError: a method is not there, or takes other arguments.
    """
    name_of_task = type(task).__name__
    for name, ours in inspect.getmembers(Task, inspect.isfunction):
        theirs = getattr(task, name)
        if name in REQUIRED and getattr(theirs, "__func__", None) is ours:
            raise UsageError(f"{name_of_task} has no {name}(): a task must define {', '.join(REQUIRED)}")
        if not name.startswith("_") and name not in ("option", "shard"):
            _check_takes(f"{name_of_task}.{name}", theirs, *list(inspect.signature(ours).parameters)[1:])


def _check_takes(name: str, called: Callable[..., Any], *given: str) -> None:
    """
    Args:
        name: what to call it.
        called: the user's class, or a method of an instance.
        given: the names of the arguments that it will be given, in order.

    Raises:
        UsageError: it does not take them.
    """
    try:
        inspect.signature(called).bind(*given)
    except ValueError:  # not written in Python: nothing is known of it
        return
    except TypeError as error:
        raise UsageError(f"{name} is called with ({', '.join(given)}): {error}") from None


def _import(where: Path) -> ModuleType:
    try:
        if b"\0" in where.read_bytes():  # Python's own error for this names neither file nor line
            raise UsageError(f"task {where}: it holds null bytes, so it is no text; give a Python file")
    except OSError as error:
        raise UsageError(f"task {where}: cannot be read: {error.strerror}") from None
    name = f"_rfast_task_{next(_loaded)}_{where.stem}"  # Two files of one name must not meet in sys.modules.
    spec = importlib.util.spec_from_file_location(name, where)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(where.parent) not in sys.path:
        sys.path.append(str(where.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, SyntaxError) and error.filename == str(where):
            raise UsageError(f"task {where}, line {error.lineno}: {error.msg}; correct the file") from None
        if isinstance(error, SystemExit):
            raise UsageError(
                f"task {where}: it exits when imported; put what runs it under if __name__ == '__main__':"
            ) from None
        if isinstance(error, Exception) and not isinstance(error, RfastError):
            raise TaskError(-1, traceback.format_exc()) from error
        raise
    return module


def _tasks(module: ModuleType) -> list[type[Task]]:
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Task)]
    return list(dict.fromkeys(c for c in classes if c.__module__ == module.__name__))  # an alias is no second task


def _names(module: ModuleType) -> str:
    return ", ".join(c.__name__ for c in _tasks(module)) or "none"
