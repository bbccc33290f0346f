"""prime-rl token exports: both sides' logprobs per token, a folder a step, believed once its STABLE marker stands.

The step is the one that trained on the sequence, not the one whose weights generated it: a label, no weight version.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from collector.errors import InputError
from collector.records import Rollout, Sampling
from collector.sources.formats.base import Format, Items, ReadOptions, first_keys, required, whole
from collector.sources.formats.sequences import column, one_temperature, optional, split

STEP = re.compile(r"step_\d+")


def _parse(item: Any, where: str, options: ReadOptions) -> Items:
    obj = whole(item)
    prompt_P, completion_T, sampled_T = split(required(obj, "token_ids"), "token_ids", obj.get("loss_mask"), "loss_mask")
    step = obj.get("export_step", obj.get("step"))
    parts = (step, obj.get("rank"), obj.get("export_sequence_idx"))
    run = obj.get("run_id")
    name = obj.get("sample_id") or ("step{}-rank{}-{}".format(*parts) if None not in parts else Path(where).name)
    labels = {key: str(value) for key, value in (("step", step), ("env", obj.get("env_name"))) if value is not None}
    yield Rollout(
        request_id=str(name), run=str(run) if run else "unknown", prompt_tokens_P=prompt_P, completion_tokens_T=completion_T,
        sampled_mask_T=sampled_T, traffic="train", labels=labels, reward=_reward(obj.get("rewards")),
        engine_logprobs_T=column(required(obj, "inference_logprobs"), "inference_logprobs", sampled_T, prompt_P.size),
        trainer_logprobs_T=optional(obj.get("trainer_logprobs"), "trainer_logprobs", sampled_T, prompt_P.size),
        sampling=Sampling(temperature=one_temperature(obj.get("temperatures"), "temperatures", sampled_T, prompt_P.size)),
        loss_mask_T=_learnt(obj.get("is_masked"), sampled_T, prompt_P.size), dropped=False,
    )


def _learnt(filtered: Any, sampled_T: np.ndarray, n_prompt: int) -> np.ndarray:
    """bool [T]: the loss mask without the tokens that the trainer's own ratio filter took out (`is_masked`)."""
    if filtered is None:
        return sampled_T
    if not isinstance(filtered, list) or len(filtered) != n_prompt + sampled_T.size or any(value not in (None, 0, 1) for value in filtered):
        raise InputError(f"a list of {n_prompt + sampled_T.size} truth values or nulls is expected", field="is_masked")
    return sampled_T & ~np.array([bool(value) for value in filtered[n_prompt:]], dtype=bool)


def _reward(values: Any) -> float | None:
    """The reward where it is one number for the whole sequence."""
    given = {float(value) for value in values if isinstance(value, (int, float))} if isinstance(values, list) else set()
    return given.pop() if len(given) == 1 else None


def marked(path: Path, now: float) -> bool:
    """Is the step complete; a file outside a step folder was put there by hand and needs no marker."""
    return not STEP.fullmatch(path.parent.name) or (path.parent / "STABLE").exists()


def _matches(path: Path) -> bool:
    return first_keys(path) >= {"token_ids", "loss_mask", "inference_logprobs"}


PRIME_RL = Format(
    name="prime-rl", about="prime-rl token exports, both sides per token", where="`<output>/token_exports/step_N/rank_R.jsonl` + `STABLE`",
    turn_on="`enable_token_export = true` (trainer)",
    knows=frozenset({"ids", "engine logprobs", "trainer logprobs", "sampling", "sampled mask", "loss mask", "reward"}),
    patterns=("token_exports/step_*/rank_*.jsonl", "step_*/rank_*.jsonl", "run_*/token_exports/step_*/rank_*.jsonl", "rank_*.jsonl", "*.jsonl"),
    matches=_matches, parse=_parse, by_step=True, complete=marked,
)
