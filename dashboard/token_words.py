"""Tokens as something safe to look at: what a model wrote is hostile. Pure; everything the view draws is decided here.

Levels of d, nats: 0 below 0.03 (the floor of a healthy pair), then 0.03, 0.1, 0.3, 1. Orange: the trainer finds the token likelier than the
engine said (d > 0); blue: less likely.
"""

from __future__ import annotations

import bisect
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

EDGES = (0.03, 0.1, 0.3, 1.0)
LONGEST = 64  # characters shown of one token
_NAMES = {"\n": "⏎", "\r": "⟨CR⟩", "\t": "⇥", "\x1b": "⟨ESC⟩"}
LEVELS = (("m4", "≤ −1"), ("m3", "−0.3"), ("m2", "−0.1"), ("m1", "−0.03"), ("z", "0"), ("p1", "0.03"), ("p2", "0.1"), ("p3", "0.3"), ("p4", "≥ 1"))
KINDS = (("none", "not sampled"), ("unscored", "not scored"))
SCALE = "d = log q − log p, nats:"
UNSAMPLED = "a tool's or the environment's: the policy did not sample it"
UNSCORED = "not scored: a logprob is missing on one side"


def visible(text: object) -> str:
    """Text as it is, but control, direction and invisible signs by name, so that none of them acts on what stands around it.

    >>> visible("a\\n"), visible("\\x1b[31mred"), visible("\\u202etxt"), visible("x\\x00")
    ('a⏎', '⟨ESC⟩[31mred', '⟨U+202E⟩txt', 'x⟨U+0000⟩')
    """
    shown = "".join(_sign(sign) for sign in str(text)[:LONGEST])
    return shown + ("…" if len(str(text)) > LONGEST else "")


def _sign(sign: str) -> str:
    if sign in _NAMES:
        return _NAMES[sign]
    return f"⟨U+{ord(sign):04X}⟩" if unicodedata.category(sign) in ("Cc", "Cf", "Zl", "Zp", "Cs", "Cn") else sign


def level(d: float | None) -> str:
    """The colour's class of d, nats.

    >>> level(0.02), level(-0.2), level(5.0), level(None)
    ('z', 'm2', 'p4', '')
    """
    if d is None:
        return ""
    place = bisect.bisect_right(EDGES, abs(d))
    return "z" if place == 0 else f"{'m' if d < 0 else 'p'}{place}"


def view(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the token view draws of `/v1/tokens/{rollout}`. Every text in it is `visible`."""
    first, size = int(found["first"]), len(found["engine"])
    kind = found["words"]["kind"]
    texts, ids = _texts(found, size), list(found["ids"]["completion"]) or (list(found["words"]["completion"]) if kind in ("ids", "hashes") else [""] * size)
    sampled, d = found["sampled"], found["d"]
    version = versions(found)
    return {
        "signature": f"{found['request']}/{found['kept_at']}/{kind}", "look": {"text": "text", None: "blank"}.get(kind, "code"), "label": "Tokens coloured by d",
        "scale": SCALE, "levels": LEVELS, "kinds": KINDS, "help": "Hover or tap a token. In the box: ← → a token, ↑ ↓ to those with |d| ≥ 0.3 nats.",
        "prompt": _prompt(found), "promptNote": _prompt_note(found), "before": f"… {first:,} tokens before" if first else "",
        "after": f"… {found['n_tokens'] - first - size:,} tokens after" if found["n_tokens"] > first + size else "",
        "text": texts, "ids": [visible(one) for one in ids], "place": [f"{first + i:,} of {found['n_tokens']:,}" for i in range(size)],
        "engine": found["engine"], "trainer": found["trainer"], "d": d, "entropy": found.get("entropy") or [None] * size, "rank": ranks(found),
        "version": [visible(one) for one in version], "mark": [f"v {visible(one)}" if one and one != before else "" for one, before in zip(version, ["", *version], strict=False)],
        "classes": [level(d[i]) if d[i] is not None and sampled[i] else ("unscored" if sampled[i] else "none") for i in range(size)],
        "why": [UNSAMPLED if not sampled[i] else UNSCORED if d[i] is None else "" for i in range(size)]}


def versions(found: Mapping[str, Any]) -> list[str]:
    """The weight version of each kept token; "" = unknown."""
    first, size = int(found["first"]), len(found["engine"])
    names = [""] * size
    for start, end, version in found["spans"]:
        for i in range(max(0, start - first), min(size, end - first)):
            names[i] = str(version)
    return names


def ranks(found: Mapping[str, Any]) -> list[str]:
    """Ranks as text; "" = unknown."""
    most = int(found.get("ranked") or 0)
    return ["" if one is None else f"{one}" if one <= most else f"over {most}" for one in found.get("rank") or [None] * len(found["engine"])]


def rows(found: Mapping[str, Any]) -> pd.DataFrame:
    """One row a kept token, for the CSV: texts visible, units in the names."""
    size, words = len(found["engine"]), found["words"]
    texts = [visible(one) for one in words["completion"]] or [""] * size
    return pd.DataFrame({
        "token": range(int(found["first"]), int(found["first"]) + size), words["kind"] or "text": texts, "id": list(found["ids"]["completion"]) or [""] * size,
        "sampled": found["sampled"], "engine_logprob_nats": found["engine"], "trainer_logprob_nats": found["trainer"], "d_nats": found["d"],
        "entropy_nats": found.get("entropy") or [None] * size, "rank": ranks(found), "weight_version": [visible(one) for one in versions(found)]})


def _texts(found: Mapping[str, Any], size: int) -> list[str]:
    kind, words = found["words"]["kind"], found["words"]["completion"]
    if kind is None:
        return [""] * size
    return [visible(one) or "⋯" for one in words] if kind == "text" else [visible(one) for one in words]


def _prompt(found: Mapping[str, Any]) -> list[str]:
    words: Sequence[str] = found["words"]["prompt"]
    return [visible(one) or "⋯" for one in words]


def _prompt_note(found: Mapping[str, Any]) -> str:
    kept, whole = len(found["words"]["prompt"]), int(found["n_prompt"])
    if not kept:
        return f"prompt: {whole:,} tokens, not kept"
    return f"prompt, the last {kept:,} of {whole:,} tokens:" if kept < whole else f"prompt, {whole:,} tokens:"
