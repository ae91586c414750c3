"""Where each node listens, and whether it may listen there."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rfast_zmq.core.events import Edge, Graph
from rfast_zmq.errors import UsageError
from rfast_zmq.topology import Topology


@dataclass(frozen=True)
class Addresses:
    """What each node binds: ``pull[rank]`` for the pull graph W, ``push[rank]`` for the push graph A."""

    pull: tuple[str, ...]
    push: tuple[str, ...]

    @classmethod
    def ipc(cls, folder: Path, nodes: int) -> Addresses:
        """Unix sockets in ``folder`` (its path must stay well below 100 characters)."""
        return cls(
            tuple(f"ipc://{folder}/{rank}.W" for rank in range(nodes)),
            tuple(f"ipc://{folder}/{rank}.A" for rank in range(nodes)),
        )

    @classmethod
    def tcp(cls, hosts: Sequence[str], pull_port: int, push_port: int) -> Addresses:
        """The same two ports on each node's host."""
        return cls(
            tuple(f"tcp://{host}:{pull_port}" for host in hosts), tuple(f"tcp://{host}:{push_port}" for host in hosts)
        )

    @classmethod
    def of(cls, topology: Topology) -> Addresses:
        """The endpoints that a topology's file names.

        Raises:
            UsageError: a node without endpoints.
        """
        for name, endpoints in zip(topology.names, topology.endpoints, strict=True):
            if endpoints is None:
                raise UsageError(
                    f"topology {topology.name}: node {name} has no endpoints; give it 'pull' and 'push' addresses,"
                    ' e.g. pull = "tcp://127.0.0.1:7001"'
                )
        known = [e for e in topology.endpoints if e is not None]
        return cls(tuple(e.pull for e in known), tuple(e.push for e in known))

    def bound(self, graph: Graph, rank: int) -> str:
        """What ``rank`` binds for ``graph``."""
        return (self.pull if graph == "W" else self.push)[rank]

    def target(self, edge: Edge) -> str:
        """Where the edge's PUSH connects to."""
        return self.bound(edge.graph, edge.dst)


def check_exposure(addresses: tuple[str, ...], insecure: bool) -> list[str]:
    """Which of the addresses to bind can be reached from other machines.

    Args:
        addresses: what a node is about to bind.
        insecure: the user said ``--insecure``.

    Returns:
        The addresses that are neither loopback nor a Unix socket.

    Raises:
        UsageError: there are such, and the user did not say so.
    """
    exposed = [address for address in addresses if not _is_local(address)]
    if exposed and not insecure:
        raise UsageError(
            f"{exposed[0]}: without keys, whoever reaches this address can take part in the run;"
            " bind a loopback address (127.0.0.1), or say --insecure on a network you trust"
        )
    return exposed


def _is_local(address: str) -> bool:
    scheme, _, rest = address.partition("://")
    if scheme in ("ipc", "inproc"):
        return True
    host = rest.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
