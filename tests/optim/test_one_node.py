"""An optimiser with nobody else in the run: what ``torch.optim`` does, to rounding, in every way it is used."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR

from rfast_zmq import optim
from rfast_zmq.errors import UsageError

BATCH, STEPS = 16, 40
DRAW = torch.Generator().manual_seed(1)
X, Y = torch.randn(64, 10, generator=DRAW), torch.randint(3, (64,), generator=DRAW)
Make = Callable[[Any], torch.optim.Optimizer]

PAIRS: dict[str, tuple[Make, Make]] = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.3), lambda p: optim.SGD(p, lr=0.3, batch=BATCH)),
    "heavy ball": (
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: optim.SGD(p, lr=0.05, momentum=0.9, batch=BATCH),
    ),
    "nesterov": (
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True),
        lambda p: optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True, batch=BATCH),
    ),
    "adamw": (
        lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
        lambda p: optim.AdamW(p, lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1, batch=BATCH),
    ),
}


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 3))


def batches(steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    for k in range(steps):
        rows = torch.arange(k * BATCH, (k + 1) * BATCH) % len(X)
        yield X[rows], Y[rows]


def plain(model: nn.Module, opt: Any, steps: int = STEPS) -> list[float]:
    losses = []
    for x, y in batches(steps):
        opt.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


@contextmanager
def closing(opt: torch.optim.Optimizer) -> Iterator[Any]:
    with opt if isinstance(opt, optim.RFast) else contextmanager(lambda: iter([None]))():
        yield opt


def both(
    make: Callable[[], nn.Module], pair: tuple[Make, Make], loop: Callable[[nn.Module, Any], list[float]] = plain
) -> tuple[list[float], list[float], nn.Module, nn.Module]:
    models = make(), make()
    with closing(pair[0](list(models[0].parameters()))) as theirs, closing(pair[1](models[1].parameters())) as ours:
        return loop(models[0], theirs), loop(models[1], ours), *models


def same(theirs: list[float], ours: list[float]) -> None:
    assert ours == pytest.approx(theirs, rel=2e-5, abs=1e-6)
    assert ours[-1] < ours[0]


@pytest.mark.parametrize("name", PAIRS)
def test_the_loss_curve_is_torchs(name: str) -> None:
    same(*both(net, PAIRS[name])[:2])


def test_nadam_needs_as_many_samples_as_torchs() -> None:
    def steps_to(losses: list[float]) -> int:
        return next(k for k, loss in enumerate(losses) if loss < 0.4)

    theirs, ours, *_ = both(
        net,
        (lambda p: torch.optim.NAdam(p, lr=0.01), lambda p: optim.NAdam(p, lr=0.01, batch=BATCH)),
        lambda model, opt: plain(model, opt, 200),
    )
    assert steps_to(ours) <= 1.1 * steps_to(theirs)


def test_after_the_end_the_module_holds_the_plain_iterate_and_steps_do_nothing() -> None:
    """Of Nesterov: the heavy ball's position, without the look-ahead at which gradients are taken."""
    model = net()
    with optim.SGD(model, lr=0.05, momentum=0.9, nesterov=True, batch=BATCH) as opt:
        plain(model, opt)
        ahead = model[0].weight.detach().clone()
        with opt.evaluating():
            judged = model[0].weight.detach().clone()
        assert torch.equal(model[0].weight, ahead)
        assert not torch.allclose(judged, ahead)
    assert torch.equal(model[0].weight, judged)
    assert opt.over
    plain(model, opt, 2)
    assert torch.equal(model[0].weight, judged)


def test_param_groups_keep_their_own_rates_and_decays() -> None:
    def groups(module: list[nn.Parameter]) -> list[dict[str, Any]]:
        w0, b0, w1, b1 = module
        return [{"params": [w0, w1]}, {"params": [b0], "weight_decay": 0.0}, {"params": [b1], "lr": 0.05}]

    settings: Any = {"lr": 0.01, "weight_decay": 0.2}
    same(
        *both(
            net,
            (
                lambda p: torch.optim.AdamW(groups(p), **settings),
                lambda p: optim.AdamW(groups(list(p)), **settings, batch=BATCH),
            ),
        )[:2]
    )


