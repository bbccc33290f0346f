"""batch_variance: does the engine repeat itself?

Question.    The same token after the same prompt and the same completion so far was reported more than once. With the same logprob?
Statistic.   Mean |e₁ − e₂| / √2 over neighbouring completions of one prompt (in lexicographic order) while their tokens agree, one version, replica,
             sampling and prefix-cache state: the noise of one report, without any model. Beside it mean |e − h| on the same tokens.
Units.       Nats; errors clustered by prompt.
When it lies. An update the labels do not show, or a stray request, makes repeats differ too; so this is never a confident verdict.
             Completions of one prompt usually agree in few tokens: samples at a low temperature, greedy ones or fixed seeds give more.
Source.      The field guide's fault of batch-variant kernels (verl#6280).
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from collector.records import Rollout, Score
from diagnosis.bench import Bench
from diagnosis.sheet import clustered_mean

MIN_TOKENS, MIN_PROMPTS = 30, 3
OWN_SHARE = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """Tokens reported twice. Nats."""

    tokens: int
    prompts: int
    own: float  # noise of one report, from the repeats alone
    own_se: float
    against: float  # mean |engine − expected| on the same tokens

    @property
    def text(self) -> str:
        """The numbers in one line."""
        return (f"{self.tokens:,} tokens of {self.prompts} prompts were reported more than once after the same tokens: the engine is off from itself by "
                f"{self.own:.4f} ± {self.own_se:.4f} nats a report, from the trainer by {self.against:.4f} there")

    def explains(self, limit: float, z: float) -> bool:
        """Is the engine's disagreement with itself above the limit, and nearly as large as the one with the trainer?"""
        enough = self.tokens >= MIN_TOKENS and self.prompts >= MIN_PROMPTS
        return enough and self.own - z * self.own_se > limit and self.own >= OWN_SHARE * self.against


def find_repeats(bench: Bench) -> Repeats | None:
    """None where no token was reported twice."""
    groups: dict[tuple[object, ...], list[tuple[Rollout, Score]]] = defaultdict(list)
    for _, rollout, score in bench.compared:
        spans = tuple((span.start, span.end, span.version) for span in rollout.weight_versions)
        groups[rollout.prompt_tokens_P.tobytes(), rollout.version or spans, rollout.replica, rollout.sampling, bool(rollout.cached_prompt_tokens)].append((rollout, score))
    own: list[np.ndarray] = []
    against: list[np.ndarray] = []
    for group in groups.values():
        ordered = sorted(group, key=lambda item: item[0].completion_tokens_T.tolist())
        pairs = [_differences(*one, *other) for one, other in zip(ordered, ordered[1:], strict=False)]
        if pairs and sum(apart.size for apart, _ in pairs):
            own.append(np.concatenate([apart for apart, _ in pairs]))
            against.append(np.concatenate([off for _, off in pairs]))
    if not own:
        return None
    values_N = np.concatenate(own) / math.sqrt(2)
    mean, se, prompts = clustered_mean(values_N, np.repeat(np.arange(len(own)), [part.size for part in own]))
    return Repeats(tokens=values_N.size, prompts=prompts, own=mean, own_se=se, against=float(np.concatenate(against).mean()))


def _differences(one: Rollout, its: Score, other: Rollout, others: Score) -> tuple[np.ndarray, np.ndarray]:
    """|e₁ − e₂| and the mean of the two |e − h|, over the tokens the two completions begin with in common."""
    size = min(one.n_tokens, other.n_tokens)
    same = one.completion_tokens_T[:size] == other.completion_tokens_T[:size]
    size = size if same.all() else int(same.argmin())
    first, second = (rollout.engine_logprobs_T[:size].astype(np.float64) for rollout in (one, other))
    off = (np.abs(first - its.views["expected"][:size]) + np.abs(second - others.views["expected"][:size])) / 2
    use = one.sampled_mask_T[:size] & other.sampled_mask_T[:size] & np.isfinite(first) & np.isfinite(second) & np.isfinite(off)
    return np.abs(first - second)[use], off[use]
