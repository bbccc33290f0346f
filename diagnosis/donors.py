"""corrupted_requests: whose prompt explains a stray rollout's tokens?

For every stray rollout the other rollouts' prompts are tried: had the engine computed with a neighbour's state, that prompt predicts the reported
logprobs. The donor is chosen on the rollout's even tokens and judged on its odd ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from diagnosis.bench import Bench, Variant

MAX_TRIES = 48
"""Rollouts scored with other prompts in one diagnosis, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Donor:
    """`taker` is explained by the prompt of `giver` (request ids); residuals of its odd tokens, nats."""

    taker: str
    giver: str
    before: float
    after: float

    @property
    def text(self) -> str:
        """The numbers in one line."""
        return f"the prompt of request {self.giver} explains request {self.taker}: {self.after:.4f} nats remain of {self.before:.3f}"


def find_donors(bench: Bench, strays: Sequence[int], *, limit: float) -> list[Donor]:
    """The strays whose odd tokens another prompt brings to within `limit` nats; nearest rollouts are tried first."""
    found = []
    each = max(2, MAX_TRIES // max(1, len(strays)))
    tries = {i: _neighbours(bench, i, each) for i in list(strays)[: MAX_TRIES // 2]}
    for k in range(max((len(row) for row in tries.values()), default=0)):
        swap = {i: row[k] for i, row in tries.items() if k < len(row)}
        if not swap:
            break
        rollouts = {i: replace(bench.sheet.rollouts[i], prompt_tokens_P=bench.sheet.rollouts[j].prompt_tokens_P) for i, j in swap.items()}
        values_N = bench.under(Variant(cause="corrupted_requests", parameters={"try": k}, rollouts=rollouts), keep=False)
        if values_N is None:
            continue
        for i, j in swap.items():
            donor = _judged(bench, values_N, i, j, limit)
            if donor is not None:
                found.append(donor)
                tries[i] = []
    return found


def _judged(bench: Bench, values_N: np.ndarray, taker: int, giver: int, limit: float) -> Donor | None:
    sheet, own_N, even_N = bench.sheet, bench.sheet.rollout_N == taker, bench.sheet.index_N % 2 == 0
    if sheet.residual(values_N, own_N & even_N) > limit:
        return None
    before, after = (sheet.residual(one, own_N & ~even_N) for one in (bench.view("expected"), values_N))
    names = [sheet.rollouts[k].request_id for k in (taker, giver)]
    return Donor(taker=names[0], giver=names[1], before=before, after=after) if after <= limit and after < 0.5 * before else None


def _neighbours(bench: Bench, index: int, count: int) -> list[int]:
    """One rollout for each other prompt, nearest in finishing time (else in order) first."""
    rollouts = bench.sheet.rollouts
    mine = rollouts[index]
    seen, found = {mine.prompt_tokens_P.tobytes()}, []

    def distance(j: int) -> float:
        ours, theirs = mine.finished_at, rollouts[j].finished_at
        return abs(j - index) if ours is None or theirs is None else abs(theirs - ours)

    for j in sorted(range(len(rollouts)), key=distance):
        prompt = rollouts[j].prompt_tokens_P.tobytes()
        if prompt not in seen:
            seen.add(prompt)
            found.append(j)
    return found[:count]
