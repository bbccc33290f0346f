"""Rollout JSONL, Klaxon's public interchange: one JSON object a line (schema 1, DESIGN "Public interchange").

Required: token_ids, logprobs, prompt_token_ids. A missing field is unknown and stays unknown; only
expected_logprobs_mode defaults (processed_logprobs). null, NaN and ±Infinity in `logprobs` are accepted as
non-finite. A logprob above 1e-6 refuses the line. A bad line is refused with its number and reason; the rest goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from collector.errors import InputError
from collector.records import LogprobsMode, Rollout, Sampling, Traffic, WeightSpan
from collector.sources.fields import choice, flag, integer, logprobs, mask, nats, number, text, token_ids
from collector.sources.lines import json_lines
from collector.weights.ledger import known_version

SCHEMA = 1
_REQUIRED = ("prompt_token_ids", "token_ids", "logprobs")
_SAMPLING_FIELDS = tuple(Sampling.__dataclass_fields__)


def parse_rollout(obj: Mapping[str, Any], *, where: str) -> Rollout:
    """One rollout from its JSON object.

    >>> parse_rollout({"prompt_token_ids": [1], "token_ids": [5], "logprobs": [-0.1]}, where="line 1").n_tokens
    1

    Raises:
        InputError: naming `where`, the field and the reason; nothing is guessed or repaired.
    """
    try:
        return _parse(obj)
    except InputError as error:
        raise InputError(error.reason, field=error.field, where=where) from None


def read_rollouts(source: str | Path | IO[str]) -> Iterator[Rollout | InputError]:
    """Rollouts of a file ("-" is standard input, .gz is unpacked), in order; a bad line comes as its InputError.

    Raises:
        InputError: the file itself cannot be read (missing, a folder, not text).
    """
    for where, item in json_lines(source):
        yield item if isinstance(item, InputError) else rollout_or_error(item, where=where)


def rollout_or_error(obj: Any, *, where: str) -> Rollout | InputError:
    """parse_rollout for streams: a bad record is an item, not an exception."""
    try:
        return parse_rollout(obj, where=where)
    except InputError as error:
        return error


def rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    """The public JSON object of one rollout; unknown fields are left out, NaN becomes null."""
    out: dict[str, Any] = {
        "schema": SCHEMA, "run": rollout.run, "engine": rollout.engine, "request_id": rollout.request_id,
        "prompt_token_ids": rollout.prompt_tokens_P.tolist(), "token_ids": rollout.completion_tokens_T.tolist(),
        "logprobs": _nullable(rollout.engine_logprobs_T), "sampled_mask": rollout.sampled_mask_T.astype(int).tolist(),
        "sampling": _sampling_json(rollout.sampling), "expected_logprobs_mode": rollout.expected_logprobs_mode,
        "engine_sampling": _sampling_json(rollout.engine_sampling), "traffic": rollout.traffic,
        "inclusion_probability": rollout.inclusion_probability, "base_coin": rollout.base_coin,
    }
    for field in ("finished_at", "dp_rank", "engine_dtype", "cached_prompt_tokens", "finish_reason", "reward", "dropped",
                  "trainer_version"):
        if (value := getattr(rollout, field)) is not None:
            out[field] = value
    if rollout.logprobs_mode != "unknown":
        out["logprobs_mode"] = rollout.logprobs_mode
    if rollout.weight_versions:
        out["weight_versions"] = [[s.start, s.end, s.version] for s in rollout.weight_versions]
    if rollout.trainer_logprobs_T is not None:
        out["trainer_logprobs"] = _nullable(rollout.trainer_logprobs_T)
    if rollout.loss_mask_T is not None:
        out["loss_mask"] = rollout.loss_mask_T.astype(int).tolist()
    if rollout.top_tokens:
        out["top_logprobs"] = [
            None if ids is None else [[int(i), lp] for i, lp in zip(ids, _nullable(lps), strict=True)]
            for ids, lps in zip(rollout.top_tokens, rollout.top_logprobs, strict=True)]
    if rollout.labels:
        out["labels"] = dict(rollout.labels)
    return out


def _parse(obj: Mapping[str, Any]) -> Rollout:
    if not isinstance(obj, Mapping):
        raise InputError(f"a JSON object is expected, not {type(obj).__name__}")
    if (schema := obj.get("schema", SCHEMA)) != SCHEMA:
        raise InputError(f"schema {schema!r} is not known to this Klaxon (it reads {SCHEMA})", field="schema")
    for field in _REQUIRED:
        if obj.get(field) is None:
            raise InputError("is required and missing", field=field)
    tokens_T = token_ids(obj["token_ids"], "token_ids")
    n_tokens = tokens_T.size
    if n_tokens == 0:
        raise InputError("is empty: nothing was sampled", field="token_ids")
    mask_T = mask(obj.get("sampled_mask"), "sampled_mask", n_tokens)
    top_tokens, top_logprobs = _top(obj, n_tokens)
    return Rollout(
        request_id=str(obj.get("request_id", "unknown")), run=str(obj.get("run", "unknown")),
        engine=str(obj.get("engine", "unknown")), dp_rank=integer(obj, "dp_rank"),
        prompt_tokens_P=token_ids(obj["prompt_token_ids"], "prompt_token_ids"), completion_tokens_T=tokens_T,
        engine_logprobs_T=logprobs(obj["logprobs"], "logprobs", n_tokens), sampled_mask_T=mask_T,
        weight_versions=_spans(obj, n_tokens), sampling=_sampling(obj, "sampling"),
        engine_sampling=_sampling(obj, "engine_sampling"),
        expected_logprobs_mode=choice(obj, "expected_logprobs_mode", LogprobsMode, "processed_logprobs"),
        logprobs_mode=choice(obj, "logprobs_mode", LogprobsMode, "unknown"),
        traffic=choice(obj, "traffic", Traffic, "unknown"), engine_dtype=text(obj, "engine_dtype"),
        top_tokens=top_tokens, top_logprobs=top_logprobs, cached_prompt_tokens=integer(obj, "cached_prompt_tokens"),
        finish_reason=text(obj, "finish_reason"), finished_at=number(obj, "finished_at"),
        inclusion_probability=_probability(obj), base_coin=bool(obj.get("base_coin", True)),
        reward=number(obj, "reward"), labels=_labels(obj),
        trainer_logprobs_T=(None if obj.get("trainer_logprobs") is None
                            else logprobs(obj["trainer_logprobs"], "trainer_logprobs", n_tokens)),
        trainer_version=text(obj, "trainer_version"), dropped=flag(obj, "dropped"),
        loss_mask_T=None if obj.get("loss_mask") is None else mask(obj["loss_mask"], "loss_mask", n_tokens),
    )


def _top(obj: Mapping[str, Any], n_tokens: int) -> tuple[tuple, tuple]:
    rows = obj.get("top_logprobs")
    if rows is None:
        return (), ()
    if not isinstance(rows, list) or len(rows) != n_tokens:
        raise InputError(f"one list of [token id, logprob] pairs a token is expected ({n_tokens})", field="top_logprobs")
    tokens: list[np.ndarray | None] = []
    logprobs: list[np.ndarray | None] = []
    for index, row in enumerate(rows):
        if not row:
            tokens.append(None)
            logprobs.append(None)
            continue
        try:
            tokens.append(np.array([int(pair[0]) for pair in row], dtype=np.int32))
            values = [pair[1] for pair in row]
        except (TypeError, ValueError, IndexError, KeyError, OverflowError):
            raise InputError(f"entry {index} is not a list of [token id, logprob] pairs", field="top_logprobs") from None
        try:
            logprobs.append(nats(values, "top_logprobs"))
        except InputError as error:
            raise InputError(f"entry {index}: {error.reason}", field="top_logprobs") from None
    return tuple(tokens), tuple(logprobs)


def _spans(obj: Mapping[str, Any], n_tokens: int) -> tuple[WeightSpan, ...]:
    rows = obj.get("weight_versions") or []
    if not isinstance(rows, list):
        raise InputError("a list of [start, end, version] is expected", field="weight_versions")
    spans = []
    for row in rows:
        if not (isinstance(row, list) and len(row) == 3 and type(row[0]) is int and type(row[1]) is int
                and 0 <= row[0] <= row[1] <= n_tokens):
            raise InputError(f"{row!r} is not [start, end, version] within 0…{n_tokens}", field="weight_versions")
        if known_version(row[2]) is not None:
            spans.append(WeightSpan(start=row[0], end=row[1], version=str(row[2])))
    return tuple(spans)


def _sampling(obj: Mapping[str, Any], field: str) -> Sampling:
    values = obj.get(field) or {}
    if not isinstance(values, Mapping):
        raise InputError("an object is expected", field=field)
    known = {name: number(values, name, parent=field) for name in _SAMPLING_FIELDS}
    if (temperature := known["temperature"]) is not None and temperature < 0:
        raise InputError(f"{temperature} is below 0", field=f"{field}.temperature")
    top_k = known.pop("top_k")
    return Sampling(**known, top_k=None if top_k is None else int(top_k))


def _probability(obj: Mapping[str, Any]) -> float:
    value = number(obj, "inclusion_probability")
    if value is None:
        return 1.0
    if not 0 < value <= 1:
        raise InputError(f"{value} is not in (0, 1]", field="inclusion_probability")
    return value


def _labels(obj: Mapping[str, Any]) -> dict[str, str]:
    values = obj.get("labels") or {}
    if not isinstance(values, Mapping):
        raise InputError("an object is expected", field="labels")
    return {str(key): str(value) for key, value in values.items()}


def _sampling_json(sampling: Sampling) -> dict[str, float]:
    return {name: value for name in _SAMPLING_FIELDS if (value := getattr(sampling, name)) is not None}


def _nullable(values: np.ndarray) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
