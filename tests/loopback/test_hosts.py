"""``rfast node`` on each host: started by hand, in any order, over TCP; with real packet loss where it can be had."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from rfast_zmq import Plan, Settings, launch
from rfast_zmq.launch.namespaces import Namespaces
from rfast_zmq.topology import Endpoints, build, to_toml
from rfast_zmq.topology.graphs import Topology
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
TASKS = Path(__file__).with_name("tasks.py")
DIGITS = ROOT / "nodes" / "digits.py"
START_S = 60.0
"""For a process to import torch, load its data and start, on a machine that has other things to do."""
PROGRESS = re.compile(r"samples .*\bround [1-9]")


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


class Host:
    """One node's process; what it says goes to files, so that it can be looked at while it runs."""

    def __init__(self, command: Sequence[str], rank: int, folder: Path) -> None:
        self.rank, self._out, self._err = rank, folder / "stdout", folder / "stderr"
        self.saved = folder / "saved"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            env = {**os.environ, "PYTHONUNBUFFERED": "1"}
            self.process = subprocess.Popen(
                [*command, "--out", str(self.saved)], stdout=out, stderr=err, cwd=ROOT, env=env
            )

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    def tells(self) -> str:
        """For a failure's message: how it stands and the last it said."""
        status = self.process.poll()
        state = "still runs" if status is None else f"exit status {status}"
        tail = "".join(f"\n    {line}" for line in [*self.out.splitlines()[-3:], *self.err.splitlines()[-12:]])
        return f"host {self.rank}: {state}{tail or ' (said nothing)'}"


