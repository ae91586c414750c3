"""Emulated speeds: the draws are a function of seed, rank and share, and of nothing else."""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import sys

import pytest

from rfast_zmq.conditions import Speeds
from rfast_zmq.errors import UsageError

SHARE = 256 / 7
LOGNORMAL = "lognormal:0.1:0.5"


def test_none_emulates_nothing() -> None:
    speeds = Speeds.parse("none", (), 3, 0)
    assert not speeds.emulated
    assert speeds.seconds(0, 0, 1000, SHARE) == 0.0
    assert speeds.mean_rate(0, SHARE) == math.inf


def test_constant_is_proportional_to_the_samples() -> None:
    speeds = Speeds.parse("constant:0.1", ("1:5",), 3, 0)
    assert speeds.emulated
    assert speeds.seconds(0, 0, 32, 32.0) == pytest.approx(0.1)
    assert speeds.seconds(0, 17, 8, 32.0) == pytest.approx(0.025)
    assert speeds.seconds(1, 17, 8, 32.0) == pytest.approx(0.125)
    assert speeds.mean_rate(0, 32.0) == pytest.approx(320)
    assert speeds.mean_rate(1, 32.0) == pytest.approx(64)


@pytest.mark.parametrize("compute", ["uniform:0.05:0.2", LOGNORMAL])
def test_one_draw_a_share_whatever_the_report_size(compute: str) -> None:
    speeds = Speeds.parse(compute, ("2:3",), 3, 7)
    for rank in range(3):
        whole = speeds.seconds(rank, 5, 1000, SHARE)
        rng, done, parts = random.Random(1), 5, 0.0
        while done < 1005:
            samples = min(rng.choice([1, 4, 9, 70, 200]), 1005 - done)
            parts += speeds.seconds(rank, done, samples, SHARE)
            done += samples
        assert parts == pytest.approx(whole, rel=1e-12)


def test_a_report_over_several_shares_is_integrated_piecewise() -> None:
    speeds = Speeds.parse(LOGNORMAL, (), 2, 3)
    share_s = [speeds.seconds(0, 32 * k, 32, 32.0) for k in range(3)]
    assert len(set(share_s)) == 3
    assert speeds.seconds(0, 24, 48, 32.0) == pytest.approx(share_s[0] / 4 + share_s[1] + share_s[2] / 4)


def test_draws_do_not_depend_on_the_order_of_calls() -> None:
    calls = [(rank, 8 * i) for rank in range(4) for i in range(50)]
    speeds = Speeds.parse(LOGNORMAL, (), 4, 11)
    forward = {call: speeds.seconds(*call, 8, 32.0) for call in calls}
    random.Random(0).shuffle(calls)
    assert {call: speeds.seconds(*call, 8, 32.0) for call in calls} == forward


