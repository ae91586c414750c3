"""Slow lines, real processes: hosts in network namespaces whose lines `tc tbf` limits, beside torch's DDP over gloo.

8 hosts, MNIST, one process each, 0.1 s for a node's share of 32 samples (emulated: the real gradient, then a wait), one
5× straggler or none; each line at the rate at which a float32 Ring-AllReduce takes as long as the gradient. DDP
computes the same task with torch.optim.NAdam at its own lr. Wall-clock time to the target, and what left the hosts
until then.
Needs root, `ip`, `tc` and `iptables`.

    python benchmarks/slow_hosts.py --data mnist10k.npz
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from common import MNIST, arguments, last_line, middle, ratio, seeds_of, spread, table, tell
from torch import Tensor

from rfast_zmq.assembly import Plan
from rfast_zmq.launch.namespaces import Namespaces
from rfast_zmq.settings import Settings
from rfast_zmq.topology import Endpoints, build, to_toml

NODES, BATCH, GRADIENT_S, MODEL_BYTES, TARGET = 8, 256, 0.1, 101_770 * 4, 0.93
PULL, PUSH = 7001, 7002
RING_MODELS = 2 * (NODES - 1) / NODES
BUCKET_BYTES = {"ddp": 25_600, "float32": 25_600, "bf16": 51_200, "int8": 102_400}
"""A message carries 25.6 kB of what travels in any case."""
LR = {"rfast-tree": 0.012, "ddp": 0.016}
START_S, RUN_S = 90.0, 120.0
Found = tuple[float | None, float]
"""Seconds to the target (None: not reached), and the bytes that left all hosts meanwhile."""


def ddp(rank: int, where: str, settings: Settings, out: Path) -> None:
    """One rank. The emulated time passes before the backward pass, in which DDP averages; rank 0 scores beside it."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    plan = Plan.make(MNIST, settings)
    task = plan.worker(rank).task
    torch.manual_seed(settings.seed)
    module = task.configure_model()
    scored = copy.deepcopy(module)
    x, y = task.train_data(rank, NODES)
    draw = torch.Generator().manual_seed(settings.seed * 1000 + rank)
    dist.init_process_group("gloo", init_method=f"tcp://{where}:29500", rank=rank, world_size=NODES)
    model = DistributedDataParallel(module)
    optimizer = torch.optim.NAdam(model.parameters(), lr=settings.lr or 0.0)
    scoring = ThreadPoolExecutor(1)
    share, order = BATCH // NODES, torch.empty(0, dtype=torch.long)

    def score(state: dict[str, Tensor], at_s: float) -> None:
        torch.set_num_threads(1)
        scored.load_state_dict(state)
        with torch.no_grad():
            if task.evaluate(scored)["accuracy"] >= (settings.target or 1.0) and not out.exists():
                out.write_text(json.dumps({"target_s": at_s}))

    dist.barrier()
    began_s = time.monotonic()
    for step in range((settings.samples or 0) // BATCH):
        if len(order) < share:
            order = torch.cat([order, torch.randperm(len(y), generator=draw)])
        batch, order = order[:share], order[share:]
        due_s = time.monotonic() + plan.speeds.seconds(rank, step * share, share, share)
        optimizer.zero_grad()
        loss = task.training_step(model, (x[batch], y[batch]))
        time.sleep(max(0.0, due_s - time.monotonic()))
        loss.backward()
        optimizer.step()
        if rank == 0:
            state = {name: t.clone() for name, t in module.state_dict().items()}
            scoring.submit(score, state, time.monotonic() - began_s)
    dist.destroy_process_group()


def run_ddp(hosts: Namespaces, settings: Settings, folder: Path) -> Found:
    out = folder / "ddp.json"
    me = (sys.executable, __file__, "--data", str(settings.data), "--ddp", settings.to_json(), str(out))
    before = sum(map(hosts.sent_bytes, range(NODES)))
    with Processes() as started:
        for rank in range(NODES):
            started.begin(hosts, rank, (*me, str(rank)), {"GLOO_SOCKET_IFNAME": "eth0"})
        until(out.exists, started, START_S + RUN_S)
        moved = sum(map(hosts.sent_bytes, range(NODES))) - before
    return json.loads(out.read_text())["target_s"] if out.exists() else None, moved


def run_ours(hosts: Namespaces, settings: Settings, folder: Path) -> Found:
    topology = build("double-tree", NODES)
    ends = [Endpoints(f"tcp://{hosts.address(i)}:{PULL}", f"tcp://{hosts.address(i)}:{PUSH}") for i in range(NODES)]
    file, config = folder / "hosts.toml", folder / "settings.json"
    file.write_text(to_toml(replace(topology, endpoints=tuple(ends))))
    config.write_text(f'{{"settings": {replace(settings, nodes=None, topology=str(file)).to_json()}}}')
    me = (sys.executable, "-m", "rfast_zmq", "node", MNIST, "--config", str(config), "--insecure", "--json")
    before = sum(map(hosts.sent_bytes, range(NODES)))
    with Processes() as started:
        for rank in reversed(range(NODES)):  # the root, from whose start time is counted, when the others are there
            if rank == topology.root:
                until(lambda: all(listens(hosts, i) for i in range(1, NODES)), started, START_S)
            root = started.begin(hosts, rank, (*me, "--rank", str(rank)))
        until(lambda: root.poll() is not None, started, START_S + RUN_S)
        moved = sum(map(hosts.sent_bytes, range(NODES))) - before
        root.terminate()
        said = root.communicate(timeout=60)[0].decode().strip().splitlines()
    return (json.loads(said[-1])["target_s"] if said else None), moved


class Processes:
    """Those that were started; none outlives the ``with``."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[bytes]] = []

    def begin(
        self, hosts: Namespaces, rank: int, command: tuple[str, ...], more: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        env = {**os.environ, "OMP_NUM_THREADS": "1", **(more or {})}
        said = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        self.all.append(subprocess.Popen([*hosts.within(rank), *command], stdout=said, stderr=None, env=env))
        return self.all[-1]

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.all:
            process.kill()
        for process in self.all:
            process.wait()


def listens(hosts: Namespaces, rank: int) -> bool:
    found = subprocess.run([*hosts.within(rank), "cat", "/proc/net/tcp"], capture_output=True, text=True).stdout
    return f":{PULL:04X} " in found and f":{PUSH:04X} " in found


def until(true: Callable[[], bool], started: Processes, within_s: float) -> None:
    """Wait for it; not for longer, nor once a process has failed."""
    end_s = time.monotonic() + within_s
    while not true() and time.monotonic() < end_s:
        if any(process.poll() for process in started.all):
            raise SystemExit("a process failed; what it said stands above")
        time.sleep(0.1)


def main() -> None:
    parser = arguments(__doc__, 5)
    parser.add_argument("--ring", type=float, default=1.0, help="time of the Ring-AllReduce ÷ that of the gradient")
    parser.add_argument("--splits", nargs="+", default=["label", "iid"])
    parser.add_argument("--wires", nargs="+", default=["float32", "int8"])
    parser.add_argument("--factors", nargs="+", type=int, default=[1, 5], help="the straggler's")
    parser.add_argument("--ddp", nargs=3, help=argparse.SUPPRESS, metavar=("SETTINGS", "OUT", "RANK"))
    args = parser.parse_args()
    if args.ddp is not None:
        return ddp(int(args.ddp[2]), "10.77.0.1", Settings.from_json(args.ddp[0]), Path(args.ddp[1]))
    if (reason := Namespaces.why_not()) is not None:
        raise SystemExit(f"slow_hosts: {reason}")
    rows, found = [], []
    rate = RING_MODELS * MODEL_BYTES / (args.ring * GRADIENT_S)
    with tempfile.TemporaryDirectory() as folder, Namespaces(NODES, bytes_per_s=rate) as hosts:
        for factor, split in product(args.factors, args.splits):
            sides: dict[str, list[Found]] = {name: [] for name in ("ddp", *args.wires)}
            for seed, side in product(seeds_of(args), sides):
                settings = Settings(
                    nodes=NODES, global_batch=BATCH, report_batch=8, optimizer="nadam", split=split, seed=seed,
                    compute=f"constant:{GRADIENT_S}", straggler=(f"5:{factor}",) if factor > 1 else (), target=TARGET,
                    lr=LR["ddp" if side == "ddp" else "rfast-tree"], wire="float32" if side == "ddp" else side,
                    bucket_bytes=BUCKET_BYTES[side], data=str(Path(args.data).resolve()), samples=90_000,
                )  # fmt: skip
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    sides[side].append((run_ddp if side == "ddp" else run_ours)(hosts, settings, Path(own)))
                tell(f"straggler {factor}x, {split}, seed {seed}, {side}: {sides[side][-1]}")
            speeds = f"one {factor}x straggler" if factor > 1 else "even"
            for side, runs in sides.items():
                times, moved = [time_s for time_s, _ in runs], [size / 1e6 for _, size in runs]
                faster = [ratio(a, b) for (a, _), b in zip(sides["ddp"], times, strict=True)]
                rows.append((speeds, split, side, spread(times), spread(faster), spread(moved)))
                found.append({"speeds": speeds, "split": split, "side": side, "speedup": middle(faster)})
    table(["speeds", "split", "", f"seconds to {TARGET}", "DDP's ÷ it", "MB that left the hosts"], rows)
    return last_line(ring=args.ring, rows=found)


if __name__ == "__main__":
    main()
