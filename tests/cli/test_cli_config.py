"""``--config``: a run once more from what it left, with the flags of the command line on top."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rfast_zmq.cli import main
from rfast_zmq.cli.config import read_settings
from rfast_zmq.cli.flags import Flags
from rfast_zmq.errors import UsageError
from rfast_zmq.results import RunFolder
from rfast_zmq.settings import Settings

ROOT = Path(__file__).parents[2]
QUADRATIC = str(ROOT / "nodes" / "quadratic.py")
HOSTS = str(ROOT / "topologies" / "two-hosts.toml")


def simulated(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    main(["simulate", QUADRATIC, *argv, "--json"])
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def settings_in(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text())["settings"]
    return settings


def test_a_simulation_is_repeated_from_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--nodes", "3", "--topology", "ring", "--samples", "600", "--seed", "5", "--drop", "0.2", "--lr", "0.02"]
    argv += ["--compute", "lognormal:0.1:0.5", "--straggler", "2:3", "--dim", "8"]
    config = str(tmp_path / "a" / "config.json")
    once = simulated(capsys, *argv, "--out", str(tmp_path / "a"))
    again = simulated(capsys, "--config", config, "--out", str(tmp_path / "b"))
    assert again == once
    assert settings_in(tmp_path / "b") == settings_in(tmp_path / "a")
    assert settings_in(tmp_path / "b")["task_options"] == {"dim": "8"}

    other = simulated(capsys, "--config", config, "--seed", "6", "--dim", "4", "--out", str(tmp_path / "c"))
    assert other["seed"] == 6
    expected = {**settings_in(tmp_path / "a"), "seed": 6, "task_options": {"dim": "4"}}
    assert settings_in(tmp_path / "c") == expected


def test_what_a_folder_holds_is_what_is_read(tmp_path: Path) -> None:
    settings = Settings(nodes=3, straggler=("1:2",), compute="constant:1", drop=0.1, task_options={"dim": "8"})
    RunFolder(tmp_path).config(settings, "task.py:Task", argv=["run"])
    assert read_settings(tmp_path / "config.json") == settings
    assert read_settings(None) == Settings()


def test_a_flag_wins_and_a_topology_from_a_file_brings_its_own_number_of_nodes() -> None:
    base = Settings(nodes=7, seed=3, drop=0.5, straggler=("1:2",))
    assert Flags().settings(base) == base
    assert Flags(drop=0.0, seed=0).settings(base) == Settings(nodes=7, straggler=("1:2",))
    assert Flags(topology=HOSTS).settings(base).nodes is None
    assert Flags(topology=HOSTS, nodes=2).settings(base).nodes == 2
    assert Flags(topology="ring").settings(base).nodes == 7


def test_a_pace_is_a_number_or_auto_which_undoes_an_earlier_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(tmp_path / "a" / "config.json")
    argv = ["--nodes", "2", "--samples", "200"]
    simulated(capsys, *argv, "--pace", "0.05", "--bucket-bytes", "4096", "--out", str(tmp_path / "a"))
    assert (settings_in(tmp_path / "a")["pace"], settings_in(tmp_path / "a")["bucket_bytes"]) == (0.05, 4096)
    simulated(capsys, "--config", config, "--pace", "Auto", "--out", str(tmp_path / "b"))
    assert (settings_in(tmp_path / "b")["pace"], settings_in(tmp_path / "b")["bucket_bytes"]) == (None, 4096)
    assert Flags().settings(Settings(pace=0.5)).pace == 0.5, "not given is not auto"


def test_a_simulations_lines_have_the_bandwidth_that_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--nodes", "3", "--samples", "600", "--dim", "1024"]
    free = simulated(capsys, *argv)
    slow = simulated(capsys, *argv, "--bandwidth", "400kbit")
    assert slow["bytes_sent"] <= 3 * 50_000 * slow["wall_s"] + 3 * 5_000, (
        "three lines out, each with a message under way"
    )
    assert slow["bytes_sent"] < free["bytes_sent"] / 2


def test_a_real_run_is_simulated_from_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It had no emulated times; a simulation takes its own default then."""
    RunFolder(tmp_path).config(Settings(nodes=2, samples=300), "quadratic.py:Quadratic")
    result = simulated(capsys, "--config", str(tmp_path / "config.json"))
    assert (result["nodes"], result["simulated"]) == (2, True)


def test_a_node_of_a_run_over_hosts_starts_from_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunFolder(tmp_path).config(Settings(topology=HOSTS), "quadratic.py:Quadratic")
    with pytest.raises(SystemExit) as end:
        main(["node", QUADRATIC, "--config", str(tmp_path / "config.json"), "--rank", "5"])
    assert end.value.code == 2
    assert "--rank 5: no such node; two-hosts has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "settings"),
        ("[]", "not the config.json of a run"),
        ('{"settings": {"nodes": 3}', "not the config.json of a run"),
        ('{"settings": {"nodse": 3}}', "nodse: no such setting"),
        ('{"settings": {"nodes": "3"}}', "nodes: Expected `int | null`, got `str`"),
        ('{"settings": {"lr": -1.0}}', "--lr -1.0: must be"),
        ('{"settings": ' + "[" * 100_000, "not the config.json of a run"),
    ],
)
def test_a_broken_config_is_refused_by_its_name(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        read_settings(file)
    assert str(refused.value).startswith(f"--config {file}: ")
    assert says in str(refused.value)


def test_an_option_that_the_task_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunFolder(tmp_path).config(Settings(task_options={"wings": "2"}), "bird.py:Bird")
    with pytest.raises(SystemExit) as end:
        main(["simulate", QUADRATIC, "--config", str(tmp_path / "config.json")])
    assert end.value.code == 2
    assert "--wings: no such option" in capsys.readouterr().err
