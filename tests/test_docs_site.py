"""The documentation site: built strictly, every link and anchor there, nothing asked of another host, pictures as the code draws them."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent


class Seen(HTMLParser):
    """Links, anchors, and what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()

    def handle_starttag(self, tag, attrs):
        said = dict(attrs)
        self.anchors |= {said[key] for key in ("id", "name") if said.get(key)}
        if tag == "a" and said.get("href"):
            self.links.append(said["href"])
        elif tag == "link" and said.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loads.append(said["href"])
        elif tag in ("script", "img", "iframe", "source") and said.get("src"):
            self.loads.append(said["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Address of each page → what is in it."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {}
    for path in folder.rglob("*.html"):
        pages[path.relative_to(folder)] = seen = Seen()
        seen.feed(path.read_text(encoding="utf-8"))
    return folder, pages


def test_every_page_of_docs_is_there_and_in_the_navigation(site):
    folder, pages = site
    told = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for source in (ROOT / "docs").rglob("*.md"):
        name = source.relative_to(ROOT / "docs").with_suffix(".html")
        assert source.stem == "README" or str(source.relative_to(ROOT / "docs")) in told or source.parent.name in ("runbooks", "quickstarts", "decisions"), f"{source}: not in mkdocs.yml"
        assert (name if source.stem != "README" else name.with_name("index.html")) in pages, source
    assert len(pages) > 60


def test_every_link_and_anchor_inside_the_site_leads_somewhere(site):
    folder, pages = site
    broken = []
    for page, seen in pages.items():
        if page.name == "404.html":
            continue
        for link in seen.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (folder / page.parent / unquote(parts.path)).resolve() if parts.path else (folder / page).resolve()
            target = target / "index.html" if target.is_dir() else target
            inside = target.relative_to(folder) if target.is_relative_to(folder) else None
            if not target.is_file() or (parts.fragment and inside in pages and unquote(parts.fragment) not in pages[inside].anchors):
                broken.append(f"{page}: {link}")
    assert not broken


def test_no_page_loads_anything_from_another_host(site):
    _, pages = site
    assert not [f"{page}: {load}" for page, seen in pages.items() for load in seen.loads if urlsplit(load).netloc]


def test_the_pictures_are_those_the_code_draws(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import pictures

    for name, draw in pictures.PICTURES.items():
        assert (ROOT / "docs" / "pictures" / name).read_text(encoding="utf-8") == draw(), f"run: python docs/pictures.py ({name})"
