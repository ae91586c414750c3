"""TCP ports of this machine for tests that need some."""

from __future__ import annotations

import socket


def free_ports(count: int) -> list[int]:
    """So many that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]
    finally:
        for s in sockets:
            s.close()
