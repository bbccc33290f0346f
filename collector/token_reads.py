"""The kept rollouts read back: a list of those furthest off, and one of them token by token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from collector.store import Store
from collector.token_rows import RANKED, allowed

MOST = 500  # rollouts of one answer
KINDS = ("worst", "ordinary", "all")
POSITIONS = {"0-1k": (0, 1024), "1k-4k": (1024, 4096), "4k-16k": (4096, 16_384), "16k+": (16_384, 2**62)}
_EQUAL = {"replica": "replica = ?", "version": "list_contains(versions, ?)", "env": "env = ?", "turn": "turn = ?",
          "cached": "(CASE WHEN cached > 0 THEN 'hit' WHEN cached = 0 THEN 'none' END) = ?"}
SLICE_KEYS = (*_EQUAL, "position")
"""Keys a list can be narrowed by. position: the rollout has tokens in that bucket (prompt and completion together)."""
_COLUMNS = ("request", "t", "kind", "badness", "finished_at", "kept_at", "replica", "versions", "env", "turn", "cached", "n_prompt", "n_tokens", "n_scored",
            "mean_d", "mean_abs_d", "max_abs_d", "reward", "finish_reason", "source")
_NEWEST = "QUALIFY row_number() OVER (PARTITION BY request ORDER BY kept_at DESC) = 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedTokens:
    """Which kept rollouts. Times are UTC seconds of their end; batches first ≤ t ≤ last; `only` by SLICE_KEYS."""

    start: float | None = None
    end: float | None = None
    batches: tuple[int, int | None] = (0, None)
    only: Mapping[str, str] = field(default_factory=dict)
    kind: str = "worst"
    limit: int = 50


def read_kept(store: Store, asked: AskedTokens) -> pa.Table:
    """One row a kept rollout, the one furthest off first: columns as in `token_rollouts`, without the tokens; of (how many fit).

    Raises:
        ValueError: a kind or a key there is not.
    """
    if asked.kind not in KINDS:
        raise ValueError(f"kind: {asked.kind!r} is none of {', '.join(KINDS)}")
    if unknown := [key for key in asked.only if key not in SLICE_KEYS]:
        raise ValueError(f"filter: {', '.join(unknown)} is none of {', '.join(SLICE_KEYS)}")
    parts, values = ["coalesce(finished_at, kept_at) BETWEEN ? AND ?", "t BETWEEN ? AND ?", "(? = 'all' OR kind = ?)"], [
        -1e18 if asked.start is None else asked.start, 1e18 if asked.end is None else asked.end,
        asked.batches[0], 2**62 if asked.batches[1] is None else asked.batches[1], asked.kind, asked.kind]
    for key, value in asked.only.items():
        part, found = _condition(key, value)
        parts.append(part)
        values += found
    return store.query_arrow(
        f'SELECT *, count(*) OVER ()::BIGINT AS "of" FROM (SELECT {", ".join(_COLUMNS)} FROM token_rollouts WHERE {" AND ".join(parts)} {_NEWEST}) '
        "ORDER BY badness DESC NULLS LAST, request LIMIT ?", [*values, min(asked.limit, MOST)])


def _condition(key: str, value: str) -> tuple[str, list[Any]]:
    """Raises ValueError: no such position."""
    if key != "position":
        return _EQUAL[key], [value]
    if value not in POSITIONS:
        raise ValueError(f"position: {value!r} is none of {', '.join(POSITIONS)}")
    low, high = POSITIONS[value]
    return "n_prompt < ? AND n_prompt + n_tokens > ?", [high, low]


def read_tokens(store: Store, request: str, *, tier: str) -> dict[str, Any] | None:
    """One kept rollout; None where there is none. Lists run over the kept stretch of the completion, from token `first` on.

    engine, trainer: logprobs, nats (null = not known or not scored); d = trainer − engine; entropy: of the trainer's distribution, nats;
    rank: of the token among the trainer's logits, 1 = the largest, `ranked` + 1 = beyond it; spans: [start, end, weight version] in completion tokens.
    words: the best that is stored and `tier` allows: kind (hashes, ids, text; null = none), prompt (its last tokens), completion; ids beside text.
    """
    rows = store.query_arrow(f"SELECT * FROM token_rollouts WHERE request = ? {_NEWEST}", [request]).to_pylist()
    if not rows:
        return None
    row = rows[0]
    words = {kind: {"kind": kind, "prompt": prompt, "completion": completion} for kind, prompt, completion in store.query(
        "SELECT kind, prompt, completion FROM token_words WHERE request = ? AND kept_at = ?", [request, row["kept_at"]]) if kind in allowed(tier)}
    best = next((words[kind] for kind in ("text", "ids", "hashes") if kind in words), {"kind": None, "prompt": [], "completion": []})
    ids = words["ids"] if best["kind"] == "text" and "ids" in words else {"prompt": [], "completion": []}
    return {**row, "spans": json.loads(row["spans"]), "ranked": RANKED, "tier": tier, "words": best, "ids": {key: ids[key] for key in ("prompt", "completion")},
            "d": [q - p for p, q in zip(row["engine"], row["trainer"], strict=True)]}
