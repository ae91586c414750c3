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
        A family (binary-tree, line, star, ring, exponential, mesh, complete, random:K) or a TOML file.
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
    table = Table.grid(padding=(0, 2))
    rows = [
        ("topology", f"{made.name}, checked"),
        ("nodes", str(made.nodes)),
        ("root", made.names[made.root]),
        ("roots of the pull graph W", _some(made, made.pull_roots)),
        ("roots of the push graph A", _some(made, made.push_roots)),
        ("depth", f"{made.depth} (pull tree {made.pull_tree.depth}, push tree {made.push_tree.depth})"),
        ("widest node", _widest(made)),
        ("edges that speak, rfast-tree", f"{made.messages_per_round('rfast-tree')}, each up to 8 times a round"),
        ("edges that speak, rfast", f"{made.messages_per_round('rfast')}, each once a gradient of its sender"),
    ]
    for label, value in rows:
        table.add_row(Text(label), Text(value))
    console.print(table)
    console.print()
    console.print(_text_tree(made, made.pull_tree, "pull tree: models travel from the root down"))
    console.print()
    console.print(_text_tree(made, made.push_tree, "push tree: gradient mass travels up to the root"))
    console.print()
    console.print(Text(f"pull graph W, models: {_edges(made, made.pull)}"), soft_wrap=True)
    console.print(Text(f"push graph A, gradients: {_edges(made, made.push)}"), soft_wrap=True)
    for node, both in zip(made.names, made.endpoints, strict=True):
        if both is not None:
            console.print(Text(f"node {node} binds {both.pull} (pull) and {both.push} (push)"), soft_wrap=True)


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
    trees = (("pull", made.pull_tree), ("push", made.push_tree))
    for kind, tree in trees:
        for node, children in enumerate(tree.children):
            if len(children) == made.widest and made.widest > 0:
                return f"{made.names[node]}, with {made.widest} child{'ren' * (made.widest > 1)} in the {kind} tree"
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
