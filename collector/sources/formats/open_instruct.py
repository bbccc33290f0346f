"""open-instruct traces (save_traces): sharded JSONL of RolloutRecord. The engine's side only; no tool mask is written.

The step is the training step the sample went into; the weights that generated it may be older: a label, no weight version.
Where tools were called, their tokens stand among the response's with no mask to tell them apart: such a record is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from collector.errors import InputError
from collector.records import Rollout
from collector.sources.fields import logprobs, number, text, token_ids
from collector.sources.formats.base import Format, Items, ReadOptions, first_keys, required, whole


def _parse(item: Any, where: str, options: ReadOptions) -> Items:
    obj = whole(item)
    completion_T = token_ids(required(obj, "response_tokens"), "response_tokens")
    if not completion_T.size:
        raise InputError("is empty: nothing was sampled", field="response_tokens")
    info = obj.get("request_info") or {}
    if isinstance(info, dict) and info.get("tool_calleds"):
        raise InputError("a tool was called, and the trace does not say which tokens are the tool's", field="request_info.tool_calleds")
    step, sample = obj.get("step"), obj.get("sample_idx")
    labels = {key: str(value) for key, value in (("step", step), ("env", obj.get("dataset")), ("group", obj.get("prompt_idx"))) if value is not None}
    yield Rollout(
        request_id=f"step{step}-{sample}" if None not in (step, sample) else Path(where).name, traffic="train", labels=labels,
        prompt_tokens_P=token_ids(required(obj, "prompt_tokens"), "prompt_tokens"), completion_tokens_T=completion_T,
        engine_logprobs_T=logprobs(required(obj, "logprobs"), "logprobs", completion_T.size),
        sampled_mask_T=np.ones(completion_T.size, dtype=bool), finish_reason=text(obj, "finish_reason"), reward=number(obj, "reward"),
    )


def _matches(path: Path) -> bool:
    return first_keys(path) >= {"prompt_tokens", "response_tokens"}


OPEN_INSTRUCT = Format(
    name="open-instruct", about="open-instruct traces, sharded RolloutRecord", where="`<rollouts_save_path>/<run>_rollouts_<shard>.jsonl`",
    turn_on="`--save_traces`", knows=frozenset({"ids", "engine logprobs", "reward", "finish reason"}),
    patterns=("*_rollouts_*.jsonl", "*.jsonl", "*.jsonl.gz"), matches=_matches, parse=_parse,
)
