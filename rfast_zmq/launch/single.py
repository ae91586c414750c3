"""One node on this host, as part of a run over many hosts."""

from __future__ import annotations


def run_node() -> None:
    raise NotImplementedError
