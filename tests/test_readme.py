"""What README.md and docs/ show is so: the task in 30 lines learns, command lines parse, links and test names exist."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from rfast_zmq.cli import VERBS, _app
from rfast_zmq.cli.bench import own_options as bench_options
from rfast_zmq.cli.flags import Flags, own_options
from rfast_zmq.results import NodePoint, Point, Result
from rfast_zmq.task import Task, load_task
from rfast_zmq.topology import build
from tests.ports import free_ports

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CHANGELOG.md"]
LINES_MOST = 30
SAMPLES = 8_000

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARKED = re.compile(r"^<!-- test: (\S+) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------- the custom model


def test_the_task_of_the_readme_is_short_and_learns(tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    name, code = MARKED.findall(text)[0]
    assert len(code.splitlines()) <= LINES_MOST
    (tmp_path / name).write_text(code)
    command = next(words for words in shown(README) if words[:2] == ["run", name])
    argv = [sys.executable, "-m", "rfast_zmq", *command, "--samples", str(SAMPLES), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, timeout=150)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["samples"] >= SAMPLES
    assert result["accuracy"] > 0.9  # a third by chance
    assert result["identity_error"] < 1e-5


# ------------------------------------------------------------------------------------------- the own loop


def test_the_change_to_a_loop_of_ones_own_is_small_and_both_scripts_learn(tmp_path: Path) -> None:
    """The diff's two sides: the old one by itself, the new one as two processes on uneven data."""
    block = re.search(r"^<!-- test: own loop -->\n```diff\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    diff = [line or " " for line in block[1].splitlines()]
    assert sum(line[0] == "+" for line in diff) <= 4
    assert all(line[0] in " +-" for line in diff)
    for name, side in (("before", "-"), ("after", "+")):
        script = "".join(f"{line[1:]}\n" for line in diff if line[0] in (" ", side))
        script = script.replace("80_000", "40_000").replace("range(20)", "range(8)")
        if name == "after":  # a step of a larger model: so small a one is done before a busy machine turns to the other
            script = script.replace("opt.step()", "opt.step()\n        __import__('time').sleep(0.003)")
        (tmp_path / f"{name}.py").write_text(script)
    ports = iter(free_ports(4))
    example = (ROOT / "topologies" / "two-hosts.toml").read_text()
    (tmp_path / "two-hosts.toml").write_text(re.sub(r"(?<=127\.0\.0\.1:)\d+", lambda _: str(next(ports)), example))

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *words], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    running = [start("before.py"), start("after.py", "1")]
    before_said = running[0].communicate(timeout=150)  # the other waits for its first model meanwhile
    running.append(start("after.py", "0"))
    said = [before_said, running[2].communicate(timeout=150), running[1].communicate(timeout=150)]
    assert [process.returncode for process in running] == [0, 0, 0], said
    before, root, _ = (float(out.split()[-1]) for out, _ in said)
    assert before > 0.9
    assert root > 0.85, said  # of all ten digits, five of which it never saw: alone it would be at .5


# ------------------------------------------------------------------------------------------- command lines


