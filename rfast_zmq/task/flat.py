"""A module's parameters over one flat vector (:mod:`rfast_zmq.task.layout`): a model is taken in by plain copies, and
gradients come out bucket by bucket.

Beside the parameters the nodes average the running buffers of BatchNorm. What a node *contributes* for those is

    running_mean            and            running_var + running_mean²,

because the mean over nodes of such contributions is the mean and second moment of all the nodes' data together, from
which the variance comes back as ``mean(contribution) − mean²`` (the mean of the variances alone would leave out how
far the nodes' means lie apart). All other buffers stay each node's own.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from weakref import ref

import torch
from torch import Tensor, nn

from rfast_zmq.errors import UsageError
from rfast_zmq.settings import BUCKET_BYTES
from rfast_zmq.task.gather import Gather
from rfast_zmq.task.layout import Entry, Group, Layout, default_group
from rfast_zmq.task.outgoing import Failed, FromGpu, Outgoing, Then
from rfast_zmq.task.staging import Look, incoming, stager


def check_loss(loss: object) -> Tensor:
    """What a task's ``training_step`` gave, if it can be trained on.

    Raises:
        UsageError: no scalar tensor, or one that does not depend on parameters.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise UsageError(f"training_step() gave {found}: must give a scalar tensor, the mean loss of the batch")
    if not loss.requires_grad:
        raise UsageError(
            "training_step() gave a loss that no gradient goes back from: must depend on the model's parameters, "
            "without detach() or no_grad()"
        )
    return loss


