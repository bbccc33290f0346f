"""The working thread: rollouts in, scored statistics out; diagnosis when asked.

One thread owns the scorer, so scoring and diagnosing never fight over the device. While it is busy the inbox fills,
then taps are told to wait and drop at the source, counted there: nothing queues without bound.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from collector.errors import InputError, KlaxonError
from collector.records import Rollout, Score, SliceStats
from collector.sampler import Draw, TwoCoinSampler
from collector.signals import slice_stats, trainer_score
from collector.sources.file_tail import RolloutTail
from collector.sources.inbox import TapInbox
from detectors.contexts import Contexts
from detectors.gains import rollout_gains
from klaxon.batches import BatchBuilder
from klaxon.config import Config

if TYPE_CHECKING:
    from klaxon.shadow_views import ShadowViews

log = logging.getLogger("klaxon.worker")
POLL_SECONDS = 0.2
GROUP_ROLLOUTS = 32
VERSION_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A rollout kept in memory for diagnosis, with its batch number and score."""

    t: int
    rollout: Rollout
    score: Score


class Worker(threading.Thread):
    """Polls the sources, samples, scores and files statistics under `builder_lock`."""

    def __init__(self, config: Config, *, inbox: TapInbox, builder: BatchBuilder, builder_lock: threading.Lock,
                 views: ShadowViews | None, refuse: Callable[[InputError], None],
                 file_rollouts: Callable[[int, list[tuple[Rollout, Score]]], None], note: Callable[[Rollout], None] = lambda _: None, opening: Callable[[], bool] = lambda: False,
                 clock: Callable[[], float] = time.time) -> None:
        super().__init__(name="klaxon-worker", daemon=True)
        self.config, self.inbox, self.views, self.clock = config, inbox, views, clock
        self.builder, self.builder_lock = builder, builder_lock
        self.refuse, self.file_rollouts, self._note, self._opening = refuse, file_rollouts, note, opening
        self.sampler = TwoCoinSampler(config.sampler)
        self.tails = [RolloutTail(path) for path in config.sources.files]
        self._contexts = Contexts()
        self.recent: deque[Scored] = deque(maxlen=config.diagnosis.memory_rollouts)
        self.counts: Counter[str] = Counter()
        self.busy_seconds = 0.0
        self.last_scored_at: float | None = None
        self.last_rollout_at: float | None = None
        self.trainer_logprobs_seen = False
        self.longest_gap_seconds = 0.0
        self.newest_version: str | None = None  # weight label of the newest rollout
        self.replica_versions: dict[str, tuple[str, float]] = {}  # replica → (label of its newest rollout, when it came)
        self.busy_since: float | None = None  # when the group in hand was taken; None = idle
        self._waiting: deque[tuple[float, Rollout]] = deque()
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._halt = threading.Event()

    def submit(self, task: Callable[[], None]) -> None:
        """Run `task` on the working thread, between two groups of rollouts."""
        self._tasks.put(task)

    def stop(self) -> None:
        """Ask the thread to end after the group in hand."""
        self._halt.set()

    def run(self) -> None:
        """Until stopped; a failure is counted and logged, and the next group goes on."""
        while not self._halt.is_set():
            try:
                worked = self._run_task() or self.step()
            except Exception:
                self.counts["worker_errors"] += 1
                log.exception("a group of rollouts was lost to an error in Klaxon; the next goes on")
                worked = False
            if not worked:
                self._halt.wait(POLL_SECONDS)

    def step(self) -> bool:
        """Handle one group of rollouts; False when there was nothing to do."""
        now = self.clock()
        arrived = self._arrivals()
        ready = [self._assume(rollout) for rollout in arrived] + self._due(now)
        if not ready:
            return False
        if arrived:
            self._note_arrival(arrived, now)
        group = [rollout for rollout in ready if self._known_version(rollout, now)]
        self._file(group, now)
        return True

    def _note_arrival(self, arrived: list[Rollout], now: float) -> None:
        if self.last_rollout_at is not None:
            self.longest_gap_seconds = max(self.longest_gap_seconds, now - self.last_rollout_at)
        self.last_rollout_at = now
        for rollout in arrived:
            if rollout.weight_versions:
                self.replica_versions[rollout.replica] = rollout.weight_versions[-1].version, now
        newest = max(arrived, key=lambda rollout: rollout.finished_at or 0.0)
        if newest.weight_versions:
            self.newest_version = newest.weight_versions[-1].version

    def _run_task(self) -> bool:
        try:
            task = self._tasks.get_nowait()
        except queue.Empty:
            return False
        task()
        return True

    def _arrivals(self) -> list[Rollout]:
        arrived = self.inbox.poll(GROUP_ROLLOUTS)
        for tail in self.tails:
            for item in tail.poll():
                if isinstance(item, InputError):
                    self.refuse(item)
                else:
                    arrived.append(item)
        return arrived

    def _assume(self, rollout: Rollout) -> Rollout:
        """Fill what the trainer assumes where the rollout does not say it itself; never from the engine's side."""
        if rollout.sampling.temperature is not None:
            return rollout
        trainer = self.config.trainer
        return replace(rollout, run=self.config.run.name, sampling=trainer.sampling.sampling(),
                       expected_logprobs_mode=trainer.expected_logprobs_mode)

    def _known_version(self, rollout: Rollout, now: float) -> bool:
        """False while the rollout waits for its weights to appear on disk, or for tier 2 to open, at most VERSION_PATIENCE_SECONDS."""
        if not self._opening() if self.views is None else self.views.can_score(rollout):
            return True
        if now - (rollout.finished_at or now) > VERSION_PATIENCE_SECONDS or len(self._waiting) >= self.inbox.capacity:
            return True
        self._waiting.append((now + 1.0, rollout))
        return False

    def _due(self, now: float) -> list[Rollout]:
        due = []
        while self._waiting and self._waiting[0][0] <= now:
            due.append(self._waiting.popleft()[1])
        return due

    def _file(self, group: list[Rollout], now: float) -> None:
        draws = [self._draw(rollout, now) for rollout in group]
        kept = [draw.rollout for draw in draws if draw.rollout is not None]
        self.busy_since, started = now, time.perf_counter()
        scores = self._score(kept)
        self.busy_seconds += time.perf_counter() - started
        self.busy_since = None
        scored: dict[int, list[tuple[Rollout, Score]]] = defaultdict(list)
        with self.builder_lock:
            for rollout, draw in zip(group, draws, strict=True):
                t = self.builder.window_of(rollout.finished_at or now, now=now)
                score = scores.get(rollout.request_id) if draw.rollout is not None else None
                if self._file_one(t, rollout, draw.rollout, score):
                    scored[t].append((draw.rollout, score))
        for t, pairs in scored.items():
            self.file_rollouts(t, pairs)

    def _draw(self, rollout: Rollout, now: float) -> Draw:
        """Flip the coins, unless the stride leaves the rollout's weights out: it must not eat the budget of the others."""
        self._note(rollout)
        if self.views is not None and self.views.skipped(rollout):
            self.counts["skipped_by_stride"] += 1
            self.counts["tokens_skipped_by_stride"] += rollout.n_tokens
            return Draw(rollout=None, base=False, hinted=False)
        return self.sampler.draw(rollout, now=now)

    def _score(self, kept: list[Rollout]) -> dict[str, Score]:
        if self.views is not None:
            try:
                return {score.request_id: score for score in self.views.score(kept)}
            except KlaxonError as error:
                self.counts["scorer_errors"] += 1
                log.warning("these %d rollouts were not scored: %s", len(kept), error)
                return {}
        scores = [score for rollout in kept if (score := trainer_score(rollout)) is not None]
        return {score.request_id: score for score in scores}

    def _file_one(self, t: int, arrived: Rollout, kept: Rollout | None, score: Score | None) -> bool:
        """File one rollout; True when it was compared with the trainer."""
        self.trainer_logprobs_seen |= arrived.trainer_logprobs_T is not None
        nonfinite = int((~np.isfinite(arrived.engine_logprobs_T) & arrived.sampled_mask_T).sum())
        counts = Counter(seen=1, tokens_seen=arrived.n_tokens, sampled=int(kept is not None), nonfinite=nonfinite)
        slices: tuple[SliceStats, ...] = ()
        if kept is not None:
            slices = self._compare(kept, score)
            tokens_scored = sum(item.n_tokens for item in slices)
            counts.update(tokens_scored=tokens_scored, tokens_unscored=kept.n_tokens - tokens_scored,
                          scored=int(tokens_scored > 0), unscored=int(tokens_scored == 0))
        compared = counts["scored"] > 0
        if compared:
            self.recent.append(Scored(t=t, rollout=kept, score=score))
            self.last_scored_at = self.clock()
        # self-bets need no scoring, so every rollout bets; the rest is for the base coin's rollouts alone
        betting = kept if kept is not None and kept.base_coin else arrived
        if betting is kept and score is not None:
            gains = rollout_gains(kept, score, self.config.detectors, fresh_T=self._contexts.fresh(kept))
        else:
            gains = rollout_gains(betting, None, self.config.detectors)
        self.counts.update(counts)
        self.builder.add(t, slices=slices, counts=counts, gains=gains)
        return compared

    def _compare(self, kept: Rollout, score: Score | None) -> tuple[SliceStats, ...]:
        if score is None:
            return ()
        return slice_stats(kept, score, eps_low=self.config.signals.eps_low, eps_high=self.config.signals.eps_high)
