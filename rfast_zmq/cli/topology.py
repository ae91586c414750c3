"""``rfast topology``: check, describe and draw a pair of graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree as TextTree

from rfast_zmq.cli.flags import WHOLE
from rfast_zmq.errors import UsageError
from rfast_zmq.settings import check_seed
from rfast_zmq.topology import Topology, Tree, build, draw, is_file

NODES = 7
EDGES_SHOWN_MAX = 64
"""A graph with more edges is only counted; the TOML file or the family's rule says the rest."""


def topology(
    name: str,
    /,
    *,
    nodes: Annotated[int | None, WHOLE] = None,
    seed: Annotated[int, WHOLE] = 0,
    out: Path | None = None,
) -> None:
    """Check a topology, describe its two graphs and spanning trees, and draw it if asked.

    Parameters
    ----------
    name
        A family (binary-tree, double-tree, line, star, ring, exponential, mesh, complete, random:K) or a TOML file.
    nodes
        Number of nodes: 7 for a family if not given; for a file what it says.
    seed
        Seed of random:K.
    out
        Draw both graphs into this PNG.
    """
    check_seed(seed)
    if out is not None and out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: the picture is a PNG; give a name that ends in .png")
    made = build(name, NODES if nodes is None and not is_file(name) else nodes, seed)
    describe(made, Console(highlight=False))
    if out is not None:
        draw(made, out)
        print(f"drawn: {out}")


def describe(made: Topology, console: Console) -> None:
    """Print what a user wants to know of ``made`` before starting a run on it."""
    table, colon = Table.grid(padding=(0, 2)), ":" * (len(made.trees) > 1)
    rows = [
        ("topology", f"{made.name}, checked"),
        ("nodes", str(made.nodes)),
        ("root", made.names[made.root]),
        ("roots of the pull graph W", _some(made, made.pull_roots)),
        ("roots of the push graph A", _some(made, made.push_roots)),
        ("depth", f"{made.depth} ({', '.join(f'{name}{colon} {tree.depth}' for name, tree, _ in _trees(made))})"),
        ("widest node", _widest(made)),
        ("edges that speak, rfast-tree", f"{_speaking(made)}, each up to 8 times a round"),
        ("edges that speak, rfast", f"{made.messages_per_round('rfast')}, each once a gradient of its sender"),
    ]
    for label, value in rows:
        table.add_row(Text(label), Text(value))
    console.print(table)
    console.print()
    for name, tree, carries in _trees(made):
        console.print(_text_tree(made, tree, f"{name}: {carries}"))
        console.print()
    console.print(Text(f"pull graph W, models: {_edges(made, made.pull)}"), soft_wrap=True)
    console.print(Text(f"push graph A, gradients: {_edges(made, made.push)}"), soft_wrap=True)
    for node, both in zip(made.names, made.endpoints, strict=True):
        if both is not None:
            console.print(Text(f"node {node} binds {both.pull} (pull) and {both.push} (push)"), soft_wrap=True)


def _trees(made: Topology) -> list[tuple[str, Tree, str]]:
    """Each tree with its name and what travels along it."""
    if (many := len(made.trees)) < 2:
        return [
            ("pull tree", made.pull_tree, "models travel from the root down"),
            ("push tree", made.push_tree, "gradient mass travels up to the root"),
        ]
    return [
        (f"tree {index}", tree, f"of buckets {index}, {index + many}, … models travel down, gradient mass up")
        for index, tree in enumerate(made.trees)
    ]


def _speaking(made: Topology) -> int:
    """Edges along which some bucket goes."""
    return sum(len({edge for tree in trees for edge in tree.edges}) for trees in (made.pull_trees, made.push_trees))


def _text_tree(made: Topology, tree: Tree, title: str) -> TextTree:
    text = TextTree(Text(title))
    branch = {tree.root: text.add(Text(f"{made.names[tree.root]} (root)"))}
    order = [tree.root]
    for node in order:
        for child in tree.children[node]:
            branch[child] = branch[node].add(Text(made.names[child]))
            order.append(child)
    return text


def _widest(made: Topology) -> str:
    for name, tree, _ in _trees(made):
        for node, children in enumerate(tree.children):
            if len(children) == made.widest and made.widest > 0:
                where = name if len(made.trees) > 1 else f"the {name}"
                return f"{made.names[node]}, with {made.widest} child{'ren' * (made.widest > 1)} in {where}"
    return "none: a single node"


def _edges(made: Topology, edges: Mapping[tuple[int, int], float]) -> str:
    count = f"{len(edges)} edge{'s' * (len(edges) != 1)}"
    if not edges or len(edges) > EDGES_SHOWN_MAX:
        return count
    return f"{count}: " + ", ".join(
        f"{made.names[src]} → {made.names[dst]} ({weight:.4g})" for (src, dst), weight in edges.items()
    )


def _some(made: Topology, ranks: Sequence[int]) -> str:
    if len(ranks) == made.nodes > 1:
        return "all nodes"
    return ", ".join(made.names[rank] for rank in ranks[:12]) + (f", … ({len(ranks)} in all)" * (len(ranks) > 12))
