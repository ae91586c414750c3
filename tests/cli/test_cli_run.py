"""``rfast run``, ``simulate`` and ``main(Task)``: output, files, exit status."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path

import pytest

from rfast_zmq.cli import main
from rfast_zmq.cli.flags import Flags
from rfast_zmq.settings import Settings
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
QUADRATIC = str(ROOT / "nodes" / "quadratic.py")
FIELDS = {
    *("algorithm", "topology", "nodes", "seed", "samples", "rounds", "accuracy", "loss", "wall_s", "target_s"),
    *("target_samples", "identity_error", "staleness_rounds", "bytes_sent", "messages_sent", "messages_refused"),
    *("cpu_s", "per_node", "slowest_node", "set_aside"),
}


def rfast(*argv: str, env: dict[str, str] | None = None, program: tuple[str, ...] = ("-m", "rfast_zmq")) -> str:
    """Standard output of ``rfast ARGV…`` in a process of its own, which must end well."""
    command = [sys.executable, *program, *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **(env or {})})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_flags_are_the_settings_with_the_same_defaults() -> None:
    assert {f.name for f in fields(Flags)} == {f.name for f in fields(Settings)} - {"task_options"}
    assert Flags().settings() == Settings()


def test_the_real_command_trains_and_leaves_all_its_files(tmp_path: Path) -> None:
    argv = ["nodes/digits.py", "--nodes", "3", "--samples", "6000", "--split", "label", "--compute", "constant:0.05"]
    argv += ["--straggler", "2:3", "--drop", "0.2", "--baseline", "--target", "0.8", "--out", str(tmp_path), "--json"]
    result = json.loads(rfast("run", *argv).splitlines()[-1])
    assert result.keys() >= FIELDS
    assert (result["nodes"], result["topology"], result["algorithm"]) == (3, "binary-tree", "rfast-tree")
    points = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first = next(point for point in points if point["accuracy"] >= 0.8)  # what ended it; the last drops fall after it
    assert (first["samples"], first["time_s"]) == (result["target_samples"], result["target_s"])
    assert result["accuracy"] == points[-1]["accuracy"] > 0.6
    assert 0 < result["target_samples"] <= result["samples"] <= 6000 + 64
    assert result["baseline_accuracy"] > 0.5
    assert result["identity_error"] < 1e-5
    assert [node["rank"] for node in result["per_node"]] == [0, 1, 2]
    assert result["slowest_node"]["rank"] == 2
    assert json.loads((tmp_path / "result.json").read_text()) == result
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["settings"]["seed"] == 0
    assert config["versions"]["torch"]
    assert config["argv"] == ["run", *argv]
    for name in ("metrics.jsonl", "nodes.jsonl", "baseline.jsonl"):
        assert all(json.loads(line)["time_s"] >= 0 for line in (tmp_path / name).read_text().splitlines())
    for name in ("curve.png", "topology.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "model.safetensors").stat().st_size > 64 * 64 * 4
    assert "[pull]" in (tmp_path / "topology.toml").read_text()


def test_without_json_there_are_lines_a_summary_and_where_the_files_lie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["simulate", QUADRATIC, "--nodes", "4", "--straggler", "3:4", "--samples", "2000", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "of virtual time" in said
    assert "node 3, 4.0x the median's time" in said
    assert f"files in {tmp_path}: config.json, topology.toml, metrics.jsonl" in said
    assert str(tmp_path / "curve.png") in said


def test_with_json_nothing_else_is_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    main(["simulate", QUADRATIC, "--nodes", "3", "--samples", "1000", "--json"])
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    result = json.loads(said.out)
    assert result.keys() >= FIELDS
    assert result["simulated"] is True
    assert result["target_s"] is None
    assert said.err == ""


def test_an_accuracy_below_what_is_required_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", QUADRATIC, "--nodes", "2", "--samples", "500", "--require", "0.9", "--json"])
    assert end.value.code == 1
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["nodes"] == 2
    assert "--require 0.9: the task's evaluate() gave no accuracy" in said.err


def test_a_simulation_has_the_same_bytes_whatever_the_process_and_its_hash_seed(tmp_path: Path) -> None:
    argv = [
        "simulate",
        "nodes/quadratic.py",
        "--nodes",
        "5",
        "--topology",
        "exponential",
        "--samples",
        "1500",
        "--json",
    ]
    argv += ["--compute", "lognormal:0.1:0.5", "--straggler", "4:3", "--drop", "0.3", "--duplicate", "0.1"]
    argv += ["--reorder", "0.1", "--latency", "0.01", "--seed", "7", "--noise", "0.1"]
    runs = []
    for seed in ("1", "2"):
        trace = tmp_path / f"trace-{seed}.jsonl"
        result = rfast(*argv, "--trace", str(trace), env={"PYTHONHASHSEED": seed})
        runs.append((result, trace.read_bytes()))
    assert runs[0] == runs[1]
    assert len(runs[0][1].splitlines()) > 1000
    assert json.loads(runs[0][1].splitlines()[0])["event"] == "Started"


def test_a_task_of_ones_own_runs_from_its_own_file(tmp_path: Path) -> None:
    """As on each host: ``python mine.py …``, with or without ``if __name__ == "__main__"``."""
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "from rfast_zmq import Task, main\n\n"
        "class Mine(Task):\n"
        "    defaults = {'samples': 300, 'global_batch': 16}\n"
        "    def configure_model(self):\n"
        "        return torch.nn.Linear(2, 1)\n"
        "    def train_data(self, rank, nodes):\n"
        "        return (torch.ones(8, 2),)\n"
        "    def training_step(self, model, batch):\n"
        "        return model(batch[0]).square().mean()\n\n"
        "main(Mine)\n"
    )
    run = json.loads(rfast("--nodes", "2", "--json", program=(str(file),)).splitlines()[-1])
    assert (run["nodes"], run["simulated"]) == (2, False)
    simulated = json.loads(rfast("simulate", "--nodes", "2", "--json", program=(str(file),)).splitlines()[-1])
    assert (simulated["nodes"], simulated["simulated"]) == (2, True)


def test_with_a_rank_it_is_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    import rfast_zmq
    from rfast_zmq.task import load_task

    with pytest.raises(SystemExit) as end:
        rfast_zmq.main(load_task(QUADRATIC), ["--topology", str(ROOT / "topologies" / "two-hosts.toml"), "--rank=5"])
    assert end.value.code == 2
    assert "--rank 5: no such node" in capsys.readouterr().err


def test_one_node_of_a_topology_with_endpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "alone.toml"
    pull, push = free_ports(2)
    file.write_text(
        f'[[node]]\nname = "big"\npull = "tcp://127.0.0.1:{pull}"\npush = "tcp://127.0.0.1:{push}"\n'
        "[pull]\nedges = []\n[push]\nedges = []\n"
    )
    argv = ["node", QUADRATIC, "--topology", str(file), "--samples", "500", "--out", str(tmp_path / "out"), "--json"]
    main([*argv, "--rank", "big"])
    result = json.loads(capsys.readouterr().out)
    assert (result["topology"], result["nodes"]) == ("alone", 1)
    assert result["samples"] >= 500
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there >= {"config.json", "metrics.jsonl", "model.safetensors", "result.json", "curve.png", "topology.png"}


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_ctrl_c_or_sigterm_ends_a_run_in_order_saves_the_model_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals, to_all: bool
) -> None:
    """To the command alone, or to all processes of the run, as a terminal and ``timeout`` do."""
    scratch, saved = Path(tempfile.mkdtemp(prefix="rc-")), tmp_path / "saved"  # short: sockets lie in it
    try:
        argv = ["run", "nodes/quadratic.py", "--nodes", "2", "--samples", "100000000", "--compute", "constant:0.05"]
        with subprocess.Popen(
            [sys.executable, "-u", "-m", "rfast_zmq", *argv, "--out", str(saved)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(scratch)},
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if re.search(r"samples .*\bround \d", line):  # the first line of progress: the run goes on
                    assert sys.platform != "linux" or len(in_session(process.pid)) >= 3  # the command and the nodes
                    assert list(scratch.glob("rfast-*"))
                    (os.killpg if to_all else os.kill)(process.pid, number)
                    break
            rest, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "stopping: " in rest
        assert "Traceback" not in err
        assert (saved / "model.safetensors").exists()
        assert json.loads((saved / "result.json").read_text())["missing"] == []
        assert list(scratch.glob("rfast-*")) == []
        end = time.monotonic() + 10.0  # multiprocessing's own helpers end when the command has ended
        while (left := in_session(process.pid)) and time.monotonic() < end:
            time.sleep(0.02)
        assert left == {}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def test_ctrl_c_while_the_nodes_start_ends_quietly_and_leaves_nothing() -> None:
    """A terminal sends it to all processes of the run, which are importing torch then."""
    scratch = Path(tempfile.mkdtemp(prefix="rc-"))
    try:
        with subprocess.Popen(
            [sys.executable, "-u", "-m", "rfast_zmq", "run", "nodes/quadratic.py", "--nodes", "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(scratch)},
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("starting ")
            end = time.monotonic() + 10.0
            while not any("forkserver" in command for command in in_session(process.pid).values()):
                assert time.monotonic() < end
                time.sleep(0.005)
            os.killpg(process.pid, signal.SIGINT)
            _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, "rfast: interrupted\n")
        assert list(scratch.glob("rfast-*")) == []
        end = time.monotonic() + 10.0
        while (left := in_session(process.pid)) and time.monotonic() < end:
            time.sleep(0.02)
        assert left == {}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def test_a_terminal_that_is_closed_ends_a_run_in_order(tmp_path: Path) -> None:
    """SIGHUP to all processes of the run, and nothing can be written to the terminal any more."""
    pid, terminal = pty.fork()
    if pid == 0:  # the terminal is this process's own
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started under: nohup, say
        os.chdir(ROOT)
        argv = ["run", "nodes/quadratic.py", "--nodes", "2", "--samples", "100000000", "--compute", "constant:0.05"]
        os.execv(sys.executable, [sys.executable, "-m", "rfast_zmq", *argv, "--out", str(tmp_path)])
    seen, end, status = b"", time.monotonic() + 60.0, None
    while b"staleness" not in seen and time.monotonic() < end:
        seen += os.read(terminal, 4096)
    assert b"staleness" in seen, seen[-500:]
    os.close(terminal)
    end = time.monotonic() + 60.0
    while status is None and time.monotonic() < end:
        ended, how = os.waitpid(pid, os.WNOHANG)
        status = os.waitstatus_to_exitcode(how) if ended else None
        time.sleep(0.02)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert status == 130
    assert (tmp_path / "model.safetensors").exists()
    assert json.loads((tmp_path / "result.json").read_text())["missing"] == []


def in_session(leader: int) -> dict[int, str]:
    """The processes of a session, zombies apart: pid to command; Linux only, else none."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields_of = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if int(fields_of[3]) == leader and fields_of[0] != "Z":
            found[int(stat.parent.name)] = command
    return found


