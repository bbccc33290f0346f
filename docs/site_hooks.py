"""What the documentation site changes while it is built: folders in the navigation, and links to files that are no pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"\]\((?P<up>(?:\.\./)+)(?P<path>[^)#\s]+)(?:#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """`folder/*.md` in the navigation becomes its pages, README.md first."""
    config["nav"] = [{title: _pages(entry) for title, entry in section.items()} for section in config["nav"]]
    return config


def _pages(entry: Any) -> Any:
    if isinstance(entry, list):
        return [{title: _pages(inner) for title, inner in one.items()} if isinstance(one, dict) else one for one in entry]
    if not entry.endswith("/*.md"):
        return entry
    folder = ROOT / "docs" / entry.removesuffix("/*.md")
    return [str(path.relative_to(ROOT / "docs")) for path in sorted(folder.glob("*.md"), key=lambda path: (path.stem != "README", path.stem))]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A link that leaves docs/ becomes the file's name in the source: the site stands alone."""
    here = (ROOT / "docs" / page.file.src_uri).parent

    def named(found: re.Match[str]) -> str:
        target = (here / found["up"] / found["path"]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return found[0]
        if not target.exists():
            raise FileNotFoundError(f"docs/{page.file.src_uri} links to {found['up']}{found['path']}, which is not there")
        return f"] (`{target.relative_to(ROOT)}`)"

    return _LINK.sub(named, markdown)
