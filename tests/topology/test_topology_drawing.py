"""Drawings and the description on the command line."""

from __future__ import annotations

import itertools
import math
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from rfast_zmq.cli.topology import topology as command
from rfast_zmq.errors import UsageError
from rfast_zmq.topology import FAMILIES, Topology, build, draw, from_edges
from rfast_zmq.topology.drawing import TREES_MAX, _panels, layout
from rfast_zmq.topology.graphs import from_trees

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


def drawn(topology: Topology, path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], Any]:
    """The panels of a drawing, and its figure."""
    figures: list[Figure] = []
    saved = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *rest, **more: figures.append(figure))
    draw(topology, path)
    monkeypatch.setattr(Figure, "savefig", saved)
    return figures[0].axes, figures[0]


def arrows(axes: Any, topology: Topology) -> set[tuple[int, int]]:
    """The edges of a panel, by the places of their ends."""
    places = [tuple(point) for point in axes.collections[0].get_offsets()]
    assert len(set(places)) == topology.nodes
    ends = [patch._posA_posB for patch in axes.patches]
    return {(places.index(tuple(a)), places.index(tuple(b))) for a, b in ends}


def test_every_tree_has_a_panel_for_each_graph_with_its_own_edges_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build("double-tree", 7)
    panels, figure = drawn(made, tmp_path / "drawn.png", monkeypatch)
    assert len(panels) == 4
    for index, tree in enumerate(made.trees):
        for upward, axes in enumerate(panels[2 * index : 2 * index + 2]):
            assert f"tree {index}" in axes.get_title()
            edges = {edge[::-1] for edge in tree.edges} if upward else set(tree.edges)
            assert arrows(axes, made) == edges
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert not any("spare" in label for label in labels)
    few, _ = drawn(build("binary-tree", 7), tmp_path / "drawn.png", monkeypatch)
    assert [axes.get_title() for axes in few] == ["pull graph W: models", "push graph A: gradients"]


def test_of_many_trees_some_are_drawn_and_the_others_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = from_trees("many", 3, [[None, 0, 0]] * (TREES_MAX + 3))
    panels, figure = drawn(made, tmp_path / "drawn.png", monkeypatch)
    assert len(panels) == 2 * TREES_MAX
    assert f"{TREES_MAX} of its {TREES_MAX + 3} trees" in figure.get_suptitle()


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    """Dollar signs would be mathematics to matplotlib, and a broken formula an exception."""
    made = from_edges(r"$\frac$", [r"$\frac{$", "a rather long name of a host"], [(0, 1)], [(1, 0)])
    draw(made, tmp_path / "drawn.png")
    assert png_size(tmp_path / "drawn.png")[0] >= 1000


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("nodes", [1, 2, 7, 16, 31])
def test_no_two_nodes_are_drawn_on_top_of_each_other(family: str, nodes: int) -> None:
    made = build(family, nodes)
    for _, edges, tree, _ in _panels(made):
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


def test_the_command_describes_and_draws_every_tree(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command("double-tree", out=tmp_path / "drawn.png")
    said = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in said.splitlines()]
    assert "depth 2 (tree 0: 2, tree 1: 2)" in rows
    assert "edges that speak, rfast-tree 24, each up to 8 times a round" in rows
    for title, children in (
        ("tree 0: of buckets 0, 2, … models travel down, gradient mass up", (1, 3, 4, 2, 5, 6)),
        ("tree 1: of buckets 1, 3, … models travel down, gradient mass up", (5, 1, 2, 6, 3, 4)),
    ):
        start = rows.index(title)
        assert rows[start + 1] == "└── 0 (root)"
        assert tuple(int(row.split()[-1]) for row in rows[start + 2 : start + 8]) == children
    width, height = png_size(tmp_path / "drawn.png")
    assert 1000 <= width <= 4000
    assert height > width / 2, "two rows"


def test_the_widest_node_is_found_in_whichever_tree_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "nodes = 4\n[[tree]]\nedges = [[0, 1], [1, 2], [2, 3]]\n[[tree]]\nedges = [[0, 1], [0, 2], [0, 3]]\n"
    )
    command(str(path))
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "widest node 0, with 3 children in tree 1" in rows
    assert "depth 3 (tree 0: 3, tree 1: 1)" in rows
    assert "edges that speak, rfast-tree 10, each up to 8 times a round" in rows, "0 → 1 is an edge of both trees"


def test_the_command_describes_a_single_node_and_a_crowd(capsys: pytest.CaptureFixture[str]) -> None:
    command("ring", nodes=1)
    assert "none: a single node" in capsys.readouterr().out
    command("complete", nodes=30)
    assert "pull graph W, models: 870 edges\n" in capsys.readouterr().out


def test_the_command_refuses_what_build_refuses() -> None:
    with pytest.raises(UsageError, match="did you mean 'mesh'"):
        command("mehs")