def test_a_scheduler_goes_by_rounds_wherever_its_step_stands_in_the_loop() -> None:
    """Here a round is a step; ours is stepped thrice a step by the loop, and not at all, to no effect."""

    def theirs(model: nn.Module, opt: Any) -> list[float]:
        scheduler, losses = CosineAnnealingLR(opt, T_max=STEPS), []
        for x, y in batches():
            losses += one(model, opt, x, y)
            scheduler.step()
        return losses

    def one(model: nn.Module, opt: Any, x: Tensor, y: Tensor) -> list[float]:
        opt.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        return [loss.item()]

    expected = theirs(model := net(), torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9))
    for times in (0, 3):
        model, losses = net(), []
        with optim.SGD(model, lr=0.3, momentum=0.9, batch=BATCH) as opt:
            scheduler = opt.by_rounds(CosineAnnealingLR(opt, T_max=STEPS))
            for x, y in batches():
                losses += one(model, opt, x, y)
                for _ in range(times):
                    scheduler.step()
            assert opt.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)
        same(expected, losses)


def test_gradients_are_accumulated_and_forward_passes_may_be_many() -> None:
    def parts(model: nn.Module, opt: Any) -> list[float]:
        losses = []
        for x, y in batches():
            opt.zero_grad()
            both_halves = [cross_entropy(model(half), of) / 2 for half, of in zip(x.chunk(2), y.chunk(2), strict=True)]
            with torch.no_grad():
                model(x)  # looked at, not learnt from
            for loss in both_halves:
                loss.backward()
            opt.step()
            losses.append(sum(loss.item() for loss in both_halves))
        return losses

    same(*both(net, PAIRS["heavy ball"], parts)[:2])


def test_gradients_that_were_set_to_none_or_never_came_are_zero() -> None:
    def loop(model: nn.Module, opt: Any) -> list[float]:
        unused = nn.Parameter(torch.ones(3))
        losses = []
        for x, y in batches():
            model.zero_grad(set_to_none=True)  # not the optimiser's
            loss = cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            losses.append(loss.item())
        assert torch.equal(unused, torch.ones(3))
        return losses

    same(*both(net, PAIRS["sgd"], loop)[:2])


def test_a_closure_is_called_once_and_what_it_gives_comes_back() -> None:
    def loop(model: nn.Module, opt: Any) -> list[float]:
        losses = []
        for x, y in batches():

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                opt.zero_grad()
                loss = cross_entropy(model(x), y)
                loss.backward()
                return loss

            losses.append(float(opt.step(closure).detach()))
        return losses

    same(*both(net, PAIRS["adamw"], loop)[:2])


def test_frozen_parameters_stay_and_tied_ones_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = (nn.Linear(10, 10) for _ in range(3))
            self.last.weight = self.first.weight
            self.middle.weight.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))[:, :3]

    def make() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Tied()

    trainable = lambda p: [q for q in p if q.requires_grad]  # noqa: E731
    start = make()
    theirs, ours, _, model = both(
        make,
        (
            lambda p: torch.optim.SGD(trainable(p), lr=0.3),
            lambda p: optim.SGD(trainable(p), lr=0.3, batch=BATCH),
        ),
    )
    same(theirs, ours)
    assert torch.equal(model.middle.weight, start.middle.weight)  # type: ignore[union-attr,arg-type]
    assert model.last.weight is model.first.weight  # type: ignore[union-attr]


