"""``rfast bench report``: what the tables, figures and pages say is what the runs say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import inf
from pathlib import Path
from shutil import copytree
from statistics import median

import pytest

from rfast_zmq.bench.suites import catalogue
from rfast_zmq.bench.suites.ground import ALONE, no_wait_rate
from rfast_zmq.bench.suites.report import section, side_by_side, write
from rfast_zmq.bench.suites.runner import OWN, Runner
from rfast_zmq.bench.suites.standings import ratios, reached, spread, tables_of
from rfast_zmq.bench.suites.store import RUNS, Store
from rfast_zmq.errors import UsageError

from .toy import AIM, BLOCK, CELL, CHOICE, OURS, RING, SINGLE, TOY, toy


def test_the_tables_say_what_the_runs_say(done: Path, tmp_path: Path) -> None:
    store = Store(done, "toy")
    plain, lossy = tables_of(toy(BLOCK), store)
    ours, ring = plain.named("rfast-tree"), plain.named("ring-allreduce")
    assert ours
    assert ring
    rows = {
        (row["contestant"], row["seed"]): row
        for row in store.runs.values()
        if row["seed"] < 1000 and row["cell"] in (CELL.key, "iid/even")
    }
    times = [[rows[label, seed]["target_s"] for seed in range(3)] for label in ("rfast-tree", "ring-allreduce")]
    assert ours.median_s() == median(times[0])
    figure, limit = reached([plain])
    assert figure.value == median(theirs / mine for mine, theirs in zip(*times, strict=True))
    assert figure.value > 1, "a ring of three waits for its straggler"
    rate = TOY.batch / 3 / TOY.share_s * (2 + 1 / 5)  # three nodes, of which one is five times slower
    assert no_wait_rate(replace(TOY, nodes=3), replace(CELL, speeds="straggler")) == pytest.approx(rate)
    alone = [rows[ALONE, seed]["target_samples"] / rate for seed in range(3)]
    assert limit.value == pytest.approx(median(a / mine for a, mine in zip(alone, times[0], strict=True)))
    kept, waits = (median(plain.computed(of).values()) for of in (ours, ring))  # type: ignore[type-var]
    assert kept == pytest.approx(1.0, abs=0.15), "nobody waits, and virtual time keeps every pace"
    assert waits == pytest.approx(3 / 5 / 2.2, rel=0.15), "all go at the pace of the slowest"
    assert lossy.named("ring-allreduce").stops  # type: ignore[union-attr]

    files = write(done)
    text = files[0].read_text()
    assert re.search(rf"`rfast-tree` \| sgd [\d.]+ \| {median(times[0]):.3g} \(", text)
    assert "`ring-allreduce` | " in text
    assert "| stops |" in text
    assert "no-wait limit" in text
    for picture in files[1:]:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"]({picture.name})" in text


def test_what_was_run_of_another_series_or_with_too_few_seeds_is_no_verdict(done: Path, tmp_path: Path) -> None:
    copytree(done, tmp_path, dirs_exist_ok=True)
    suite, runs = toy(BLOCK), tmp_path / RUNS
    before = tables_of(suite, Store(done, "toy"))[0]
    rows = [json.loads(line) for line in runs.read_text().splitlines()]
    ours = [row for row in rows if row["contestant"] == "rfast-tree" and row["cell"] == CELL.key and row["seed"] == 2]
    others = [{**row, "key": f"other {row['key']}", "series": "of other data", "target_s": 1e-3} for row in rows]
    runs.write_text("".join(json.dumps(row) + "\n" for row in rows + others))
    assert tables_of(suite, Store(tmp_path, "toy"))[0] == before
    runs.write_text("".join(json.dumps(row) + "\n" for row in rows if row not in ours))
    table = tables_of(suite, Store(tmp_path, "toy"))[0]
    assert [f.reached for f in reached([table])] == [None, None]
    text = write(tmp_path)[0].read_text()
    assert "`rfast-tree` (2 of 3 seeds) |" in text
    assert "`ring-allreduce` |" in text
    assert "| 2 pairs of seeds are too few to say |" in text


def test_a_page_is_written_between_its_marks_and_stays_as_it_is_elsewhere(done: Path, tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("before\n<!-- toy/toy -->\nold\n<!-- end toy/toy -->\nafter\n")
    for _ in range(2):
        files = write(done, page)
        text = page.read_text()
        assert text.startswith("before\n<!-- toy/toy -->")
        assert text.endswith("<!-- end toy/toy -->\nafter\n")
        assert "old" not in text
        assert text.count("**iid split, one 5× straggler**") == 1
        assert all(path.parent == tmp_path / "images" / "bench" for path in files[1:])
        assert "](images/bench/toy-toy-times.png)" in text


def test_tables_of_ones_own_b_have_a_place_of_their_own_on_a_page_that_gives_them_one(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is there stays, where there are no new ones."""
    block = replace(BLOCK, own_cells=(CELL,), aims=(AIM, replace(AIM, what="ours at its best", table=OWN)))
    monkeypatch.setitem(catalogue.SUITES, "toy", toy(block))
    both, page = tmp_path / "both", tmp_path / "benchmarks.md"
    copytree(done, both)
    tuned = [json.loads(line) for line in (both / "tuned.jsonl").read_text().splitlines()]
    with (both / "tuned.jsonl").open("a") as file:
        file.writelines(f"{json.dumps({**line, 'table': OWN})}\n" for line in tuned)
    marks = "<!-- toy/toy -->\n<!-- end toy/toy -->\nbetween\n<!-- toy/toy/own -->\nold\n<!-- end toy/toy/own -->\n"
    page.write_text(marks)
    write(both, page)
    fixed, own = page.read_text().split("\nbetween\n")
    for kind, other, title in ((fixed, own, "each at its best lr"), (own, fixed, "each at its own best B and lr")):
        assert kind.count(f"{title}\n") == 1
        assert f"{title}\n" not in other
    assert "toy-toy-times-own.png" in own
    assert "toy-toy-times.png" in fixed
    assert "ours at its best" in own
    assert "ours at its best" not in fixed
    assert "old" not in own
    page.write_text(marks)
    write(done, page)
    fixed_alone, own = page.read_text().split("\nbetween\n")
    assert fixed_alone == fixed
    assert own == "<!-- toy/toy/own -->\nold\n<!-- end toy/toy/own -->\n"


