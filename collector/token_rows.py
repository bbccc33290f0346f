"""What is kept a token of a few rollouts a batch: rows of `token_rollouts` (numbers) and `token_words` (hashes, ids or text, where [store] tokens allows).

Numbers say nothing of what was written; words do, so they lie in a table of their own with a shorter life. Legend: T = completion tokens,
S = the stretch of them that is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from collector.records import Rollout, Score
from collector.store_config import StoreConfig, TokenTier
from collector.store_schema import differences, finite, label, request_hash

TIERS: tuple[str, ...] = get_args(TokenTier)
WORDS = ("hashes", "ids", "text")
"""Kinds of rows in `token_words`."""
DOUBTED_TOKENS = 16
RANKED = 192
"""Ranks up to here are exact; a larger one means "beyond"."""

Words = tuple[Sequence[str], Sequence[str]]
"""Prompt [P] and completion [T], a text a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A rollout whose tokens are kept, and why: furthest off in its batch, or drawn by chance to compare with."""

    t: int
    rollout: Rollout
    score: Score
    kind: Literal["worst", "ordinary"]


def allowed(tier: str) -> tuple[str, ...]:
    """Kinds of words a tier may keep.

    >>> allowed("numbers"), allowed("ids")
    ((), ('hashes', 'ids'))
    """
    return tuple(kind for kind in WORDS if TIERS.index(kind) <= TIERS.index(tier))


def badness(rollout: Rollout, score: Score) -> float:
    """How far off a rollout is, nats: sum of |d| over (scored tokens + 16). It is the mean |d|, as if 16 tokens more had agreed: one odd
    token of a short answer does not outweigh a long answer that is off throughout. 0 where nothing was scored."""
    d, _ = differences(rollout, score)
    return float(np.abs(d).sum() / (d.size + DOUBTED_TOKENS))


def stretch(size_T: np.ndarray, longest: int) -> int:
    """Where the `longest` neighbours with the largest sum begin; the first such place. `size_T`: |d| in nats, NaN counts nothing.

    >>> stretch(np.array([9.0, 0.0, 1.0, 5.0, 5.0, 0.0]), 2)
    3
    """
    if size_T.size <= longest:
        return 0
    sums = np.cumsum(np.concatenate([[0.0], np.nan_to_num(size_T, posinf=0.0)]))
    return int(np.argmax(sums[longest:] - sums[:-longest]))


def token_tables(kept: Iterable[tuple[Kept, Words | None]], *, now: float, key: str, config: StoreConfig) -> dict[str, list[dict[str, Any]]]:
    """Rollouts as rows, each with its tokens as text where they are known. `now`: UTC seconds; `key`: of the hashes, hex."""
    numbers, words = [], []
    for one, text in kept:
        request = request_hash(one.rollout.request_id, key=key)
        q_T = np.where(_compared(one), one.score.views["expected"].astype(np.float64), np.nan)
        first = stretch(np.abs(q_T - one.rollout.engine_logprobs_T), config.tokens_longest)
        cut = slice(first, min(first + config.tokens_longest, one.rollout.n_tokens))
        numbers.append({**_head(one, request, now), **_numbers(one, q_T, cut)})
        words += [{"request": request, "kept_at": now, **row} for row in _words(one.rollout, key, config, cut, text)]
    return {"token_rollouts": numbers, "token_words": words}


def outlived_tokens(now: float, config: StoreConfig) -> list[tuple[str, str, list[Any]]]:
    """(table, condition, parameters) of what must go: too old, too many, or of a kind [store] tokens no longer allows. now: UTC seconds."""
    many = "kept_at < (SELECT coalesce(min(kept_at), 0) FROM (SELECT kept_at FROM token_rollouts ORDER BY kept_at DESC LIMIT ?))"
    return [("token_words", f"kept_at < ? OR NOT list_contains(?::VARCHAR[], kind) OR {many}",
             [now - 3600 * config.tokens_words_ttl_hours, list(allowed(config.tokens)), config.tokens_rollouts]),
            ("token_rollouts", f"kept_at < ? OR ? OR {many}",
             [now - 86_400 * config.tokens_ttl_days, config.tokens == "off", config.tokens_rollouts])]


def _numbers(kept: Kept, q_T: np.ndarray, cut: slice) -> dict[str, Any]:
    score = kept.score
    return {"first": cut.start, "engine": _floats(kept.rollout.engine_logprobs_T[cut]), "trainer": _floats(q_T[cut]),
            "entropy": _floats(score.entropy_T[cut]) if score.entropy_T is not None else None,
            "rank": _ranks(score.views["rank"][cut]) if "rank" in score.views else None,
            "sampled": np.asarray(kept.rollout.sampled_mask_T[cut], dtype=bool).tolist()}


def _compared(kept: Kept) -> np.ndarray:
    """bool [T]: sampled, and with a logprob of the other side."""
    mask_T = np.asarray(kept.rollout.sampled_mask_T, dtype=bool)
    return mask_T if kept.score.scored_mask_T is None else mask_T & kept.score.scored_mask_T


def _head(kept: Kept, request: str, now: float) -> dict[str, Any]:
    rollout = kept.rollout
    d, _ = differences(rollout, kept.score)
    return {
        "request": request, "kept_at": now, "finished_at": rollout.finished_at, "t": kept.t, "kind": kept.kind, "badness": badness(rollout, kept.score),
        "replica": rollout.replica, "versions": list(dict.fromkeys(span.version for span in rollout.weight_versions)),
        "spans": json.dumps([[span.start, span.end, span.version] for span in rollout.weight_versions]), "traffic": rollout.traffic,
        "env": label(rollout, "env"), "turn": label(rollout, "turn"), "cached": rollout.cached_prompt_tokens,
        "n_prompt": int(rollout.prompt_tokens_P.size), "n_tokens": rollout.n_tokens, "n_scored": int(d.size),
        "mean_d": float(d.mean()) if d.size else None, "mean_abs_d": float(np.abs(d).mean()) if d.size else None,
        "max_abs_d": float(np.abs(d).max()) if d.size else None, "reward": finite(rollout.reward), "finish_reason": rollout.finish_reason,
        "source": kept.score.source}


def _words(rollout: Rollout, key: str, config: StoreConfig, cut: slice, text: Words | None) -> list[dict[str, Any]]:
    tier, prompt_P = config.tokens, rollout.prompt_tokens_P
    last = slice(max(0, prompt_P.size - config.tokens_prompt), prompt_P.size)
    found: dict[str, Words] = {}
    if tier == "hashes":
        found["hashes"] = _hashes(prompt_P[last], key), _hashes(rollout.completion_tokens_T[cut], key)
    if tier in ("ids", "text"):
        found["ids"] = [str(one) for one in prompt_P[last].tolist()], [str(one) for one in rollout.completion_tokens_T[cut].tolist()]
    if tier == "text" and text is not None:
        found["text"] = list(text[0][last]), list(text[1][cut])
    return [{"kind": kind, "prompt": prompt, "completion": completion} for kind, (prompt, completion) in found.items()]


def _hashes(ids: np.ndarray, key: str) -> list[str]:
    """Keyed, 24 bits a token: equal tokens look equal. Whoever holds the key, or much text, can tell which token it is."""
    known = {one: hashlib.blake2b(one.to_bytes(8, "little", signed=True), key=bytes.fromhex(key), digest_size=3).hexdigest() for one in {int(one) for one in ids}}
    return [known[int(one)] for one in ids]


def _floats(values: np.ndarray) -> list[float]:
    return np.asarray(values, dtype=np.float32).tolist()


def _ranks(values: np.ndarray) -> list[int | None]:
    return [int(one) if np.isfinite(one) else None for one in values]