class Hosts:
    """Starts nodes and ends those that are left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.all: list[Host] = []

    def start(self, task: str, topology: Path, rank: int, *flags: str, prefix: Sequence[str] = ()) -> Host:
        command = [*prefix, sys.executable, "-m", "rfast_zmq", "node", task, "--topology", str(topology)]
        folder = self._folder / f"host-{len(self.all)}"
        folder.mkdir()
        self.all.append(Host([*command, "--rank", str(rank), *flags], rank, folder))
        return self.all[-1]

    def fail(self, what: str) -> NoReturn:
        pytest.fail("\n".join([what, *(host.tells() for host in self.all)]))

    def until(self, true: Callable[[], bool], what: str, within_s: float = START_S) -> None:
        """Wait for ``true``, as long as no host fails."""
        end = time.monotonic() + within_s
        while not true():
            if time.monotonic() > end or any(host.process.poll() for host in self.all):
                self.fail(f"never in {within_s:.0f} s, or a host failed meanwhile: {what}")
            time.sleep(0.02)

    def started(self, *hosts: Host) -> None:
        """Wait until these have their sockets and their first batch: their configuration is saved then."""
        for host in hosts:
            self.until((host.saved / "config.json").exists, f"host {host.rank} has started")

    def under_way(self, *hosts: Host) -> None:
        """Wait until these, started without --json, say that they have come to a round."""
        for host in hosts:
            self.until(lambda h=host: PROGRESS.search(h.out) is not None, f"host {host.rank} makes progress")

    def ended(self, host: Host, within_s: float) -> int:
        """The exit status of a host that ends by itself."""
        try:
            return host.process.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            self.fail(f"host {host.rank} has not ended within {within_s:.0f} s")

    def result(self, host: Host, within_s: float = 90.0, status: int = 0) -> dict[str, Any]:
        """What a host that ends with ``status`` saves."""
        if self.ended(host, within_s) != status:
            self.fail(f"host {host.rank} should have ended with exit status {status}")
        assert "Traceback" not in host.err, host.err
        found: dict[str, Any] = json.loads((host.saved / "result.json").read_text())
        return found

    def close(self) -> None:
        for host in self.all:
            if host.process.poll() is None:
                host.process.kill()
            host.process.wait()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_nodes_started_in_any_order_train_one_model(three: Path, hosts: Hosts) -> None:
    flags = ("--samples", "12000", "--compute", "constant:0.02", "--report-batch", "4", "--drop", "0.2", "--json")
    leaf = hosts.start(f"{TASKS}:Line", three, 2, *flags)
    root = hosts.start(f"{TASKS}:Line", three, 0, *flags)
    hosts.started(leaf, root)  # nothing here waits for anything else; only then comes the third
    late = hosts.start(f"{TASKS}:Line", three, 1, *flags)
    found = hosts.result(root)
    assert found["samples"] >= 12000
    assert json.loads(root.out) == found  # a line of JSON is all that it prints
    assert found["extra"]["error"] < 0.3
    assert found["per_node"][0]["gradients"] > 0
    for other in (leaf, late):
        assert hosts.result(other)["per_node"][0]["gradients"] > 0
        assert (other.saved / "model.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_sigterm_at_the_root_ends_every_node(three: Path, hosts: Hosts, number: signal.Signals) -> None:
    flags = ("--compute", "constant:0.02", "--report-batch", "4", "--samples", "100000000")
    nodes = [hosts.start(f"{TASKS}:Line", three, rank, *flags) for rank in range(3)]
    hosts.under_way(*nodes)
    nodes[0].process.send_signal(number)
    for rank, node in enumerate(nodes):
        found = hosts.result(node, within_s=40, status=0 if rank else 130)
        assert found["per_node"][0]["gradients"] > 0
    assert (nodes[0].saved / "model.safetensors").exists()


def test_ctrl_c_elsewhere_ends_that_node_alone(three: Path, hosts: Hosts) -> None:
    flags = ("--compute", "constant:0.02", "--report-batch", "4", "--samples", "100000000")
    nodes = [hosts.start(f"{TASKS}:Line", three, rank, *flags) for rank in range(3)]
    hosts.under_way(*nodes)
    nodes[2].process.send_signal(signal.SIGINT)
    hosts.result(nodes[2], within_s=40, status=130)
    assert nodes[0].process.poll() is None
    assert nodes[1].process.poll() is None
    nodes[0].process.send_signal(signal.SIGINT)
    hosts.result(nodes[0], within_s=40, status=130)
    hosts.result(nodes[1], within_s=40)


def refused(hosts: Hosts, host: Host, within_s: float = 60.0) -> str:
    if hosts.ended(host, within_s) != 2:
        hosts.fail(f"host {host.rank} should have ended with exit status 2")
    assert "Traceback" not in host.err, host.err
    return host.err


def test_a_port_in_use_is_named(three: Path, hosts: Hosts) -> None:
    from rfast_zmq.topology import load

    ends = load(three).endpoints[0]
    assert ends is not None
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(ends.push.rpartition(":")[2])))
        taken.listen()
        err = refused(hosts, hosts.start(f"{TASKS}:Line", three, 0))
    assert ends.push in err
    assert "in use" in err


def test_an_address_that_others_reach_needs_a_word(tmp_path: Path, hosts: Hosts) -> None:
    ends = [Endpoints(f"tcp://192.0.2.{i}:7001", f"tcp://192.0.2.{i}:7002") for i in (1, 2)]
    path = with_endpoints(build("line", 2), ends, tmp_path / "open.toml")
    err = refused(hosts, hosts.start(f"{TASKS}:Line", path, 0))
    assert "--insecure" in err
    assert "192.0.2.1" in err


def test_a_topology_without_endpoints_is_refused(hosts: Hosts) -> None:
    assert "endpoints" in refused(hosts, hosts.start(f"{TASKS}:Line", ROOT / "topologies" / "ring-7.toml", 0))


def test_a_node_that_trains_another_model_is_told(three: Path, hosts: Hosts) -> None:
    flags = ("--compute", "constant:0.02", "--samples", "100000000")
    hosts.start(f"{TASKS}:Line", three, 0, *flags)
    err = refused(hosts, hosts.start(f"{TASKS}:Wide", three, 1, *flags))
    assert "another model" in err


# ------------------------------------------------------------------------------------- real loss, real hosts

HOSTS, LOSS = 5, 0.05


def namespaces(hosts: int, **how: float) -> Namespaces:
    if (reason := Namespaces.why_not()) is not None:
        pytest.skip(reason)
    return Namespaces(hosts, **how)


def on(topology: Topology, within: Namespaces, path: Path) -> Path:
    """The topology's file, with the addresses of the hosts."""
    ends = [
        Endpoints(f"tcp://{within.address(i)}:7001", f"tcp://{within.address(i)}:7002") for i in range(topology.nodes)
    ]
    return with_endpoints(topology, ends, path)


