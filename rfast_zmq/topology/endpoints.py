"""The addresses at which a node listens."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rfast_zmq.errors import UsageError

IPC_PATH_BYTES_MAX = 107
"""Linux keeps 108 bytes for the path of a Unix socket, the closing zero among them."""

_TCP = re.compile(
    r"tcp://(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?):(?P<port>\d{1,5})"
)
_EVERYWHERE = re.compile(r"tcp://(\*|0\.0\.0\.0|\[::\]):")


@dataclass(frozen=True)
class Endpoints:
    """The two addresses that a node binds and its neighbours dial.

    Attributes:
        pull: where models arrive (graph W), ``tcp://HOST:PORT`` or ``ipc://PATH``.
        push: where gradient mass arrives (graph A), likewise.

    Raises:
        UsageError: an address of another form, a port outside 1 … 65535, a wildcard host (the neighbours dial this very
            address), a path too long for a Unix socket, or twice the same address.
    """

    pull: str
    push: str

    def __post_init__(self) -> None:
        _check("pull", self.pull)
        _check("push", self.push)
        if self.pull == self.push:
            raise UsageError(f"endpoints pull and push are both {self.pull!r}: each graph needs an address of its own")


def _check(which: str, address: str) -> None:
    want = "want tcp://HOST:PORT or ipc://PATH"
    if not isinstance(address, str):
        raise UsageError(f"endpoint {which} is {address!r}: {want}")
    if address.startswith("ipc://"):
        path = address.removeprefix("ipc://")
        if not path or path == "*" or not path.isprintable():
            raise UsageError(f"endpoint {which} is {address!r}: {want}, with the path of a file to be made")
        if len(path.encode()) > IPC_PATH_BYTES_MAX:
            raise UsageError(
                f"endpoint {which} is {address!r}: its path has {len(path.encode())} bytes, "
                f"a Unix socket takes at most {IPC_PATH_BYTES_MAX}"
            )
        return
    if _EVERYWHERE.match(address):
        raise UsageError(
            f"endpoint {which} is {address!r}: the neighbours dial this very address, so name the host as they see it"
        )
    match = _TCP.fullmatch(address)
    if match is None:
        raise UsageError(f"endpoint {which} is {address!r}: {want}")
    if not 1 <= int(match["port"]) <= 65535:
        raise UsageError(f"endpoint {which} is {address!r}: the port must lie in 1 … 65535")
