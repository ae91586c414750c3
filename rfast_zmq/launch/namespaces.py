"""Several hosts on one machine: network namespaces on a bridge, with real packet loss and lines of a real rate.

Linux and root only; ``ip``, ``tc`` (both of iproute2) and, for loss, ``iptables`` must be there.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from itertools import count
from types import TracebackType
from typing import Self

from rfast_zmq.errors import RfastError

CLONE_NEWNET = 0x40000000
"""Linux' number for network namespaces."""
INTERFACE = "eth0"
"""By which a host reaches the others."""
BURST_LEAST_BYTES, BURST_S = 16 * 1024, 0.004
"""What a line lets through at once: what the kernel's timer, which ticks 250 times a second, must not hold up."""
_COUNT = count()
QUEUE_S = 0.05
"""A packet that would wait longer at a full line is dropped there."""


def enter(namespace: str) -> None:
    """Let this thread, and those it starts from now on, live in a network namespace of :class:`Namespaces`.

    Raises:
        OSError: there is none of that name, or not for this user.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/var/run/netns/{namespace}", "rb") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), namespace)


class Namespaces:
    """Hosts ``10.77.0.1``, ``10.77.0.2``, … for as long as the ``with`` lasts.

    Args:
        hosts: how many, at most 254.
        loss: the probability that a packet which comes in is lost.
        bytes_per_s: of each host's outgoing and of its incoming line; None: as fast as the machine.

    Raises:
        RfastError: they cannot be had (see :meth:`why_not`).
    """

    def __init__(self, hosts: int, *, loss: float = 0.0, bytes_per_s: float | None = None) -> None:
        tag = f"rfast{os.getpid() % 100000}-{next(_COUNT)}"
        self.names = [f"{tag}-{i}" for i in range(hosts)]
        self._switch = f"{tag}-s"
        self._loss, self._bytes_per_s = loss, bytes_per_s
        self._made: list[str] = []

    @staticmethod
    def why_not() -> str | None:
        """Why they cannot be had on this machine; None if they can."""
        if os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0:
            return "needs root for network namespaces"
        for tool, package in (("ip", "iproute2"), ("tc", "iproute2"), ("iptables", "iptables")):
            if shutil.which(tool) is None:
                return f"needs the command {tool} (Debian: {package})"
        try:
            with Namespaces(1, loss=0.5, bytes_per_s=1e6):
                return None
        except RfastError as error:
            return str(error)

    def address(self, host: int) -> str:
        """The IP address of a host."""
        return f"10.77.0.{host + 1}"

    def within(self, host: int) -> tuple[str, ...]:
        """What to put before a command that is to run there."""
        return ("ip", "netns", "exec", self.names[host])

    def sent_bytes(self, host: int) -> int:
        """What has left a host until now, headers and repetitions included."""
        return int(_run(*self.within(host), "cat", f"/sys/class/net/{INTERFACE}/statistics/tx_bytes"))

    def lost_packets(self, host: int) -> int:
        """Packets that ``loss`` has taken from what came in at a host."""
        listing = _run(*self.within(host), "iptables", "-nvxL", "INPUT")
        return int(listing.splitlines()[2].split()[0])

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _make(self) -> None:
        switch = ("ip", "-n", self._switch)
        self._add(self._switch)
        _run(*switch, "link", "add", "br0", "type", "bridge")
        _run(*switch, "link", "set", "br0", "up")
        for i, name in enumerate(self.names):
            host = ("ip", "-n", name)
            self._add(name)
            _run(*switch, "link", "add", f"p{i}", "type", "veth", "peer", "name", INTERFACE, "netns", name)
            _run(*switch, "link", "set", f"p{i}", "master", "br0", "up")
            _run(*host, "addr", "add", f"{self.address(i)}/24", "dev", INTERFACE)
            _run(*host, "link", "set", INTERFACE, "up")
            _run(*host, "link", "set", "lo", "up")
            if self._loss:
                drop = ("-m", "statistic", "--mode", "random", "--probability", f"{self._loss}", "-j", "DROP")
                _run(*self.within(i), "iptables", "-A", "INPUT", "-i", INTERFACE, *drop)
            if self._bytes_per_s is not None:
                self._limit(name, INTERFACE, self._bytes_per_s)
                self._limit(self._switch, f"p{i}", self._bytes_per_s)

    def _limit(self, namespace: str, device: str, bytes_per_s: float) -> None:
        burst = max(BURST_LEAST_BYTES, round(bytes_per_s * BURST_S))
        rate = ("rate", f"{round(bytes_per_s * 8)}bit", "burst", f"{burst}b", "latency", f"{QUEUE_S * 1000:g}ms")
        _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *rate)

    def _add(self, name: str) -> None:
        _run("ip", "netns", "add", name)
        self._made.append(name)

    def _remove(self) -> None:
        while self._made:
            subprocess.run(["ip", "netns", "delete", self._made.pop()], capture_output=True)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RfastError(f"{' '.join(command)}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout
