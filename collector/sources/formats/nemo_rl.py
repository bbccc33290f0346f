"""NeMo-RL's train_data_step<N>.jsonl: padded sequences with both sides' logprobs, entry t of a column belonging to token t.

The first `input_lengths` tokens are the sequence, the rest is padding. Generation runs before the step trains, but which
weights it had depends on the schedule (synchronous or not): the step is a label, no weight version. `token_loss_mask` marks what
is sampled and what is learnt from alike; a `sample_loss_mask` of 0 means that the trainer dropped the whole sample.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from collector.errors import InputError
from collector.records import Rollout
from collector.sources.fields import number
from collector.sources.formats.base import Format, Items, ReadOptions, first_keys, required, whole
from collector.sources.formats.sequences import column, optional, split

STEP = re.compile(r"train_data_step(\d+)")
COLUMNS = ("token_ids", "token_loss_mask", "generation_logprobs", "prev_logprobs")


def _parse(item: Any, where: str, options: ReadOptions) -> Items:
    obj = _trimmed(whole(item))
    prompt_P, completion_T, sampled_T = split(required(obj, "token_ids"), "token_ids", obj.get("token_loss_mask"), "token_loss_mask")
    found = STEP.search(where)
    step, index = found.group(1) if found else None, obj.get("idx")
    labels = {} if step is None else {"step": step}
    kept = number(obj, "sample_loss_mask")
    if kept == 0:
        labels["left_out_of_loss"] = "1"
    yield Rollout(
        request_id=f"step{step}-{index}" if step is not None and index is not None else Path(where).name,
        prompt_tokens_P=prompt_P, completion_tokens_T=completion_T, sampled_mask_T=sampled_T, traffic="train", labels=labels,
        engine_logprobs_T=column(required(obj, "generation_logprobs"), "generation_logprobs", sampled_T, prompt_P.size),
        trainer_logprobs_T=optional(obj.get("prev_logprobs"), "prev_logprobs", sampled_T, prompt_P.size), reward=number(obj, "rewards"),
        loss_mask_T=sampled_T, dropped=None if kept is None else kept == 0,
    )


def _trimmed(obj: dict[str, Any]) -> dict[str, Any]:
    """The record without its padding, and without the batch axis that one sample at a time leaves around a value."""
    obj = {key: value[0] if isinstance(value, list) and len(value) == 1 and (key not in COLUMNS or isinstance(value[0], list)) else value
           for key, value in obj.items()}
    length = required(obj, "input_lengths")
    if type(length) is not int or length < 1:
        raise InputError(f"{length!r} is not a number of tokens", field="input_lengths")
    for name in COLUMNS:
        values = obj.get(name)
        if isinstance(values, list):
            if len(values) < length:
                raise InputError(f"length mismatch: {len(values)} entries, but input_lengths says {length}", field=name)
            obj[name] = values[:length]
    return obj


def _matches(path: Path) -> bool:
    return first_keys(path) >= {"generation_logprobs", "input_lengths"}


NEMO_RL = Format(
    name="nemo-rl", about="NeMo-RL training data, both sides per token", where="`<log_dir>/train_data_step<N>.jsonl`",
    turn_on="on by default in GRPO's classic loop", knows=frozenset({"ids", "engine logprobs", "trainer logprobs", "sampled mask", "loss mask", "reward"}),
    patterns=("train_data_step*.jsonl", "**/train_data_step*.jsonl", "*.jsonl", "*.jsonl.gz"), matches=_matches, parse=_parse,
)
