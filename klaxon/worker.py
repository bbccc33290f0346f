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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from collector.errors import InputError, KlaxonError
from collector.records import Rollout, Score, WeightSpan
from collector.sampler import Draw, TwoCoinSampler
from collector.sources.formats import Hygiene
from collector.sources.inbox import TapInbox
from collector.sources.refusals import prefixed
from collector.sources.trainer_logprobs import TrainerWord
from klaxon.batches import BatchBuilder
from klaxon.canary import EXPERIMENT, MARK
from klaxon.config import Config
from klaxon.filing import Filing, Scored
from klaxon.reading import Reading, settle

if TYPE_CHECKING:
    from klaxon.shadow_views import ShadowViews

log = logging.getLogger("klaxon.worker")
POLL_SECONDS = 0.2
GROUP_ROLLOUTS = 32
VERSION_PATIENCE_SECONDS = 20.0
DRAIN_SECONDS = 12.0  # after a stop, for what has come in; Kubernetes kills 30 s after its SIGTERM


class Worker(threading.Thread):
    """Polls the sources, samples, scores and files statistics under `builder_lock`."""

    def __init__(self, config: Config, *, inbox: TapInbox, builder: BatchBuilder, builder_lock: threading.Lock,
                 views: ShadowViews | None, refuse: Callable[[InputError], None],
                 file_rollouts: Callable[[int, list[tuple[Rollout, Score]]], None], note: Callable[[Rollout], None] = lambda _: None, opening: Callable[[], bool] = lambda: False,
                 clock: Callable[[], float] = time.time, kept: Mapping[str, list[dict[str, Any]]] | None = None) -> None:
        super().__init__(name="klaxon-worker", daemon=True)
        self.config, self.inbox, self.views, self.clock = config, inbox, views, clock
        self.builder_lock = builder_lock
        self.filing = Filing(config, builder, has_shadow=views is not None)
        self.refuse, self.file_rollouts, self._note, self._opening = refuse, file_rollouts, note, opening
        self.sampler = TwoCoinSampler(config.sampler)
        self.reading = Reading(config.sources, refuse=refuse, kept=kept)
        self._pushed = Hygiene(Counter())
        self._trainer_says: queue.Queue[TrainerWord] = queue.Queue(config.sources.inbox_rollouts)
        self.busy_seconds = 0.0
        self.round_at = clock()  # UTC seconds, end of the last round
        self.trouble: dict[str, Any] | None = None  # the last group that could not be scored or filed: at (UTC seconds), text
        self.last_scored_at: float | None = None
        self.last_rollout_at: float | None = None
        self.longest_gap_seconds = 0.0
        self.newest_version: str | None = None  # weight label of the newest rollout
        self.replica_versions: dict[str, tuple[str, float]] = {}  # replica → (label of its newest rollout, when it came)
        self.busy_since: float | None = None  # when the group in hand was taken; None = idle
        self._waiting: deque[tuple[float, Rollout]] = deque()
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._in_hand: list[Rollout] = []  # the group that is being filed
        self._halt = threading.Event()

    def submit(self, task: Callable[[], None]) -> None:
        """Run `task` on the working thread, between two groups of rollouts."""
        self._tasks.put(task)

    def open_views(self, views: ShadowViews) -> None:
        """Tier 2 opens: from now on rollouts are scored."""
        self.views, self.filing.has_shadow = views, True

    @property
    def counts(self) -> Counter[str]:
        """What was seen, sampled and scored since the start."""
        return self.filing.counts

    @property
    def input_counts(self) -> dict[str, int]:
        """Oddities on the way in: repeated, out-of-order and future rollouts of taps, files of the trainer that moved."""
        return prefixed("pushed_", [self._pushed.counts]) | prefixed("trainer_", [tail.counts for tail in self.reading.trainer_tails])

    @property
    def recent(self) -> deque[Scored]:
        """The newest compared rollouts."""
        return self.filing.recent

    @property
    def trainer_logprobs_seen(self) -> bool:
        """Has the trainer ever told its own logprobs?"""
        return self.filing.trainer_logprobs_seen

    def trainer_says(self, side: TrainerWord) -> bool:
        """Take the trainer's word on a rollout, from any thread; False when too many wait."""
        try:
            self._trainer_says.put_nowait(side)
        except queue.Full:
            return False
        return True

    @property
    def oldest_unscored_at(self) -> float | None:
        """Since when the oldest rollout waits, in hand or in the inbox; None when none does."""
        return min((at for at in (self.busy_since, self.inbox.oldest_at) if at is not None), default=None)

    def read_so_far(self) -> dict[str, list[dict[str, Any]]]:
        """File → how far it is read and stored (klaxon/cursors.py); asked by another thread."""
        with self.builder_lock:
            unspoken = self.filing.join.unspoken() if self._recalls else []
        return self.reading.read_so_far(unspoken)

    @property
    def _recalls(self) -> bool:
        """Are stored rollouts read again for the trainer's word? Not where a scorer compares them: it would have to score them again."""
        return bool(self.reading.trainer_tails) and self.views is None

    def stop(self) -> None:
        """Ask the thread to end once what has come in is filed, or DRAIN_SECONDS have passed."""
        self._halt.set()

    def run(self) -> None:
        """Until stopped, then drain; a failure is counted and logged, and the next group goes on."""
        while not self._halt.is_set():
            worked = self._round()
            self.round_at = self.clock()
            if not worked:
                self._halt.wait(POLL_SECONDS)
        until = time.monotonic() + DRAIN_SECONDS
        while (self._round() or self._left) and time.monotonic() < until:
            pass
        if self._left:
            log.error("%d rollouts that had come in are lost: scoring them would have taken longer than %.0f s", self._left, DRAIN_SECONDS)

    @property
    def _left(self) -> int:
        return len(self.inbox) + len(self._waiting)

    def _round(self) -> bool:
        """A task or a group of rollouts; False when there was nothing to do. A thread that is stopping begins no task."""
        try:
            return (not self._halt.is_set() and self._run_task()) or self.step()
        except Exception as error:
            self.counts["worker_errors"] += 1
            self.trouble = {"at": self.clock(), "text": f"{type(error).__name__}: {error}"[:300]}
            log.exception("a group of rollouts was lost to an error in Klaxon; the next goes on")
            settle(self._in_hand)
            return False

    def step(self) -> bool:
        """Handle one group of rollouts; False when there was nothing to do."""
        now = self.clock()
        oldest = self.inbox.oldest_at
        self.sampler.note_wait(0.0 if oldest is None else now - oldest, max(len(self.inbox) - GROUP_ROLLOUTS, 0))
        arrived = [self._assume(rollout) for rollout in self._arrivals()]
        ready = arrived + self._due(now)
        if own := [rollout for rollout in arrived if rollout.traffic != "canary"]:
            self._note_arrival(own, now)
        if ready:
            self._in_hand = [rollout for rollout in ready if self._known_version(rollout, now)]
            self._file(self._in_hand, now)
            self._in_hand = []
        return self._hear(now) or bool(ready)

    def _note_arrival(self, arrived: list[Rollout], now: float) -> None:
        """Canaries are left out: a run that samples nothing itself is quiet, whatever Klaxon asks."""
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
        arrived = [rollout for rollout in self.inbox.poll(GROUP_ROLLOUTS) if self._pushed.keep(rollout, now=self.clock())]
        for item in () if self._halt.is_set() else self.reading.rollouts(self.clock(), self.counts):  # who stops begins no new part of a file
            if item.mark is not None and item.mark.recalled:
                self._recall(item)
            else:
                arrived.append(item)
        own = [rollout for rollout in arrived if EXPERIMENT not in rollout.request_id]
        if len(own) < len(arrived):
            self.counts["own_experiments"] += len(arrived) - len(own)
            settle(rollout for rollout in arrived if EXPERIMENT in rollout.request_id)
        return own

    def _recall(self, rollout: Rollout) -> None:
        """A rollout that is stored already: the trainer's word on it may still come."""
        if self._recalls and rollout.trainer_logprobs_T is None:
            with self.builder_lock:
                self.filing.join.remember(self._assume(rollout), None)

    def _assume(self, rollout: Rollout) -> Rollout:
        """Fill what the trainer assumes where the rollout does not say it itself; never from the engine's side."""
        if MARK in rollout.request_id:
            rollout = replace(rollout, traffic="canary")
        if adapter := rollout.labels.get("lora"):  # the adapter generated the tokens, whatever the base's label is
            rollout = replace(rollout, weight_versions=(WeightSpan(start=0, end=rollout.n_tokens, version=adapter),))
        if rollout.sampling.temperature is not None:
            return rollout
        trainer = self.config.trainer
        return replace(rollout, run=self.config.run.name, sampling=trainer.sampling.sampling(),
                       expected_logprobs_mode=trainer.expected_logprobs_mode)

    def _known_version(self, rollout: Rollout, now: float) -> bool:
        """False while the rollout waits for its weights to appear on disk, or for tier 2 to open, at most VERSION_PATIENCE_SECONDS."""
        if self._halt.is_set() or (not self._opening() if self.views is None else self.views.can_score(rollout)):
            return True
        if now - (rollout.finished_at or now) > VERSION_PATIENCE_SECONDS or len(self._waiting) >= self.inbox.capacity:
            return True
        self._waiting.append((now + 1.0, rollout))
        return False

    def _due(self, now: float) -> list[Rollout]:
        due = []
        while self._waiting and (self._waiting[0][0] <= now or self._halt.is_set()):
            due.append(self._waiting.popleft()[1])
        return due

    def _hear(self, now: float) -> bool:
        """Join what the trainer said meanwhile; True when a rollout could be compared."""
        sides = list(self._trainer_words())
        if not sides and not self.filing.join.waiting:
            return False
        with self.builder_lock:
            compared, refused = self.filing.hear(sides, now=now)
        for error in refused:
            self.refuse(error)
        self._store([(t, rollout, score) for t, rollout, score in compared], now)
        return bool(compared)

    def _trainer_words(self) -> Iterator[TrainerWord]:
        for _ in range(self._trainer_says.qsize()):
            yield self._trainer_says.get_nowait()
        yield from self.reading.words()

    def _file(self, group: list[Rollout], now: float) -> None:
        draws = [self._draw(rollout, now) for rollout in group]
        kept = [draw.rollout for draw in draws if draw.rollout is not None]
        self.busy_since, started = now, time.perf_counter()
        scores = self._score(kept)
        self.busy_seconds += time.perf_counter() - started
        self.busy_since = None
        compared: list[tuple[int, Rollout, Score]] = []
        with self.builder_lock:
            for rollout, draw in zip(group, draws, strict=True):
                shadow = scores.get(rollout.request_id) if draw.rollout is not None else None
                t, judged = self.filing.file(rollout, draw.rollout, shadow, now=now)
                if judged is not None:
                    compared.append((t, draw.rollout, judged))
        self._store(compared, now)

    def _store(self, compared: list[tuple[int, Rollout, Score]], now: float) -> None:
        by_batch: dict[int, list[tuple[Rollout, Score]]] = defaultdict(list)
        for t, rollout, score in compared:
            by_batch[t].append((rollout, score))
        for t, pairs in by_batch.items():
            self.file_rollouts(t, pairs)
        if compared:
            self.last_scored_at = now

    def _draw(self, rollout: Rollout, now: float) -> Draw:
        """Flip the coins. Without a scorer there is no budget to keep; weights the stride leaves out must not eat the others'."""
        self._note(rollout)
        if self.views is None:
            return Draw(rollout=rollout, base=rollout.base_coin, hinted=False)
        if self.views.skipped(rollout):
            self.counts["skipped_by_stride"] += 1
            self.counts["tokens_skipped_by_stride"] += rollout.n_tokens
            return Draw(rollout=None, base=False, hinted=False)
        return self.sampler.draw(rollout, now=now)

    def _score(self, kept: list[Rollout]) -> dict[str, Score]:
        """The shadow's scores by request id; {} without a shadow."""
        if self.views is None:
            return {}
        try:
            return {score.request_id: score for score in self.views.score(kept)}
        except KlaxonError as error:
            self.counts["scorer_errors"] += 1
            self.trouble = {"at": self.clock(), "text": str(error)[:300]}
            log.warning("these %d rollouts were not scored: %s", len(kept), error)
            return {}