def lines(page: Path) -> Iterator[str]:
    """The lines of a page's shell blocks, continued ones joined, without prompts and comments."""
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language in ("sh", "bash", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                yield re.sub(r"\s+#.*", "", line.removeprefix("$ ").strip())


def shown(page: Path) -> list[list[str]]:
    """The words after ``rfast`` of every command line in a page's shell blocks."""
    return [shlex.split(line)[1:] for line in lines(page) if line.startswith("rfast ")]


def task_at(source: str, folder: Path) -> type[Task]:
    """The task that a command line names: a file of ours, or one that a page shows."""
    for page in PAGES:
        for name, code in MARKED.findall(page.read_text(encoding="utf-8")):
            if name == source:
                (folder / name).write_text(code)
                return load_task(str(folder / name))
    return load_task(str(ROOT / source))


@pytest.mark.parametrize("words", [w for page in PAGES for w in shown(page)], ids=" ".join)
def test_every_command_line_parses(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # pages name files as seen from there
    _, bound, _ = _app().parse_args(words, exit_on_error=False, print_error=False)
    given = bound.arguments
    if words[0] in ("run", "node", "simulate"):
        task, flags = task_at(given["task"], tmp_path), given.get("flags") or Flags()
        s = flags.settings()
        build(s.topology, s.nodes if s.topology.endswith(".toml") else s.nodes or 7, s.seed)
        assert given.get("task_options", {}).keys() <= task.options.keys()
    elif words[0] == "topology":
        build(given["name"], given.get("nodes"))
    elif words[0] == "replay":
        assert Path(given["file"]).is_file()


def test_the_demo_that_is_shown_is_the_one_that_make_runs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    demo = re.search(r"^demo:.*\n\t\$\(BIN\)/rfast (.*)$", makefile, re.MULTILINE)
    assert demo is not None
    assert shlex.split(demo[1]) in shown(README)


def test_what_is_said_in_passing_exists() -> None:
    """Make's targets in shell blocks; verbs and flags in the running text."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    wrong: list[str] = []
    for page in PAGES:
        made = [line.split()[1] for line in lines(page) if line.startswith("make ")]
        wrong += [f"{page.name}: make {target}" for target in made if target not in targets]
        for span in re.findall(r"`([^`]+)`", prose(page)):
            words = span.split()
            if words[0] == "rfast" and len(words) > 1 and words[1] not in {*VERBS, "VERB"}:
                wrong.append(f"{page.name}: {span}")
            flags = [word.split("=")[0] for word in words if re.match(r"--[a-z]", word)]
            if words[0] == "python" and words[1].startswith("benchmarks/"):
                known = (ROOT / words[1]).read_text() + (ROOT / "benchmarks" / "common.py").read_text()
                wrong += [f"{page.name}: {span}" for flag in flags if f'"{flag}"' not in known]
                continue
            ours = {"algorithm", "hidden", "model", *own_options(), *bench_options()}  # and what nodes/ have
            wrong += [f"{page.name}: {flag}" for flag in flags if flag[2:] not in ours]
    assert wrong == []


# ------------------------------------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_link_leads_somewhere() -> None:
    wrong = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if re.match(r"https?://", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                wrong.append(f"{page.name}: {link}")
    assert wrong == []


@cache
def our_tests() -> set[str]:
    """The name of every test there is."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("test_*.py"))
    return {
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_and_file_that_is_named_exists(page: Path) -> None:
    spans = re.findall(r"`([^`\s]+)`", prose(page))
    named = {span for span in spans if re.fullmatch(r"test_\w+", span)}
    assert named - our_tests() == set()
    folders = r"(rfast_zmq|tests|nodes|topologies|docs|benchmarks)/[\w./-]*"
    files = {span for span in spans if re.fullmatch(folders, span)}
    assert {file for file in files if not (ROOT / file).exists()} == set()


# ------------------------------------------------------------------------------------------- pages of reference


def first_columns(page: str) -> set[str]:
    """Every word in code type in the first column of a page's tables."""
    rows = re.findall(r"^\| (`[^|]*) \|", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE)
    return {span for row in rows for span in re.findall(r"`([^`]+)`", row)}


def test_the_command_lines_page_has_every_flag_and_every_field() -> None:
    page = first_columns("cli.md")
    flags = {span.split()[0][2:] for span in page if span.startswith("--")}
    assert flags >= {*own_options(), *bench_options()} - {"help", "version"}
    assert page >= {f.name for f in fields(Result)}
    whole = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for cls in (Point, NodePoint):
        assert [f.name for f in fields(cls) if f"`{f.name}`" not in whole] == []


def test_the_tasks_page_has_every_callback() -> None:
    page = {span.split("(")[0] for span in first_columns("tasks.md")}
    callbacks = {name for name, value in vars(Task).items() if callable(value) and not name.startswith("_")}
    assert page >= callbacks - {"option", "shard"}  # these are called by the task, and stand in the text
