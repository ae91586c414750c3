"""Runs a task for one node: a model in, a gradient out.

No clock and no loop: the simulator and the real node share it.
"""

from __future__ import annotations

import copy
import hashlib
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from math import isfinite
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rfast_zmq.errors import RfastError, TaskError, UsageError
from rfast_zmq.settings import Settings
from rfast_zmq.task.flat import FlatModel, check_loss
from rfast_zmq.task.layout import Group, Layout
from rfast_zmq.task.sampler import make_feed, to_device
from rfast_zmq.task.staging import Look
from rfast_zmq.task.task import Task

T = TypeVar("T")
WEIGHT_LEAST, WEIGHT_MOST = 1e-6, 1e6
"""Nodes' weights are relative: what counts is how they compare; in the sums they must not drown in each other."""
ACCURACY_SLACK = 1e-4
"""How far over 1 a mean of float32 may come by rounding."""


class Worker:
    """One node's model, data and place in the data.

    Args:
        task: the user's.
        settings: the run's, resolved.
        rank: this node.
        device: where the model lives; what goes in and out are CPU tensors all the same.
        evaluates: False spares the second copy of the model on a node that will never be asked to :meth:`evaluate`.
        turns: trees between which the buckets take turns.

    Raises:
        TaskError: the task raised while it made the model or the data.
        UsageError: a model that is none, without trainable parameters or not float32, data that is none, a weight of 0
            or less.
    """

    layout: Layout
    weight: float
    group_rates: None = None

    def __init__(
        self,
        task: Task,
        settings: Settings,
        rank: int,
        device: torch.device | None = None,
        *,
        evaluates: bool = True,
        turns: int = 1,
    ) -> None:
        self.task = task
        self.rank = rank
        self._settings = settings
        self._device = device or torch.device("cpu")
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        with self._users_code():
            cuda = [self._device] if self._device.type == "cuda" else []
            with torch.random.fork_rng(devices=cuda):
                torch.manual_seed(settings.seed)
                module = task.configure_model()
            if not isinstance(module, nn.Module):
                raise UsageError(f"configure_model() gave {_shown(module)}: must give a torch.nn.Module")
            module = module.to(self._device)
            module.train()
            laid_out = partial(FlatModel, groups=self._group, bucket_bytes=settings.bucket_bytes, turns=turns)
            self._flat = laid_out(module)
            self._feed = make_feed(task.train_data(rank, settings.count), settings.seed, rank)
            self.weight = _number("weight()", task.weight())
        check_weight(f"rank {rank}: the task's weight() is", self.weight)
        self.layout = self._flat.layout
        # Copied now and not when first used: then another thread may be in the middle of a training step.
        self._scored = laid_out(copy.deepcopy(module)) if evaluates else None
        self._scoring = threading.Lock()
        self._drawn = 0
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))  # what was made above is there by then

    def initial(self) -> tuple[Tensor, ...]:
        """The first model x⁰, per bucket a 1-D float32 CPU tensor; the same on every node. Call it before the first
        :meth:`gradient`.
        """
        return self._flat.read()

    def prefetch(self, samples: int | None = None) -> None:
        """Load the first batch, so that a node that says it is ready is.

        Args:
            samples: in the batch; None: those of a report.

        Raises:
            TaskError: the task's data raised.
        """
        with self._users_code():
            self._feed.prefetch(self._settings.report if samples is None else samples)

    def bring(self, model: Sequence[Tensor], rounds: Sequence[float], then: Callable[[], object]) -> bool:
        """A model is on offer: see :meth:`~rfast_zmq.task.flat.FlatModel.bring`."""
        return self._flat.bring(model, rounds, then)

    def take_up(self) -> tuple[float, ...]:
        """The newest of what was brought, for :meth:`gradient`: see :meth:`~rfast_zmq.task.flat.FlatModel.take_up`."""
        with self.on_stream():
            return self._flat.take_up()

    def gradient(
        self, model: Sequence[Tensor] | None, samples: int, look: Look | None = None
    ) -> tuple[tuple[Tensor, ...], float, int]:
        """The mean gradient over the node's next samples.

        Args:
            model: per bucket a 1-D float32 tensor, where to take it; only read, and never to be written to. None: the
                one that was taken up.
            samples: how many; where the task gives an iterable of batches, one batch is taken as it comes.
            look: told of each bucket of the gradient as soon as it is there.

        torch's global generator is seeded from (seed, rank, how many gradients before), so that dropout and the like
        draw the same in a simulation and in a real run, and something else on each node.

        Returns:
            Per bucket a 1-D float32 CPU tensor that is not written to again (of averages: this node's contribution),
            the mean loss, and the samples actually done.

        Raises:
            TaskError: the user's code raised.
            UsageError: its loss is none.
        """
        with self.on_stream():
            batch, done = self.next_batch(samples)
            with self._users_code():
                if model is not None:
                    self._flat.load(model)
                gradient, loss = self._flat.gradient(lambda: self.task.training_step(self._flat.module, batch), look)
            return gradient, loss, done

    def next_batch(self, samples: int) -> tuple[Any, int]:
        """The node's next samples, on its device, and how many they are; torch's generator of the CPU, and that of the
        node's GPU, are seeded for the gradient over them, which is next.

        Raises:
            TaskError: the task's data raised.
        """
        with self._users_code():
            batch, done = self._feed.draw(samples)
            batch = to_device(batch, self._device)
        seed = _seed(self._settings.seed, self.rank, self._drawn)
        # torch.manual_seed would tell every kind of device, and note a traceback for each that is not there: .2 ms.
        torch.default_generator.manual_seed(seed)
        if self._stream is not None:
            torch.cuda.manual_seed(seed)
        self._drawn += 1
        return batch, done

    @property
    def module(self) -> nn.Module:
        """The module, for whoever trains it without :meth:`gradient`."""
        return self._flat.module

    def parameters(self) -> tuple[list[nn.Parameter], ...]:
        """Its trainable parameters, for each of the layout's groups."""
        return self._flat.by_group()

    def loss(self, batch: Any) -> Tensor:
        """The task's mean loss over a batch, to be gone back from.

        Raises:
            TaskError: the user's code raised.
            UsageError: its loss is none.
        """
        with self._users_code():
            return check_loss(self.task.training_step(self._flat.module, batch))

    def hook(self, name: str, *arguments: object) -> None:
        """Call one of the task's hooks.

        Raises:
            TaskError: the user's code raised.
        """
        with self._users_code():
            getattr(self.task, name)(*arguments)

    def lr_schedule(self, rounds: float) -> float:
        """The task's factor on the learning rate at this progress.

        Raises:
            TaskError: the user's code raised.
            UsageError: it gave no finite number.
        """
        with self._users_code():
            factor = _number(f"lr_schedule({rounds:.6g})", self.task.lr_schedule(rounds))
        if not isfinite(factor):
            raise UsageError(f"lr_schedule({rounds:.6g}) gave {factor}: must give a finite number")
        return factor

    def evaluate(self, model: Sequence[Tensor]) -> dict[str, float]:
        """The task's scores of ``model`` (per bucket a 1-D float32 tensor); empty if it has none.

        On a copy of the module, so that it may run in another thread than :meth:`gradient`.

        Raises:
            TaskError: the user's code raised.
            UsageError: it gave no dict of numbers, or an accuracy outside of [0, 1].
        """

        def score(scored: FlatModel) -> dict[str, float]:
            with self._users_code(), torch.no_grad():
                return _scores(self.task.evaluate(scored.module))

        return self._with_model(model, score)

    def state_dict(self, model: Sequence[Tensor]) -> dict[str, Tensor]:
        """The module's ``state_dict`` (fresh CPU tensors) with ``model`` in it, to be saved; from any thread, but on a
        node that does not evaluate it is the training module that is written to: there, not during a gradient.
        """
        if self._scored is None:
            self._flat.load(model, averages=True)
            return self._flat.state_dict()
        return self._with_model(model, FlatModel.state_dict)

    def _with_model(self, model: Sequence[Tensor], then: Callable[[FlatModel], T]) -> T:
        if self._scored is None:
            raise RuntimeError("this Worker was made with evaluates=False")
        with self._scoring:
            self._scored.load(model, averages=True)
            self._scored.copy_local_buffers(self._flat)
            self._scored.module.eval()
            return then(self._scored)

    def _group(self, name: str, parameter: nn.Parameter) -> Group:
        group = self.task.parameter_group(name, parameter)
        if not isinstance(group, Group):
            raise UsageError(f"parameter_group({name!r}, …) gave {_shown(group)}: must give a rfast_zmq.task.Group")
        return group

    def on_stream(self) -> AbstractContextManager[object]:
        """Within, what is computed on a GPU goes into this worker's own stream there."""
        return torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()

    @contextmanager
    def _users_code(self) -> Iterator[None]:
        """What the user's own code raises becomes a TaskError, with the user's traceback; but Ctrl-C is the user's."""
        try:
            yield
        except RfastError:
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt) and _ctrl_c_raises():
                raise
            raise TaskError(self.rank, traceback.format_exc()) from error


