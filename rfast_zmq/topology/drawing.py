"""Both graphs of a topology side by side in one PNG, and the trees in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rfast_zmq.errors import UsageError
from rfast_zmq.topology.graphs import Topology
from rfast_zmq.topology.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]
Edges = Mapping[tuple[int, int], float]

ROOT, NODE, TREE_EDGE, SPARE_EDGE, LABEL = "#d9480f", "#e7f0fa", "#1b3a5c", "#9aa9b8", "#16293d"
LAYER_WIDTH_MAX = 8
"""A level with more nodes than this is bent into a circle around the root."""
SPARE_EDGES_MAX = 2000
"""A graph with more edges is drawn without its spare ones: they would be one grey disc, and take minutes."""
TREES_MAX = 4
"""Of so many trees each gets its row; others are only counted."""
SMALL_NAME = 3
"""Names of at most so many characters stand inside their node, longer ones above or below it."""


def draw(topology: Topology, path: Path) -> None:
    """Draw W (models) and A (gradients) side by side into ``path`` as a PNG.

    The shared root is coloured. The edges of the two spanning trees are dark, the spare ones light and dashed. Where
    the buckets take turns between several trees, each has a row of its own, without the edges of the others. A graph
    whose edges all join neighbouring levels of its tree is laid out in levels (or, where a level is wide, in circles
    around the root), any other on one circle.

    Args:
        topology: what to draw.
        path: the file to write; its folder must exist.

    Raises:
        UsageError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError:
        raise UsageError("drawing needs matplotlib: pip install 'rfast-zmq[demo]'") from None

    panels = _panels(topology)
    places = [layout(tree, edges) for _, edges, tree, _ in panels]
    width, height = _panel_inches(places, topology)
    rows = len(panels) // 2
    figure = Figure(figsize=(2 * width, rows * height + 1.1), facecolor="white", layout="constrained")
    all_axes = figure.subplots(rows, 2).flat
    for axes, place, (title, edges, tree, upward) in zip(all_axes, places, panels, strict=True):
        axes.set_title(title, fontsize=13, color=LABEL, pad=10)
        _panel(axes, topology, place, edges, tree, upward=upward)
    figure.suptitle(
        f"{topology.name.replace('$', chr(92) + '$')}, {_nodes(topology.nodes)}{_left_out(topology)}",
        fontsize=15,
        fontweight="bold",
        color=LABEL,
    )
    legend = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            markersize=11,
            markerfacecolor=ROOT,
            markeredgecolor=TREE_EDGE,
            label=f"shared root ({_shown(topology.names[topology.root])})",
        ),
        Line2D([], [], color=TREE_EDGE, lw=2, label="tree edge"),
    ]
    most = max(len(edges) for _, edges, _, _ in panels)
    if most > topology.nodes - 1:
        hidden = most > SPARE_EDGES_MAX
        spare = f"spare edge (not drawn in a graph of over {SPARE_EDGES_MAX})" if hidden else "spare edge"
        legend.append(Line2D([], [], color=SPARE_EDGE, lw=1.4, ls=(0, (4, 2)), label=spare))
    figure.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False, fontsize=11, labelcolor=LABEL)
    try:
        figure.savefig(path, format="png", dpi=130)
    except OSError as error:
        raise UsageError(f"{path}: the drawing cannot be written: {error.strerror}") from None


def _panels(topology: Topology) -> list[tuple[str, Edges, Tree, bool]]:
    """Title, edges, tree and whether that leads upward: two for each pair of trees."""
    pairs = list(zip(topology.pull_trees, topology.push_trees, strict=True))
    panels: list[tuple[str, Edges, Tree, bool]] = []
    for index, (pull, push) in enumerate(pairs[:TREES_MAX]):
        which = f", tree {index}" if len(pairs) > 1 else ""
        for title, edges, tree, trees, upward in (
            (f"pull graph W{which}: models", topology.pull, pull, topology.pull_trees, False),
            (f"push graph A{which}: gradients", topology.push, push, topology.push_trees, True),
        ):
            others = {
                edge
                for edge in edges
                if any(_is_tree(t, edge, upward) for t in trees) and not _is_tree(tree, edge, upward)
            }
            panels.append((title, {e: w for e, w in edges.items() if e not in others}, tree, upward))
    return panels


def _left_out(topology: Topology) -> str:
    trees = len(topology.pull_trees)
    return f", {TREES_MAX} of its {trees} trees" if trees > TREES_MAX else ""


def layout(tree: Tree, edges: Edges) -> tuple[Point, ...]:
    """Per node its place (x to the right, y upwards), neighbours of a level about 1 apart.

    Args:
        tree: the spanning tree of the graph.
        edges: the edges of the graph, in either direction.
    """
    nodes = len(tree.parent)
    if any(abs(tree.level(src) - tree.level(dst)) != 1 for src, dst in edges):
        return _circle(nodes)
    if nodes > 2 and max(len(children) for children in tree.children) == 1:
        return tuple((float(tree.level(node)), 0.0) for node in range(nodes))
    spread, leaves = _spread(tree)
    levels = [tree.levels.count(level) for level in range(tree.depth + 1)]
    if len({frozenset(edge) for edge in edges}) >= nodes:  # more than the tree, such as a grid: centre each level
        across = _centred(tree, spread)
        return tuple((across[node], -1.1 * tree.level(node)) for node in range(nodes))
    if max(levels) <= LAYER_WIDTH_MAX:
        return tuple((spread[node], -1.25 * tree.level(node)) for node in range(nodes))
    ring = max(1.0, *(levels[level] / (2 * math.pi * level) for level in range(1, tree.depth + 1)))
    return tuple(_polar(ring * tree.level(node), 0.25 - (spread[node] + 0.5) / max(leaves, 3)) for node in range(nodes))


