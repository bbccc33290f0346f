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

LONGEST = 512  # characters


def read(text: str) -> dict[str, str]:
    """A mark's slice; what is none is left out.

    >>> read("replica=http://10.0.0.3:8000"), read("hello"), read("colour=red")
    ({'replica': 'http://10.0.0.3:8000'}, {}, {})
    """
    return known(dict([text.partition("=")[::2]]))


def known(slice_: Mapping[str, str]) -> dict[str, str]:
    """The part of a slice that can be looked at; an alarm's may name more (single requests).

    >>> known({"replica": "a", "requests": "f3", "turn": ""})
    {'replica': 'a'}
    """
    return {key: value[:LONGEST] for key, value in slice_.items() if key in KEYS and value}


def write(key: str, value: str) -> str:
    """The inverse of `read`.

    >>> write("position", "0-1k")
    'position=0-1k'
    """
    return f"{key}={value}"


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