def _scores(found: object) -> dict[str, float]:
    """What the task's ``evaluate`` gave, as numbers."""
    if found is None:
        return {}
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise UsageError(f'evaluate() gave {_shown(found)}: must give a dict of numbers, such as {{"accuracy": 0.9}}')
    scores = {name: _number(f"evaluate()[{name!r}]", value) for name, value in found.items()}
    accuracy = scores.get("accuracy", 0.0)
    if accuracy < 0 or accuracy > 1 + ACCURACY_SLACK:  # one that is not a number is of a model that is none
        raise UsageError(f"evaluate() gave an accuracy of {accuracy:g}: must be from 0 to 1")
    return scores


def _number(what: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{what} gave {_shown(value)}: must give a number") from None


def _shown(value: object) -> str:
    """For an error: a short value as it is, of another its type."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if value is None or (isinstance(value, str | float | int) and len(repr(value)) < 40):
        return repr(value)
    return f"a {type(value).__name__}"


def _ctrl_c_raises() -> bool:
    """Whether Python answers Ctrl-C with a KeyboardInterrupt, and here: in a node's process it does not."""
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _seed(*parts: int) -> int:
    """64 bits from some numbers."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def check_weight(what: str, weight: float) -> None:
    """Can a node have this weight?

    Raises:
        UsageError: no.
    """
    if not WEIGHT_LEAST <= weight <= WEIGHT_MOST:
        raise UsageError(f"{what} {weight}: must be from {WEIGHT_LEAST:g} to {WEIGHT_MOST:g}, where 1 is an even share")
