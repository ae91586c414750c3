"""A topology as a TOML file, read and written.

.. code-block:: toml

    name = "two-hosts"                  # optional: the file's own name otherwise

    [[node]]                            # one table a node, in the order of their ranks
    name = "big"                        # optional: the rank otherwise
    pull = "tcp://10.0.0.1:7001"        # optional, both or none: the addresses that this node binds for the pull graph
    push = "tcp://10.0.0.1:7002"        # (models) and the push graph (gradients), and that its neighbours dial

    [[node]]
    name = "small"

    [pull]                              # W: models travel from → to
    edges = [["big", "small", 0.5]]     # the third entry is optional: w_{to,from}

    [push]                              # A: gradient mass travels from → to
    edges = [["small", 0]]              # a node by its name (a string) or rank (an integer); this a_{to,from} is even

Where the nodes need neither names nor endpoints, ``nodes = 7`` stands for seven ``[[node]]`` tables. In the place of
the two graphs there may be trees, between which the buckets of a model take turns (one is enough):

.. code-block:: toml

    [[tree]]
    edges = [["big", "small"]]          # from parent to child: models go down it, gradient mass up

What a node's given weights leave of 1 is shared evenly by its edges without a weight and the node itself (W: what it
pulls; A: what it pushes). Both graphs must be there and share a root, as must all trees. Any other key is refused.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rfast_zmq.errors import UsageError
from rfast_zmq.topology.endpoints import Endpoints
from rfast_zmq.topology.graphs import (
    NODES_MAX,
    EdgeSpec,
    Topology,
    default_names,
    from_edges,
    from_trees,
    suggestion,
)

FILE_BYTES_MAX = 1 << 26


def load(path: Path) -> Topology:
    """The topology in a TOML file.

    Args:
        path: the file; the format stands in ``docs/topologies.md``.

    Raises:
        UsageError: no such file, not TOML, a missing, unknown or wrongly typed key, or graphs that :class:`Topology`
            refuses. The text starts with the file's name and says where in it.
    """
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise UsageError(f"{path}: the file has more than {FILE_BYTES_MAX >> 20} MiB, too much for a topology")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file: want a topology as TOML, or the name of a family") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text at byte {error.start}: want a topology as TOML") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    return from_toml(text, name=path.stem, source=str(path))


def from_toml(text: str, *, name: str = "topology", source: str = "topology") -> Topology:
    """The topology in ``text``.

    Args:
        text: TOML, as ``docs/topologies.md`` has it.
        name: the topology's name where the text has none.
        source: with what to begin an error.

    Raises:
        UsageError: as :func:`load`.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UsageError(f"{source}: not valid TOML: {reason}") from None
    try:
        return _topology(document, name)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None


def to_toml(topology: Topology) -> str:
    """``topology`` as a text that :func:`from_toml` reads back to an equal one, weights to the last bit.

    Weights stand only where a node's differ from the even ones.

    Raises:
        UsageError: trees in graphs that have more edges, or uneven weights: the format has no place for those.
    """
    lines = [f"name = {_quoted(topology.name)}"]
    plain = topology.names == default_names(topology.nodes)
    if plain and not any(topology.endpoints):
        lines.append(f"nodes = {topology.nodes}")
    else:
        for node, both in zip(topology.names, topology.endpoints, strict=True):
            lines += ["", "[[node]]", f"name = {_quoted(node)}"]
            if both is not None:
                lines += [f"pull = {_quoted(both.pull)}", f"push = {_quoted(both.push)}"]
    if topology.trees:
        parents = [tree.parent for tree in topology.trees]
        if from_trees(topology.name, topology.names, parents, topology.endpoints) != topology:
            raise UsageError(f"topology {topology.name!r} has edges beside its trees, or weights: no file can say both")
        return "\n".join(lines + _tree_lines(topology, plain)) + "\n"
    even = from_edges(topology.name, topology.names, topology.pull, topology.push)
    for graph, edges, evenly, owner in (
        ("pull", topology.pull, even.pull, 1),
        ("push", topology.push, even.push, 0),
    ):
        odd = {pair[owner] for pair, weight in edges.items() if weight != evenly[pair]}
        comment = "models travel" if graph == "pull" else "gradient mass travels"
        lines += ["", f"[{graph}]  # {comment} from → to"]
        entries = []
        for pair, weight in edges.items():
            ends = _ends(topology, pair, plain)
            entries.append(f"    [{ends}, {weight!r}]," if pair[owner] in odd else f"    [{ends}],")
        lines += ["edges = [", *entries, "]"] if entries else ["edges = []"]
    return "\n".join(lines) + "\n"


def _tree_lines(topology: Topology, plain: bool) -> list[str]:
    lines = []
    for tree in topology.trees:
        entries = [f"    [{_ends(topology, edge, plain)}]," for edge in tree.edges]
        lines += ["", "[[tree]]  # from parent to child", "edges = [", *entries, "]"]
    return lines


def _ends(topology: Topology, edge: tuple[int, int], plain: bool) -> str:
    return ", ".join(str(node) if plain else _quoted(topology.names[node]) for node in edge)


