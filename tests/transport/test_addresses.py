"""Where nodes listen, and where they may."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rfast_zmq.core.events import Edge
from rfast_zmq.errors import UsageError
from rfast_zmq.topology import Endpoints, build
from rfast_zmq.transport import Addresses, check_exposure

LOCAL = (
    "tcp://127.0.0.1:7001",
    "tcp://127.8.9.10:7001",
    "tcp://localhost:7001",
    "tcp://[::1]:7001",
    "ipc:///tmp/rfast/0.W",
    "inproc://here",
)
EXPOSED = (
    "tcp://192.0.2.1:7001",
    "tcp://0.0.0.0:7001",
    "tcp://*:7001",
    "tcp://10.0.0.7:7001",
    "tcp://169.254.1.1:7001",
    "tcp://[::]:7001",
    "tcp://[2001:db8::1]:7001",
    "tcp://[fe80::1%eth0]:7001",
    "tcp://big.example.org:7001",
    "tcp://localhost.example.org:7001",
    "tcp://127.0.0.1.example.org:7001",
    "tcp://eth0:7001",
)


def test_unix_sockets_are_told_apart_by_rank_and_graph() -> None:
    addresses = Addresses.ipc(Path("/tmp/rfast-x"), 3)
    assert addresses.pull == ("ipc:///tmp/rfast-x/0.W", "ipc:///tmp/rfast-x/1.W", "ipc:///tmp/rfast-x/2.W")
    assert addresses.push == ("ipc:///tmp/rfast-x/0.A", "ipc:///tmp/rfast-x/1.A", "ipc:///tmp/rfast-x/2.A")


def test_an_edge_leads_to_what_its_receiver_binds() -> None:
    addresses = Addresses.ipc(Path("/tmp/rfast-x"), 3)
    assert addresses.bound("W", 2) == "ipc:///tmp/rfast-x/2.W"
    assert addresses.bound("A", 2) == "ipc:///tmp/rfast-x/2.A"
    assert addresses.target(Edge("W", 0, 1)) == addresses.bound("W", 1)
    assert addresses.target(Edge("A", 1, 0)) == addresses.bound("A", 0)


def test_a_topology_with_endpoints_gives_them() -> None:
    ends = tuple(Endpoints(f"tcp://127.0.0.1:{7001 + 2 * i}", f"tcp://127.0.0.1:{7002 + 2 * i}") for i in range(3))
    addresses = Addresses.of(dataclasses.replace(build("line", 3), endpoints=ends))
    assert addresses.pull == tuple(end.pull for end in ends)
    assert addresses.push == tuple(end.push for end in ends)


def test_a_node_without_endpoints_is_named() -> None:
    topology = build("line", 3)
    ends = (Endpoints("tcp://127.0.0.1:7001", "tcp://127.0.0.1:7002"), None, None)
    topology = dataclasses.replace(topology, endpoints=ends, names=("a", "big", "c"))
    with pytest.raises(UsageError, match=r"node big has no endpoints.*tcp://127") as caught:
        Addresses.of(topology)
    assert topology.name in str(caught.value)


@pytest.mark.parametrize("address", LOCAL)
@pytest.mark.parametrize("insecure", [False, True])
def test_what_only_this_machine_reaches_is_allowed(address: str, insecure: bool) -> None:
    assert check_exposure((address,), insecure) == []


@pytest.mark.parametrize("address", EXPOSED)
def test_what_others_reach_is_refused_without_a_word_and_listed_with_it(address: str) -> None:
    with pytest.raises(UsageError, match="--insecure") as caught:
        check_exposure((LOCAL[0], address), insecure=False)
    assert str(caught.value).startswith(f"{address}: ")
    assert check_exposure((LOCAL[0], address), insecure=True) == [address]


def test_all_that_others_reach_are_listed_in_order() -> None:
    mixed = tuple(address for pair in zip(LOCAL, EXPOSED, strict=False) for address in pair)
    assert check_exposure(mixed, insecure=True) == list(EXPOSED[: len(LOCAL)])
