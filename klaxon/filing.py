"""Filing one rollout: its statistics into the open batch, its words with the trainer joined, its score remembered.

Everything here happens on the worker's thread, under the builder's lock.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from collector import populations
from collector.errors import InputError
from collector.join import Join
from collector.records import Rollout, Score, SliceStats
from collector.sources.progress import Mark
from collector.sources.trainer_logprobs import TrainerWord
from detectors.contexts import Contexts
from detectors.gains import rollout_gains
from detectors.requests import Requests
from klaxon.batches import BatchBuilder
from klaxon.config import Config


SUSPECTS = 500  # odd rollouts remembered, to be named in an alarm
SEEN = "tokens_seen@"  # + replica: what estimates for all rollouts are put together by


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A rollout kept in memory for diagnosis, with its batch number and score."""

    t: int
    rollout: Rollout
    score: Score


class Filing:
    """One run's rollouts on their way into batches. `has_shadow`: is there a scorer, so that unscored means missed?"""

    def __init__(self, config: Config, builder: BatchBuilder, *, has_shadow: bool) -> None:
        self.config, self.builder, self.has_shadow = config, builder, has_shadow
        self.recent: deque[Scored] = deque(maxlen=config.diagnosis.memory_rollouts)
        self.counts: Counter[str] = Counter()
        self.join: Join[Score | None] = Join(limit=config.sources.join_rollouts, limit_tokens=config.sources.join_tokens,
                                              patience_seconds=config.sources.join_seconds)
        self.trainer_logprobs_seen = False
        self._contexts = Contexts()
        self.requests = Requests(config.detectors.requests)
        self.suspects: deque[tuple[int, str]] = deque(maxlen=SUSPECTS)  # (batch, request id) of rollouts far outside the healthy ones

    def file(self, arrived: Rollout, kept: Rollout | None, shadow: Score | None, *, now: float) -> tuple[int, Score | None]:
        """File a rollout that arrived; `kept` is it as the sampler kept it. Returns its batch and the score it was judged by."""
        finished_at = now if arrived.finished_at is None else arrived.finished_at
        t = self.builder.window_of(finished_at, now=now)
        late = arrived.finished_at is not None and self.builder.is_late(finished_at, now=now)
        nonfinite = int((~np.isfinite(arrived.engine_logprobs_T) & arrived.sampled_mask_T).sum())
        counts = Counter(seen=1, tokens_seen=arrived.n_tokens, sampled=int(kept is not None), nonfinite=nonfinite,
                         **({"late": 1} if late else {}))
        slices: tuple[SliceStats, ...] = ()
        judged = None
        if kept is not None:
            slices = populations.slices_of(kept, shadow, self.config.signals)
            judged = self._judged(t, kept, shadow, slices, counts)
            if kept.trainer_logprobs_T is None:
                self.join.remember(kept, shadow and replace(shadow, views=populations.needed_later(shadow), entropy_T=None))
            self._note_trainer(kept)
        gains = self._gains(arrived, kept, shadow)
        counts["bet"] = int(bool(gains))
        if kept is not None and judged is not None:
            gains |= self._odd(t, kept, judged)
        self._add(t, slices=slices, counts=counts, gains=gains, mark=arrived.mark)
        self.builder.add(t, counts={f"{SEEN}{arrived.replica}": int(arrived.sampled_mask_T.sum())})
        return t, judged

    def hear(self, sides: Iterable[TrainerWord], *, now: float) -> tuple[list[tuple[int, Rollout, Score]], list[InputError]]:
        """What the trainer said, joined to its rollouts and filed now: (batch, rollout, trainer's score), and what was refused."""
        for side in sides:
            self.join.say(side, now=now)
        compared, refused = [], []
        for found in self.join.matches(now=now):
            if isinstance(found, InputError):
                refused.append(found)
                continue
            rollout, shadow = found
            self._note_ids(rollout)
            t = self.builder.window_of(now, now=now)
            counts = Counter(joined=1)
            slices = (*(populations.served(rollout, None, self.config.signals) if shadow is None else ()),
                      *populations.late(rollout, shadow, self.config.signals))
            gains: dict[str, float] = {}
            if shadow is None and (judged := self._judged(t, rollout, None, slices, counts)) is not None:
                compared.append((t, rollout, judged))
                gains = self._odd(t, rollout, judged)
            self._note_trainer(rollout)
            self._add(t, slices=slices, counts=counts, gains=gains, mark=rollout.mark)
        return compared, refused

    def _note_ids(self, rollout: Rollout) -> None:
        """The trainer's own token ids, where it said them, on the rollout kept for diagnosis."""
        if rollout.trainer_prompt_P is None and rollout.trainer_completion_T is None:
            return
        for place, item in enumerate(self.recent):
            if item.rollout.request_id == rollout.request_id:
                self.recent[place] = replace(item, rollout=replace(item.rollout, trainer_prompt_P=rollout.trainer_prompt_P,
                                                                   trainer_completion_T=rollout.trainer_completion_T))

    def _judged(self, t: int, rollout: Rollout, shadow: Score | None, slices: Iterable[SliceStats],
                counts: Counter[str]) -> Score | None:
        """Count what was compared, and keep it for diagnosis; None when nothing was."""
        scored = sum(item.n_tokens for item in slices if item.population in ("served", "hinted"))
        expected = self.has_shadow or rollout.trainer_logprobs_T is not None
        counts.update(tokens_scored=scored, scored=int(scored > 0), unscored=int(expected and not scored),
                      tokens_unscored=rollout.n_tokens - scored if expected else 0)
        judged = populations.primary(rollout, shadow) if scored else None
        if judged is not None:
            self.recent.append(Scored(t=t, rollout=rollout, score=judged))
        return judged

    def _gains(self, arrived: Rollout, kept: Rollout | None, shadow: Score | None) -> dict[str, float]:
        """Self-bets need no scoring, so every rollout bets; the rest is for the base coin's scored rollouts alone."""
        if kept is None or not kept.base_coin:
            return rollout_gains(arrived, None, self.config.detectors)
        if shadow is None:
            return rollout_gains(kept, None, self.config.detectors)
        return rollout_gains(kept, shadow, self.config.detectors, fresh_T=self._contexts.fresh(kept))

    def _odd(self, t: int, rollout: Rollout, judged: Score) -> dict[str, float]:
        """What this rollout alone says about corrupted requests; one far outside the healthy ones is remembered."""
        found = self.requests.judge(rollout, judged)
        if found.probability is not None and found.probability <= self.config.detectors.requests.suspect_probability:
            self.suspects.append((t, rollout.request_id))
            self.counts["suspect_rollouts"] += 1
        return found.gains

    def _note_trainer(self, rollout: Rollout) -> None:
        self.trainer_logprobs_seen |= rollout.trainer_logprobs_T is not None
        if populations.trainer_moved_on(rollout):
            self.counts["trainer_moved_on"] += 1
        if rollout.dropped:
            self.counts["dropped_by_trainer"] += 1

    def _add(self, t: int, *, slices: Iterable[SliceStats], counts: Counter[str], gains: dict[str, float], mark: Mark | None) -> None:
        self.counts.update(counts)
        self.builder.add(t, slices=slices, counts=counts, gains=gains, mark=mark)
