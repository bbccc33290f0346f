"""PipelineRL's actor stream: a line is a list of TrainingText, the rollouts of one group.

`labels` are the token ids the policy sampled, −100 elsewhere; `logprobs` belong to the sampled tokens, in order. The version
in the metadata is the one the weights had when the request *started*: with updates in flight later tokens may come from newer
weights, so it is kept as a label and believed for all tokens only when the operator says so (version_at_start).
The prompt ids are the actor's own rendering of the chat template, not the engine's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from collector.errors import InputError
from collector.records import Rollout, WeightSpan
from collector.sources.fields import number, token_ids
from collector.sources.formats.base import Format, Items, ReadOptions, first_value, required, whole
from collector.sources.formats.sequences import completion_start, masked

MASKED = -100  # PipelineRL's MASKED_TOKEN_ID


def parse_group(item: Any, where: str, options: ReadOptions) -> Items:
    """One stream record: the rollouts of a group; a bad one costs only itself."""
    for index, text in enumerate(item if isinstance(item, list) else [item]):
        place = f"{where}[{index}]" if isinstance(item, list) else where
        try:
            yield _rollout(whole(text), place, options)
        except InputError as error:
            yield InputError(error.reason, field=error.field, where=place)


def _rollout(text: dict[str, Any], where: str, options: ReadOptions) -> Rollout:
    ids_S, sampled_S = token_ids(required(text, "input_ids"), "input_ids"), _sampled(text)
    start = completion_start(sampled_S, "labels")
    sampled_T, completion_T = sampled_S[start:], ids_S[start:]
    metadata = text.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InputError("an object is expected", field="metadata")
    version = metadata.get("model_version")
    spans = () if version is None or not options.version_at_start else (WeightSpan(start=0, end=int(completion_T.size), version=str(version)),)
    labels = {name: str(value) for name, value in (
        ("group", text.get("group_id")), ("version_at_start", version), ("turn", metadata.get("step_index")), ("finished", text.get("finished")),
        ("multimodal", True if text.get("visual_features") else None)) if value is not None}
    return Rollout(
        request_id=_name(text, metadata, where), prompt_tokens_P=ids_S[:start], completion_tokens_T=completion_T,
        engine_logprobs_T=_spread(required(text, "logprobs"), sampled_T), sampled_mask_T=sampled_T, weight_versions=spans,
        reward=number(text, "reward"), traffic="train", labels=labels,
    )


def _sampled(text: dict[str, Any]) -> np.ndarray:
    """bool [S]: where a label stands; every label must be the token at its place."""
    ids, labels = text["input_ids"], required(text, "labels")
    if not isinstance(labels, list) or len(labels) != len(ids):
        raise InputError(f"a list of {len(ids)} labels is expected, one a token of input_ids", field="labels")
    for index, (label, token) in enumerate(zip(labels, ids, strict=True)):
        if label != MASKED and label != token:
            raise InputError(f"entry {index} is {label!r}, but input_ids has {token!r} there", field="labels")
    return np.array([label != MASKED for label in labels], dtype=bool)


def _spread(values: Any, sampled_T: np.ndarray) -> np.ndarray:
    """float32 [T] nats: `logprobs` holds the sampled tokens only, or all tokens from the first sampled one on."""
    if isinstance(values, list) and len(values) == int(sampled_T.sum()):
        column: list[Any] = [None] * sampled_T.size
        for index, value in zip(np.flatnonzero(sampled_T).tolist(), values, strict=True):
            column[index] = value
        return masked(column, "logprobs", sampled_T)
    if isinstance(values, list) and len(values) != sampled_T.size:
        raise InputError(f"length mismatch: {len(values)} logprobs for {int(sampled_T.sum())} labelled tokens", field="logprobs")
    return masked(values, "logprobs", sampled_T)


def _name(text: dict[str, Any], metadata: dict[str, Any], where: str) -> str:
    parts = (text.get("group_id"), metadata.get("rollout_index"), metadata.get("step_index"))
    return "/".join(str(part) for part in parts) if None not in parts else Path(where).name


def _matches(path: Path) -> bool:
    value = first_value(path)
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and {"input_ids", "labels", "logprobs"} <= set(first)


PIPELINERL = Format(
    name="pipelinerl", about="PipelineRL actor stream, one group of TrainingText a line", where="`<exp>/streams/actor/0/0/0.jsonl`",
    turn_on="`streams: files` (the default)", knows=frozenset({"ids", "engine logprobs", "sampled mask", "reward"}),
    patterns=("streams/actor/*/*/*.jsonl", "actor/*/*/*.jsonl", "*.jsonl", "*.jsonl.gz"), matches=_matches, parse=parse_group,
)
