"""The pages of docs/ are all in the menu of the site; the API reference has every public name, each with a docstring.

(`make docs` builds the site, and fails where a link leads nowhere.)
"""

from __future__ import annotations

import inspect
import re
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import rfast_zmq
from rfast_zmq import optim, topology

ROOT = Path(__file__).parents[1]
SHOWN = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_page_is_in_the_menu() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    menu = re.findall(r"^ +- [^:]+: (\S+\.md)$", text[text.index("nav:") :], re.MULTILINE)
    made = {page for page in menu if page == "index.md" or page.startswith("files/")}  # of what is outside of docs/
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == set(menu) - made


def test_every_public_name_is_in_the_api_reference() -> None:
    public = {f"rfast_zmq.{name}" for name in rfast_zmq.__all__ if name != "__version__"}
    public |= {f"{module.__name__}.{name}" for module in (optim, topology) for name in module.__all__}
    own = {"rfast_zmq.topology.Topology"}  # stands there by its shorter name
    assert public - own - set(SHOWN) == set()
    assert len(set(SHOWN)) == len(SHOWN)


def members(name: str) -> dict[str, Any]:
    """The object of that name, and what is public in it if it is a class of ours."""
    module, _, last = name.rpartition(".")
    found = getattr(import_module(module), last)
    inside = vars(found) if inspect.isclass(found) else {}
    kinds = (FunctionType, property, cached_property, classmethod)
    public = {member: value for member, value in inside.items() if not member.startswith("_")}
    return {name: found, **{f"{name}.{m}": value for m, value in public.items() if isinstance(value, kinds)}}


@pytest.mark.parametrize("name", SHOWN)
def test_every_public_name_has_a_docstring(name: str) -> None:
    for member, value in members(name).items():
        if not isinstance(value, dict | int):  # a constant's stands in the source alone
            said = value.__doc__ or ""
            assert said.strip(), member
            assert not said.startswith(f"{member.rpartition('.')[2]}("), member  # what dataclass makes up