def test_clipping_is_clip_grad_norm() -> None:
    def clips(model: nn.Module, opt: Any) -> list[float]:
        losses = []
        for x, y in batches():
            opt.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            if isinstance(opt, torch.optim.AdamW):
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            opt.step()
            losses.append(loss.item())
        return losses

    pair: tuple[Make, Make] = (
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: optim.AdamW(p, lr=0.01, clip_norm=0.3, batch=BATCH),
    )
    theirs, ours, *_ = both(net, pair, clips)
    same(theirs, ours)
    assert ours != pytest.approx(both(net, (pair[0], lambda p: optim.AdamW(p, lr=0.01, batch=BATCH)))[1], rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_a_scaler_that_skips_a_step(dtype: torch.dtype) -> None:
    def mixed(model: nn.Module, opt: Any) -> list[float]:
        scaler, losses = torch.amp.GradScaler("cpu", init_scale=1024.0), []
        for k, (x, y) in enumerate(batches()):
            opt.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                loss = cross_entropy(model(x), y)
            scaled = scaler.scale(loss)
            (scaled * float("inf") if k == 5 else scaled).backward()
            scaler.step(opt)
            scaler.update()
            losses.append(loss.item())
        assert scaler.get_scale() == 512.0  # the one step was skipped
        return losses

    same(*both(net, PAIRS["heavy ball"], mixed)[:2])


def test_batch_norms_averages_are_judged_and_kept() -> None:
    def make() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    theirs, ours = make(), make()
    expected = plain(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1))
    with optim.SGD(ours, lr=0.1, batch=BATCH) as opt:
        same(expected, plain(ours, opt))
        with opt.evaluating():
            torch.testing.assert_close(ours[1].running_var, theirs[1].running_var)  # type: ignore[index]
    for name, t in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], t, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", PAIRS)
def test_a_run_that_was_saved_goes_on_bit_for_bit(name: str) -> None:
    make, through, model = PAIRS[name][1], net(), net()
    with closing(make(through.parameters())) as opt:
        plain(through, opt)
        expected = plain(through, opt)
    with closing(make(model.parameters())) as opt:
        plain(model, opt)
        saved, weights = copy.deepcopy(opt.state_dict()), copy.deepcopy(model.state_dict())
    again = net(seed=1)
    again.load_state_dict(weights)
    opt = make(again.parameters())
    opt.load_state_dict(saved)
    with closing(opt):
        assert opt.rounds == STEPS  # type: ignore[attr-defined]
        assert plain(again, opt) == expected
        assert opt.rounds == 2 * STEPS  # type: ignore[attr-defined]


def test_a_loader_is_gone_through_again_until_the_samples_are_done() -> None:
    model = net()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=BATCH)
    with optim.SGD(model, lr=0.3, batch=BATCH, samples=10 * BATCH) as opt:
        count = 0
        for x, y in opt.through(loader):
            count += 1
            opt.step(lambda x=x, y=y: cross_entropy(model(x), y).backward())
        assert (count, opt.status().samples, opt.rounds) == (10, 10 * BATCH, 10.0)
    with optim.SGD(net(), lr=0.3, batch=BATCH) as opt:
        assert len(list(opt.through(loader, epochs=3))) == 12
        with pytest.raises(UsageError, match="gave no batch"):
            list(opt.through(iter([])))


def test_what_the_loss_was_is_reported_where_it_is_known() -> None:
    model = net()
    with optim.SGD(model, lr=0.3, batch=BATCH) as opt:
        plain(model, opt, 2)
        assert opt.status().loss != opt.status().loss  # nan: nobody said
        opt.step(loss=torch.tensor(0.25))
        assert opt.status().loss == 0.25


def test_a_gradient_that_is_not_finite_ends_the_run_and_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    with optim.SGD(model, lr=0.3, batch=BATCH) as opt:
        plain(model, opt, 3)
        before = model[0].weight.detach().clone()
        opt.zero_grad()
        (model(X).sum() * float("nan")).backward()
        opt.step()
        for _ in opt.through([0]):
            pass  # until it is over
    assert torch.equal(model[0].weight, before)
    assert "not finite" in caplog.text


