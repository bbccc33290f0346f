"""What has to be computed for one rollout: which inputs pass through which weights, and which tokens that answers.

Input position j (prompt, then completion) predicts token j + 1, so completion token i is answered by input P + i − 1,
and the inputs needed for completion tokens [0, e) are the prompt and completion tokens [0, e − 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from collector.config import ShadowConfig
from collector.records import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why some or all tokens of a rollout were not scored."""

    request_id: str
    kind: str  # what is counted
    text: str  # what a human reads
    tokens: int  # sampled tokens left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Inputs [start, end) of prompt + completion run through one version's weights, on the KV of the steps before."""

    start: int
    end: int
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One way through a rollout: steps in order, and the completion tokens whose logprobs it answers."""

    row: int  # index of the rollout in the call
    rollout: Rollout
    steps: tuple[Step, ...]
    wanted: np.ndarray  # int64, indices of completion tokens

    @property
    def inputs(self) -> np.ndarray:
        """Every input token, int32 [end of the last step]."""
        both = np.concatenate([self.rollout.prompt_tokens_P, self.rollout.completion_tokens_T])
        return both[: self.steps[-1].end]

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions of the steps, in order."""
        return tuple(step.version for step in self.steps)


def check(rollout: Rollout, *, config: ShadowConfig, version: str | None, prefix_version: str | None) -> Refusal | None:
    """Why nothing of this rollout can be scored, as far as one sees without a model; None when it is fit."""
    size = rollout.prompt_tokens_P.size + rollout.n_tokens
    processed = rollout.expected_logprobs_mode == "processed_logprobs"
    for kind, holds, text in (
        ("completion_empty", rollout.n_tokens == 0, "no completion token: nothing was sampled"),
        ("prompt_empty", rollout.prompt_tokens_P.size == 0,
         "no prompt token: the first completion token has nothing to be predicted from"),
        ("length_mismatch", rollout.sampled_mask_T.size != rollout.n_tokens,
         f"sampled_mask has {rollout.sampled_mask_T.size} entries for {rollout.n_tokens} tokens"),
        ("too_long", size > config.max_rollout_tokens,
         f"{size} tokens, more than shadow.max_rollout_tokens = {config.max_rollout_tokens}"),
        ("mode_unknown", rollout.expected_logprobs_mode == "unknown",
         "what the trainer takes the logprobs for is unknown: set trainer.expected_logprobs_mode"),
        ("temperature_unknown", processed and rollout.sampling.temperature is None,
         "the trainer's temperature is unknown: set trainer.sampling.temperature"),
        ("version_unknown", version is None and not _spans(rollout, None),
         "which weights generated it is unknown: no weight_versions in the rollout"),
        ("cached_prompt_tokens_unknown", prefix_version is not None and rollout.cached_prompt_tokens is None,
         "how much of its prompt came from the prefix cache is unknown"),
    ):
        if holds:
            return _refusal(rollout, kind, text)
    return None


def check_ids(rollout: Rollout, vocab_size: int) -> Refusal | None:
    """A token id the model has no row for; None when all fit."""
    for part, ids in (("prompt", rollout.prompt_tokens_P), ("completion", rollout.completion_tokens_T)):
        bad = np.flatnonzero((ids < 0) | (ids >= vocab_size))
        if bad.size:
            return _refusal(rollout, "token_out_of_range", (
                f"{part} token {int(bad[0])} has id {int(ids[bad[0]])}, but the model's vocabulary ends at "
                f"{vocab_size - 1}: another tokenizer or model?"))
    return None


def outside_spans(rollout: Rollout, version: str | None) -> Refusal | None:
    """Sampled tokens no weight version span covers; None when every one is covered."""
    covered_T = np.zeros(rollout.n_tokens, dtype=bool)
    for start, end, _ in _spans(rollout, version):
        covered_T[start:end] = True
    tokens = int((rollout.sampled_mask_T & ~covered_T).sum())
    text = f"{tokens} tokens lie outside every known weight version span"
    return Refusal(request_id=rollout.request_id, kind="version_unknown", text=text, tokens=tokens) if tokens else None


