"""What has to be computed for one rollout: which inputs pass through which weights, and which tokens that answers.

Input position j (prompt, then completion) predicts token j + 1, so completion token i is answered by input P + i − 1,
and the inputs needed for completion tokens [0, e) are the prompt and completion tokens [0, e − 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from collector.config import ShadowConfig
from collector.records import Rollout


class Refused(Exception):
    """This rollout cannot be scored; `kind` is what is counted, the text what a human reads."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind = kind
        super().__init__(text)


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


def check(rollout: Rollout, *, vocab_size: int | None, config: ShadowConfig) -> None:
    """Is this rollout fit to be scored?

    Raises:
        Refused: with the reason.
    """
    if rollout.n_tokens == 0:
        raise Refused("completion_empty", "no completion token: nothing was sampled")
    if rollout.prompt_tokens_P.size == 0:
        raise Refused("prompt_empty", "no prompt token: the first completion token has nothing to be predicted from")
    if rollout.sampled_mask_T.size != rollout.n_tokens:
        raise Refused("length_mismatch", f"sampled_mask has {rollout.sampled_mask_T.size} entries for "
                                         f"{rollout.n_tokens} tokens")
    size = rollout.prompt_tokens_P.size + rollout.n_tokens
    if size > config.max_rollout_tokens:
        raise Refused("too_long", f"{size} tokens, more than shadow.max_rollout_tokens = {config.max_rollout_tokens}")
    if rollout.expected_logprobs_mode == "unknown":
        raise Refused("mode_unknown", "what the trainer takes the logprobs for is unknown: "
                                      "set trainer.expected_logprobs_mode")
    if rollout.expected_logprobs_mode == "processed_logprobs" and rollout.sampling.temperature is None:
        raise Refused("temperature_unknown", "the trainer's temperature is unknown: set trainer.sampling.temperature")
    if vocab_size is not None:
        _check_ids(rollout.prompt_tokens_P, "prompt", vocab_size)
        _check_ids(rollout.completion_tokens_T, "completion", vocab_size)


def plan(row: int, rollout: Rollout, *, version: str | None, prefix_version: str | None,
         kv_on_update: str, count: Callable[[str, int], None]) -> list[Pass]:
    """The passes of one rollout. `count(reason, tokens)` hears of sampled tokens that no pass will answer.

    version None: every token under the version of its span. prefix_version: the first `cached_prompt_tokens` prompt
    tokens keep the KV that version computed; with kv_on_update = "reset" that holds for every span's pass.

    Raises:
        Refused: nothing can be scored.
    """
    spans = _spans(rollout, version)
    sampled_T = rollout.sampled_mask_T
    in_span_T = np.zeros(rollout.n_tokens, dtype=bool)
    for start, end, _ in spans:
        in_span_T[start:end] = True
    if not spans:
        raise Refused("version_unknown", "which weights generated it is unknown: no weight_versions in the rollout")
    count("version_unknown", int((sampled_T & ~in_span_T).sum()))
    n_prompt, cached = rollout.prompt_tokens_P.size, _cached(rollout, prefix_version)
    passes = []
    if kv_on_update == "keep" and len(spans) > 1:
        ends = [end for _, end, _ in spans]
        starts = [0, *ends[:-1]]
        steps = [Step(start=n_prompt + s - 1 if s else 0, end=n_prompt + e - 1, version=name)
                 for s, e, (_, _, name) in zip(starts, ends, spans, strict=True)]
        wanted = np.flatnonzero(sampled_T & in_span_T)
        passes.append(Pass(row=row, rollout=rollout, steps=_stale(steps, cached, prefix_version), wanted=wanted))
    else:
        for start, end, name in spans:
            wanted = start + np.flatnonzero(sampled_T[start:end])
            steps = [Step(start=0, end=n_prompt + end - 1, version=name)]
            passes.append(Pass(row=row, rollout=rollout, steps=_stale(steps, cached, prefix_version), wanted=wanted))
    return [item for item in passes if item.wanted.size]


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


def _cached(rollout: Rollout, prefix_version: str | None) -> int:
    """Prompt tokens whose KV is stale. The engine always recomputes the last prompt token."""
    if prefix_version is None:
        return 0
    if rollout.cached_prompt_tokens is None:
        raise Refused("cached_prompt_tokens_unknown", "how much of its prompt came from the prefix cache is unknown")
    return min(rollout.cached_prompt_tokens, rollout.prompt_tokens_P.size - 1)


def _stale(steps: list[Step], cached: int, prefix_version: str | None) -> tuple[Step, ...]:
    if prefix_version is None or cached == 0 or steps[0].version == prefix_version:
        return tuple(steps)
    first = steps[0]
    return (Step(start=0, end=cached, version=prefix_version),
            Step(start=cached, end=first.end, version=first.version), *steps[1:])


def _check_ids(ids: np.ndarray, part: str, vocab_size: int) -> None:
    bad = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if bad.size:
        raise Refused("token_out_of_range", f"{part} token {int(bad[0])} has id {int(ids[bad[0]])}, but the model's "
                                            f"vocabulary ends at {vocab_size - 1}: another tokenizer or model?")
