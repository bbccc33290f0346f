"""Tier 2 scoring for the daemon: the expected view, the always-on head views, and the older-weights views bets need."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from dataclasses import replace

import numpy as np

from collector.errors import Unavailable
from collector.populations import NEWEST_VIEW
from collector.records import Rollout, Score
from collector.shadow.candidates import WIDTH, candidates, ranks
from collector.shadow.scorer import ShadowScorer
from collector.shadow.views import VIEWS
from collector.weights.shelf import WeightShelf
from diagnosis.settings import Candidates, Rules

WIDE = "candidates"
HIDDEN_SETTINGS = {
    **{f"temperature:{value:g}": {"temperature": value} for value in (0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.2)},
    "truncation:top_p=0.9": {"top_p": 0.9}, "truncation:min_p=0.05": {"min_p": 0.05}, "truncation:top_k=20": {"top_k": 20},
    "penalties:repetition=1.1": {"repetition_penalty": 1.1}, "penalties:presence=0.5": {"presence_penalty": 0.5},
}
"""What a generation_config.json puts in behind the trainer's back; a neighbour of the true setting earns too, the diagnosis estimates it."""

HEAD_VIEWS = {"expected": VIEWS["expected"], WIDE: candidates}
"""One forward pass; the wide view holds what every other setting needs."""
OLD_KV_LAG = 4  # weight versions
EXPECTED = {"expected": VIEWS["expected"]}


def with_bet_views(rollouts: Sequence[Rollout], scores: Sequence[Score]) -> list[Score]:
    """The scores of HEAD_VIEWS with "raw" and every hidden setting in place of the wide view, float32 [T] nats each; NaN where a token was not
    scored, or roundings decide whether the setting keeps it. "rank" is the token's place among the logits, as `candidates.ranks` gives it."""
    if not scores:
        return []
    sizes = [rollout.n_tokens for rollout in rollouts]
    rollout_of_N = np.repeat(np.arange(len(rollouts)), sizes)
    wide_ND = np.concatenate([wide if Candidates.fits(wide := score.views[WIDE]) else np.full((wide.shape[0], WIDTH), np.nan, np.float32) for score in scores])
    known_N = np.isfinite(np.concatenate([score.views["expected"] for score in scores])) & ~np.isnan(wide_ND).any(axis=1)
    views = {name: np.full(rollout_of_N.size, np.nan, np.float32) for name in ("raw", "rank", *HIDDEN_SETTINGS)}
    if known_N.any():
        wide = Candidates(wide_ND[known_N], Rules.of(rollouts, rollout_of_N[known_N]))
        views["raw"][known_N], views["rank"][known_N] = wide.raw(), ranks(wide_ND[known_N])
        for name, settings in HIDDEN_SETTINGS.items():
            kept = wide.under(settings)
            views[name][known_N] = np.where(kept.edge, np.nan, kept.logprobs)
    ends = np.cumsum([0, *sizes])
    return [replace(score, views={name: values for name, values in score.views.items() if name != WIDE}
                    | {name: values_N[start:end] for name, values_N in views.items()})
            for score, start, end in zip(scores, ends, ends[1:], strict=False)]


class ShadowViews:
    """Scores rollouts under the version that generated them, and again as if older weights or an older KV were in use.

    The older-weights views are predictions fixed before the data: "stale_weights" is the version published just
    before the generating one, "stale_prefix_cache" its KV for the cached prefix, ":4" the KV of four versions back: a cache
    that is never reset ages with every update. With [weights] every = N "before" means the version kept before, N updates ago.
    "newest:L" is the newest published version, L versions later: staleness.
    """

    def __init__(self, scorer: ShadowScorer, shelf: WeightShelf, *, refresh: Callable[[], object],
                 strided: Container[str] = frozenset()) -> None:
        self.scorer, self.shelf, self._refresh, self._strided = scorer, shelf, refresh, strided

    def skipped(self, rollout: Rollout) -> bool:
        """Did only versions generate it that [weights] every leaves out?"""
        return bool(rollout.weight_versions) and all(span.version in self._strided for span in rollout.weight_versions)

    def can_score(self, rollout: Rollout) -> bool:
        """Is every version of this rollout on the shelf (loaded or loadable), or left out on purpose? Else it may still come."""
        wanted = {span.version for span in rollout.weight_versions}
        if not wanted:
            return bool(self.shelf.versions())
        if self._settled(wanted):
            return True
        self._refresh()
        return self._settled(wanted)

    def _settled(self, wanted: set[str]) -> bool:
        return {version for version in wanted if version not in self._strided} <= set(self.shelf.versions())

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One Score a rollout, in order."""
        scores = {score.request_id: score for score in with_bet_views(rollouts, self.scorer.score(rollouts, views=HEAD_VIEWS))}
        for (name, arguments), group in self._extra_passes(rollouts).items():
            try:
                extra = self.scorer.score(group, views=EXPECTED, **dict(arguments))
            except Unavailable:
                continue  # an older version was pruned meanwhile: its bets simply do not tick
            for score in extra:
                base = scores[score.request_id]
                scores[score.request_id] = replace(base, views={**base.views, name: score.views["expected"]})
        return [scores[rollout.request_id] for rollout in rollouts]

    def _staleness_coin(self, rollout: Rollout) -> bool:
        """A share of the groups, chosen by their prompts alone."""
        prompt = hashlib.blake2b(rollout.prompt_tokens_P.tobytes(), digest_size=8).digest()
        return int.from_bytes(prompt) < self.scorer.config.staleness_share * 2**64

    def _extra_passes(self, rollouts: Sequence[Rollout]) -> dict[tuple[str, tuple], list[Rollout]]:
        order = self.shelf.versions() if self.shelf.capacity > 1 else []  # a big model would be loaded anew for every group
        passes: dict[tuple[str, tuple], list[Rollout]] = defaultdict(list)
        for rollout in rollouts:
            older = order[: order.index(rollout.version)] if rollout.version in order else []
            if rollout.version in order and order[-1] != rollout.version and self._staleness_coin(rollout):
                lag = len(order) - 1 - order.index(rollout.version)
                passes[f"{NEWEST_VIEW}:{lag}", (("version", order[-1]),)].append(rollout)
            if not older or not rollout.base_coin:
                continue
            passes["stale_weights", (("version", older[-1]),)].append(rollout)
            if rollout.cached_prompt_tokens:
                passes["stale_prefix_cache", (("prefix_version", older[-1]),)].append(rollout)
                if len(older) >= OLD_KV_LAG:
                    passes[f"stale_prefix_cache:{OLD_KV_LAG}", (("prefix_version", older[-OLD_KV_LAG]),)].append(rollout)
        return passes