def test_an_earlier_runs_files_are_put_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["simulate", QUADRATIC, "--nodes", "2", "--samples", "300", "--out", str(tmp_path)]
    main([*argv, "--baseline"])
    capsys.readouterr()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {"config.json", "baseline.jsonl", "model.safetensors", "curve.png"} <= set(before)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        main([*argv, "--seed", "1", "--require", "1"])
    said = capsys.readouterr().out
    assert f"the earlier run's files in {tmp_path} are now in {tmp_path / 'before-1'}\n" in said
    assert {path.name: path.read_bytes() for path in (tmp_path / "before-1").iterdir()} == before
    assert not (tmp_path / "baseline.jsonl").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(SystemExit):
        main([*argv, "--nodes", "0"])  # never began
    assert not (tmp_path / "before-2").exists()
    main([*argv, "--seed", "2"])
    assert json.loads((tmp_path / "before-2" / "config.json").read_text())["settings"]["seed"] == 1
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["seed"] == 2


def test_a_temporary_folder_with_a_path_too_long_for_sockets(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    argv = ["run", "nodes/quadratic.py", "--nodes", "2", "--samples", "300", "--json"]
    assert json.loads(rfast(*argv, env={"TMPDIR": str(long)}).splitlines()[-1])["missing"] == []


def test_a_schedule_from_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = ROOT / "tests" / "scenarios" / "ring-late-backwards-twice.json"
    main(["replay", str(schedule)])
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO(schedule.read_text()))
    main(["replay", "-"])
    assert capsys.readouterr().out == expected


def test_whole_numbers_in_any_form(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("12", "0xc", "1.2e1", "12.0"):
        main(["topology", "line", "--nodes", text])
        assert re.search(r"^nodes +12 *$", capsys.readouterr().out, re.MULTILINE)


def test_light_verbs_do_not_wait_for_torch() -> None:
    code = (
        "import sys, rfast_zmq; assert not {'torch', 'numpy', 'zmq'} & set(sys.modules)\n"
        "from rfast_zmq.cli import main\n"
        "main(['topology', 'line', '--nodes', '3'])\n"
        "import rfast_zmq.cli.plot\n"
        "assert not {'torch', 'zmq', 'matplotlib'} & set(sys.modules)\n"
    )
    assert "line, checked" in rfast(program=("-c", code))


def test_the_public_names_are_there() -> None:
    import rfast_zmq

    for name in rfast_zmq.__all__:
        assert getattr(rfast_zmq, name) is not None
    assert set(rfast_zmq.__all__) <= set(dir(rfast_zmq))
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = rfast_zmq.nope


@pytest.mark.parametrize(
    "argv", [["--help"], ["run", "--help"], ["node", "--help"], ["simulate", "--help"], ["--version"]]
)
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(argv)
    assert capsys.readouterr().out