def test_a_gradient_that_was_handed_on_is_not_changed_by_what_the_loop_does_next() -> None:
    """Further backward passes without zero_grad, gradients cleared in place, clipping: ``p.grad`` stays the user's."""
    model, handed = net(), []
    with optim.SGD(model, lr=0.3, batch=BATCH) as opt:
        give = opt._steps.give

        def kept(gradient: Any) -> None:
            handed.append((gradient.gradient, [t.clone() for t in gradient.gradient]))
            give(gradient)

        opt._steps.give = kept  # type: ignore[method-assign]
        for k, (x, y) in enumerate(batches(12)):
            cross_entropy(model(x), y).backward()
            opt.step()
            assert all(p.grad is not None for p in model.parameters())
            if k % 4 == 1:
                model.zero_grad(set_to_none=False)
            elif k % 4 == 2:
                nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            elif k % 4 == 3:
                opt.zero_grad(set_to_none=False)
    assert len(handed) == 12
    for now, then in handed:
        assert all(torch.equal(a, b) for a, b in zip(now, then, strict=True))


def test_what_gradients_and_models_take_is_bounded_however_many_steps_are_made() -> None:
    model = net()
    with optim.NAdam(model, lr=0.01, batch=BATCH) as opt:
        plain(model, opt, 100)
        node: Any = opt._node
        pools = [opt._model.flat._stager.pool, *(d._pool for d in node.node.algorithm._descent)]  # type: ignore[attr-defined]
        assert len(pools) > 1
        assert all(1 <= pool.made <= 4 * len(opt._model.layout.buckets) for pool in pools)


# ------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch": 0}, "batch=0: the samples behind one step must be 1 or more"),
        ({"batch": 4, "rank": 3}, "rank=3: .* has 1 nodes, so 0 to 0"),
        ({"batch": 4, "nodes": 3}, "rank: which of the 3 nodes of binary-tree is this\\? 0 to 2"),
        ({"batch": 4, "rank": "big"}, "rank='big': must be a whole number"),
        ({"batch": 1.5}, "batch=1.5: must be a whole number"),
        ({"batch": 4, "global_batch": 0}, "global_batch=0: the samples of a round must be 1 or more"),
        ({"batch": 4, "wire": "zip"}, "--wire zip: one of float32, bf16, int8"),
        ({"batch": 4, "weight": 0.0}, "weight 0.0: must be from 1e-06 to 1e"),
        ({"batch": 4, "nodes": 3, "rank": 1}, "no endpoints"),
        ({"batch": 4, "topology": "tree"}, "tree"),
        ({"batch": 4, "clip_norm": -1.0}, "clip-norm -1.0"),
        ({"batch": 4, "lr": -1.0}, "lr -1.0"),
        ({"batch": 4, "nesterov": True}, "nesterov=True: it wants a momentum"),
    ],
)
def test_what_will_not_do_is_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        optim.SGD(net(), **given).start()


def test_who_is_told_that_its_rank_is_wrong_has_its_model_as_it_was() -> None:
    model = net()
    before = [p.data_ptr() for p in model.parameters()]
    with pytest.raises(UsageError, match="rank=3"):
        optim.SGD(model, batch=4, rank=3)
    assert [p.data_ptr() for p in model.parameters()] == before


def test_a_state_of_another_model_or_too_late_is_refused() -> None:
    with optim.SGD(net(), batch=4) as opt:
        opt.zero_grad()
        saved = opt.state_dict()
        with pytest.raises(UsageError, match="the run has begun"):
            opt.load_state_dict(saved)
    other = optim.SGD(nn.Linear(2, 2), batch=4)
    with pytest.raises(UsageError, match="make the same model"):
        other.load_state_dict(saved)


def test_a_group_that_comes_later_is_refused() -> None:
    opt = optim.SGD(net(), batch=4)
    with pytest.raises(UsageError, match="when the optimiser is made"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(1))]})


def test_a_scheduler_that_cannot_go_by_rounds_is_refused() -> None:
    opt, other = optim.SGD(net(), batch=4), optim.SGD(net(), batch=4)
    with pytest.raises(UsageError, match="made for another optimiser"):
        opt.by_rounds(StepLR(other, 3))
    with pytest.raises(UsageError, match="it wants a metric"):
        opt.by_rounds(ReduceLROnPlateau(opt))  # type: ignore[arg-type]


def test_parameters_that_are_not_float32_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"0\.weight is torch\.float16"):
        optim.SGD(net().half(), batch=4)