def _topology(document: Mapping[str, Any], name: str) -> Topology:
    _check_keys("the file", document, ("name", "nodes", "node", "pull", "push", "tree"))
    name = _string("name", document["name"]) if "name" in document else name
    names, endpoints = _nodes(document)
    if "tree" not in document:
        return from_edges(name, names, _edges("pull", document, names), _edges("push", document, names), endpoints)
    for graph in ("pull", "push"):
        if graph in document:
            raise UsageError(f"there is both of [[tree]] and [{graph}]: trees say where models and gradients travel")
    tables = document["tree"]
    if not isinstance(tables, list) or not tables:
        raise UsageError("tree is not a list of tables: write [[tree]], with two brackets, before each tree")
    parents = [_parents(f"[[tree]] {index}", table, names) for index, table in enumerate(tables)]
    return from_trees(name, names, parents, endpoints)


def _parents(where: str, table: Any, names: tuple[str, ...]) -> list[int | None]:
    """Per node its parent."""
    parents: list[int | None] = [None] * len(names)
    for edge in _edge_list(where, table, names, 'want edges = [["parent", "child"], …]', '["parent", "child"]'):
        above, child = edge[:2]
        if len(edge) == 3:
            raise UsageError(f"{where} gives {names[above]} → {names[child]} a weight: the edges of a tree have none")
        if parents[child] is not None:
            raise UsageError(f"{where} gives node {names[child]} two parents: one is enough")
        parents[child] = above
    return parents


def _nodes(document: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Endpoints | None, ...]]:
    if ("nodes" in document) == ("node" in document):
        have = "both" if "node" in document else "neither"
        raise UsageError(f"there is {have} of nodes and [[node]]: want nodes = NUMBER, or a [[node]] table for each")
    if "nodes" in document:
        count = document["nodes"]
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= NODES_MAX:
            raise UsageError(f"nodes is {_short(count)}: want a number in 1 … {NODES_MAX}")
        return default_names(count), ()
    tables = document["node"]
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError("node is not a list of tables: write [[node]], with two brackets, before each node")
    names: list[str] = []
    endpoints: list[Endpoints | None] = []
    for rank, table in enumerate(tables):
        where = f"[[node]] {rank}"
        _check_keys(where, table, ("name", "pull", "push"))
        name = _string(f"{where} name", table["name"]) if "name" in table else str(rank)
        if ("pull" in table) != ("push" in table):
            missing = "push" if "pull" in table else "pull"
            raise UsageError(f"{where} ({name}) lacks {missing}: want an address for each graph, or neither")
        names.append(name)
        try:
            endpoints.append(Endpoints(table["pull"], table["push"]) if "pull" in table else None)
        except UsageError as error:
            raise UsageError(f"{where} ({name}): {error}") from None
    return tuple(names), tuple(endpoints)


def _edges(graph: str, document: Mapping[str, Any], names: tuple[str, ...]) -> list[EdgeSpec]:
    example = f'want [{graph}] with edges = [["from", "to"], …]'
    if graph not in document:
        raise UsageError(f"[{graph}] is missing: {example}")
    return _edge_list(f"[{graph}]", document[graph], names, example)


def _edge_list(
    what: str,
    table: Any,
    names: tuple[str, ...],
    example: str,
    entries: str = '["from", "to"] or ["from", "to", weight]',
) -> list[EdgeSpec]:
    if not isinstance(table, dict):
        raise UsageError(f"{what} is {_kind(table)}: {example}")
    _check_keys(what, table, ("edges",))
    if "edges" not in table:
        raise UsageError(f"{what} has no edges: {example}")
    if not isinstance(table["edges"], list):
        raise UsageError(f"{what} edges is {_kind(table['edges'])}: {example}")
    ranks = {name: rank for rank, name in enumerate(names)}
    edges: list[EdgeSpec] = []
    for index, entry in enumerate(table["edges"]):
        where = f"{what} edges[{index}]"
        if not isinstance(entry, list) or len(entry) not in (2, 3):
            raise UsageError(f"{where} is {_short(entry)}: want {entries}")
        src, dst = (_rank(where, end, ranks) for end in entry[:2])
        if len(entry) == 2:
            edges.append((src, dst))
        elif isinstance(entry[2], bool) or not isinstance(entry[2], int | float) or not abs(entry[2]) < 1e9:
            raise UsageError(f"{where} has weight {_short(entry[2])}: want a number in (0, 1]")
        else:
            edges.append((src, dst, float(entry[2])))
    return edges


def _rank(where: str, end: Any, ranks: Mapping[str, int]) -> int:
    if isinstance(end, str):
        if end not in ranks:
            raise UsageError(f"{where} has an unknown node {_short(end)}: want {_some(ranks)}{suggestion(end, ranks)}")
        return ranks[end]
    if isinstance(end, bool) or not isinstance(end, int):
        raise UsageError(f"{where} has {_short(end)} for a node: want its name (a string) or its rank (an integer)")
    if not 0 <= end < len(ranks):
        raise UsageError(f"{where} has an unknown node {_short(end)}: want a rank in 0 … {len(ranks) - 1}")
    return end


def _check_keys(where: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise UsageError(
                f"{where} has an unknown key {_short(key)}: want {', '.join(known)}{suggestion(key, known)}"
            )


def _string(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where} is {_kind(value)}: want a string")
    return value


def _kind(value: Any) -> str:
    kinds = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "a list", dict: "a table"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer too long to write in decimal
        return _kind(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _some(names: Iterable[str]) -> str:
    known = list(names)
    return ", ".join(known[:12]) + (f", … ({len(known)} in all)" if len(known) > 12 else "")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # for printable text JSON's escapes are TOML's
