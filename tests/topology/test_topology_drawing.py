"""Drawings and the description on the command line."""

from __future__ import annotations

import itertools
import math
import struct
import sys
from pathlib import Path

import pytest

from rfast_zmq.cli.topology import topology as command
from rfast_zmq.errors import UsageError
from rfast_zmq.topology import FAMILIES, build, draw, from_edges
from rfast_zmq.topology.drawing import layout

SAMPLES = Path(__file__).parents[2] / "topologies"


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.mark.parametrize(
    ("family", "nodes"), [("binary-tree", 7), ("exponential", 7), ("star", 15), ("ring", 1), ("line", 50)]
)
def test_a_drawing_is_a_png_of_decent_size(family: str, nodes: int, tmp_path: Path) -> None:
    path = tmp_path / "drawn.png"
    draw(build(family, nodes), path)
    width, height = png_size(path)
    assert 1000 <= width <= 4000
    assert 300 <= height <= 4000


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    """Dollar signs would be mathematics to matplotlib, and a broken formula an exception."""
    made = from_edges(r"$\frac$", [r"$\frac{$", "a rather long name of a host"], [(0, 1)], [(1, 0)])
    draw(made, tmp_path / "drawn.png")
    assert png_size(tmp_path / "drawn.png")[0] >= 1000


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("nodes", [1, 2, 7, 16, 31])
def test_no_two_nodes_are_drawn_on_top_of_each_other(family: str, nodes: int) -> None:
    made = build(family, nodes)
    for tree, edges in ((made.pull_tree, made.pull), (made.push_tree, made.push)):
        places = layout(tree, edges)
        assert len(places) == nodes
        assert all(math.dist(one, other) > 0.55 for one, other in itertools.combinations(places, 2))


def test_a_drawing_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"drawn\.png: the drawing cannot be written: No such file or directory"):
        draw(build("line", 2), tmp_path / "none" / "drawn.png")


def test_without_matplotlib_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"drawing needs matplotlib: pip install 'rfast-zmq\[demo\]'"):
        draw(build("line", 2), tmp_path / "drawn.png")


def test_the_command_describes_a_family(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command("exponential", out=tmp_path / "drawn.png")
    said = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in said.splitlines()}
    rows = [" ".join(line.split()) for line in said.splitlines()]
    assert "topology exponential, checked" in rows
    assert "nodes 7" in rows
    assert "root 0" in rows
    assert "roots of the pull graph W all nodes" in rows
    assert "depth 2 (pull tree 2, push tree 2)" in rows
    assert "widest node 0, with 3 children in the pull tree" in rows
    assert "edges that speak, rfast-tree 12, each up to 8 times a round" in rows
    assert "edges that speak, rfast 42, each once a gradient of its sender" in rows
    assert any(line.startswith("pull graph W, models: 21 edges: 0 → 1 (0.25), ") for line in lines)
    assert png_size(tmp_path / "drawn.png")[0] >= 1000


def test_the_command_describes_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    command(str(SAMPLES / "two-hosts.toml"))
    said = capsys.readouterr().out
    assert "└── big (root)\n    └── small\n" in said
    assert "node big binds tcp://127.0.0.1:7001 (pull) and tcp://127.0.0.1:7002 (push)\n" in said


def test_the_command_describes_a_single_node_and_a_crowd(capsys: pytest.CaptureFixture[str]) -> None:
    command("ring", nodes=1)
    assert "none: a single node" in capsys.readouterr().out
    command("complete", nodes=30)
    assert "pull graph W, models: 870 edges\n" in capsys.readouterr().out


def test_the_command_refuses_what_build_refuses() -> None:
    with pytest.raises(UsageError, match="did you mean 'mesh'"):
        command("mehs")
