"""``rfast bench`` at toy size: one JSON line with the names that the pages promise; bad input in one line."""

from __future__ import annotations

import json
from math import inf, isfinite

import pytest

from rfast_zmq.bench import Figures
from rfast_zmq.cli import main
from rfast_zmq.errors import RfastError

TRANSPORT = ["transport", "--megabytes", "2.5", "--models", "2", "--relayed", "5", "--repeats", "1"]
OVERHEAD = [
    "overhead",
    "--parameters",
    "20000",
    "--gradient-ms",
    "1",
    "--steps",
    "5",
    "--reports",
    "20",
    "--repeats",
    "1",
]
STALL = ["stall", "--seconds", "1.5", "--positions", "leaf", "--gradient-ms", "25"]
PROMISED = {
    "transport": {
        *("tcp_vs_zmq", "ipc_vs_zmq", "tcp_vs_gloo", "ipc_vs_gloo", "cpu_vs_zmq", "cpu_down_vs_zmq", "cpu_up_vs_zmq"),
        *("age_ms_p50", "age_ms_p99"),
    },
    "overhead": {
        *("step_ratio", "pace_s", "mb_per_s", "staleness_rounds", "import_ms", "import_optim_ms"),
        *("memory_models", "memory_steady_models", "memory_growth_models"),
    },
    "stall": {"pace_ratio_min", "pace_ratio_leaf", "progress_per_gradient", "catch_up_reports"},
}


@pytest.mark.parametrize("words", [OVERHEAD, TRANSPORT, STALL], ids=lambda words: words[0])
def test_the_last_line_is_an_object_with_the_promised_names(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["bench", *words, "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["bench"] == words[0]
    assert found.keys() >= PROMISED[words[0]]
    spreads = {name: found[f"{name}_spread"] for name in found if f"{name}_spread" in found}
    assert spreads.keys() >= PROMISED[words[0]]
    for name, (least, most) in spreads.items():
        assert isfinite(found[name]), name
        assert least <= found[name] <= most, name


def test_a_figure_is_the_median_with_its_spread_beside_it_and_never_not_a_number() -> None:
    figures = Figures("toy", sizes=[1, 2])
    figures.add("ratio", [3.0, 1.23456, 2.0], "a ratio", (">=", 0.95))
    assert figures.json() == {"bench": "toy", "sizes": [1, 2], "ratio": 2.0, "ratio_spread": [1.235, 3.0]}
    assert figures.table() == [("ratio", "2 (1.235 to 3)", "at least 0.95", "a ratio")]
    for values in ([], [inf], [float("nan")]):
        with pytest.raises(RfastError, match="worse"):
            figures.add("worse", values, "another")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["transport", "--megabytes", "0"], ["--megabytes 0", "0.001 to 10000"]),
        (["transport", "--megabytes", "nan"], ["--megabytes nan", "0.001 to 10000"]),
        (["transport", "--models", "2.7"], ["--models 2.7", "whole number"]),
        (["transport", "--repeats", "0"], ["--repeats 0", "1 or more"]),
        (["overhead", "--optimizer", "lion"], ["--optimizer lion", "sgd, momentum, adamw, nadam"]),
        (["overhead", "--parameters", "0"], ["--parameters 0", "2 or more"]),
        (["overhead", "--gradient-ms", "-1"], ["--gradient-ms -1", "0 or more"]),
        (["stall", "--seconds", "0.5"], ["--seconds 0.5", "1.5 or more"]),
        (["stall", "--positions", "root,middle"], ["--positions middle", "root, inner, leaf"]),
        (["stall", "--rank", "3"], ["--rank", "rfast bench --help"]),
        (["transprot"], ["transprot", "transport"]),
    ],
)
def test_bad_input_is_refused_in_one_line(
    words: list[str], says: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", *words])
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.strip().splitlines()
    assert [word for word in says if word not in line] == []
