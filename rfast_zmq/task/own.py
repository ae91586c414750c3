"""A model that a loop of the user's own trains, laid out for the algorithms as :class:`Worker` lays out a task's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from rfast_zmq.task.flat import FlatModel
from rfast_zmq.task.layout import Group, Layout


class Trained(Protocol):
    """What a node needs of the model that it trains: a :class:`Worker` is one, and :class:`OwnModel`."""

    @property
    def layout(self) -> Layout:
        """What each coordinate is."""

    @property
    def weight(self) -> float:
        """Of this node, in the mean over nodes."""

    @property
    def group_rates(self) -> Callable[[float], Sequence[tuple[float, float]]] | None:
        """Per parameter group its learning rate and weight decay at some progress; None: as the settings say."""

    def initial(self) -> tuple[Tensor, ...]:
        """The first model, per bucket."""

    def lr_schedule(self, rounds: float) -> float:
        """Factor on the learning rate."""

    def hook(self, name: str, *arguments: object) -> None:
        """Something happened of which the user may want to hear."""

    def evaluate(self, model: Sequence[Tensor]) -> dict[str, float]:
        """Scores of ``model``."""

    def state_dict(self, model: Sequence[Tensor]) -> dict[str, Tensor]:
        """The module's ``state_dict`` with ``model`` in it."""


class OwnModel:
    """The parameters of some param groups, and the running averages of the module that they belong to.

    The module is changed in place: its parameters' storage moves into one flat vector.

    Args:
        module: has the parameters, and perhaps averages.
        groups: as ``torch.optim.Optimizer.param_groups``; a group's ``lr`` and ``weight_decay`` count as they are when
            the root steps. Parameters of the module that are in none of them are left alone.
        weight: of this node, in the mean over nodes.
        turns: trees between which the buckets take turns.

    Raises:
        UsageError: a parameter or average that is not float32.
    """

    def __init__(
        self, module: nn.Module, groups: Sequence[Mapping[str, Any]], weight: float = 1.0, turns: int = 1
    ) -> None:
        place = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
        of_group = [Group(decay=True, name=str(i)) for i in range(len(groups))]
        self.flat = FlatModel(module, groups=lambda name, p: of_group[place[id(p)]], turns=turns, only=place)
        self.layout, self.weight = self.flat.layout, weight
        self._groups = groups
        self._order = [int(group.name) for group in self.layout.groups]

    def group_rates(self, rounds: float) -> Sequence[tuple[float, float]]:
        """Of each group of the layout, as the param groups say now."""
        return [(float(self._groups[i]["lr"]), float(self._groups[i]["weight_decay"])) for i in self._order]

    def initial(self) -> tuple[Tensor, ...]:
        """The parameters as they are."""
        return self.flat.read()

    def lr_schedule(self, rounds: float) -> float:
        """Schedulers write to the param groups."""
        return 1.0

    def hook(self, name: str, *arguments: object) -> None:
        """The user's loop sees for itself."""

    def evaluate(self, model: Sequence[Tensor]) -> dict[str, float]:
        """The user's loop scores."""
        return {}

    def state_dict(self, model: Sequence[Tensor]) -> dict[str, Tensor]:
        """The module's ``state_dict`` with ``model`` in it; not during a gradient."""
        self.flat.load(model, averages=True)
        return self.flat.state_dict()