def older_than_their_group(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts with `cached_prompt_tokens` cut to what was cached before their group began.

    In a group (one prompt, one weight version) the first request computes the blocks that were not cached yet, with the
    current weights; the others then hit those fresh blocks too. Only the fewest cached tokens of the group can be older
    than its version.
    """
    fewest: dict[tuple[bytes, tuple[str, ...]], int] = {}
    keys = [(rollout.prompt_tokens_P.tobytes(), tuple(span.version for span in rollout.weight_versions)) for rollout in rollouts]
    for key, rollout in zip(keys, rollouts, strict=True):
        if rollout.cached_prompt_tokens is not None:
            fewest[key] = min(fewest.get(key, rollout.cached_prompt_tokens), rollout.cached_prompt_tokens)
    return [replace(rollout, cached_prompt_tokens=fewest.get(key)) if rollout.cached_prompt_tokens is not None else rollout
            for key, rollout in zip(keys, rollouts, strict=True)]


def plan(row: int, rollout: Rollout, *, version: str | None, prefix_version: str | None, kv_on_update: str) -> list[Pass]:
    """The passes of one checked rollout.

    version None: every token under the version of its span. prefix_version: the first `cached_prompt_tokens` prompt
    tokens keep the KV that version computed; with kv_on_update = "reset" that holds for every span's pass.
    """
    spans, n_prompt = _spans(rollout, version), rollout.prompt_tokens_P.size
    cached = 0 if prefix_version is None else min(rollout.cached_prompt_tokens or 0, n_prompt - 1)  # the last one is
    stale = (cached, prefix_version)  # always recomputed: its logits are needed
    passes = []
    if kv_on_update == "keep" and len(spans) > 1:
        steps, wanted, at = [], [], 0
        for start, end, name in spans:
            steps.append(Step(start=at, end=n_prompt + end - 1, version=name))
            wanted.append(start + np.flatnonzero(rollout.sampled_mask_T[start:end]))
            at = n_prompt + end - 1
        passes.append(Pass(row=row, rollout=rollout, steps=_stale(steps, *stale), wanted=np.concatenate(wanted)))
    else:
        for start, end, name in spans:
            steps = [Step(start=0, end=n_prompt + end - 1, version=name)]
            wanted = start + np.flatnonzero(rollout.sampled_mask_T[start:end])
            passes.append(Pass(row=row, rollout=rollout, steps=_stale(steps, *stale), wanted=wanted))
    return [item for item in passes if item.wanted.size]


def _refusal(rollout: Rollout, kind: str, text: str) -> Refusal:
    return Refusal(request_id=rollout.request_id, kind=kind, text=text, tokens=int(rollout.sampled_mask_T.sum()))


def _spans(rollout: Rollout, version: str | None) -> list[tuple[int, int, str]]:
    """Non-overlapping spans in order, neighbours of one version joined; a forced version covers everything."""
    if version is not None:
        return [(0, rollout.n_tokens, version)]
    spans: list[tuple[int, int, str]] = []
    for span in sorted(rollout.weight_versions, key=lambda span: span.start):
        start = max(span.start, spans[-1][1] if spans else 0)
        end = min(span.end, rollout.n_tokens)
        if start >= end:
            continue
        if spans and spans[-1][2] == span.version and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end, span.version)
        else:
            spans.append((start, end, span.version))
    return spans


def _stale(steps: list[Step], cached: int, prefix_version: str | None) -> tuple[Step, ...]:
    """The steps with the first `cached` inputs moved to the prefix's version."""
    if prefix_version is None or cached == 0 or steps[0].version == prefix_version:
        return tuple(steps)
    first = steps[0]
    return (Step(start=0, end=cached, version=prefix_version),
            Step(start=cached, end=first.end, version=first.version), *steps[1:])

