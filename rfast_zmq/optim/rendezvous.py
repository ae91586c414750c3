"""Under ``torchrun``: the nodes tell one another where they listen, through the store that its agent keeps."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

from rfast_zmq.errors import UsageError
from rfast_zmq.transport import Addresses

PATIENCE = timedelta(minutes=5)
HOST = "127.0.0.1"


def meet(rank: int, nodes: int) -> Addresses:
    """Choose two free ports of this machine, and learn everybody's.

    Args:
        rank: this node.
        nodes: how many there are.

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
        pull, push = _free_ports(2)
        store.set(f"rfast/{attempt}/{rank}", f"{pull} {push}")
        found = [store.get(f"rfast/{attempt}/{other}").decode().split() for other in range(nodes)]
    except (DistStoreError, RuntimeError) as error:
        raise UsageError(f"the store at {host}:{port} does not bring the nodes together: {error}") from None
    return Addresses(
        tuple(f"tcp://{HOST}:{pull}" for pull, _ in found), tuple(f"tcp://{HOST}:{push}" for _, push in found)
    )


def _free_ports(count: int) -> list[int]:
    taken = [socket.socket() for _ in range(count)]
    try:
        for s in taken:
            s.bind((HOST, 0))
        return [s.getsockname()[1] for s in taken]
    finally:
        for s in taken:
            s.close()
