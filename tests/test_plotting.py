"""The pictures, from files alone."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest

from rfast_zmq import plotting
from rfast_zmq.errors import UsageError
from rfast_zmq.topology import build, to_toml


def test_a_run_that_ended_before_any_gradient(tmp_path: Path) -> None:
    """Without a warning: here they are errors."""
    write(tmp_path, points=2)
    rows = [{"time_s": 0.5, "rank": rank, "samples": 0, "pace": 0.0} for rank in range(4)]
    (tmp_path / "nodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(plotting.pictures(tmp_path)) == 2


def write(folder: Path, *, accuracy: bool = True, baseline: bool = False, points: int = 40, nodes: int = 4) -> None:
    """The folder of a made-up run."""
    names = [f"host ${i}" for i in range(nodes)]
    settings = {"topology": "line", "algorithm": "rfast-tree", "split": "iid", "compute": "constant:0.1", "target": 0.9}
    config = {"task": "/x/digits.py:Digits", "settings": settings, "nodes": names, "root": 0}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [
        {
            "time_s": k / 4,
            "samples": 100 * k,
            "rounds": k,
            "accuracy": k / points if accuracy else None,
            "loss": 2.3 / (k + 1),
            "train_loss": None if k == 0 else 2.5 / (k + 1),
            "staleness_rounds": 0.5,
        }
        for k in range(points)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if baseline:
        (folder / "baseline.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::4]))
    steps = [(k / 2, rank) for k in range(1, points // 2) for rank in range(nodes)]
    paces = [
        {"time_s": t, "rank": rank, "samples": int(t * (20 if rank > nodes - 3 else 100)), "pace": 0}
        for t, rank in steps
    ]
    (folder / "nodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in paces))
    (folder / "topology.toml").write_text(to_toml(build("line", nodes)))


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.mark.parametrize("baseline", [False, True])
def test_both_pictures_are_drawn(baseline: bool, tmp_path: Path) -> None:
    write(tmp_path, baseline=baseline)
    assert plotting.pictures(tmp_path) == [tmp_path / "curve.png", tmp_path / "topology.png"]
    assert png_size(tmp_path / "curve.png") == (1500, 1290)
    assert png_size(tmp_path / "topology.png")[0] >= 1000


def test_a_task_without_accuracy_has_two_panels_less(tmp_path: Path) -> None:
    write(tmp_path, accuracy=False)
    assert png_size(plotting.curve(tmp_path)) == (1500, 930)


def test_a_run_of_one_evaluation_and_one_node(tmp_path: Path) -> None:
    write(tmp_path, points=1, nodes=1)
    (tmp_path / "nodes.jsonl").unlink()
    (tmp_path / "topology.toml").unlink()
    assert plotting.pictures(tmp_path) == [tmp_path / "curve.png"]


def test_a_run_without_an_evaluation_has_nothing_to_draw(tmp_path: Path) -> None:
    write(tmp_path, points=0)
    with pytest.raises(UsageError, match=r"metrics\.jsonl: no evaluations yet"):
        plotting.curve(tmp_path)


def test_slow_nodes_of_one_pace_share_a_label() -> None:
    assert plotting._alike([6, 5, 2], {6: 20.0, 5: 21.0, 2: 50.0}) == [[6, 5], [2]]


def test_without_matplotlib_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"drawing needs matplotlib: pip install 'rfast-zmq\[demo\]'"):
        plotting.curve(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("config.json", "{", r"config\.json: not valid JSON"),
        ("config.json", "[]", r"config\.json: not a JSON object"),
        ("metrics.jsonl", '{"time_s": 0}', r"metrics\.jsonl, line 1: time_s or samples is missing"),
        ("nodes.jsonl", '{"time_s": 0}', r"nodes\.jsonl, line 1"),
        ("metrics.jsonl", "3", "not a JSON object"),
    ],
)
def test_a_file_that_no_run_wrote(name: str, text: str, says: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=says):
        plotting.curve(tmp_path)
