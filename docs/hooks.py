"""What the site needs beyond the pages of docs/ (`make docs`): pages that lie outside of that folder, links to them,
and docstrings in Markdown.

Links in README.md and docs/ are written for a code host. Here they are turned towards the site's own pages; one that
leads nowhere is left as it is, and fails the build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "files/changelog.md", "LICENSE": "files/license.md"}
"""Pages outside of docs/, and where on the site they are."""
FOLDERS = {"nodes": ("Example tasks", "py"), "topologies": ("Topology files", "toml")}
"""Folders whose files stand on one page each: its title and their language."""
SOURCES = {page: source for source, page in PAGES.items()}

FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!https?://|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
ROLE = re.compile(r":\w+:`(?:~[\w.]*?)?([\w.]+)`")
TOGETHER = re.compile(r"^( +)(\w+(?:, \w+)+)(: .*(?:\n\1 .*)*)", re.MULTILINE)
"""Several arguments or attributes that are described together, with all lines of the description."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors as code hosts make them."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = _anchor
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if not source.endswith(".md"):
            text = f"# License\n\n```text\n{text}\n```\n"
        files.append(File.generated(config, page, content=text))
    for folder in FOLDERS:
        files.append(File.generated(config, f"files/{folder}.md", content=_listing(folder)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that are written for a code host towards the site's own pages."""
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")

    def turned(link: re.Match[str]) -> str:
        target = _place(posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1])))
        if target is None:
            return link[0]
        return posixpath.relpath(target, posixpath.dirname(here) or ".") + (link[2] or "")

    parts = FENCE.split(markdown)
    return "".join(part if at % 2 else LINK.sub(turned, part) for at, part in enumerate(parts))


def _place(path: str) -> str | None:
    """Where on the site a file of the repository is; None: nowhere."""
    folder, _, name = path.partition("/")
    if folder == "docs":
        return name
    if folder in FOLDERS:
        return f"files/{folder}.md" + (f"#{name}" if name else "")
    return PAGES.get(path)


def _listing(folder: str) -> str:
    title, language = FOLDERS[folder]
    text = f"# {title}\n\nThe files of `{folder}/`.\n"
    for path in sorted((ROOT / folder).glob(f"*.{language}")):
        content = path.read_text(encoding="utf-8").rstrip()
        text += f"\n## {path.name} {{#{path.name}}}\n\n```{language}\n{content}\n```\n"
    return text


def _anchor(heading: str, separator: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


class Markdown(Extension):
    """Docstrings have Sphinx's roles (``:class:`Task```), which are code on a page in Markdown; and arguments that are
    described together, which the reader of docstrings wants apart."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = TOGETHER.sub(_apart, text)


def _apart(together: re.Match[str]) -> str:
    return "\n".join(f"{together[1]}{name}{together[3]}" for name in together[2].split(", "))
