"""One link of the chain, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

State = Literal["ok", "wait", "warn", "broken", "off", "unknown"]
ORDER = ("state", "daemon", "engine", "tap", "clock", "inbox", "trainer", "weights", "scorer", "detectors", "store", "alerts", "exporters")
"""The links in the order data flow through them, after the two that all of them need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """`state`: ok; wait (too early to say); warn (data flow, but wrong, late or partly); broken (nothing passes here); off (not
    configured); unknown (cannot be looked at from here). `since` in UTC seconds; `next` is a command to type, "" where none helps."""

    name: str  # one of ORDER
    state: State
    text: str  # what was looked at, and what was found
    since: float | None = None
    counts: Mapping[str, int | float] = field(default_factory=dict)
    next: str = ""


def worst(links: Iterable[Link]) -> list[Link]:
    """One link a name: of several findings the gravest stays, with what else is wrong behind its text."""
    rank = {state: place for place, state in enumerate(("broken", "warn", "wait", "unknown", "ok", "off"))}
    found: dict[str, Link] = {}
    for link in links:
        known = found.setdefault(link.name, link)
        if known is link:
            continue
        first, second = (known, link) if rank[known.state] <= rank[link.state] else (link, known)
        if second.state in ("broken", "warn"):
            first = replace(first, text=f"{first.text}. Also: {second.text}", counts={**second.counts, **first.counts}, next=first.next or second.next)
        found[link.name] = first
    return [found[name] for name in ORDER if name in found]


def first_broken(links: Iterable[Link]) -> Link | None:
    """The first link through which nothing passes; else the first that lets through what is wrong; None when all is well."""
    links = list(links)
    return next((link for link in links if link.state == "broken"), next((link for link in links if link.state == "warn"), None))


def ago(now: float, at: float | None) -> str:
    """How long ago, in words.

    >>> ago(100.0, 40.0), ago(100.0, None)
    ('60 s ago', 'never')
    """
    if at is None:
        return "never"
    return f"{span(now - at)} ago"


def span(seconds: float) -> str:
    """Seconds in words.

    >>> span(59.6), span(600), span(7200), span(200000)
    ('60 s', '10 min', '2.0 h', '2.3 days')
    """
    seconds = max(0.0, seconds)
    for limit, unit, name in ((120, 1, "s"), (7200 - 1, 60, "min"), (2 * 86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if unit < 3600 else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86400:.1f} days"


def some(value: Any, limit: int = 300) -> str:
    """Somebody else's text, short and without control characters: it goes to a terminal."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"
