"""Batches of padded rows, as trainers hold them, pushed a rollout at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import klaxon_tap

_log = logging.getLogger("klaxon_tap")


def push_rows(rows: Any, *, tokens: str, mask: str, prompt: str, prompt_mask: str, logprobs: str, version: int | str, traffic: str) -> int:
    """Push the trainer's logprobs of each row; returns how many were queued. Never raises.

    `rows` maps the given names to tensors: tokens, mask and logprobs [B, T] padded on the right, prompt [B, P] padded on the left; `prompt_mask` is
    [B, P], or the [B, P+T] mask of both. The tokens end with the last one that the attention mask knows, else the last that the mask counts; what the
    mask leaves out before (tool output) goes along as loss_mask 0. Rows without logprobs are left alone.
    """
    return quietly(lambda: _push(rows, tokens, mask, prompt, prompt_mask, logprobs, version, traffic)) or 0


def _push(rows: Any, tokens: str, mask: str, prompt: str, prompt_mask: str, logprobs: str, version: int | str, traffic: str) -> int:
    if logprobs not in rows.keys():  # noqa: SIM118 (a TensorDict's `in` asks something else)
        return 0
    queued = 0
    columns = [rows[name].tolist() for name in (tokens, mask, prompt, prompt_mask, logprobs)]
    for ids, counted, asked, seen, said in zip(*columns, strict=True):
        before = len(asked)
        attended = seen[before:] if len(seen) > before else counted
        end = max((place + 1 for place, one in enumerate(attended) if one), default=0)
        start = next((place for place, one in enumerate(seen[:before]) if one), before)
        if end:
            queued += klaxon_tap.push_logprobs(said[:end], prompt_token_ids=asked[start:], token_ids=ids[:end], loss_mask=counted[:end], version=version,
                                               traffic=traffic)
    return queued


def mean_of(value: Any) -> float:
    """A number, or the mean of a list of them: what workers report a micro-batch each."""
    numbers = value if isinstance(value, (list, tuple)) else [value]
    return sum(map(float, numbers)) / len(numbers)


def quietly(work: Callable[[], Any]) -> Any:
    """Its result, or None and a line in the log: Klaxon's trouble is never the trainer's."""
    try:
        return work()
    except Exception as error:
        _log.warning("klaxon tap: a batch was not pushed (%s: %s)", type(error).__name__, error)
        return None
