"""``rfast bench transport``: what the wire costs beside bare pyzmq and gloo, and how old a relayed model is."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from rfast_zmq.bench import streams
from rfast_zmq.bench.crew import Crew, share_out_cores
from rfast_zmq.bench.figures import Figures, at_least
from rfast_zmq.bench.relay import DEPTH, Line, relay
from rfast_zmq.bench.streams import Stream
from rfast_zmq.errors import UsageError
from rfast_zmq.task.layout import Layout
from rfast_zmq.transport import Addresses

RELAYED_MB = 0.8
RELAY_EVERY_S = 0.02
"""Between two models of the line."""
SOON_S = 60.0
UNCOUNTED = 20
"""The first models of the line: memory and the pace settle meanwhile."""


@dataclass(frozen=True, kw_only=True)
class TransportOptions:
    """
    Attributes:
        megabytes: of the model, in 10⁶ bytes.
        models: how often it is sent in one measurement (and once more before).
        relayed: how many models are relayed in one measurement.
        repeats: measurements of each kind, in turn.
    """

    megabytes: float = 100.0
    models: int = 10
    relayed: int = 250
    repeats: int = 5

    def __post_init__(self) -> None:
        if not 0.001 <= self.megabytes <= 10_000:
            raise UsageError(f"--megabytes {self.megabytes:g}: the size of the model, 0.001 to 10000")
        at_least("models", self.models, 1)
        at_least("relayed", self.relayed, 2)
        at_least("repeats", self.repeats, 1)


def transport(options: TransportOptions, tell: Callable[[str], None]) -> Figures:
    """Measure.

    Args:
        options: sizes.
        tell: told how it goes.
    """
    layout = Layout.vector(max(1, round(options.megabytes * 1e6 / 4)))
    figures = Figures(
        "transport",
        megabytes=options.megabytes,
        buckets=len(layout.buckets),
        models=options.models,
        repeats=options.repeats,
        pinned=share_out_cores(2),
        note="loopback; one process an end, each on a core of its own, or on its share of them where there are four or"
        " more, but for gloo, which is faster on any; one torch thread each",
    )
    with tempfile.TemporaryDirectory(prefix="rfast-") as folder:
        _streams(figures, options, layout, Path(folder), tell)
        _relay(figures, options, Path(folder), tell)
    return figures


def free_addresses(nodes: int) -> Addresses:
    """TCP ports of this machine on which nobody listens now."""
    held = [socket.socket() for _ in range(2 * nodes)]
    try:
        for s in held:
            s.bind(("127.0.0.1", 0))
        found = [f"tcp://127.0.0.1:{s.getsockname()[1]}" for s in held]
    finally:
        for s in held:
            s.close()
    return Addresses(tuple(found[:nodes]), tuple(found[nodes:]))


@dataclass(frozen=True)
class _Rate:
    """One measurement: 10⁶ bytes a second, and CPU seconds of both ends for 10⁶ bytes."""

    megabytes_s: float
    cpu_s: float


def _streams(
    figures: Figures, options: TransportOptions, layout: Layout, folder: Path, tell: Callable[[str], None]
) -> None:
    found: dict[str, list[_Rate]] = {}
    with Crew(share_out_cores(2)) as crew, Crew([None, None]) as loose:
        loose.all([(streams.join_gloo, rank, str(folder / "gloo")) for rank in range(2)])
        for repeat in range(options.repeats):
            for line in ("tcp", "ipc"):
                for kind in ("ours", "zmq", "up") if line == "ipc" else ("ours", "zmq", "gloo"):
                    addresses = free_addresses(2) if line == "tcp" else Addresses.ipc(folder, 2)
                    rate = _stream(loose if kind == "gloo" else crew, kind, Stream(addresses, layout, options.models))
                    found.setdefault(f"{line} {kind}", []).append(rate)
                    tell(
                        f"{repeat + 1}/{options.repeats} {line} {kind}: {rate.megabytes_s:.0f} MB/s,"
                        f" {rate.cpu_s * 1e6:.0f} us of CPU a MB"
                    )

    def rates(kind: str) -> list[float]:
        return [rate.megabytes_s for rate in found[kind]]

    def over(a: list[float], b: list[float]) -> list[float]:
        return [x / y for x, y in zip(a, b, strict=True)]

    ours = "throughput: ours over"
    figures.add("tcp_vs_zmq", over(rates("tcp ours"), rates("tcp zmq")), f"{ours} bare pyzmq, both tcp", (">=", 0.95))
    figures.add("ipc_vs_zmq", over(rates("ipc ours"), rates("ipc zmq")), f"{ours} bare pyzmq, both ipc", (">=", 0.95))
    figures.add("tcp_vs_gloo", over(rates("tcp ours"), rates("tcp gloo")), f"{ours} gloo, both tcp", (">=", 1.0))
    figures.add("ipc_vs_gloo", over(rates("ipc ours"), rates("tcp gloo")), f"{ours} gloo, ours ipc", (">=", 1.3))
    bare = [rate.cpu_s for rate in found["ipc zmq"]]
    down = over([rate.cpu_s for rate in found["ipc ours"]], bare)
    up = over([rate.cpu_s for rate in found["ipc up"]], bare)
    both = [(a + b) / 2 for a, b in zip(down, up, strict=True)]
    figures.add(
        "cpu_vs_zmq", both, "CPU a MB, core included: ours over bare pyzmq, models down and reports up", ("<=", 1.5)
    )
    figures.add("cpu_down_vs_zmq", down, "the same, models down alone")
    figures.add("cpu_up_vs_zmq", up, "the same, reports up alone")
    for kind in ("tcp ours", "ipc ours", "ipc up", "tcp zmq", "ipc zmq", "tcp gloo"):
        name = kind.replace(" ", "_")
        figures.add(f"{name}_mb_per_s", rates(kind), f"{kind}, MB/s")
        figures.add(f"{name}_cpu_us_per_mb", [rate.cpu_s * 1e6 for rate in found[kind]], f"{kind}, us of CPU a MB")


def _stream(crew: Crew, kind: str, stream: Stream) -> _Rate:
    jobs: dict[str, tuple[Any, Any, tuple[Any, ...]]] = {
        "ours": (streams.send_ours, streams.receive_ours, (stream, "W")),
        "up": (streams.send_ours, streams.receive_ours, (stream, "A")),
        "zmq": (streams.send_zmq, streams.receive_zmq, (stream,)),
        "gloo": (streams.send_gloo, streams.receive_gloo, (stream,)),
    }
    send, receive, arguments = jobs[kind]
    crew.start(1, receive, *arguments)
    crew.start(0, send, *arguments)
    received = crew.result(1)
    crew.tell(0, "end")
    sent = crew.result(0)
    return _Rate(stream.megabytes / received["wall_s"], (sent["cpu_s"] + received["cpu_s"]) / stream.megabytes)


def _relay(figures: Figures, options: TransportOptions, folder: Path, tell: Callable[[str], None]) -> None:
    nodes, middle, late = 1 + DEPTH, [], []
    with Crew(share_out_cores(nodes)) as crew:
        for repeat in range(options.repeats):
            line = Line(
                Addresses.ipc(folder, nodes), round(RELAYED_MB * 1e6 / 4), RELAY_EVERY_S, UNCOUNTED + options.relayed
            )
            ages_s = _ages_s(crew, line)
            cuts = quantiles(ages_s, n=100, method="inclusive")
            middle.append(cuts[49] * 1e3)
            late.append(cuts[98] * 1e3)
            tell(f"{repeat + 1}/{options.repeats} relay: p50 {middle[-1]:.2f} ms, p99 {late[-1]:.2f} ms")
    what = f"age of a {RELAYED_MB} MB model, passed on to depth {DEPTH} over ipc"
    figures.add("age_ms_p50", middle, f"{what}, ms, median", ("<=", 3.0))
    figures.add("age_ms_p99", late, f"{what}, ms, 99 of 100", ("<=", 15.0))


def _ages_s(crew: Crew, line: Line) -> list[float]:
    """Seconds from the root's handing out to the last node's taking up, of each version that came so far."""
    nodes = 1 + DEPTH
    for rank in range(nodes):
        crew.start(rank, relay, rank, line)
    for rank in range(nodes):
        crew.result(rank)  # ready
    for rank in reversed(range(nodes)):
        crew.tell(rank, "go")
    crew.result(DEPTH, SOON_S + 10 * line.versions * line.every_s)  # enough
    for rank in range(nodes):
        crew.tell(rank, "end")
    seen = [crew.result(rank) for rank in range(nodes)]
    came = sorted(seen[-1].keys() & seen[0].keys())
    return [seen[-1][version] - seen[0][version] for version in came[UNCOUNTED:]]
