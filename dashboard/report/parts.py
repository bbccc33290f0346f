"""What a post-mortem is made of. Each part holds plain text, from outside or not; the template alone turns it into HTML, and escapes it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pandas as pd

Cell = str | tuple[str, str]
"""Text, or (text, tone) with tone good, bad, warn or info."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Sentences; `tone` colours them as a band."""

    kind: ClassVar[str] = "words"
    lines: Sequence[str]
    tone: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Named numbers, each with its definition."""

    kind: ClassVar[str] = "facts"
    title: str
    rows: Sequence[tuple[str, str, str]]  # name, value, definition
    empty: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table under its title, with what it means."""

    kind: ClassVar[str] = "table"
    title: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    empty: str = "Nothing is recorded."


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to type, and what mends it."""

    kind: ClassVar[str] = "command"
    text: str
    fix: str = ""
    more: tuple[str, str] | None = None  # title and text of what to read on


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A chart as two pictures, for a page and for a phone, with its explanation and its numbers; `empty` says why there is none."""

    kind: ClassVar[str] = "figure"
    name: str
    title: str
    about: str
    wide: str = ""  # SVG
    narrow: str = ""
    numbers: pd.DataFrame | None = None
    empty: str = ""

    @property
    def csv(self) -> str:
        """The numbers as the address of a download that lies in the page itself; "" without any."""
        if self.numbers is None:
            return ""
        return "data:text/csv;base64," + base64.b64encode(self.numbers.to_csv(index=False).encode()).decode()


Part = Words | Facts | Table | Command | Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A chapter, with its anchor."""

    anchor: str
    title: str
    about: str = ""
    parts: list[Part] = field(default_factory=list)
