"""The flat vector: what goes in comes out, gradients are torch's own, and averages are those of all data together."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rfast_zmq.errors import UsageError
from rfast_zmq.task import FlatModel, Group, Layout
from rfast_zmq.task.layout import Entry

WIDTHS = st.lists(st.integers(1, 9), min_size=2, max_size=5)


def perceptron(widths: list[int], norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if norm else []), nn.Tanh()]
    return nn.Sequential(*layers)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5)
        self.out.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.embed(x))


@given(WIDTHS, st.booleans(), st.integers(1, 40))
def test_what_is_loaded_is_read(widths: list[int], norm: bool, coordinates: int) -> None:
    flat = FlatModel(perceptron(widths, norm), bucket_bytes=4 * coordinates)
    layout = flat.layout
    model = tuple(torch.rand(size) for size in layout.sizes)
    flat.load(model, averages=False)
    for bucket, read, given_ in zip(layout.buckets, flat.read(), model, strict=True):
        if bucket.kind == "parameters":
            assert torch.equal(read, given_)
    joined = layout.join(model)
    assert all(torch.equal(a, b) for a, b in zip(layout.split(joined), model, strict=True))
    for entry in layout.entries:
        if entry.kind == "parameter":
            mine = joined[entry.offset : entry.offset + entry.size].view(entry.shape)
            assert torch.equal(flat.module.state_dict()[entry.name], mine)


@given(WIDTHS, st.booleans(), st.integers(1, 40))
def test_buckets_and_segments_cover_the_vector_without_gaps(widths: list[int], norm: bool, coordinates: int) -> None:
    layout = FlatModel(perceptron(widths, norm), bucket_bytes=4 * coordinates).layout
    assert layout.buckets[0].start == 0
    assert layout.buckets[-1].stop == layout.total == sum(layout.sizes)
    for before, after in pairwise(layout.buckets):
        assert before.stop == after.start
    group_of = [e.group for e in layout.entries for _ in range(e.size)]
    for bucket in layout.buckets:
        assert 1 <= bucket.size <= coordinates
        groups = group_of[bucket.start : bucket.stop]
        assert {g < 0 for g in groups} == {bucket.kind == "averages"}
        spelled = [s.group for s in bucket.segments for _ in range(s.start, s.stop)]
        assert spelled == ([] if bucket.kind == "averages" else groups)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), st.integers(1, 80), st.integers(1, 5))
def test_buckets_of_parameters_are_a_multiple_of_the_trees_that_take_turns(
    shapes: list[int], coordinates: int, turns: int
) -> None:
    """So that no tree has one more than another; running averages are too few to matter."""
    offsets = [sum(shapes[:i]) for i in range(len(shapes) + 1)]
    entries = [Entry(str(i), (n,), "parameter", 0, offsets[i]) for i, n in enumerate(shapes)]
    entries.append(Entry("mean", (coordinates + 1,), "mean", -1, offsets[-1]))
    layout = Layout.build(entries, [Group(True)], torch.float32, coordinates, turns)
    sizes = [bucket.size for bucket in layout.buckets if bucket.kind == "parameters"]
    assert sum(sizes) == sum(shapes)
    assert len(sizes) % turns == 0 or sizes == [1] * len(sizes), "or one for each coordinate"
    assert max(sizes) <= coordinates
    assert max(sizes) - min(sizes) <= 1
    fewest = -(-sum(shapes) // coordinates)
    assert len(sizes) < fewest + turns, "and no more of them than that needs"
    assert sum(bucket.kind == "averages" for bucket in layout.buckets) == 2
    if turns == 1:
        assert layout == Layout.build(entries, [Group(True)], torch.float32, coordinates)


@pytest.mark.parametrize("set_to_none", [None, False, True])
def test_the_gradient_is_the_one_autograd_gives(set_to_none: bool | None) -> None:
    torch.manual_seed(1)
    module = perceptron([4, 7, 3])
    plain = copy.deepcopy(module)
    flat = FlatModel(module, bucket_bytes=64)
    x, y = torch.randn(8, 4), torch.randn(8, 3)

    def loss() -> torch.Tensor:
        if set_to_none is not None:
            module.zero_grad(set_to_none=set_to_none)  # what a user's step may do out of habit
        return nn.functional.mse_loss(module(x), y)

    for _ in range(2):  # the second shows that nothing is added to the first
        gradient, value = flat.gradient(loss)
    expected = nn.functional.mse_loss(plain(x), y)
    expected.backward()
    assert value == pytest.approx(expected.item())
    joined = flat.layout.join(gradient)
    for entry in flat.layout.entries:
        mine = joined[entry.offset : entry.offset + entry.size].view(entry.shape)
        assert torch.equal(mine, plain.get_parameter(entry.name).grad)


def test_what_is_handed_out_is_never_written_to_again() -> None:
    module = perceptron([3, 3])
    flat = FlatModel(module)
    read = flat.read()
    gradient, _ = flat.gradient(lambda: module(torch.ones(1, 3)).sum())
    kept = [t.clone() for t in (*read, *gradient)]
    flat.load(tuple(torch.zeros(s) for s in flat.layout.sizes))
    flat.gradient(lambda: module(torch.ones(1, 3)).square().sum())
    assert all(torch.equal(a, b) for a, b in zip(kept, (*read, *gradient), strict=True))


def test_an_unused_parameter_has_gradient_zero() -> None:
    module = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    flat = FlatModel(module)
    flat.gradient(lambda: sum(m(torch.ones(1, 2)).sum() for m in module))
    gradient, _ = flat.gradient(lambda: module[0](torch.ones(1, 2)).sum())
    by_name = {e.name: flat.layout.join(gradient)[e.offset : e.offset + e.size] for e in flat.layout.entries}
    assert by_name["1.weight"].tolist() == [0, 0]
    assert by_name["0.weight"].tolist() == [1, 1]


def test_a_tied_weight_is_in_the_vector_once_with_the_sum_of_its_gradients() -> None:
    module = Tied()
    plain = copy.deepcopy(module)
    assert plain.out.weight is plain.embed.weight
    flat = FlatModel(module)
    assert flat.layout.total == 5 * 3 + 5
    x = torch.tensor([0, 2, 4])
    gradient, _ = flat.gradient(lambda: module(x).square().mean())
    plain(x).square().mean().backward()
    assert torch.equal(gradient[0][:15].view(5, 3), plain.embed.weight.grad)
    assert module.out.weight.data_ptr() == module.embed.weight.data_ptr()
    assert "out.weight" in flat.state_dict()


def test_frozen_parameters_are_left_out() -> None:
    module = perceptron([3, 4, 2])
    module[0].requires_grad_(False)
    before = module[0].weight.clone()
    flat = FlatModel(module)
    assert [e.name for e in flat.layout.entries] == ["2.weight", "2.bias"]
    flat.load(tuple(torch.ones(s) for s in flat.layout.sizes))
    flat.gradient(lambda: module(torch.ones(1, 3)).sum())
    assert torch.equal(module[0].weight, before)


def test_biases_and_norms_do_not_decay_and_groups_are_contiguous() -> None:
    layout = FlatModel(perceptron([3, 4, 2], norm=True)).layout
    assert layout.groups == (Group(True), Group(False))
    assert [(e.name, e.group) for e in layout.entries if e.kind == "parameter"] == [
        ("0.weight", 0),
        ("3.weight", 0),
        *((name, 1) for name in ("0.bias", "1.weight", "1.bias", "3.bias", "4.weight", "4.bias")),
    ]


def test_the_users_own_groups_are_honoured() -> None:
    def group(name: str, parameter: nn.Parameter) -> Group:
        return Group(decay=True, lr_scale=0.1 if name.startswith("0.") else 1.0)

    layout = FlatModel(perceptron([3, 4, 2]), groups=group).layout
    assert layout.groups == (Group(True, 0.1), Group(True, 1.0))
    assert "lr x 0.1" in layout.describe()


@given(st.integers(2, 5), st.integers(0, 1000))
def test_the_mean_of_contributions_is_batchnorm_over_all_data_together(nodes: int, seed: int) -> None:
    torch.manual_seed(seed)
    size = 32
    data = [torch.randn(size, 3) * (i + 1) + 5 * i for i in range(nodes)]
    contributions = []
    for x in data:
        module = nn.Sequential(nn.BatchNorm1d(3, momentum=1.0))  # running = those of the last batch
        flat = FlatModel(module)
        gradient, _ = flat.gradient(lambda module=module, x=x: module(x).sum())
        contributions.append(gradient)
        read = flat.read()
        kinds = [b.kind for b in flat.layout.buckets]
        assert kinds == ["parameters", "averages"]
        assert torch.equal(read[1], gradient[1])
    mean = [torch.stack(pieces).mean(0) for pieces in zip(*contributions, strict=True)]
    scored = FlatModel(nn.Sequential(nn.BatchNorm1d(3, momentum=1.0)))
    scored.load(mean, averages=True)
    bn = scored.module[0]
    everything = torch.cat(data)
    torch.testing.assert_close(bn.running_mean, everything.mean(0), rtol=1e-4, atol=1e-4)
    # Each node's variance is the unbiased one of its batch; the spread of the means comes on top.
    within = torch.stack([x.var(0) for x in data]).mean(0)
    between = torch.stack([x.mean(0) for x in data]).var(0, correction=0)
    torch.testing.assert_close(bn.running_var, within + between, rtol=1e-3, atol=1e-3)


def test_averages_come_back_as_they_were_and_are_left_alone_unless_asked() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3))
    flat = FlatModel(module)
    module(torch.randn(16, 3) + 2)
    mean, var = module[0].running_mean.clone(), module[0].running_var.clone()
    contribution = flat.read()
    module(torch.randn(16, 3) - 7)
    moved = module[0].running_mean.clone()
    flat.load(contribution)
    assert torch.equal(module[0].running_mean, moved)
    flat.load(contribution, averages=True)
    torch.testing.assert_close(module[0].running_mean, mean)
    torch.testing.assert_close(module[0].running_var, var)
    flat.load((torch.ones(6), torch.cat([torch.ones(3), torch.zeros(3)])), averages=True)  # a variance below 0
    assert torch.equal(module[0].running_var, torch.zeros(3))


def test_the_hash_is_that_of_names_shapes_groups_dtype_and_cuts() -> None:
    def hashed(module: nn.Module, **more: object) -> str:
        return FlatModel(module, **more).layout.hash  # type: ignore[arg-type]

    base = hashed(nn.Sequential(nn.Linear(4, 6)))
    assert len(base) == 16
    assert int(base, 16) >= 0
    assert hashed(nn.Sequential(nn.Linear(4, 6))) == base
    others = [
        hashed(nn.ModuleDict({"renamed": nn.Linear(4, 6)})),
        hashed(nn.Sequential(nn.Linear(6, 4))),
        hashed(nn.Sequential(nn.Linear(4, 6, bias=False))),
        hashed(nn.Sequential(nn.Linear(4, 6)), bucket_bytes=16),
        hashed(nn.Sequential(nn.Linear(4, 6)), groups=lambda n, p: Group(True)),
        hashed(nn.Sequential(nn.Linear(4, 6)), groups=lambda n, p: Group(p.ndim > 1, 0.5)),
        hashed(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))),
        hashed(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False))),
        Layout.vector(30).hash,
        Layout.vector(30, dtype=torch.float64).hash,
        Layout.vector(30, decay=False).hash,
        Layout.vector(30, bucket=7).hash,
    ]
    assert len({base, *others}) == 1 + len(others)


def test_a_bare_vector() -> None:
    layout = Layout.vector(10, dtype=torch.float64, bucket=4)
    assert (layout.total, layout.parameters, sum(layout.sizes)) == (10, 10, 10)
    assert max(layout.sizes) <= 4
    assert [t.tolist() for t in layout.split(torch.arange(10.0))] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert Layout.vector(1_000_000).sizes == (250_000,) * 4
    with pytest.raises(UsageError, match="0 coordinates"):
        Layout.vector(0)
    with pytest.raises(ValueError, match="shape"):
        layout.split(torch.zeros(9))
    with pytest.raises(ValueError, match="pieces"):
        layout.join([torch.zeros(4), torch.zeros(3), torch.zeros(3)])


def test_what_cannot_be_trained_is_refused_by_name() -> None:
    module = perceptron([3, 4, 2])
    module[2].double()
    with pytest.raises(UsageError, match=r"parameter 2\.weight is torch\.float64: must be torch\.float32.*\.float\(\)"):
        FlatModel(module)
    norm = nn.BatchNorm1d(2)
    norm.running_mean = norm.running_mean.double()  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"running average running_mean is torch\.float64"):
        FlatModel(norm)
    empty = nn.ParameterList([torch.zeros(0)])
    for nothing in (nn.Tanh(), empty):
        with pytest.raises(UsageError, match="no trainable parameter"):
            FlatModel(nothing)
    flat = FlatModel(perceptron([3, 2]))
    with pytest.raises(ValueError, match="buckets of"):
        flat.load((torch.zeros(3),))
    for wrong, found in (
        (1.0, r"a float: must give a scalar tensor"),
        (torch.zeros(2), r"a tensor of shape \(2,\): must give a scalar tensor"),
        (torch.zeros(()), "a loss that no gradient goes back from: must depend on the model's parameters"),
    ):
        with pytest.raises(UsageError, match=rf"training_step\(\) gave {found}"):
            flat.gradient(lambda wrong=wrong: wrong)  # type: ignore[return-value]


@given(st.lists(st.tuples(st.sampled_from(["model", "write", "evaluate", "train"]), st.sets(st.integers(0, 6)))))
def test_the_parameters_are_always_the_newest_model_and_only_what_changed_is_copied(moves: list[Any]) -> None:
    """A few buckets of the model change, somebody writes to a parameter, another model is scored, or it is trained."""
    module = perceptron([3, 4, 3], norm=True)
    flat = FlatModel(module, bucket_bytes=24)
    kinds = [b.kind for b in flat.layout.buckets]
    model, there, copied = list(flat.read()), [False] * len(kinds), []
    put = flat._incoming.put
    flat._incoming.put = lambda buckets, model: (copied.extend(model[b] for b in buckets), put(buckets, model))[1]  # type: ignore[method-assign,func-returns-value]
    for number, (move, chosen) in enumerate([*moves, ("model", set())]):
        if move == "write":
            with torch.no_grad():
                module[0].bias.add_(1.0)
            there = [False] * len(kinds)
        elif move == "evaluate":
            flat.load([torch.full_like(t, 2.0) for t in model], averages=True)
            there = [False] * len(kinds)
        elif move == "train":
            flat.gradient(lambda: module(torch.randn(4, 3)).sum())
        else:
            for b in (b for b in chosen if b < len(model)):
                model[b], there[b] = torch.full_like(model[b], float(number)), False
            copied.clear()
            flat.load(tuple(model))
            wanted = [
                id(t)
                for t, is_there, kind in zip(model, there, kinds, strict=True)
                if not is_there and kind == "parameters"
            ]
            assert [id(t) for t in copied] == wanted
            there = [True] * len(kinds)
            for entry in (e for e in flat.layout.entries if e.kind == "parameter"):
                held = module.get_parameter(entry.name).detach().flatten()
                assert torch.equal(held, torch.cat(model)[entry.offset : entry.offset + entry.size])


def test_what_loads_and_gradients_take_from_the_pool_is_bounded_however_long_they_go_on() -> None:
    """Whoever gets the gradients holds the last two."""
    module = perceptron([3, 4, 3])
    flat, x = FlatModel(module, bucket_bytes=24), torch.ones(2, 3)
    pool, held = flat._stager.pool, []  # type: ignore[attr-defined]
    for k in range(40):
        flat.load(flat.read())
        module.zero_grad()
        module(x).sum().backward()
        held = [*held, flat.collect() if k % 2 else flat.gradient(lambda: module(x).sum())[0]][-2:]
        if k == 5:
            made = pool.made
    assert pool.made == made <= 4 * len(flat.layout.buckets)
