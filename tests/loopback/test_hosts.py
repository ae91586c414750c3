"""``rfast node`` on each host: started by hand, in any order, over TCP; with real packet loss where it can be had."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rfast_zmq.topology import Endpoints, build, to_toml
from rfast_zmq.topology.graphs import Topology

ROOT = Path(__file__).parents[2]
TASKS = Path(__file__).with_name("tasks.py")
DIGITS = ROOT / "nodes" / "digits.py"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]
    finally:
        for s in sockets:
            s.close()


def with_endpoints(topology: Topology, endpoints: Sequence[Endpoints], path: Path) -> Path:
    import dataclasses

    path.write_text(to_toml(dataclasses.replace(topology, endpoints=tuple(endpoints))))
    return path


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A topology of three nodes on this machine's loopback addresses."""
    ports = free_ports(6)
    ends = [Endpoints(f"tcp://127.0.0.1:{ports[2 * i]}", f"tcp://127.0.0.1:{ports[2 * i + 1]}") for i in range(3)]
    return with_endpoints(build("binary-tree", 3), ends, tmp_path / "three.toml")


class Hosts:
    """Starts nodes and ends those that are left."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []

    def start(
        self, task: str, topology: Path, rank: int, *flags: str, prefix: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        command = [*prefix, sys.executable, "-m", "rfast_zmq", "node", task, "--topology", str(topology)]
        command += ["--rank", str(rank), "--json", *flags]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        self.processes.append(process)
        return process


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    started = Hosts()
    yield started
    for process in started.processes:
        if process.poll() is None:
            process.kill()
        with suppress(ValueError):
            process.communicate()


def result_of(process: subprocess.Popen[str], within_s: float = 60.0) -> dict[str, Any]:
    out, err = process.communicate(timeout=within_s)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


def test_nodes_started_in_any_order_train_one_model(three: Path, hosts: Hosts, tmp_path: Path) -> None:
    flags = ("--samples", "8000", "--compute", "constant:0.02", "--report-batch", "4", "--drop", "0.2")
    out = tmp_path / "saved"
    leaf = hosts.start(f"{TASKS}:Line", three, 2, *flags, "--out", str(out))
    root = hosts.start(f"{TASKS}:Line", three, 0, *flags)
    time.sleep(2.0)  # a late comer, as on a real morning; nothing here waits for anything else
    late = hosts.start(f"{TASKS}:Line", three, 1, *flags)
    found = result_of(root)
    assert found["samples"] >= 8000
    assert found["extra"]["error"] < 1e-2
    assert found["per_node"][0]["gradients"] > 0
    for other in (leaf, late):
        assert result_of(other)["per_node"][0]["gradients"] > 0
    assert (out / "model.safetensors").exists()


def test_ctrl_c_at_the_root_ends_every_node(three: Path, hosts: Hosts) -> None:
    flags = ("--compute", "constant:0.02", "--report-batch", "4", "--samples", "100000000")
    nodes = [hosts.start(f"{TASKS}:Line", three, rank, *flags) for rank in range(3)]
    time.sleep(8.0)  # until they are well under way; the root's own report would do if it spoke on a pipe
    nodes[0].send_signal(signal.SIGINT)
    for rank, node in enumerate(nodes):
        out, err = node.communicate(timeout=30)
        assert node.returncode in ((0,) if rank else (0, 130)), err
        assert "Traceback" not in err
        assert json.loads(out.strip().splitlines()[-1])["per_node"][0]["gradients"] > 0


def refused(process: subprocess.Popen[str], within_s: float = 60.0) -> str:
    _, err = process.communicate(timeout=within_s)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    return err


def test_a_port_in_use_is_named(three: Path, hosts: Hosts) -> None:
    from rfast_zmq.topology import load

    ends = load(three).endpoints[0]
    assert ends is not None
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(ends.push.rpartition(":")[2])))
        taken.listen()
        err = refused(hosts.start(f"{TASKS}:Line", three, 0))
    assert ends.push in err
    assert "in use" in err


def test_an_address_that_others_reach_needs_a_word(tmp_path: Path, hosts: Hosts) -> None:
    ends = [Endpoints(f"tcp://192.0.2.{i}:7001", f"tcp://192.0.2.{i}:7002") for i in (1, 2)]
    path = with_endpoints(build("line", 2), ends, tmp_path / "open.toml")
    err = refused(hosts.start(f"{TASKS}:Line", path, 0))
    assert "--insecure" in err
    assert "192.0.2.1" in err


def test_a_topology_without_endpoints_is_refused(hosts: Hosts) -> None:
    assert "endpoints" in refused(hosts.start(f"{TASKS}:Line", ROOT / "topologies" / "ring-7.toml", 0))


def test_a_node_that_trains_another_model_is_told(three: Path, hosts: Hosts) -> None:
    flags = ("--compute", "constant:0.02", "--samples", "100000000")
    hosts.start(f"{TASKS}:Line", three, 0, *flags)
    err = refused(hosts.start(f"{TASKS}:Wide", three, 1, *flags))
    assert "another model" in err


# ------------------------------------------------------------------------------------- real loss, real hosts

HOSTS = 5
LOSS = "0.05"


def _why_not() -> str | None:
    """Why network namespaces cannot be had here; None if they can."""
    if os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs root for network namespaces"
    for tool in ("ip", "iptables"):
        if shutil.which(tool) is None:
            return f"needs the command {tool} (Debian: iproute2, iptables)"
    probe = f"rfast-probe-{os.getpid()}"
    try:
        made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
        if made.returncode:
            return f"network namespaces cannot be made here: {made.stderr.strip()}"
        rule = ["iptables", "-A", "INPUT", "-m", "statistic", "--mode", "random", "--probability", LOSS, "-j", "DROP"]
        tried = subprocess.run(["ip", "netns", "exec", probe, *rule], capture_output=True, text=True)
        return f"iptables cannot drop at random here: {tried.stderr.strip()}" if tried.returncode else None
    finally:
        subprocess.run(["ip", "netns", "delete", probe], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Five hosts on a bridge, each losing one packet in twenty that comes in."""
    if (reason := _why_not()) is not None:
        pytest.skip(reason)
    tag = f"{os.getpid() % 100000}"
    names = [f"rfast{tag}-{i}" for i in range(HOSTS)]
    switch = f"rfast{tag}-s"
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for i, name in enumerate(names):
            _ip("netns", "add", name)
            _ip("-n", switch, "link", "add", f"p{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", switch, "link", "set", f"p{i}", "master", "br0", "up")
            _ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            drop = ["iptables", "-A", "INPUT", "-i", "eth0", "-m", "statistic", "--mode", "random"]
            _ip("netns", "exec", name, *drop, "--probability", LOSS, "-j", "DROP")
        yield names
    finally:
        for name in [*names, switch]:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_five_hosts_with_real_packet_loss(namespaces: list[str], tmp_path: Path, hosts: Hosts) -> None:
    ends = [Endpoints(f"tcp://10.77.0.{i + 1}:7001", f"tcp://10.77.0.{i + 1}:7002") for i in range(HOSTS)]
    path = with_endpoints(build("binary-tree", HOSTS), ends, tmp_path / "hosts.toml")
    flags = ("--insecure", "--samples", "16000", "--split", "label", "--compute", "constant:0.05")
    flags += ("--straggler", "4:5", "--report-batch", "3")
    started = [
        hosts.start(str(DIGITS), path, rank, *flags, prefix=("ip", "netns", "exec", namespaces[rank]))
        for rank in reversed(range(HOSTS))
    ]
    found = result_of(started[-1], within_s=120)
    for other in started[:-1]:
        assert result_of(other, within_s=30)["per_node"][0]["gradients"] > 0
    assert found["accuracy"] >= 0.92
    assert found["samples"] >= 16000
    dropped = 0
    for name in namespaces:
        listing = subprocess.run(
            ["ip", "netns", "exec", name, "iptables", "-nvxL", "INPUT"], capture_output=True, text=True
        )
        dropped += int(listing.stdout.splitlines()[2].split()[0])
    assert dropped > 50
