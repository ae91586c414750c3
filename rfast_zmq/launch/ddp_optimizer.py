"""The optimisers of ``--algorithm ddp``: of torch where torch has the rule, and all of them the rules that every other
algorithm here has, so that what is compared is how gradients come together.

Decay is decoupled: AdamW's and NAdam's is so by itself; for SGD, whose own is not, the same is done before the step.
``torch.optim.NAdam`` is another rule than ours: it warms β₁ up, and looks ahead with the second moment of the step
before. On the tasks of the benchmarks it needs up to a quarter more samples, which would be no fault of DDP's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rfast_zmq.settings import Settings
from rfast_zmq.task import Worker


def make_optimizer(settings: Settings, worker: Worker) -> torch.optim.Optimizer:
    """The rule of the settings, with a param group for each of the layout's groups."""
    s = settings
    assert s.lr is not None
    assert s.momentum is not None
    assert s.weight_decay is not None
    groups = [
        {"params": parameters, "weight_decay": s.weight_decay if group.decay else 0.0}
        for parameters, group in zip(worker.parameters(), worker.layout.groups, strict=True)
    ]
    betas = (s.momentum, s.beta2)
    match s.optimizer:
        case "adam":
            return torch.optim.AdamW(groups, lr=s.lr, betas=betas, eps=s.eps)
        case "nadam":
            return NAdam(groups, lr=s.lr, betas=betas, eps=s.eps)
    decays = [float(str(group.pop("weight_decay"))) for group in groups]
    beta = 0.0 if s.optimizer == "sgd" else s.momentum
    optimizer = torch.optim.SGD(groups, lr=s.lr, momentum=beta, nesterov=s.optimizer == "nesterov" and beta > 0)

    def decay(*_: object) -> None:
        with torch.no_grad():
            for group, by in zip(optimizer.param_groups, decays, strict=True):
                for p in group["params"] if by else ():
                    p.mul_(1.0 - group["lr"] * by)

    optimizer.register_step_pre_hook(decay)
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, settings: Settings, worker: Worker, rounds: float) -> None:
    """The learning rate of each param group, at this progress in rounds."""
    assert settings.lr is not None
    lr = settings.lr * worker.lr_schedule(rounds)
    for of, group in zip(optimizer.param_groups, worker.layout.groups, strict=True):
        of["lr"] = lr * group.lr_scale


@contextmanager
def plain(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Meanwhile the parameters are the plain iterates θ, which are judged; the optimiser looks ahead from them."""
    kept: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for group in optimizer.param_groups:
            for p in group["params"]:
                state = optimizer.state.get(p, {})
                ahead, along = state.get("ahead", 0.0), state.get("u")
                if group.get("nesterov"):
                    ahead, along = group["lr"] * group["momentum"], state.get("momentum_buffer")
                if ahead and along is not None:
                    kept.append((p, p.clone()))
                    p.add_(along, alpha=ahead)
        try:
            yield
        finally:
            for p, x in kept:
                p.copy_(x)


class NAdam(torch.optim.Optimizer):
    """NAdam with a constant β₁ that looks ahead with the present second moment, and decoupled weight decay::

        m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,  u = m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε)
        θ ← θ − lr (u + wd·x),  x = θ − lr β₁ u

    The parameters are x; θ is not kept: x ← x + lr_before β₁ u_before − lr ((1 + β₁) u + wd·x).

    Args:
        groups: parameters, each group with its ``weight_decay``.
        lr: learning rate.
        betas: β₁ and β₂.
        eps: ε.
    """

    def __init__(
        self, groups: Iterable[Mapping[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(list(map(dict, groups)), {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step along the gradients that there are."""
        for group in self.param_groups:
            (beta, beta2), lr, eps, decay = group["betas"], group["lr"], group["eps"], group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(t=0, ahead=0.0, m=torch.zeros_like(p), v=torch.zeros_like(p), u=torch.zeros_like(p))
                state["t"] += 1
                m, v, u = state["m"], state["v"], state["u"]
                p.mul_(1.0 - lr * decay).add_(u, alpha=state["ahead"])
                m.lerp_(p.grad, 1.0 - beta)
                v.mul_(beta2).addcmul_(p.grad, p.grad, value=1.0 - beta2)
                root: Tensor = (v / (1.0 - beta2 ** state["t"])).sqrt_().add_(eps)
                torch.div(m, root.mul_(1.0 - beta ** state["t"]), out=u)
                p.add_(u, alpha=-lr * (1.0 + beta))
                state["ahead"] = lr * beta
