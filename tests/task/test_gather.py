"""Gradients into buckets: by hooks or at the end, whatever the parameters' and the buckets' bounds are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rfast_zmq.task.flat import FlatModel
from rfast_zmq.task.gather import Gather, pieces
from rfast_zmq.task.staging import Look, OnCpu

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
SIZES = st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any)


def cut(total: int, draw: Any) -> list[int]:
    """Buckets of 1 or more coordinates."""
    sizes = []
    while total:
        sizes.append(draw(st.integers(1, total)))
        total -= sizes[-1]
    return sizes


@given(SIZES, st.data())
def test_pieces_cover_parameters_and_buckets_without_gaps(parameters: list[int], data: Any) -> None:
    buckets = cut(sum(parameters), data.draw)
    found = pieces(parameters, buckets)
    begins = [sum(buckets[:b]) for b in range(len(buckets))]
    spelled = [
        (i, piece.offset + k, begins[piece.bucket] + piece.start + k)
        for i, of_parameter in enumerate(found)
        for piece in of_parameter
        for k in range(piece.stop - piece.start)
    ]
    expected = [(i, k) for i, size in enumerate(parameters) for k in range(size)]
    assert spelled == [(i, k, at) for at, (i, k) in enumerate(expected)]
    assert all(0 <= p.start < p.stop <= buckets[p.bucket] for of_parameter in found for p in of_parameter)


class Late(OnCpu):
    """As late as a stream may be: nothing is copied before :meth:`drain`, and nothing begun is there before that."""

    def __init__(self, length: int, buckets: int) -> None:
        super().__init__(length, buckets)
        self.begun: list[Callable[[], object]] = []
        self.told: list[int] = []
        """Of each bucket, when it was whole, its memory."""

    def take(self, length: int) -> Tensor:
        return super().take(length).fill_(float("nan"))

    def fetch(self, into: Sequence[Tensor], values: Tensor, *, add: bool = False) -> None:
        self.begun.append(lambda: super(Late, self).fetch(into, values, add=add))

    def fetched(self, bucket: Tensor, look: Look) -> None:
        self.told.append(bucket.data_ptr())
        self.begun.append(lambda: look(bucket))

    def drain(self) -> None:
        for act in self.begun:
            act()
        self.begun.clear()


@pytest.mark.parametrize("stager", [OnCpu, Late])
@given(sizes=SIZES, data=st.data())
def test_by_whatever_way_each_gradient_comes_the_buckets_hold_all_of_them(
    stager: type[OnCpu], sizes: list[int], data: Any
) -> None:
    """Up to three backward passes, each through some of the parameters; the buckets are begun before the first, in
    between or at the end, with hooks or without."""
    buckets = cut(sum(sizes), data.draw)
    parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
    gather = Gather(parameters, buckets, stager(max(buckets), len(buckets)))
    some = st.lists(st.sampled_from(range(len(sizes))), unique=True)
    seen: list[tuple[float, ...]] = []
    for _ in range(data.draw(st.integers(1, 3))):
        passes = data.draw(st.lists(some, max_size=3))
        hooks, begin_at = data.draw(st.booleans()), data.draw(st.integers(0, len(passes)))
        expected = [torch.zeros(size) for size in sizes]
        seen.clear()
        for p in parameters:
            p.grad = None
        for k, used in enumerate([*passes, []]):
            if k == begin_at:
                gather.begin(lambda t: seen.append(tuple(t.tolist())), hooks=hooks)
            slopes = {i: torch.arange(1.0, 1 + sizes[i]) * 10**k for i in used}
            for i, slope in slopes.items():
                expected[i] += slope
            if used:
                torch.stack([(parameters[i] * slope).sum() for i, slope in slopes.items()]).sum().backward()
        found = gather.end()
        assert [len(t) for t in found] == buckets
        assert torch.equal(torch.cat(found), torch.cat(expected))
        assert {tuple(t.tolist()) for t in found} <= set(seen)  # whole, when looked at


def test_a_bucket_leaves_when_the_last_of_its_parameters_is_known_while_the_pass_goes_on() -> None:
    """A chain: the last layer's gradient is known first. Bucket 0 has layers 0 and 1, bucket 1 layers 1 and 2."""
    layers = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    stager = Late(3, 2)
    gather, at = Gather(layers, (3, 3), stager), []
    gather.begin(lambda t: None, hooks=True)

    class Mark(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
            at.append(len(stager.told))
            return g

    x = torch.ones(2)
    for layer in layers:
        x = Mark.apply(x * layer)  # type: ignore[no-untyped-call]
    x.sum().backward()
    assert at == [0, 0, 1]  # as the pass reaches layer 2, 1, 0
    assert all(p.grad is None for p in layers)  # each was let go
    buckets = gather.end()
    assert stager.told == [buckets[1].data_ptr(), buckets[0].data_ptr()]
    assert torch.equal(torch.cat(buckets), torch.ones(6))


def test_after_an_error_the_next_set_is_whole_and_no_hook_fills_the_old() -> None:
    parameter = nn.Parameter(torch.ones(4))
    gather = Gather([parameter], (2, 2), Late(2, 2))
    gather.begin(lambda t: None, hooks=True)
    parameter.sum().backward()
    gather.abandon()
    (3 * parameter).sum().backward()
    assert parameter.grad is not None
    gather.begin(lambda t: None, hooks=True)
    parameter.grad = None
    (2 * parameter).sum().backward()
    assert torch.equal(torch.cat(gather.end()), torch.full((4,), 2.0))


class ComputedAnew(torch.autograd.Function):
    """As reentrant checkpointing does: a backward pass of its own, within the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        with torch.no_grad():
            return layer(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[override]
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.layer(x).backward(g)
        return x.grad, None


class Odd(nn.Module):
    """A tied weight, a norm, an embedding with sparse gradients, a layer that every other pass leaves out, and one that
    has its gradient in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.sparse = nn.Embedding(5, 4), nn.Embedding(5, 4, sparse=True)
        self.norm, self.sometimes, self.again = nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.out = nn.Linear(4, 5)
        self.out.weight = self.embed.weight
        self.turn = 0

    def forward(self, tokens: Tensor) -> Tensor:
        self.turn += 1
        x = self.norm(self.embed(tokens) + self.sparse(tokens))
        if self.turn % 2:
            x = x + self.sometimes(x)
        for _ in range(2):
            x = x + torch.tanh(ComputedAnew.apply(x, self.again))  # type: ignore[no-untyped-call]
        return self.out(x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bucket_bytes", [4, 28, 1 << 20])
def test_the_gradient_of_an_odd_module_is_autograds(bucket_bytes: int, device: str) -> None:
    torch.manual_seed(0)
    module = Odd().to(device)
    plain = copy.deepcopy(module)
    flat = FlatModel(module, bucket_bytes=bucket_bytes)
    draw = torch.Generator().manual_seed(0)
    kept, seen = [], set[int]()
    for _ in range(4):
        tokens = torch.randint(5, (16,), generator=draw).to(device)
        flat.load(flat.read())

        def loss_of(tokens: Tensor = tokens) -> Tensor:
            return module(tokens).square().mean()

        gradient, loss = flat.gradient(loss_of, lambda t: seen.add(t.data_ptr()))
        assert device == "cuda" or {t.data_ptr() for t in gradient} <= seen  # a GPU may have seen that they are finite
        plain.zero_grad()
        expected = plain(tokens).square().mean()
        expected.backward()
        assert loss == expected.item()
        joined = flat.layout.join(gradient)
        for entry in flat.layout.entries:
            mine = joined[entry.offset : entry.offset + entry.size].view(entry.shape)
            if entry.kind == "parameter":
                theirs = plain.get_parameter(entry.name).grad
                theirs = (
                    torch.zeros(entry.shape) if theirs is None else theirs.to_dense() if theirs.is_sparse else theirs
                )
                torch.testing.assert_close(mine, theirs.cpu(), rtol=1e-6, atol=1e-7, msg=entry.name)
            elif entry.kind == "mean":
                assert torch.equal(mine, plain.get_buffer(entry.name).cpu())
        kept.append((gradient, joined))
    assert all(torch.equal(flat.layout.join(gradient), joined) for gradient, joined in kept)


def test_a_step_may_run_backward_passes_of_its_own_before() -> None:
    """As sharpness-aware minimisation does: their gradients are the step's to use and clear; what it leaves counts."""
    module = nn.Linear(3, 1, bias=False)
    flat, x = FlatModel(module, bucket_bytes=8), torch.ones(2, 3)

    def step(clears: bool) -> Tensor:
        module(x).mean().backward()
        assert module.weight.grad is not None
        assert module.weight.grad.tolist() == [[1.0] * 3]
        if clears:
            module.zero_grad()
        return 2 * module(x).mean()

    for _ in range(2):
        assert flat.layout.join(flat.gradient(lambda: step(True))[0]).tolist() == [2.0] * 3
        assert flat.layout.join(flat.gradient(lambda: step(False))[0]).tolist() == [3.0] * 3


def test_a_step_that_fails_in_the_backward_pass_leaves_the_next_one_whole() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    flat, x = FlatModel(module, bucket_bytes=8), torch.ones(4, 2)

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
            raise ArithmeticError("no slope here")

    expected = flat.layout.join(flat.gradient(lambda: module(x).sum())[0])
    with pytest.raises(ArithmeticError):
        flat.gradient(lambda: module[1](Fails.apply(module[0](x))).sum())  # type: ignore[no-untyped-call]
    assert torch.equal(flat.layout.join(flat.gradient(lambda: module(x).sum())[0]), expected)
