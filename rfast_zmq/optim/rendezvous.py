"""Under ``torchrun``: the nodes tell one another where they listen, through the store that its agent keeps."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import AbstractContextManager
from datetime import timedelta

from rfast_zmq.errors import UsageError
from rfast_zmq.transport import Addresses

PATIENCE = timedelta(minutes=5)
HOST = "127.0.0.1"


class Ports(AbstractContextManager["Ports"]):
    """Free TCP ports of this machine, kept from others who look for a free one until they are let go.

    What keeps a port is a socket that is bound to it and does not listen. Linux lets a second one be bound beside it by
    name, where both have SO_REUSEADDR, as ZeroMQ's have; elsewhere the ports are only looked up, and let go at once.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self._sockets = [socket.socket() for _ in range(count)]
        for s in self._sockets:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind((HOST, 0))
        self.numbers = [int(s.getsockname()[1]) for s in self._sockets]
        if not sys.platform.startswith("linux"):
            self.close()

    def close(self) -> None:
        """Let them go."""
        for s in self._sockets:
            s.close()

    def __exit__(self, *error: object) -> None:
        self.close()


def meet(rank: int, nodes: int, ports: Ports) -> Addresses:
    """Learn where everybody listens.

    Args:
        rank: this node.
        nodes: how many there are.
        ports: two of this machine, for this node.

    Raises:
        UsageError: no store is there, or somebody did not come in five minutes.
    """
    from torch.distributed import DistStoreError, TCPStore  # type: ignore[attr-defined]

    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError):
        raise UsageError(
            "RANK and WORLD_SIZE are set, but no MASTER_ADDR and MASTER_PORT: start with torchrun, or give rank and a"
            " topology file with endpoints"
        ) from None
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "False") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = TCPStore(host, port, nodes, is_master=not agents and rank == 0, timeout=PATIENCE)
        store.set(f"rfast/{attempt}/{rank}", " ".join(str(port) for port in ports.numbers))
        found = [store.get(f"rfast/{attempt}/{other}").decode().split() for other in range(nodes)]
    except (DistStoreError, RuntimeError) as error:
        raise UsageError(f"the store at {host}:{port} does not bring the nodes together: {error}") from None
    return Addresses(
        tuple(f"tcp://{HOST}:{pull}" for pull, _ in found), tuple(f"tcp://{HOST}:{push}" for _, push in found)
    )
