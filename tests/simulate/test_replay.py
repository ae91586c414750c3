"""Replay against an implementation that shares no line with it; scenarios with their expected outcome; bad input."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfast_zmq.errors import UsageError
from rfast_zmq.simulate.replay import replay

from .reference import SCENARIOS, random_schedule, reference

TWO: dict[str, Any] = json.loads((SCENARIOS / "two-nodes-by-hand.json").read_text(encoding="utf-8"))


def run(schedule: dict[str, Any]) -> dict[str, Any]:
    return replay(json.dumps(schedule))


def agree(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == {"x", "z", "mass_error", "accepted", "stale"}
    for key in ("x", "z"):
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-10, atol=1e-10)
    assert found["mass_error"] <= 1e-12
    assert (found["accepted"], found["stale"]) == (expected["accepted"], expected["stale"])


@settings(max_examples=120)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 6), length=st.integers(0, 90))
def test_any_schedule_on_any_pair_of_graphs_agrees_with_the_reference(seed: int, n: int, length: int) -> None:
    """Loss, delay, reordering, duplication; random weights; graphs that only share a root."""
    schedule = random_schedule(seed, n, length)
    agree(run(schedule), reference(schedule))


def test_the_random_schedules_do_lose_delay_and_repeat() -> None:
    outcomes = [reference(random_schedule(seed, 4, 60)) for seed in range(20)]
    assert sum(outcome["stale"] for outcome in outcomes) > 100
    assert sum(outcome["accepted"] for outcome in outcomes) > 300


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.json")), ids=lambda path: path.stem)
def test_a_scenario_gives_what_stands_beside_it(path: Path) -> None:
    expected = json.loads(path.with_suffix(".expected").read_text(encoding="utf-8"))
    agree(replay(path.read_text(encoding="utf-8")), expected)


def test_two_nodes_by_hand() -> None:
    """v₁ = 1.5, x₁ = .75, g₁ = −2.25, ρ = −1.125; x₀ = .5, h₀ = −1 − 1.125 + .5; and so on: exact in binary."""
    assert run(TWO) == {
        "x": [[1.3125], [0.90625]],
        "z": [[-1.296875], [-0.484375]],
        "mass_error": 0.0,
        "accepted": 3,
        "stale": 1,
    }


def test_without_events_every_node_stands_at_x0_with_its_gradient_as_tracker() -> None:
    assert run({**TWO, "events": [], "x0": [2.0]}) == {
        "x": [[2.0], [2.0]],
        "z": [[1.0], [-1.0]],
        "mass_error": 0.0,
        "accepted": 0,
        "stale": 0,
    }


def test_the_same_text_gives_the_same_bits() -> None:
    text = json.dumps(random_schedule(1, 5, 80))
    assert json.dumps(replay(text)) == json.dumps(replay(text))


def test_the_diagonal_may_be_off_by_rounding() -> None:
    third = 0.333333333333
    w = [[third, third, third + 1e-12]] * 3
    a = np.array(w).T.tolist()
    schedule = {**random_schedule(3, 3, 40), "W": w, "A": a}
    agree(run(schedule), reference(schedule))


def changed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(TWO), **changes}


def with_event(event: Any) -> dict[str, Any]:
    return changed(events=[["step", 0], ["step", 1], event])


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (changed(W=[[1, 0], [0.4, 0.5]]), "row 1 of W sums to 0.9: must be 1"),
        (changed(A=[[1, 0.5], [1e-8, 0.5]]), "column 0 of A sums to 1.00000001: must be 1"),
        (changed(W=[[1.5, -0.5], [0.5, 0.5]]), r"W\[0\]\[1\] is -0.5: a weight must be 0 or more"),
        (changed(W=[[1, 0]]), "W is 1×2: must be n×n"),
        (changed(W=[[1, 0], [1]]), "W: its rows must be equally long"),
        (changed(W=[[1, 0], ["a", 1]]), "W is .*: must be n×n numbers"),
        (changed(W=[]), "W is empty: must be n×n numbers"),
        (changed(W=7), "W is 7: must be n×n numbers"),
        (changed(A=[[1]]), "A is 1×1: must be 2×2"),
        (changed(W=[[1, 0], [0, 1]]), "share no root"),
        (changed(W=[[0.5, 0.5], [0, 1]]), r"reached from nodes \{1\}.*drains to \{0\}.*share no root"),
        (changed(x0=[]), "x0 is empty: must be n numbers"),
        (changed(x0=[True]), "x0 is .*: must be n numbers"),
        (changed(x0=[10**400]), "x0: .*numbers float64 can hold"),
        (changed(gamma="0.5"), 'gamma is "0.5": must be one number$'),
        (changed(gamma=-1), "gamma is -1: must be 0 or more"),
        (changed(gama=0.5), 'there is no "gama"; a schedule has W, A, objective, x0, gamma, events'),
        (changed(objective={**TWO["objective"], "c": 1}), 'there is no "c"; the objective has kind, H, b'),
        (changed(objective={"kind": "logistic"}), 'objective of kind "logistic": must be "quadratic"'),
        (changed(objective={}), 'objective of kind null: must be "quadratic"'),
        (changed(objective=[1]), 'objective of kind .*: must be "quadratic"'),
        (changed(objective={"kind": "quadratic", "H": [[1], [1]]}), "missing b; the objective has kind, H, b"),
        (changed(objective={"kind": "quadratic", "H": [[1, 1]], "b": [[1], [1]]}), "objective H is 1×2: must be 2×1"),
        (changed(events={}), "events is an object: must be a list"),
        (with_event(["jump", 0]), r'event 2 is \["jump", 0\]: must be \["step", i\] or \["deliver"'),
        (with_event("step"), 'event 2 is "step": must be'),
        (with_event(["step"]), "event 2 is .*: must be"),
        (with_event(["step", 0, 0]), "event 2 is .*: must be"),
        (with_event(["deliver", "B", 0, 1, 1]), "event 2 is .*: must be"),
        (with_event(["step", 2]), "event 2: there is no node 2; nodes are 0 to 1"),
        (with_event(["step", -1]), "event 2: there is no node -1"),
        (with_event(["step", 0.0]), r"event 2: there is no node 0\.0"),
        (with_event(["step", True]), "event 2: there is no node true"),
        (with_event(["deliver", "W", 0, 5, 1]), "event 2: there is no node 5"),
        (with_event(["deliver", "W", 1, 0, 1]), "event 2: there is no edge 1 → 0 of W"),
        (with_event(["deliver", "A", 0, 0, 1]), "event 2: there is no edge 0 → 0 of A"),
        (with_event(["deliver", "W", 0, 1, 2]), r"event 2: message 2 of edge 0 → 1 of W .* \(1 to 1 are\)"),
        (with_event(["deliver", "W", 0, 1, 0]), "event 2: message 0 of edge 0 → 1 of W is not made yet"),
        (with_event(["deliver", "W", 0, 1, "1"]), 'event 2: message "1" of edge'),
        (changed(events=[["deliver", "A", 1, 0, 1]]), r"event 0: message 1 .* not made yet \(none is\)"),
        (changed(gamma=1e300, events=[["step", 0]] * 9), r"event \d: the gradient of node 0 is not finite"),
    ],
    ids=range(41),
)
def test_what_is_wrong_is_named(schedule: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        run(schedule)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("replay: ") or "share no root" in str(caught.value)


@pytest.mark.parametrize("key", ["W", "A", "objective", "x0", "gamma", "events"])
def test_a_missing_key_is_named(key: str) -> None:
    schedule = changed()
    del schedule[key]
    with pytest.raises(UsageError, match=f"missing {key}; a schedule has"):
        run(schedule)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '"x"', "[" * 100_000], ids=range(6))
def test_what_is_not_a_json_object(text: str) -> None:
    with pytest.raises(UsageError, match="not a JSON object"):
        replay(text)


def test_numbers_that_json_does_not_have() -> None:
    with pytest.raises(UsageError, match="x0 holds a number that is not finite"):
        replay(json.dumps(changed(x0=[float("nan")])))


def test_weights_that_were_rounded_are_taken_as_they_stand() -> None:
    """Thirds with ten digits: rows sum to 1 − 1e-10. The diagonal is the file's own, and S3 is run by the letter."""
    third = 0.3333333333
    everyone = [[third] * 3 for _ in range(3)]
    rng = np.random.default_rng(7)
    events: list[Any] = []
    for k in range(1, 101):
        for i in range(3):
            events.append(["step", i])
            events += [["deliver", graph, i, j, k] for graph in "WA" for j in range(3) if j != i and rng.random() < 0.7]
    schedule = {
        "W": everyone,
        "A": everyone,
        "objective": {"kind": "quadratic", "H": [[1.0], [2.0], [0.5]], "b": [[100.0], [-50.0], [30.0]]},
        "x0": [0.0],
        "gamma": 0.02,
        "events": events,
    }
    found, expected = run(schedule), reference(schedule)
    for key in ("x", "z"):
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-10, atol=1e-10)