def _centred(tree: Tree, spread: list[float]) -> list[float]:
    across = [0.0] * len(spread)
    for level in range(tree.depth + 1):
        row = sorted((node for node in range(len(spread)) if tree.level(node) == level), key=lambda node: spread[node])
        for place, node in enumerate(row):
            across[node] = 1.2 * (place - (len(row) - 1) / 2)
    return across


def _circle(nodes: int) -> tuple[Point, ...]:
    radius = max(0.6, 1.15 * nodes / (2 * math.pi))
    return tuple(_polar(radius, 0.25 - node / nodes) for node in range(nodes))


def _polar(radius: float, turn: float) -> Point:
    return radius * math.cos(2 * math.pi * turn), radius * math.sin(2 * math.pi * turn)


def _spread(tree: Tree) -> tuple[list[float], int]:
    """Per node its place across the levels (leaves 1 apart, a parent amid its children), and the number of leaves."""
    order = [tree.root]
    for node in order:
        order += tree.children[node]
    under = [1] * len(order)  # leaves below each node
    for node in reversed(order):
        under[node] = sum(under[child] for child in tree.children[node]) or 1
    first = [0] * len(order)
    spread = [0.0] * len(order)
    for node in order:
        left = first[node]
        for child in tree.children[node]:
            first[child] = left
            left += under[child]
    for node in reversed(order):
        below = tree.children[node]
        spread[node] = (spread[below[0]] + spread[below[-1]]) / 2 if below else float(first[node])
    return spread, under[tree.root]


def _panel_inches(places: list[tuple[Point, ...]], topology: Topology) -> tuple[float, float]:
    across = max(max(x for x, _ in place) - min(x for x, _ in place) for place in places)
    upright = max(max(y for _, y in place) - min(y for _, y in place) for place in places)
    inch = 0.95 if topology.nodes <= 40 else max(0.25, 12 / max(across, upright))
    return min(14.0, max(4.6, inch * (across + 1.4))), min(14.0, max(2.0, inch * (upright + 1.4)))


def _panel(axes: Axes, topology: Topology, place: tuple[Point, ...], edges: Edges, tree: Tree, *, upward: bool) -> None:
    from matplotlib.patches import FancyArrowPatch

    crowded = topology.nodes > 40
    size = 5.0 if crowded else 24.0  # diameter of a node in points
    for (src, dst), _ in sorted(edges.items(), key=lambda item: _is_tree(tree, item[0], upward)):
        in_tree = _is_tree(tree, (src, dst), upward)
        if not in_tree and len(edges) > SPARE_EDGES_MAX:
            continue
        bend = 0.16 if (dst, src) in edges else 0.0
        axes.add_patch(
            FancyArrowPatch(
                place[src],
                place[dst],
                arrowstyle="-|>",
                mutation_scale=7 if crowded else 14,
                connectionstyle=f"arc3,rad={bend}",
                shrinkA=size / 2 + 0.5,
                shrinkB=size / 2 + 1.5,
                color=TREE_EDGE if in_tree else SPARE_EDGE,
                linewidth=(0.8 if crowded else 1.9) if in_tree else (0.4 if crowded else 1.1),
                linestyle="solid" if in_tree else (0, (4, 2)),
                zorder=2 if in_tree else 1,
            )
        )
    colours = [ROOT if node == topology.root else NODE for node in range(topology.nodes)]
    xs, ys = [x for x, _ in place], [y for _, y in place]
    axes.scatter(xs, ys, s=size**2, c=colours, edgecolors=TREE_EDGE, linewidths=0.5 if crowded else 1.2, zorder=3)
    if not crowded:
        middle = (min(ys) + max(ys)) / 2
        for node, (name, point) in enumerate(zip(topology.names, place, strict=True)):
            where = 0 if len(name) <= SMALL_NAME else 1 if point[1] > middle else -1
            _label(axes, name, point, where=where, root=node == topology.root)
    axes.set_xlim(min(xs) - 0.7, max(xs) + 0.7)
    axes.set_ylim(min(ys) - 0.7, max(ys) + 0.7)
    axes.set_aspect("equal")
    axes.axis("off")


def _label(axes: Axes, name: str, point: Point, *, where: int, root: bool) -> None:
    """Write a node's name into it (``where`` 0), above it (1) or below it (−1)."""
    name = _shown(name)
    if where == 0:
        colour = "white" if root else LABEL
        axes.annotate(name, point, ha="center", va="center", fontsize=10, fontweight="bold", color=colour, zorder=4)
        return
    axes.annotate(
        name,
        point,
        xytext=(0, 15 * where),
        textcoords="offset points",
        ha="center",
        va="bottom" if where > 0 else "top",
        fontsize=9,
        color=LABEL,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        zorder=4,
    )


def _is_tree(tree: Tree, edge: tuple[int, int], upward: bool) -> bool:
    src, dst = edge
    return tree.parent[src] == dst if upward else tree.parent[dst] == src


def _shown(name: str) -> str:
    name = name if len(name) <= 16 else name[:15] + "…"
    return name.replace("$", r"\$")  # matplotlib would set what stands between two of them as mathematics


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"
