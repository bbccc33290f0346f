"""Slices as text: in the address of the page, in the box one chooses from, in the daemon's questions. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

KEYS = {
    "replica": "replica", "position": "position in the sequence", "version": "weight version", "cached": "prefix cache",
    "lag": "lag in versions", "env": "environment", "turn": "turn", "probability": "probability bin",
}
"""Key of a slice → what people call it."""

SLICED = ("replica", "position", "version", "cached", "lag")
LABELLED = ("env", "turn", "probability", "replica", "version")
"""Which keys can be looked at together: those of the stored slices, and those of the sampled rollouts."""

_PART = re.compile(rf"(?:^|[;,&]\s*)({'|'.join(KEYS)})\s*[=:]")


def read(text: str | None) -> dict[str, str]:
    """A slice out of the page's address; what is no slice is left out.

    >>> read("replica=http://10.0.0.3:8000;position=4k-16k"), read("position:16k+"), read("hello"), read(None)
    ({'replica': 'http://10.0.0.3:8000', 'position': '4k-16k'}, {'position': '16k+'}, {}, {})
    """
    text = (text or "")[:1024]
    found: dict[str, str] = {}
    marks = list(_PART.finditer(text))
    for index, mark in enumerate(marks):
        end = marks[index + 1].start() if index + 1 < len(marks) else len(text)
        if value := text[mark.end():end].strip():
            found.setdefault(mark.group(1), value)
    return found


def write(slice_: Mapping[str, str]) -> str:
    """The inverse of `read`.

    >>> write({"replica": "a", "position": "0-1k"})
    'replica=a;position=0-1k'
    """
    return ";".join(f"{key}={value}" for key, value in slice_.items())


def say(slice_: Mapping[str, str]) -> str:
    """A slice in words, not escaped.

    >>> say({"replica": "http://10.0.0.3:8000", "cached": "hit"}), say({"position": "0-1k"}), say({})
    ('replica 10.0.0.3:8000, prefix cache hit', 'position in the sequence 0-1k', 'everything')
    """
    return ", ".join(f"{KEYS[key]} {short(value)}" for key, value in slice_.items()) or "everything"


def short(value: object) -> str:
    """A replica without what all replicas share; other values as they are.

    >>> short("http://10.0.0.3:8000/"), short(None)
    ('10.0.0.3:8000', 'unknown')
    """
    return "unknown" if value is None else re.sub(r"^https?://", "", str(value)).rstrip("/")


def filters(slice_: Mapping[str, str], *, by: tuple[str, ...]) -> tuple[str, ...] | None:
    """The daemon's `only` for a chart that breaks down by `by`: the other keys; None where the two cannot be looked at together.

    >>> filters({"replica": "a", "position": "0-1k"}, by=("replica",)), filters({"cached": "hit"}, by=("env",)), filters({"env": "x"}, by=("replica",))
    (('position=0-1k',), None, ('env=x',))
    """
    rest = {key: value for key, value in slice_.items() if key not in by}
    wanted = {*rest, *by}
    if "probability" in rest or not (wanted <= set(SLICED) or wanted <= set(LABELLED)):
        return None
    return tuple(f"{key}={value}" for key, value in rest.items())