def test_five_hosts_with_real_packet_loss(tmp_path: Path, hosts: Hosts) -> None:
    # to a target: a connection that loses its first packets may take seconds, and its node's classes come later
    flags = ("--insecure", "--samples", "100000", "--target", "0.95", "--split", "label", "--compute", "constant:0.05")
    flags += ("--straggler", "4:5", "--report-batch", "3")
    started: list[Host] = []
    with namespaces(HOSTS, loss=LOSS) as within:
        path = on(build("binary-tree", HOSTS), within, tmp_path / "hosts.toml")
        for rank in reversed(range(HOSTS)):
            started.append(hosts.start(str(DIGITS), path, rank, *flags, prefix=within.within(rank)))
            if rank == 1:
                hosts.started(*started)  # samples are counted from the root's start: all must be there
        *others, root = started
        found = hosts.result(root, within_s=150)
        for other in others:
            assert hosts.result(other, within_s=60)["per_node"][0]["gradients"] > 0, other.tells()
        lost = [within.lost_packets(host) for host in range(HOSTS)]
    assert found["target_s"] is not None, f"{found}\n{root.tells()}"
    assert found["accuracy"] >= 0.94, f"{found}\n{root.tells()}"
    assert sum(lost) > 50, lost


def test_namespaces_leave_alone_what_is_not_theirs() -> None:
    with namespaces(1) as outer:
        assert Namespaces.why_not() is None, "others can be made beside them"
        assert outer.sent_bytes(0) >= 0, "and take nothing away when they go"


def test_on_slow_lines_no_host_says_more_than_its_line_carries(tmp_path: Path, hosts: Hosts) -> None:
    """Each host has a line of 1 MB/s: left to an eighth of a round they would say seven times what it carries. What
    waits in slots and buffers is bounded, so what left a host is little more than what its line has carried; and C is
    what the line takes, not a part of a round."""
    rate, model_bytes = 1e6, 4 * (64 * 64 + 64 + 64 * 10 + 10)
    flags = ("--insecure", "--samples", "5000", "--compute", "constant:0.05", "--bucket-bytes", "4096")
    started: list[Host] = []
    with namespaces(3, bytes_per_s=rate) as within:
        path = on(build("binary-tree", 3), within, tmp_path / "hosts.toml")
        for rank in (2, 1):
            started.append(hosts.start(str(DIGITS), path, rank, *flags, prefix=within.within(rank)))
        hosts.started(*started)
        root = hosts.start(str(DIGITS), path, 0, *flags, prefix=within.within(0))
        found = hosts.result(root, within_s=90)
        for other in started:
            hosts.result(other, within_s=60)
    assert found["accuracy"] > 0.7, f"{found}\n{root.tells()}"
    assert found["bytes_sent"] < 1.3 * rate * found["wall_s"] + 10 * model_bytes, found
    assert found["per_node"][0]["pace_s"] > 1.5 * model_bytes / rate, found


@pytest.mark.parametrize("algorithm", ["rfast-tree", "ddp"])
def test_a_run_whose_processes_each_have_a_host_speaks_over_their_lines(algorithm: str) -> None:
    plan = Plan.make(
        str(DIGITS),
        Settings(
            nodes=3, topology="ring" if algorithm == "ddp" else "line", algorithm=algorithm, optimizer="sgd", lr=0.1,
            global_batch=48, compute="constant:0.05", samples=2400,
        ),
    )  # fmt: skip
    with namespaces(3, bytes_per_s=20e6) as within:
        before = [within.sent_bytes(rank) for rank in range(3)]
        result = launch.run(plan, hosts=within).result
        left = [within.sent_bytes(rank) - was for rank, was in enumerate(before)]
    assert result.accuracy is not None
    assert result.accuracy > 0.5, "it learned something"
    assert result.missing == []
    assert sum(left) > 0.9 * result.bytes_sent > 1e6, (left, result.bytes_sent)
    assert all(left), "every host had something to say"
