"""Optimisers for a training loop of the user's own, in place of ``torch.optim``'s: see :mod:`.optimizer`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from rfast_zmq.errors import UsageError
from rfast_zmq.optim.optimizer import RFast

__all__ = ["SGD", "Adam", "AdamW", "NAdam", "RFast"]


class SGD(RFast):
    """In place of ``torch.optim.SGD``. Weight decay is decoupled (without momentum that is the same).

    Args:
        params: as :class:`RFast`.
        lr, momentum, nesterov, weight_decay: as torch's.
        run: the arguments of :class:`RFast`.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        **run: Any,
    ) -> None:
        if nesterov and not momentum:
            raise UsageError("nesterov=True: it wants a momentum above 0")
        rule = "nesterov" if nesterov else "momentum" if momentum else "sgd"
        super().__init__(params, rule, {"lr": lr, "weight_decay": weight_decay}, momentum=momentum, **run)


class _OfAdamsKind(RFast):
    _rule, _lr, _weight_decay = "adam", 1e-3, 0.0

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | None = None,
        **run: Any,
    ) -> None:
        defaults = {
            "lr": self._lr if lr is None else lr,
            "weight_decay": self._weight_decay if weight_decay is None else weight_decay,
        }
        super().__init__(params, self._rule, defaults, momentum=betas[0], beta2=betas[1], eps=eps, **run)


class Adam(_OfAdamsKind):
    """In place of ``torch.optim.Adam``. Weight decay is decoupled, as in :class:`AdamW`.

    Args:
        params: as :class:`RFast`.
        lr, betas, eps, weight_decay: as torch's, with its defaults.
        run: the arguments of :class:`RFast`.
    """


class AdamW(_OfAdamsKind):
    """In place of ``torch.optim.AdamW``; the arguments of :class:`Adam`."""

    _weight_decay = 0.01


class NAdam(_OfAdamsKind):
    """In place of ``torch.optim.NAdam``, which differs in form: it looks ahead with the second moment of before, and by
    a momentum that grows. The arguments of :class:`Adam`; weight decay is decoupled.
    """

    _rule, _lr = "nadam", 2e-3
