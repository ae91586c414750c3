"""What docs/wire.md says is what the code does."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import msgpack

from rfast_zmq.algorithms.rfast import RFast
from rfast_zmq.algorithms.rfast_tree import RFastTree
from rfast_zmq.core.events import Graph
from rfast_zmq.wire import REASONS

from .helpers import frames_of, message_of

PAGE = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")


def test_the_example_prints_what_stands_below_it() -> None:
    code, printed = re.search(r"```python\n(import torch.*?)```.*?```text\n(.*?)```", PAGE, re.DOTALL).groups()  # type: ignore[union-attr]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "docs/wire.md", "exec"), {})
    assert out.getvalue().strip() == printed.strip()


def first_column(head: str) -> list[str]:
    """The words of the first column of the table with this head."""
    table = PAGE.split(head, 1)[1].split("\n\n", 1)[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_every_field_and_every_reason_has_its_row() -> None:
    assert first_column("| key | type | meaning |") == list(msgpack.unpackb(frames_of(message_of())[0][1:-5]))
    assert first_column("| reason | what came |") == list(REASONS)


def test_every_number_has_its_row_with_its_graph_and_type() -> None:
    rows = PAGE.split("| number | graph | type | meaning |", 1)[1].split("\n\n", 1)[0]
    said = re.findall(r"^\| `(\w+)` \| ([WA]) \| (\w+) \|", rows, re.MULTILINE)
    graphs: tuple[Graph, Graph] = ("W", "A")
    for count, algorithm in ((13, RFast), (len(said), RFastTree)):
        numbers = {(n, graph, kind.__name__) for graph in graphs for n, kind in algorithm.numbers(graph).items()}
        assert set(said[:count]) == numbers
    assert len(set(said)) == len(said)
