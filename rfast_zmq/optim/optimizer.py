"""An optimiser that trains together with others: in place of ``torch.optim.X`` in a loop of the user's own.

::

    opt = rfast_zmq.optim.NAdam(model, lr=0.004, batch=32, topology="hosts.toml", rank=args.rank)
    for x, y in opt.through(loader):
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        opt.step()
    opt.close()

``step()`` hands this node's gradient to a node of ``rfast-tree`` that runs in a thread beside the loop, puts the newest
model into the parameters, and goes on: it waits for no other node. Two things are waited for: a node other than the
root waits for its first model, before its first gradient; the root, for its own step along its own gradient (but not
where that is at most a sixteenth of a round, and others listen). A loop that is ahead of its own node's thread does not
wait for it: its gradients are added up until that has room, see :mod:`rfast_zmq.task.outgoing`.

What a step costs beside the bare loop, where its node has room, in passes over the vector of all parameters: the
gradient is read and written once (out of ``p.grad``, which stays the user's), and looked at for NaN in the cache; those
buckets of the model that have changed since the last step are read and written once. Nothing of that size is allocated:
see :mod:`rfast_zmq.task.pool`.
"""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import isfinite
from statistics import fmean
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, cast, overload

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from rfast_zmq.algorithms import RFastTree
from rfast_zmq.core.interface import Status
from rfast_zmq.errors import UsageError
from rfast_zmq.launch.memory import keep_freed_memory
from rfast_zmq.launch.single import default_run_id
from rfast_zmq.node import Node, Steps
from rfast_zmq.node.gradients import Gradient
from rfast_zmq.optim.background import Background, log
from rfast_zmq.optim.place import Place
from rfast_zmq.optim.rendezvous import Ports, meet
from rfast_zmq.task import OwnModel, check_weight
from rfast_zmq.topology import is_file
from rfast_zmq.transport import Addresses, check_exposure

T = TypeVar("T")


class _Held(NamedTuple):
    """A step whose gradient was not handed on yet: at which model, and how long it took."""

    rounds: tuple[float, ...]
    seconds: float


