"""Figures with their spread: as a table for a person, as one JSON object for a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from statistics import median
from typing import Any, Literal

from rfast_zmq.errors import RfastError, UsageError


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: its key in the JSON object.
        values: one per repetition, at least one, all finite.
        what: what it is, with its unit, for the table.
        aim: at least or at most so much; None: stated beside the others.
    """

    name: str
    values: tuple[float, ...]
    what: str
    aim: tuple[Literal[">=", "<="], float] | None = None

    @property
    def middle(self) -> float:
        """The median."""
        return float(median(self.values))


class Figures:
    """What a benchmark found, in the order in which it was added.

    Args:
        name: of the benchmark.
        conditions: how it was run, as plain values; they go into the JSON object as they are.
    """

    def __init__(self, name: str, **conditions: Any) -> None:
        self.name, self.conditions = name, conditions
        self.found: list[Figure] = []

    def add(
        self,
        name: str,
        values: Sequence[float],
        what: str,
        aim: tuple[Literal[">=", "<="], float] | None = None,
    ) -> None:
        """
        Raises:
            RfastError: no value, or one that is no finite number.
        """
        if not values or not all(isfinite(value) for value in values):
            raise RfastError(f"{name} came out as {list(values)}: no finite number; were the durations too short?")
        self.found.append(Figure(name, tuple(float(value) for value in values), what, aim))

    def json(self) -> dict[str, Any]:
        """Each figure's median under its name, and [least, most] under ``NAME_spread``."""
        found: dict[str, Any] = {"bench": self.name, **self.conditions}
        for figure in self.found:
            found[figure.name] = _short(figure.middle)
            found[f"{figure.name}_spread"] = [_short(min(figure.values)), _short(max(figure.values))]
        return found

    def table(self) -> list[tuple[str, str, str, str]]:
        """Rows of: name, median (least to most), aim, what."""
        return [
            (
                figure.name,
                f"{_short(figure.middle):g} ({_short(min(figure.values)):g} to {_short(max(figure.values)):g})",
                "" if figure.aim is None else f"{'at least' if figure.aim[0] == '>=' else 'at most'} {figure.aim[1]:g}",
                figure.what,
            )
            for figure in self.found
        ]


def _short(value: float) -> float:
    """Four digits: more would claim what no repetition shows."""
    return float(f"{value:.4g}")


def at_least(flag: str, value: float, least: float) -> None:
    """
    Raises:
        UsageError: the flag's value is too small.
    """
    if not least <= value < inf:
        raise UsageError(f"--{flag} {value:g}: must be {least:g} or more")
