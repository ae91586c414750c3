"""DESCEND: parity with ``torch.optim`` where a step is a whole round of fresh gradients, and each line of the rule."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rfast_zmq.core.descent import LEAD_MOST_ROUNDS, RULES, Descent, Norm
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.errors import UsageError
from rfast_zmq.task.layout import Bucket, Group, Layout, Segment
from rfast_zmq.topology import build

DIM = 8
LR = {"sgd": 0.2, "momentum": 0.05, "nesterov": 0.05, "adam": 0.05, "nadam": 0.05}
LEADS = {"sgd": 0.0, "momentum": 0.0, "adam": 0.0, "nesterov": 0.9, "nadam": 0.9}


class Steps(Descent):
    """A bucket whose groups share the coordinates evenly, in order; their rates follow from one."""

    def __init__(self, rule: str, dim: int, groups: tuple[Group, ...], weight_decay: float = 0.0) -> None:
        each = dim // len(groups)
        bucket = Bucket(0, dim, "parameters", tuple(Segment(i, i * each, (i + 1) * each) for i in range(len(groups))))
        super().__init__(bucket, rule=rule)
        layout = Layout((), groups, (bucket,), dim, torch.float32, "")
        self._rates = lambda lr: NodeConfig(
            rank=0, topology=build("line", 1), layout=layout, lr=lr, weight_decay=weight_decay
        ).rates(0.0)

    def step(self, x: Tensor, d: Tensor, f: float, tau: float, rates: Any, clip: Any = None) -> Tensor:
        return super().step(x, d, f, tau, self._rates(rates), clip)


def descent(rule: str, dim: int = DIM, groups: tuple[Group, ...] = (Group(True),), **settings: Any) -> Steps:
    return Steps(rule, dim, groups, **settings)


def curved(x: Tensor) -> Tensor:
    """The gradient of a function that is no quadratic, at curvatures from 0.2 to 1."""
    return torch.linspace(0.2, 1, len(x), dtype=x.dtype) * (x - 1) + 0.1 * torch.sin(3 * x)


def by_torch(make: Callable[[list[Tensor]], torch.optim.Optimizer], x0: Tensor, steps: int) -> list[Tensor]:
    x = x0.clone().requires_grad_()
    optimizer, path = make([x]), []
    for _ in range(steps):
        x.grad = curved(x.detach())
        optimizer.step()
        path.append(x.detach().clone())
    return path


def torch_optimizer(rule: str, decay: float) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
    lr = LR[rule]
    if rule == "adam":
        return lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=decay)
    return lambda p: torch.optim.SGD(p, lr=lr, momentum=0.0 if rule == "sgd" else 0.9, nesterov=rule == "nesterov")


# ------------------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("rule", "decay"), [("sgd", 0.0), ("momentum", 0.0), ("nesterov", 0.0), ("adam", 0.0), ("adam", 0.1)]
)
def test_whole_rounds_of_fresh_gradients_are_the_textbook_optimiser(
    rule: str, decay: float, dtype: torch.dtype
) -> None:
    """f = 1, τ = 0, on one node. The iterate that torch shows is our x (where its gradient is taken); without a lead
    that is θ too."""
    x = x0 = torch.linspace(-2, 3, DIM, dtype=dtype)
    step = descent(rule, weight_decay=decay)
    for theirs in by_torch(torch_optimizer(rule, decay), x0, 50):
        x = step.step(x, curved(x), 1.0, 0.0, LR[rule])
        torch.testing.assert_close(
            x, theirs, rtol=1e-12 if dtype is torch.float64 else 2e-5, atol=1e-6 * dtype.itemsize
        )
        if LEADS[rule] == 0.0:
            torch.testing.assert_close(step.plain(x), theirs, rtol=2e-5, atol=1e-5)


def test_the_plain_iterate_of_nesterov_is_heavy_balls_position_under_the_same_gradients() -> None:
    """θ ← θ − lr m with the m of both; x is β rounds ahead of it."""
    x, heavy = torch.zeros(DIM), torch.zeros(DIM)
    nesterov, ball = descent("nesterov"), descent("momentum")
    for k in range(30):
        g = torch.linspace(-1, 1, DIM) * np.cos(k)
        x, heavy = nesterov.step(x, g, 1.0, 0.0, 0.05), ball.step(heavy, g, 1.0, 0.0, 0.05)
        torch.testing.assert_close(nesterov.plain(x), heavy, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(x, heavy)


@pytest.mark.parametrize("least", [-2, -1])
def test_nadam_reaches_the_optimum_as_fast_as_torchs(least: float) -> None:
    """The form differs (see the module): the loss of an uneven quadratic stays below each bound from the same step on,
    and at no rate later than Adam's."""
    h = torch.logspace(least, 0, DIM, dtype=torch.float64)

    def settled(run: Callable[[Tensor], Tensor]) -> list[int]:
        x, losses = torch.ones(DIM, dtype=torch.float64), []
        for _ in range(400):
            x = run(x)
            losses.append(float((h * x.square()).sum()))
        return [max(k for k, loss in enumerate(losses) if loss >= bound) for bound in (1e-2, 1e-4, 1e-6, 1e-8)]

    def ours(rule: str, lr: float) -> list[int]:
        step, at = descent(rule), [torch.ones(DIM, dtype=torch.float64)]

        def run(_: Tensor) -> Tensor:
            at[0] = step.step(at[0], h * at[0], 1.0, 0.0, lr)
            return step.plain(at[0])

        return settled(run)

    p = torch.ones(DIM, dtype=torch.float64).requires_grad_()
    theirs = torch.optim.NAdam([p], lr=0.02)

    def run_theirs(x: Tensor) -> Tensor:
        p.grad = h * x
        theirs.step()
        return p.detach().clone()

    assert all(a <= 1.05 * b for a, b in zip(ours("nadam", 0.02), settled(run_theirs), strict=True))
    for lr in (0.02, 0.05, 0.1):
        assert all(a <= 1.05 * b for a, b in zip(ours("nadam", lr), ours("adam", lr), strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_a_quarter_round_at_a_time_goes_as_far_as_a_round(rule: str) -> None:
    """Along a constant direction, at a constant rate: P = 16 rounds are P = 16 rounds, however they were cut (momentum,
    its bias correction and Adam's second moment go by β^f)."""
    g = torch.linspace(0.5, 1, DIM, dtype=torch.float64)
    ends = {}
    for f in (1.0, 0.5, 0.25, 0.125):
        step, x = descent(rule), torch.zeros(DIM, dtype=torch.float64)
        for _ in range(int(16 / f)):
            x = step.step(x, g, f, 0.0, 0.01)
        assert step.progress == 16.0
        ends[f] = float(step.plain(x).sum())
    for f in (0.5, 0.25, 0.125):
        assert ends[f] == pytest.approx(ends[1.0], rel=0.05)


# ------------------------------------------------------------------------------------------------ the lead


@pytest.mark.parametrize("rule", RULES)
@given(tau=st.floats(-1, 9))
def test_L_is_tau_or_beta_plus_tau_and_at_most_4(rule: str, tau: float) -> None:
    step = descent(rule)
    step.step(torch.zeros(DIM), torch.ones(DIM), 0.5, tau, 0.1)
    assert step.lead == pytest.approx(min(LEADS[rule] + max(tau, 0), LEAD_MOST_ROUNDS))
    assert LEAD_MOST_ROUNDS == 4.0


@given(
    rule=st.sampled_from(RULES),
    steps=st.lists(st.tuples(st.floats(0.05, 1), st.floats(0, 6), st.floats(0.001, 0.1)), min_size=1, max_size=12),
)
def test_x_leads_the_plain_iterate_by_L_rounds_of_the_direction_it_moved_in(
    rule: str, steps: list[tuple[float, float, float]]
) -> None:
    """θ' = θ − lr·f·u' and x' = θ' − lr·L'·u' at every instant, also where τ and lr change between steps (the old lead
    is taken back at the old rate): so what x is ahead is to what θ moved as L' is to f."""
    step, x = descent(rule), torch.zeros(DIM, dtype=torch.float64)
    theta = x
    for k, (f, tau, lr) in enumerate(steps):
        x = step.step(x, torch.full((DIM,), 1.0 + k, dtype=torch.float64), f, tau, lr)
        moved, theta = step.plain(x) - theta, step.plain(x)
        torch.testing.assert_close((x - theta) * f, moved * step.lead, rtol=1e-8, atol=1e-10)
        if rule == "sgd":
            assert moved[0].item() == pytest.approx(-lr * f * (1 + k), rel=1e-8)


def test_before_the_first_step_the_plain_iterate_is_the_model() -> None:
    x = torch.ones(DIM)
    assert descent("nadam").plain(x) is x


# ------------------------------------------------------------------------------------------------ each line


@pytest.mark.parametrize("rule", RULES)
def test_nothing_that_was_handed_in_or_out_is_written_to(rule: str) -> None:
    step, x = descent(rule, weight_decay=0.1), torch.ones(DIM)
    kept: list[tuple[Tensor, Tensor]] = []
    for k in range(6):
        g = torch.full((DIM,), float(k + 1))
        kept += [(g, g.clone()), (x, x.clone())]
        x = step.step(x, g, 0.5, 1.0, 0.1)
        theta = step.plain(x)
        kept.append((theta, theta.clone()))
    assert all(torch.equal(now, then) for now, then in kept)


def by_hand(rule: str, x: float, steps: list[tuple[float, float, float, float]], decay: float) -> list[float]:
    """DESCEND as DESIGN section 4 writes it down, on one coordinate; the x after each (d, f, tau, lr)."""
    beta, beta2, eps = 0.9, 0.999, 1e-8
    m = a = v = u = lead = lr_before = progress = 0.0
    path = []
    for d, f, tau, lr in steps:
        progress += f
        b1, b2 = beta**f, beta2**f
        q = 0.0 if progress < 0.5 or f == 1 or not path else exp(-2 * f)  # at first there is no mean yet
        x *= 1 - lr * f * decay
        if rule == "sgd":
            u_next = d
        elif rule in ("momentum", "nesterov"):
            u_next = m = b1 * m + (1 - b1) / (1 - beta) * d
        else:
            m = b1 * m + (1 - b1) * d
            a = q * a + (1 - q) * d
            v = b2 * v + (1 - b2) * a * a
            u_next = (m / (1 - beta**progress)) / (sqrt(v / (1 - beta2**progress)) + eps)
        lead_next = min((beta if rule in ("nesterov", "nadam") else 0.0) + tau, 4.0)
        x = x - lr * f * u_next - (lr * lead_next * u_next - lr_before * lead * u)
        u, lead, lr_before = u_next, lead_next, lr
        path.append(x)
    return path


@pytest.mark.parametrize("rule", RULES)
@given(
    steps=st.lists(
        st.tuples(
            st.floats(-3, 3).filter(lambda d: abs(d) > 1e-3),
            st.one_of(st.just(1.0), st.floats(0.02, 1)),
            st.floats(0, 6),
            st.floats(0.001, 0.3),
        ),
        min_size=1,
        max_size=15,
    ),
    decay=st.sampled_from([0.0, 0.1]),
)
def test_every_line_of_the_rule(rule: str, steps: list[tuple[float, float, float, float]], decay: float) -> None:
    """Steps of parts of rounds, with any staleness and a rate that changes: as the page says, line by line."""
    step, x = descent(rule, dim=2, weight_decay=decay), torch.full((2,), 0.7, dtype=torch.float64)
    for (d, f, tau, lr), expected in zip(steps, by_hand(rule, 0.7, steps, decay), strict=True):
        x = step.step(x, torch.full((2,), d, dtype=torch.float64), f, tau, lr)
        assert x.tolist() == pytest.approx([expected] * 2, rel=1e-7, abs=1e-8)


def test_noise_that_a_round_averages_away_does_not_shrink_adams_steps() -> None:
    """A gradient of 1 with noise of 3 in each eighth of a round: v is that of the round's mean (1 + 9/8), not 10; so
    the steps stay near those of a machine that takes the whole round at once."""
    draw = torch.Generator().manual_seed(0)
    f, step, x = 0.125, descent("adam", dim=512), torch.zeros(512, dtype=torch.float64)
    at = []
    for _ in range(800):
        x = step.step(x, 1 + 3 * torch.randn(512, generator=draw, dtype=torch.float64), f, 0.0, 0.01)
        at.append(float(x.mean()))
    a_round = (at[799] - at[399]) / (400 * f) / -0.01
    assert a_round == pytest.approx(1 / sqrt(1 + 9 / 8), rel=0.1)


def test_decay_acts_on_decayed_groups_only_and_by_the_part_of_a_round() -> None:
    step = descent("sgd", groups=(Group(True), Group(False)), weight_decay=0.5)
    x = step.step(torch.full((DIM,), 2.0, dtype=torch.float64), torch.zeros(DIM, dtype=torch.float64), 0.25, 0.0, 0.1)
    assert x.tolist() == pytest.approx([2 * (1 - 0.1 * 0.25 * 0.5)] * 4 + [2.0] * 4, rel=1e-15)


def test_a_groups_factor_scales_its_rate_its_lead_and_its_decay() -> None:
    groups = (Group(True, 1.0), Group(True, 0.5))
    step = descent("sgd", groups=groups, weight_decay=0.5)
    ones = torch.ones(DIM, dtype=torch.float64)
    x = step.step(ones, ones, 0.5, 2.0, 0.1)
    for part, scale in ((x[:4], 1.0), (x[4:], 0.5)):
        lr = 0.1 * scale
        assert part.tolist() == pytest.approx([1 - lr * 0.5 * 0.5 - lr * (0.5 + 2.0)] * 4, rel=1e-12)
    theta = step.plain(x)
    assert theta[:4].tolist() == pytest.approx([1 - 0.1 * 0.25 - 0.1 * 0.5] * 4, rel=1e-12)
    assert theta[4:].tolist() == pytest.approx([1 - 0.05 * 0.25 - 0.05 * 0.5] * 4, rel=1e-12)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(UsageError, match="--optimizer lion: one of nadam, adam, sgd, momentum, nesterov"):
        descent("lion")


# ------------------------------------------------------------------------------------------------ clipping


@pytest.mark.parametrize("rule", ["sgd", "momentum", "nesterov", "adam"])
def test_clipping_whole_rounds_is_torchs_clip_grad_norm(rule: str) -> None:
    """Two buckets, f = 1: torch clips by the norm over both. (The second bucket hears of the first's new norm, the
    first of the second's before: so their gradients are made to be the same here.)"""
    most, lr = 0.7, LR[rule]
    x0 = torch.linspace(-2, 3, DIM, dtype=torch.float64)
    pair = [x0.clone().requires_grad_() for _ in range(2)]
    optimizer = torch_optimizer(rule, 0.0)(pair)
    norm, steps, at = Norm(most, (DIM, DIM)), [descent(rule), descent(rule)], [x0, x0]
    clipped = 0
    for k in range(30):
        gradient = curved(pair[0].detach()) * (1.0 if k < 15 else 0.1)
        for b in range(2):
            pair[b].grad = gradient.clone()
            norm._squares[b] = float(gradient.square().sum())
        for b in range(2):
            at[b] = steps[b].step(at[b], gradient, 1.0, 0.0, lr, lambda square, b=b: norm.shrink(b, square))
        clipped += bool(torch.nn.utils.clip_grad_norm_(pair, most) > most)
        optimizer.step()
        for b in range(2):
            torch.testing.assert_close(at[b], pair[b].detach(), rtol=1e-9, atol=1e-12)
    assert 0 < clipped < 30


def test_clipping_measures_the_rounds_average_not_the_noise_of_a_report() -> None:
    """Gradients of norm 1 with noise of norm 10 in each sixteenth of a round, and a bound of 3: the average of a round
    is hardly ever above it, so the way made is that without a bound (the raw norm would shorten it to a third)."""
    draw = torch.Generator().manual_seed(0)
    dim, f = 512, 1 / 16
    free, bound = descent("sgd", dim=dim), descent("sgd", dim=dim)
    x = y = torch.zeros(dim, dtype=torch.float64)
    norm = Norm(3.0, (dim,))
    for _ in range(400):
        d = (1 + 10 * torch.randn(dim, generator=draw, dtype=torch.float64)) / sqrt(dim)
        x = free.step(x, d, f, 0.0, 0.1)
        y = bound.step(y, d, f, 0.0, 0.1, lambda square: norm.shrink(0, square))
    assert float(y.mean()) == pytest.approx(float(x.mean()), rel=0.1)


def test_buckets_that_have_said_nothing_count_like_the_others() -> None:
    norm = Norm(1.0, (4, 4, 8, 0))
    assert norm.shrink(0, 4.0) == pytest.approx(1 / 4)  # 4 coordinates have 4, so 16 have 16
    assert norm.shrink(2, 0.0) == pytest.approx(1 / sqrt(4 * 16 / 12))
    assert norm.shrink(0, 0.01) == 1.0


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_a_restored_descent_goes_on_bit_for_bit(rule: str, clips: bool) -> None:
    norm = Norm(0.5, (DIM,))
    clip = (lambda square: norm.shrink(0, square)) if clips else None
    step, x = descent(rule, weight_decay=0.1), torch.linspace(-2, 3, DIM)

    def some(step: Steps, x: Tensor) -> Tensor:
        for k in range(7):
            x = step.step(x, curved(x), 0.3 + 0.1 * k, 0.1 * k, 0.05, clip)
        return x

    x = some(step, x)
    again = descent(rule, weight_decay=0.1)
    again.restore(step.state())
    assert torch.equal(again.plain(x), step.plain(x))
    first, second = some(step, x), some(again, x)
    assert torch.equal(first, second)
    assert torch.equal(again.plain(first), step.plain(second))


@pytest.mark.parametrize("rule", RULES)
def test_a_model_handed_out_stays_as_it_was_and_its_memory_serves_again_when_nobody_holds_it(rule: str) -> None:
    stepper, x = descent(rule), torch.ones(DIM)
    held: list[tuple[Tensor, Tensor]] = []
    for _ in range(40):
        x = stepper.step(x, curved(x), 0.5, 1.0, LR[rule])
        held = [*held, (x, x.clone())][-3:]
        assert all(torch.equal(now, then) for now, then in held)
        assert len({t.data_ptr() for t, _ in held}) == len(held)
    assert stepper._pool is not None
    assert stepper._pool.made == 4  # what is held, and the one that is being made
