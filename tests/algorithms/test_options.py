"""An algorithm's own numbers, as a user gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest

from rfast_zmq.algorithms import ALGORITHMS, RFast, options_of
from rfast_zmq.errors import UsageError


class Tuned(RFast):
    name: ClassVar[str] = "tuned"
    options: ClassVar[Mapping[str, float]] = {"local_steps": 8, "outer_lr": 0.7}

    @classmethod
    def check_options(cls, options: Mapping[str, float]) -> None:
        if options["local_steps"] < 1:
            raise UsageError("local_steps: 1 or more")


def test_what_is_not_given_keeps_its_default() -> None:
    assert options_of(Tuned, ()) == {"local_steps": 8, "outer_lr": 0.7}
    assert options_of(Tuned, ("local-steps=4", "outer_lr=1e-1")) == {"local_steps": 4, "outer_lr": 0.1}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["local_steps"], "local_steps: must be NAME=VALUE"),
        (["steps=3"], "steps=3: --algorithm tuned has local_steps .default 8., outer_lr .default 0.7."),
        (["local_steps=3", "local-steps=4"], "local_steps is given twice"),
        (["outer_lr=fast"], "'fast' is no number"),
        (["outer_lr=nan"], "must be a finite number"),
        (["local_steps=0"], "local_steps: 1 or more"),
    ],
)
def test_what_will_not_do_is_named(given: Sequence[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        options_of(Tuned, given)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_is_content_with_its_own_defaults(name: str) -> None:
    assert options_of(ALGORITHMS[name], ()) == dict(ALGORITHMS[name].options)
