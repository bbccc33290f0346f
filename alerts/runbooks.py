"""What to do, a page a cause and a hard fact: runbooks.toml with the causes' texts, as Markdown.

    python -m alerts.runbooks docs/runbooks        # writes the pages again
"""

from __future__ import annotations

import functools
import sys
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from alerts import words
from collector.errors import InputError
from diagnosis.causes import CAUSE_TEXTS


@functools.cache
def _table() -> dict[str, dict[str, dict[str, Any]]]:
    return tomllib.loads(resources.files("alerts").joinpath("runbooks.toml").read_text(encoding="utf-8"))


def names() -> tuple[str, ...]:
    """Every page there is: causes first, then hard facts."""
    return (*_table()["cause"], *_table()["fact"])


def about(name: str) -> str:
    """One line: what the page is about. Raises InputError for an unknown name."""
    if name in _table()["cause"]:
        return CAUSE_TEXTS[name].meaning
    if name in _table()["fact"]:
        return words.FACT_TITLES.get(name, name.replace("_", " "))
    raise InputError(f"no runbook is called {name!r}; there are {', '.join(names())}")


def page(name: str) -> str:
    """The Markdown of one page.

    Raises:
        InputError: there is no such cause or fact; the text lists them.
    """
    lines = [f"# {name}", "", about(name)[:1].upper() + about(name)[1:] + ".", ""]
    cause = _table()["cause"].get(name)
    entry = cause or _table()["fact"][name]
    if cause is not None:
        lines += ["## What you see", "", entry["seen"], "", "## Make sure", ""]
        lines += [f"- `{command}`: {means}" for command, means in entry["confirm"]]
        lines += [""]
    else:
        lines += ["A hard fact: it holds or it does not, and spends nothing of the false-alarm budget.", "", "## Make sure", "",
                  f"- `{words.FACT_NEXT.get(name, words.DEFAULT_NEXT)}`", ""]
    lines += ["## Now", "", *(f"{i}. {step}" for i, step in enumerate(entry["now"], start=1)), ""]
    if cause is not None:
        fix = CAUSE_TEXTS[name].fix
        lines += ["## So that it stays away", "", *(f"- {step}" for step in ((fix,) if fix else ())), *(f"- {step}" for step in entry["later"]), ""]
    return "\n".join(lines)


def index() -> str:
    """The Markdown of docs/runbooks/README.md."""
    lines = ["# Runbooks", "", "A page for every verdict and every hard fact; `klaxon runbook NAME` prints one. Made of `alerts/runbooks.toml` and `diagnosis/causes.py`:", "",
             "    python -m alerts.runbooks docs/runbooks", ""]
    return "\n".join([*lines, *(f"- [{name}]({name}.md): {about(name)}" for name in names()), ""])


def write(folder: Path) -> None:
    """Every page and the index into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names():
        (folder / f"{name}.md").write_text(page(name), encoding="utf-8")
    (folder / "README.md").write_text(index(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