class FlatModel:
    """A module whose parameters are views of one flat float32 vector, which models are copied into.

    The module is changed in place: its parameters' storage moves into the flat vector. Do not move it to another device
    or dtype afterwards.

    Args:
        module: any module with float32 parameters (all of them on one device).
        groups: the group of a parameter, from its name and itself; None: :func:`default_group`.
        bucket_bytes: bytes a bucket holds at most.
        turns: trees between which the buckets take turns.
        only: the ``id`` of each parameter that is to be in the vector; None: all that are trainable.

    Raises:
        UsageError: a trainable parameter or running average that is not float32, or no trainable parameter at all.
    """

    module: nn.Module
    layout: Layout

    def __init__(
        self,
        module: nn.Module,
        *,
        groups: Callable[[str, nn.Parameter], Group] | None = None,
        bucket_bytes: int = BUCKET_BYTES,
        turns: int = 1,
        only: Container[int] | None = None,
    ) -> None:
        self.module = module
        named = [
            (name, p) for name, p in module.named_parameters() if p.requires_grad and (only is None or id(p) in only)
        ]
        if not any(p.numel() for _, p in named):
            raise UsageError("the model has no trainable parameter: nothing to train; give it some")
        by_group: dict[Group, list[tuple[str, nn.Parameter]]] = {}
        for name, p in named:
            by_group.setdefault((groups or default_group)(name, p), []).append((name, p))
        self._averages = _running_averages(module)
        for name, t in named + [pair for mean, var in self._averages for pair in (mean, var)]:
            if t.dtype != torch.float32:
                what = "parameter" if isinstance(t, nn.Parameter) else "running average"
                raise UsageError(f"{what} {name} is {t.dtype}: must be torch.float32; the model's .float() makes it so")
        self._ordered = [(name, p) for members in by_group.values() for name, p in members]

        entries: list[Entry] = []
        offset = 0
        for group, members in enumerate(by_group.values()):
            for name, p in members:
                entries.append(Entry(name, tuple(p.shape), "parameter", group, offset))
                offset += p.numel()
        parameters = offset
        for mean, var in self._averages:
            entries.append(Entry(mean[0], tuple(mean[1].shape), "mean", -1, offset))
            entries.append(Entry(var[0], tuple(var[1].shape), "var", -1, offset + mean[1].numel()))
            offset += mean[1].numel() + var[1].numel()
        self.layout = Layout.build(entries, list(by_group), torch.float32, max(1, bucket_bytes // 4), turns)

        device = self._ordered[0][1].device
        self._flat = torch.empty(offset, dtype=torch.float32, device=device)
        self._parameters = parameters
        self._adopt()
        sizes = [b.size for b in self.layout.buckets]
        self._stager = stager(device, max(sizes), len(sizes))
        self._incoming = incoming(self._flat, [(b.start, b.stop) for b in self.layout.buckets])
        of_parameters = [b.size for b in self.layout.buckets if b.kind == "parameters"]
        self._gather = Gather([p for _, p in self._ordered], of_parameters, self._stager)
        self._outgoing: Outgoing | None = None
        self._nothing: tuple[Callable[[], Tensor | None], ...] = (_gone,) * len(sizes)
        self._loaded = self._nothing
        """What each bucket was loaded from last, as long as anybody else refers to it; None: something else may be
        there."""
        self._rounds: tuple[float, ...] = ()
        """Of the model that was taken up last."""
        self._versions: list[int] = []

    def _adopt(self) -> None:
        """Move the parameters' storage into the flat vector."""
        with torch.no_grad():
            offset = 0
            for _, p in self._ordered:
                view = self._flat[offset : offset + p.numel()].view(p.shape)
                view.copy_(p)
                p.data = view
                offset += p.numel()

    def read(self) -> tuple[Tensor, ...]:
        """The model now: a fresh CPU copy of each bucket (1-D float32), averages as contributions."""
        with torch.no_grad():
            self._contribute()
            copies = self._fetch(range(len(self.layout.buckets)), _unseen)
            self._stager.drain()
        return tuple(copies)

    def load(self, model: Sequence[Tensor], averages: bool = False) -> None:
        """Copy ``model`` (one 1-D float32 tensor a bucket) into the parameters.

        A bucket that is the very tensor which was loaded last is there already, unless somebody wrote to a parameter.

        Args:
            model: as :meth:`read` gives it, or the mean of such; only read, and never to be written to.
            averages: also turn the averages' buckets back into running means and variances and write them to the
                module's buffers (to evaluate or save; a node in training keeps its own).

        Raises:
            ValueError: a bucket is missing or has another length.
        """
        if tuple(len(t) for t in model) != self.layout.sizes:
            raise ValueError(f"buckets of {[len(t) for t in model]} coordinates, not {self.layout.sizes}")
        with self._incoming.held(), torch.no_grad():
            self._put(model, averages)

    def _put(self, model: Sequence[Tensor], averages: bool) -> None:
        versions = [p._version for _, p in self._ordered]  # not moved by what is written to the flat vector
        there = self._loaded if versions == self._versions else self._nothing
        self._loaded = self._nothing
        wanted = [
            b
            for b, (bucket, t, before) in enumerate(zip(self.layout.buckets, model, there, strict=True))
            if averages or (bucket.kind == "parameters" and t is not before())
        ]
        self._incoming.put(wanted, model)
        if averages:  # to evaluate or save: not worth keeping that model's memory
            self._take_averages()
        else:
            self._loaded, self._versions = tuple(ref(t) for t in model), versions

    def bring(self, model: Sequence[Tensor], rounds: Sequence[float], then: Callable[[], object]) -> bool:
        """A model is on offer: have it near when it is taken up. From any thread, and while a gradient is computed.

        Args:
            model: as for :meth:`load`.
            rounds: of each bucket, to be told by :meth:`take_up`.
            then: where it takes a while, called from another thread when it is there; but not if another model is
                brought soon after.

        Returns:
            Whether it is there already.
        """
        return self._incoming.bring(model, rounds, then)

    def take_up(self) -> tuple[float, ...]:
        """Put into the parameters the newest of what was brought and is there. Its rounds, per bucket."""
        with self._incoming.held(), torch.no_grad():
            model, rounds = self._incoming.newest()
            if model:
                self._put(model, averages=False)
                self._rounds = rounds
        return self._rounds

    def gradient(self, closure: Callable[[], Tensor], look: Look | None = None) -> tuple[tuple[Tensor, ...], float]:
        """The gradient of ``closure()`` at the parameters as they are. Afterwards every ``p.grad`` is None.

        Args:
            closure: gives a scalar loss that depends on the module's parameters.
            look: told of each bucket of the gradient as soon as it is there.

        Returns:
            Per bucket a 1-D float32 CPU tensor that is not written to again (of parameters: the gradient, 0 where a
            parameter was not used; of averages: this node's contribution after the forward pass), and the loss.

        Raises:
            UsageError: the closure did not give a scalar tensor, or one that does not depend on parameters.
        """
        self.clear()
        loss = check_loss(closure())
        look = look or _unseen
        self._gather.begin(look, hooks=True)
        try:
            loss.backward()  # type: ignore[no-untyped-call]
            gradient = self._end(look)
        except BaseException:
            self._gather.abandon()
            raise
        self.clear()
        return gradient, float(loss.detach())

    def by_group(self) -> tuple[list[nn.Parameter], ...]:
        """The trainable parameters of each of the layout's groups."""
        members: tuple[list[nn.Parameter], ...] = tuple([] for _ in self.layout.groups)
        of = {e.name: e.group for e in self.layout.entries if e.kind == "parameter"}
        for name, p in self._ordered:
            members[of[name]].append(p)
        return members

    def clear(self) -> None:
        """No gradients: every ``p.grad`` is None."""
        for _, p in self._ordered:
            p.grad = None

    def collect(self, look: Look | None = None) -> tuple[Tensor, ...]:
        """A copy of the gradients as they are in ``p.grad``, which stays (0 where that is None), and this node's
        contribution to the averages: as :meth:`gradient` gives them."""
        look = look or _unseen
        self._gather.begin(look)
        return self._end(look)

    def hold(self, loss: Tensor | None = None) -> None:
        """What is in ``p.grad`` now, which stays, counts beside what is held.

        Args:
            loss: of one element; None: it is not known.
        """
        if self._outgoing is None:
            bounds = [(b.start, b.stop) for b in self.layout.buckets]
            parameters = [p for _, p in self._ordered]
            self._outgoing = (
                FromGpu(parameters, self._flat, self._contribute, bounds)
                if self._flat.device.type == "cuda"
                else Outgoing(self.collect, sum(b.kind == "parameters" for b in self.layout.buckets))
            )
        self._outgoing.hold(loss)

    def hand_on(self, then: Then, failed: Failed) -> None:
        """The mean of the gradients that are held, as :meth:`gradient` gives them; then none is.

        Args:
            then: told it, whether it is finite, and the mean loss: once, perhaps later and from another thread.
            failed: told in its place what went wrong in that thread.
        """
        assert self._outgoing is not None
        self._outgoing.hand_on(then, failed)

    def _end(self, look: Look) -> tuple[Tensor, ...]:
        with torch.no_grad():
            self._contribute()
            averages = self._fetch((b for b, of in enumerate(self.layout.buckets) if of.kind == "averages"), look)
            return (*self._gather.end(), *averages)

    def _fetch(self, buckets: Iterable[int], look: Look) -> list[Tensor]:
        """Copies of parts of the flat vector; there after ``drain``."""
        copies = []
        for bucket in (self.layout.buckets[b] for b in buckets):
            copies.append(self._stager.take(bucket.size))
            self._stager.fetch(copies[-1:], self._flat[bucket.start : bucket.stop])
            self._stager.fetched(copies[-1], look)
        return copies

    def state_dict(self) -> dict[str, Tensor]:
        """The module's ``state_dict``, as fresh contiguous CPU tensors, each with storage of its own."""
        return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in self.module.state_dict().items()}

    def copy_local_buffers(self, other: FlatModel) -> None:
        """Take the buffers that are no running averages from ``other`` (a copy of the same module)."""
        averaged = {name for pair in self._averages for name, _ in pair}
        theirs = dict(other.module.named_buffers())
        with torch.no_grad():
            for name, t in self.module.named_buffers():
                if name not in averaged and name in theirs and theirs[name].shape == t.shape:
                    t.copy_(theirs[name])

    def _contribute(self) -> None:
        flat, offset = self._flat, self._parameters
        for (_, mean), (_, var) in self._averages:
            size = mean.numel()
            flat[offset : offset + size] = mean
            flat[offset + size : offset + 2 * size] = var + mean * mean
            offset += 2 * size

    def _take_averages(self) -> None:
        flat, offset = self._flat, self._parameters
        for (_, mean), (_, var) in self._averages:
            size = mean.numel()
            mean.copy_(flat[offset : offset + size])
            # Rounding can bring a variance near 0 below it.
            var.copy_((flat[offset + size : offset + 2 * size] - mean * mean).clamp_(min=0.0))
            offset += 2 * size


def _gone() -> Tensor | None:
    """A reference to nothing."""
    return None


def _unseen(bucket: Tensor) -> None:
    """Nobody looks."""


def _running_averages(module: nn.Module) -> list[tuple[tuple[str, Tensor], tuple[str, Tensor]]]:
    """The (name, tensor) of each running mean and its running variance, in order of registration."""
    found = []
    for prefix, m in module.named_modules():
        buffers = dict(m.named_buffers(recurse=False))
        mean, var = buffers.get("running_mean"), buffers.get("running_var")
        if mean is not None and var is not None:
            dot = f"{prefix}." if prefix else ""
            found.append(((f"{dot}running_mean", mean), (f"{dot}running_var", var)))
    return found