def test_grounds_of_more_and_more_nodes_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the number of nodes, a column each; whoever does not run on so many is said not to."""
    few, many = (
        replace(
            BLOCK,
            part=str(nodes),
            ground=replace(TOY, name=f"toy-{nodes}", nodes=nodes),
            contestants=(OURS, replace(RING, nodes_most=3), SINGLE),
            cells=(CELL,),
            reference=ALONE,
            aims=(),
        )
        for nodes in (3, 4)
    )
    suite = toy(few, many)
    monkeypatch.setitem(catalogue.SUITES, "toy", suite)
    for part in ("3", "4"):
        Runner(suite, replace(CHOICE, seeds=1, parts=(part,)), Store(tmp_path, "toy"), lambda _: None).run()
    table, wider = tables_of(suite, Store(tmp_path, "toy"))
    text = (report := write(tmp_path))[0].read_text()
    assert "3 to 4 nodes, in virtual time" in text
    assert "| 3 nodes | 4 nodes |" in text
    ours, theirs = (t.named("rfast-tree") for t in (table, wider))
    assert ours and theirs  # noqa: PT018
    assert f"| `rfast-tree` | {ours.median_s():.3g} | {theirs.median_s():.3g} |" in text
    assert re.search(r"\| `ring-allreduce` \| [\d.]+ \| not run \|", text)
    assert tmp_path / "toy-nodes.png" in report
    page = tmp_path / "page.md"
    page.write_text("<!-- toy/nodes -->\n<!-- end toy/nodes -->\n")
    write(tmp_path, page)
    assert "| 3 nodes | 4 nodes |" in page.read_text()


def test_over_the_number_of_nodes_it_is_said_how_many_seeds_never_got_there(done: Path) -> None:
    (table, *_) = tables_of(toy(BLOCK), Store(done, "toy"))
    (ours,) = (s for s in table.standings if s.contestant.label == "rfast-tree")

    def told(times: dict[int, float | None], **more: object) -> list[str]:
        """The row of times and that of MB of somebody who took so long."""
        rows = {
            seed: {**ours.runs[0], "seed": seed, "target_s": t, "target_bytes": t and t * 1e6, "accuracy": 0.5, **more}
            for seed, t in times.items()
        }
        table.standings = [replace(ours, runs=rows)]
        return [line for line in side_by_side([table], "x.png").splitlines() if line.startswith("| `rfast-tree`")]

    assert told({0: 2.0, 1: 1676.8, 2: 999.6}) == ["| `rfast-tree` | 1,000 (2 to 1,677) |"] * 2
    assert told({0: 2.0, 1: None, 2: 3.0})[0] == "| `rfast-tree` | 3 (2 to never), 1 of 3 seeds never |"
    assert told({0: None, 1: None, 2: 3.0})[0] == "| `rfast-tree` | never (0.500 at the end), 2 of 3 seeds never |"
    assert told({0: None, 1: None})[0] == "| `rfast-tree` | never (0.500 at the end) |"
    assert told({0: None}, stops="no answer to loss") == ["| `rfast-tree` | stops |", "| `rfast-tree` |  |"]


def test_only_conditions_that_occur_are_told(done: Path) -> None:
    (table, *_) = tables_of(toy(BLOCK), Store(done, "toy"))
    said = section(TOY, [table], [], [])
    assert "with a straggler, node 2 takes 5 times" in said
    assert "lognormal" not in said
    assert "compared seed by seed" in said
    table.cell = replace(table.cell, speeds="lognormal")
    table.standings = [s for s in table.standings if s.contestant.label != BLOCK.reference]
    said = section(TOY, [table], [], [])
    assert "straggler, node" not in said
    assert "lognormal: each share" in said
    assert "compared seed by seed" not in said


def test_a_seed_that_was_never_at_the_target_counts_as_never() -> None:
    assert spread([1.0, None, 3.0], "{:.0f}".format) == "3 (1 to never)"
    assert ratios({0: 4.0, 1: None, 2: 1.0, 3: None}, {0: 2.0, 1: 2.0, 2: None, 3: None}) == [2.0, inf, 0.0]


def test_who_gets_there_where_the_others_never_do_is_not_said_to_be_never_there(done: Path) -> None:
    (table, *_) = tables_of(toy(BLOCK), Store(done, "toy"))
    theirs = table.named(BLOCK.reference)
    assert theirs is not None
    theirs.runs[0]["target_s"] = None
    lines = section(TOY, [table], [], []).splitlines()
    (ours,) = (line for line in lines if line.startswith("| `rfast-tree` |"))
    assert " to ∞) |" in ours
    assert "never" not in ours


def test_runs_of_other_data_side_by_side_are_pointed_out(done: Path, tmp_path: Path) -> None:
    copytree(done, tmp_path, dirs_exist_ok=True)
    rows = [json.loads(line) for line in (tmp_path / RUNS).read_text().splitlines()]
    for name, warned in (("one", False), ("another", True)):
        for row in rows:
            row["data"] = name if row["contestant"] == ALONE else "one"
        (tmp_path / RUNS).write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert ("more than one data file" in write(tmp_path)[0].read_text()) == warned


def test_a_page_that_cannot_be_written_is_said_in_one_line(done: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- toy/toy -->\n<!-- end toy/toy -->\n")
    (tmp_path / "page.md.part").mkdir()
    with pytest.raises(UsageError, match=r"page\.md\.part: Is a directory"):
        write(done, page)
    assert "<!-- end toy/toy -->" in page.read_text(), "and what was there is"


def test_who_was_searched_anew_and_has_not_run_since_stands_there_as_before(done: Path, tmp_path: Path) -> None:
    copytree(done, tmp_path, dirs_exist_ok=True)
    before = tables_of(toy(BLOCK), Store(done, "toy"))
    store = Store(tmp_path, "toy")
    store.add_tuned({**store.tuned()[0], "lr": 1e-9, "series": "of another lr"})
    assert tables_of(toy(BLOCK), Store(tmp_path, "toy")) == before


def test_a_figure_that_was_not_measured_stands_in_the_report_with_the_reason(done: Path) -> None:
    aims = [
        (replace(AIM, ours=("rfast",)), "not run"),
        (replace(AIM, over="ddp"), "`ddp` was not run"),
        (replace(AIM, cell=replace(CELL, loss=0.3)), "`ring-allreduce` stops"),
        (replace(AIM, cell=replace(CELL, speeds="even")), "not run"),
    ]
    block = replace(BLOCK, aims=tuple(aim for aim, _ in aims))
    tables = tables_of(toy(block), Store(done, "toy"))
    assert [f.why for f in reached(tables)] == [why for _, why in aims]
    lines = section(TOY, tables, reached(tables), []).splitlines()
    assert [line.split(" | ")[2] for line in lines if line.startswith("| ours")] == [why for _, why in aims]


def test_on_its_best_topology_is_what_the_seeds_for_tuning_say(done: Path) -> None:
    (table, *_) = tables_of(toy(BLOCK), Store(done, "toy"))
    ours = table.named("rfast-tree")
    assert ours
    lucky = replace(ours, contestant=replace(OURS, label="lucky"), tuned=(ours.tuned[0] * 2, 0.0))
    lucky.runs = {seed: row | {"target_s": row["target_s"] / 2} for seed, row in ours.runs.items()}
    table.standings.append(lucky)
    block = replace(BLOCK, aims=(replace(AIM, ours=("lucky", "rfast-tree")),))
    table.block = block
    (figure,) = reached([table])
    assert figure.label == "rfast-tree"
    assert lucky not in table.best_of_each_algorithm()