class RFast(torch.optim.Optimizer):
    """What :class:`SGD`, :class:`Adam`, :class:`AdamW` and :class:`NAdam` have in common. Every node makes one, with
    the same model and the same arguments but for ``rank``.

    The root steps, so what counts is *its* learning rate, weight decay and momentum; ``lr`` means what it means on one
    machine with batches of ``global_batch``.

    Args:
        params: the module to train; or its parameters, or param groups, as ``torch.optim`` takes them. Given the
            module, BatchNorm's averages are averaged over the nodes as well. All must be float32; their storage moves
            into one flat vector, so give the module its device before.
        batch: samples behind one :meth:`step` of this node (of all the backward passes, where gradients are
            accumulated; each scaled so that they add up to the mean).
        topology: a family's name, or a TOML file that names the nodes and their endpoints.
        rank: this node; None: from the environment of ``torchrun``, or 0 where there is but one node.
        nodes: how many; None: from the file, or from the environment of ``torchrun``, or 1.
        global_batch: B, the samples of a round; None: ``batch`` of every node.
        samples: end the run after so many samples of all nodes; None: when the root closes.
        clip_norm: the most that the norm of a round's mean gradient may be; None: any.
        weight: this node's weight in the mean over nodes, from 1e-6 to 1e6; 1 is an even share.
        module: the module, where ``params`` are param groups of it.
        rule, defaults, momentum, beta2, eps: the root's step; the four classes choose them from torch's arguments.
        wire: how payloads travel: ``float32``, ``bf16`` or ``int8``.
        pace, resend: seconds, as for ``rfast node``; None: chosen by the algorithm.
        drop, duplicate, reorder: probabilities of faults for every received message.
        seed: of the faults.
        run_id: tells runs over the same addresses apart; None: made of what all nodes must agree on.
        insecure: listen on an address that other machines reach, though there are no keys.

    Raises:
        UsageError: an argument that will not do.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        rule: str,
        defaults: dict[str, Any],
        *,
        batch: int,
        topology: str = "binary-tree",
        rank: int | None = None,
        nodes: int | None = None,
        global_batch: int | None = None,
        samples: int | None = None,
        clip_norm: float | None = None,
        weight: float = 1.0,
        module: nn.Module | None = None,
        momentum: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        wire: str = "float32",
        pace: float | None = None,
        resend: float | None = None,
        drop: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        seed: int = 0,
        run_id: str | None = None,
        insecure: bool = False,
    ) -> None:
        if isinstance(params, nn.Module):
            module, params = params, [p for p in params.parameters() if p.requires_grad]
        super().__init__(params, defaults)
        check_weight("weight", weight)
        place = Place.find(
            batch=batch,
            topology=topology,
            rank=rank,
            nodes=nodes,
            global_batch=global_batch,
            samples=samples,
            optimizer=rule,
            lr=float(defaults["lr"]),
            momentum=momentum,
            beta2=beta2,
            eps=eps,
            clip_norm=clip_norm,
            wire=wire,
            pace=pace,
            resend=resend,
            drop=drop,
            duplicate=duplicate,
            reorder=reorder,
            seed=seed,
        )
        self._plan, self.rank, self._under_torchrun, self._batch = place.plan, place.rank, place.under_torchrun, batch
        self.is_root = self.rank == self._plan.topology.root
        own = [p for group in self.param_groups for p in group["params"]]
        module = _holding(own) if module is None else module
        self._model = OwnModel(module, self.param_groups, weight, turns=len(self._plan.topology.pull_trees))
        self._run_id, self._insecure = run_id, insecure
        self._steps = Steps(self._model.flat.bring)
        self._held: list[_Held] = []
        self._node: Background | None = None
        self._closed = False
        self._versions: tuple[float, ...] = ()
        self._began_s = 0.0
        self._schedulers: list[tuple[LRScheduler, Callable[[], None]]] = []
        self._resumed: Mapping[str, Any] | None = None

    # -------------------------------------------------------------------------------------- the user's loop

    def start(self) -> None:
        """Open the sockets; away from the root, wait for the first model. :meth:`zero_grad`, :meth:`step` and
        :meth:`through` do so where it was not done.

        Raises:
            UsageError: an address that cannot be used, a parent that trains another model.
        """
        if self._node is not None or self._closed:
            return
        plan, rank = self._plan, self.rank
        if plan.topology.nodes == 1:
            self._open(Addresses(("",), ("",)))
        elif self._under_torchrun and not is_file(plan.settings.topology):
            with Ports(2) as ports:
                self._open(meet(rank, plan.topology.nodes, ports))
        else:
            self._open(Addresses.of(plan.topology))
        self._take(wait=True)
        self._check()

    def _open(self, addresses: Addresses) -> None:
        """Run the node; its sockets are open when this returns."""
        plan, rank = self._plan, self.rank
        if plan.topology.nodes > 1:
            check_exposure((addresses.pull[rank], addresses.push[rank]), self._insecure)
        run, own = self._run_id or default_run_id(plan), (self._model, self._steps)

        def make(watcher: Background) -> Node:
            node = Node(plan, rank, addresses, run, time.time_ns(), watcher, own)
            if self._resumed is not None and self.is_root:
                cast(RFastTree, node.algorithm).restore(self._resumed)
            return node

        keep_freed_memory()
        self._node = Background(make, self._steps)
        atexit.register(self._at_exit)
        self._node.start()

    @overload
    def step(self, closure: None = None, *, loss: Tensor | float | None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], T], *, loss: Tensor | float | None = None) -> T: ...
    def step(self, closure: Callable[[], T] | None = None, *, loss: Tensor | float | None = None) -> T | None:
        """Hand on the gradient of now, and put the newest model into the parameters. After the end of the run it does
        nothing.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns it.
            loss: the batch's mean loss, to be reported (:meth:`status`); None: what the closure gave, if it was one.

        Returns:
            What the closure gave.

        Raises:
            UsageError: a parent that trains another model.
        """
        self.start()
        found: T | None = None
        if closure is not None:
            with torch.enable_grad():
                found = closure()
        said = _number(loss) if loss is not None else _number(found)
        if loss is not None and said is None:
            raise UsageError(f"step(loss={loss!r}): must be one number, the mean loss of the batch")
        if self.over:
            self._check()
            return found
        self._model.flat.hold(said)
        self._held.append(_Held(self._versions, time.perf_counter() - self._began_s))
        waits = self._algorithm.gradient_makes_model
        if self._steps.room(anyhow=waits):
            self._hand_on()
        self._take(wait=waits)
        self._check()
        return found

    def _hand_on(self) -> None:
        """The mean of what is held, for which there is room."""
        held, self._held = self._held, []
        try:
            self._model.flat.hand_on(partial(self._give, held), self._failed)
        except BaseException:
            self._steps.none()
            raise

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as ``torch.optim.Optimizer.zero_grad`` does.

        Raises:
            UsageError: as :meth:`start`.
        """
        self.start()
        super().zero_grad(set_to_none)

    def through(self, loader: Iterable[T], epochs: int | None = None) -> Iterator[T]:
        """The batches of ``loader``, again and again, until the run is over.

        Args:
            loader: gone through anew as often as there is need; a sampler's ``set_epoch`` is called before each time.
            epochs: at most so many times; None: until the run is over.

        Raises:
            UsageError: a loader without a batch; as :meth:`start`.
        """
        self.start()
        epoch = 0
        while not self.over and (epochs is None or epoch < epochs):
            set_epoch = getattr(getattr(loader, "sampler", None), "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)
            count = 0
            for batch in loader:
                if self.over:
                    return
                count += 1
                yield batch
            if not count:
                raise UsageError("through(loader): the loader gave no batch; is it a generator that was used up?")
            epoch += 1

    @property
    def over(self) -> bool:
        """No gradient is wanted any more."""
        return self._steps.over

    @property
    def rounds(self) -> float:
        """Progress of the run, in rounds of B samples."""
        if self._node is None:
            return min((float(of_bucket["rounds"]) for of_bucket in (self._resumed or {}).values()), default=0.0)
        return self._algorithm.rounds

    def status(self) -> Status:
        """How this node sees the run; the root sees all of it. Before :meth:`start`: nothing yet."""
        return Status() if self._node is None else self._node.call(self._algorithm.status)

    def by_rounds(self, scheduler: LRScheduler) -> LRScheduler:
        """Have a scheduler of ``torch.optim.lr_scheduler`` step once a round of B samples, on every node alike.
        However often the user's loop calls its ``step()`` does not matter: that does nothing from now on.

        Args:
            scheduler: made for this optimiser, its lengths in rounds.

        Returns:
            The scheduler.

        Raises:
            UsageError: one of another optimiser, or one that wants a metric at each step.
        """
        if getattr(scheduler, "optimizer", None) is not self:
            raise UsageError(
                f"by_rounds({type(scheduler).__name__}): it was made for another optimiser; give it this one"
            )
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise UsageError(
                "by_rounds(ReduceLROnPlateau): it wants a metric; call its step(metric) at the root instead"
            )
        self._schedulers.append((scheduler, scheduler.step))
        scheduler.step = lambda epoch=None: None  # type: ignore[method-assign]
        return scheduler

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it the module holds the model to be judged, BatchNorm's averages included: at the root the plain
        iterate, without the look-ahead at which gradients are computed; elsewhere the newest model heard. Before
        :meth:`start` that is the module's own."""
        flat, model = self._model.flat, None if self._node is None else self._node.call(self._algorithm.export)
        before = flat.read()
        buffers = {name: t.clone() for name, t in flat.module.named_buffers()}
        if model is not None:
            flat.load(model, averages=True)
        try:
            yield
        finally:
            flat.load(before)
            for name, t in flat.module.named_buffers():
                t.copy_(buffers[name])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only while the optimiser is made: every node must have the same layout from the first model on.

        Raises:
            UsageError: it has been made.
        """
        if hasattr(self, "_model"):
            raise UsageError("add_param_group: give all parameters when the optimiser is made, and freeze none later")
        super().add_param_group(param_group)

    # -------------------------------------------------------------------------------------- the end

    def close(self) -> None:
        """End well. The root ends the run for all. Any other node computes no more, but passes on what it hears until
        the run is over. Afterwards the module holds the final model (away from the root: the newest heard).

        Raises:
            UsageError: what went wrong meanwhile in the node's thread.
        """
        self._close(Node.stop if self.is_root else None)

    def leave(self) -> None:
        """Go now, without waiting for anybody. At the root this takes the newest model with it, so there the run is
        ended first, as by :meth:`close`.

        Raises:
            UsageError: what went wrong meanwhile in the node's thread.
        """
        self._close(Node.stop if self.is_root else Node.leave)

    def _close(self, how: Callable[[Node], None] | None) -> None:
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        if self._node is None:
            return
        node = self._node.node
        if how is None and self._held and not self.over:  # what there was no room for
            self._steps.room(anyhow=True)
            try:
                self._hand_on()
            except BaseException:
                self._node.ask(node.leave)
                raise
        self._steps.leave_off()
        if how is not None:
            self._node.ask(lambda: how(node))
        try:
            self._node.join()
        except KeyboardInterrupt:
            self._node.ask(node.leave)
            raise
        self._steps.halt()
        if (model := self._algorithm.export()) is not None:
            self._model.flat.load(model, averages=True)
        self._node.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.leave()

    def _at_exit(self) -> None:
        try:
            self.close() if getattr(sys, "last_value", None) is None else self.leave()
        except UsageError as error:  # not said before
            log.error("%s", error)

    # -------------------------------------------------------------------------------------- saved and loaded

    def state_dict(self) -> dict[str, Any]:
        """The param groups; at the root also the algorithm's state: what is needed to go on where it stands.

        Returns:
            For ``torch.save``: ``param_groups`` (without the parameters), ``state`` (tensors and numbers per bucket;
            empty away from the root) and ``layout``, by which :meth:`load_state_dict` knows the model.
        """
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        state: Mapping[str, Any] = self._resumed or {}
        if self._node is not None and self.is_root:
            state = self._node.call(self._algorithm.snapshot)
        return {"state": dict(state), "param_groups": groups, "layout": self._model.layout.hash}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave; before the first step. (Load the model's own ``state_dict`` too: it
        has what is not trained.)

        Raises:
            UsageError: of another model, or too late.
        """
        if self._node is not None:
            raise UsageError(
                "load_state_dict: the run has begun; load before the first zero_grad(), step() or through()"
            )
        if state_dict.get("layout") != self._model.layout.hash:
            raise UsageError(
                f"load_state_dict: it is of a model with layout {state_dict.get('layout')}, this one has"
                f" {self._model.layout.hash}; make the same model, with the same param groups"
            )
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(saved)
        self._resumed = dict(state_dict["state"]) or None

    # -------------------------------------------------------------------------------------- behind it

    @property
    def _algorithm(self) -> RFastTree:
        assert self._node is not None
        return cast(RFastTree, self._node.node.algorithm)

    def _give(self, held: list[_Held], gradient: tuple[Tensor, ...], finite: bool, loss: float | None) -> None:
        """Perhaps in another thread: the mean of some gradients is there."""
        rounds = held[0].rounds
        if len(held) > 1:
            rounds = tuple(fmean(of_bucket) for of_bucket in zip(*(step.rounds for step in held), strict=True))
        samples, took_s = self._batch * len(held), sum(step.seconds for step in held)
        good = finite and isfinite(loss or 0.0)
        self._steps.give(Gradient(rounds, gradient, loss, samples, good, took_s, len(held)))

    def _failed(self, error: Exception) -> None:
        """In another thread: it is not there; :meth:`step` raises why."""
        self._steps.none()
        if self._node is not None:
            self._node.fault(error)
        self._steps.halt()

    def _take(self, wait: bool) -> None:
        if self._steps.take(wait) is not None:
            self._versions = self._model.flat.take_up()
        self._began_s = time.perf_counter()
        for scheduler, step in self._schedulers:
            while scheduler.last_epoch + 1 <= self.rounds:
                step()

    def _check(self) -> None:
        if self._node is not None:
            self._node.check()


def _number(value: Any) -> Tensor | None:
    """A number as a tensor of one element; None where it is none."""
    if isinstance(value, Tensor):
        return value.detach() if value.numel() == 1 and not value.is_complex() else None
    if value is None or isinstance(value, str | bytes):
        return None
    try:
        return torch.tensor(float(value))
    except (TypeError, ValueError):
        return None


def _holding(parameters: Iterable[Tensor]) -> nn.Module:
    """A module of these parameters, for those who have only them."""
    module = nn.Module()
    for i, p in enumerate(parameters):
        module.register_parameter(f"parameter_{i}", cast(nn.Parameter, p))
    return module
