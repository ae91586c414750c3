"""Settings as JSON: what was written is read, and nothing else is let in."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from rfast_zmq.errors import UsageError
from rfast_zmq.settings import Settings

ALL = Settings(
    nodes=3,
    topology="ring",
    algorithm="rfast",
    algorithm_option=("a=1",),
    split="label",
    samples=10**12,
    target=0.5,
    optimizer="sgd",
    lr=0.1,
    momentum=0.0,
    beta2=0.99,
    eps=1e-6,
    weight_decay=1e-4,
    clip_norm=2.0,
    bucket_bytes=65536,
    wire="int8",
    global_batch=30,
    report_batch=5,
    compute="constant:0.1",
    straggler=("1:5", "2:3"),
    pace=0.0,
    resend=0.3,
    drop=0.1,
    duplicate=0.2,
    reorder=0.3,
    seed=7,
    data="ä b.npz",
    evaluate_every=0.5,
    device="cpu",
    task_options={"model": 'log"reg'},
)


@pytest.mark.parametrize("settings", [Settings(), ALL, Settings().resolved({"samples": 5})])
def test_settings_are_the_same_after_a_walk_through_json(settings: Settings) -> None:
    again = Settings.from_json(settings.to_json())
    assert again == settings
    for f in fields(Settings):
        assert type(getattr(again, f.name)) is type(getattr(settings, f.name))
    assert list(json.loads(settings.to_json())) == [f.name for f in fields(Settings)]


def test_the_example_leaves_no_field_at_its_default() -> None:
    default = Settings()
    assert [f.name for f in fields(Settings) if getattr(ALL, f.name) == getattr(default, f.name)] == []


def test_what_is_not_there_keeps_its_default_and_a_whole_number_will_do_for_a_real_one() -> None:
    assert Settings.from_json('{"lr": 1}') == Settings(lr=1.0)
    assert Settings.from_json(b"{}") == Settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"learning_rate": 1}', ["learning_rate", "no such setting", "lr"]),
        ('{"nodes": "7"}', ["nodes:", "`int | null`", "`str`"]),
        ('{"nodes": 7.0}', ["nodes:", "`int | null`", "`float`"]),
        ('{"nodes": true}', ["nodes:", "`bool`"]),
        ('{"topology": null}', ["topology:", "`str`", "`null`"]),
        ('{"straggler": "6:5"}', ["straggler:", "`array`"]),
        ('{"straggler": ["6:5", 3]}', ["straggler[1]:", "`int`"]),
        ('{"task_options": {"dim": 16}}', ["task_options", "`int`"]),
        ('{"lr": -1}', ["--lr -1", "above 0"]),
        ('{"lr": 1e999}', ["out of range"]),
        ('{"lr": NaN}', ["malformed"]),
        ('{"lr": 0.1', ["truncated"]),
        ("[1]", ["`object`"]),
        ("", ["truncated"]),
        (b"\xff\xfe", ["malformed"]),
        ('{"lr": ' + "[" * 100_000, ["no settings"]),
    ],
)
def test_anything_else_is_refused_by_name(text: str | bytes, says: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        Settings.from_json(text)
    for words in says:
        assert words in str(refused.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"nodes": "3"}, "nodes is '3': want a whole number"),
        ({"nodes": 2.5}, "nodes is 2.5: want a whole number"),
        ({"nodes": True}, "nodes is True: want a whole number"),
        ({"seed": None}, "seed is None: want a whole number"),
        ({"lr": "x"}, "lr is 'x': want a number"),
        ({"drop": [0.1]}, "drop is [0.1]: want a number"),
        ({"split": 3}, "split is 3: want a string"),
        ({"bucket_bytes": 2.0**20}, "bucket_bytes is 1048576.0: want a whole number"),
        ({"bucket_bytes": 1023}, "--bucket-bytes 1023: from 1024 to 16777216"),
        ({"bucket_bytes": 2**24 + 1}, "--bucket-bytes 16777217: from 1024 to 16777216"),
        ({"pace": -0.1}, "--pace -0.1: must be 0 or more seconds"),
        ({"pace": "auto"}, "pace is 'auto': want a number"),
        ({"straggler": "6:5"}, "straggler is '6:5': want some strings"),
        ({"task_options": {"dim": 16}}, "task_options is {'dim': 16}: want a dict of strings"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as refused:
        Settings(**given)
    assert str(refused.value) == says


@pytest.mark.parametrize(
    ("defaults", "says"),
    [
        ({"samples": "many"}, "the task's defaults: samples is 'many': want a whole number"),
        ({"lr": -1.0}, "the task's defaults: --lr -1.0: must be a number above 0"),
        (["lr"], "the task's defaults are ['lr']: want a dict"),
        ({"seed": 3}, "the task's defaults name 'seed'; a task has a say in clip_norm, data"),
    ],
)
def test_what_a_task_cannot_want(defaults: Any, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        Settings().resolved(defaults)
    assert str(refused.value).startswith(says)


def test_buckets_of_a_megabyte_and_the_algorithms_own_pace_unless_something_else_is_said() -> None:
    settings = Settings().resolved({})
    assert (settings.bucket_bytes, settings.pace) == (2**20, None)
    assert [Settings(bucket_bytes=size).bucket_bytes for size in (1024, 2**24)] == [1024, 2**24]