def test_seeds_ranks_and_shares_differ() -> None:
    seconds = {
        Speeds.parse(LOGNORMAL, (), 4, seed).seconds(rank, 32 * k, 32, 32.0)
        for seed in range(4)
        for rank in range(4)
        for k in range(4)
    }
    assert len(seconds) == 64


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_draws_the_same(hash_seed: str) -> None:
    program = (
        "import json; from rfast_zmq.conditions import Speeds; "
        f"s = Speeds.parse({LOGNORMAL!r}, (), 3, 5); print(json.dumps([s.seconds(r, 40, 8, 32.) for r in range(3)]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    speeds = Speeds.parse(LOGNORMAL, (), 3, 5)
    assert json.loads(done.stdout) == [speeds.seconds(rank, 40, 8, 32.0) for rank in range(3)]


def test_the_draws_of_today_are_those_of_any_day() -> None:
    """A recorded run can be repeated: these numbers may never change."""
    speeds = Speeds.parse(LOGNORMAL, (), 3, 5)
    assert [round(speeds.seconds(rank, 40, 8, 32.0), 9) for rank in range(3)] == [0.04082101, 0.044409487, 0.015579546]


@pytest.mark.parametrize(
    ("compute", "mean_s"),
    [("uniform:0.05:0.2", 0.125), (LOGNORMAL, 0.1 * math.exp(0.125)), ("constant:0.25", 0.25)],
)
def test_the_mean_rate_is_that_of_the_long_run(compute: str, mean_s: float) -> None:
    speeds = Speeds.parse(compute, ("1:4",), 2, 0)
    for rank, factor in ((0, 1), (1, 4)):
        assert speeds.mean_rate(rank, 32.0) == pytest.approx(32 / mean_s / factor)
        shares = 20_000
        assert shares * 32 / speeds.seconds(rank, 0, shares * 32, 32.0) == pytest.approx(
            speeds.mean_rate(rank, 32.0), rel=0.015
        )


def test_lognormal_has_the_given_median_and_sigma() -> None:
    speeds = Speeds.parse(LOGNORMAL, (), 1, 0)
    logs = [math.log(speeds.seconds(0, k, 1, 1.0)) for k in range(20_000)]
    assert math.exp(statistics.median(logs)) == pytest.approx(0.1, rel=0.02)
    assert statistics.stdev(logs) == pytest.approx(0.5, rel=0.02)


def test_uniform_stays_within_its_bounds() -> None:
    speeds = Speeds.parse("uniform:0.05:0.2", (), 1, 0)
    seconds = [speeds.seconds(0, k, 1, 1.0) for k in range(5_000)]
    assert 0.05 <= min(seconds) < 0.051
    assert 0.199 < max(seconds) <= 0.2


@pytest.mark.parametrize(
    ("compute", "text"),
    [
        ("quick", "--compute quick: one of none, constant:S, uniform:A:B or lognormal:MEDIAN:SIGMA, in seconds"),
        ("none:1", "--compute none:1: one of none, constant:S, uniform:A:B or lognormal:MEDIAN:SIGMA, in seconds"),
        (
            "uniform:1",
            "--compute uniform:1: one of none, constant:S, uniform:A:B or lognormal:MEDIAN:SIGMA, in seconds",
        ),
        ("constant:0", "--compute constant:0: constant:S needs a number of seconds S above 0"),
        ("constant:inf", "--compute constant:inf: constant:S needs a number of seconds S above 0"),
        ("constant:x", "--compute constant:x: constant:S needs a number of seconds S above 0"),
        ("uniform:2:1", "--compute uniform:2:1: uniform:A:B needs seconds 0 ≤ A ≤ B with B above 0"),
        ("uniform:0:0", "--compute uniform:0:0: uniform:A:B needs seconds 0 ≤ A ≤ B with B above 0"),
        (
            "lognormal:.1:-1",
            "--compute lognormal:.1:-1: lognormal:MEDIAN:SIGMA needs "
            "a median of seconds above 0 and a sigma from 0 to 10",
        ),
        (
            "lognormal:nan:1",
            "--compute lognormal:nan:1: lognormal:MEDIAN:SIGMA needs "
            "a median of seconds above 0 and a sigma from 0 to 10",
        ),
    ],
)
def test_a_compute_that_cannot_be(compute: str, text: str) -> None:
    with pytest.raises(UsageError) as refused:
        Speeds.parse(compute, (), 7, 0)
    assert str(refused.value) == text


@pytest.mark.parametrize(
    ("stragglers", "text"),
    [
        (["7:5"], "--straggler 7:5: there is no rank 7; valid ranks are 0..6"),
        (["-1:5"], "--straggler -1:5: there is no rank -1; valid ranks are 0..6"),
        (["3"], "--straggler 3: the factor must be a number above 0, as 3:5"),
        (["3:0"], "--straggler 3:0: the factor must be a number above 0, as 3:5"),
        (["3:-2"], "--straggler 3:-2: the factor must be a number above 0, as 3:5"),
        (["3:nan"], "--straggler 3:nan: the factor must be a number above 0, as 3:5"),
        (["3:5:1"], "--straggler 3:5:1: the factor must be a number above 0, as 3:5"),
        (["x:5"], "--straggler x:5: must be RANK:FACTOR, as 0:5"),
        ([""], "--straggler : must be RANK:FACTOR, as 0:5"),
        (["3:5", "3:2"], "--straggler 3:2: rank 3 already has the factor 5; give one"),
    ],
)
def test_a_straggler_that_cannot_be(stragglers: list[str], text: str) -> None:
    with pytest.raises(UsageError) as refused:
        Speeds.parse("constant:0.1", stragglers, 7, 0)
    assert str(refused.value) == text


def test_a_straggler_needs_emulated_times() -> None:
    with pytest.raises(UsageError) as refused:
        Speeds.parse("none", ["3:5"], 7, 0)
    assert str(refused.value) == (
        "--straggler 3:5: has nothing to slow down without emulated times; "
        "give --compute constant:S, uniform:A:B or lognormal:MEDIAN:SIGMA, in seconds"
    )


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UsageError, match="--seed -1: must be 0 or more"):
        Speeds.parse("none", (), 7, -1)
