"""The daemon, wired in one straight function: start, run, stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from alerts.db import Database
from alerts.service import Alerts
from collector.errors import Unavailable
from collector.records import Rollout, Score
from collector.sources.inbox import TapInbox
from collector.sources.trainer_logprobs import parse_trainer_word
from collector.store import Store
from collector.store_seal import forget, seal
from detectors.bank import Bank
from klaxon.alert_routes import alerts_router
from klaxon.api import build_api
from klaxon.backup_routes import backup_router
from klaxon.bank_state import load, load_requests
from klaxon.batches import BatchBuilder, add_gains
from klaxon.canary import Canary
from klaxon.chores import schedule
from klaxon.claims import claimed
from klaxon.config import Config
from klaxon.cursors import Cursors
from klaxon.diagnose_task import Diagnostician
from klaxon.exports.exports import FEED_SECONDS, Exports
from klaxon.health import health_router
from klaxon.heartbeat import heartbeat_of
from klaxon.ingest import Ingest, ingest_router
from klaxon.live import Live
from klaxon.outsiders import OutsidersNeedTheToken, read_token
from klaxon.probe import EngineProbe
from klaxon.sealed import keep_status
from klaxon.serving import servers, serving
from klaxon.shadow import Shadow
from klaxon.taps import TapBook
from klaxon.trainer_side import TrainerSide
from klaxon.watch import Hooks, Watch
from klaxon.worker import Worker
from klaxon.worst import WorstRollouts, tokenizer_folders

if TYPE_CHECKING:
    from klaxon.shadow_views import ShadowViews

log = logging.getLogger("klaxon")
HEARTBEAT_SECONDS, METRICS_SECONDS, ALERTS_SECONDS, STATUS_SECONDS = 5.0, 2.0, 15.0, 60.0
RETENTION_SECONDS = 3600.0


class Daemon:
    """Every part of one running Klaxon. Built by `build`, run by `serve`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.counts: Counter[str] = Counter()
        self.started_at = time.time()
        folder = Path(config.run.dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.store = Store(config.store.path or folder / "klaxon.duckdb", memory_limit=config.store.memory_limit,
                           threads=config.store.threads)
        self.alerts = Alerts(config.alerts, folder / "control.sqlite", run=config.run.name,
                             budget_text=config.detectors.false_alarms,
                             batch_seconds=config.daemon.batch_seconds, exclusive=True)
        self.taps = TapBook(self._engine_says)
        self.probe = EngineProbe(config.engine.url, self.say)
        self.inbox = TapInbox(config.sources.inbox_rollouts)
        self.trainer = TrainerSide(config, self.store, self.say)
        self.shadow: Shadow | None = self.trainer.shadow
        self.ingest = Ingest(self.inbox, {"heartbeat": self._heartbeat, "metrics": self.trainer.take_metrics,
                                          "weights": self.trainer.take_weights, "event": self._event,
                                          "rebaseline": self._rebaseline,
                                          "trainer_logprobs": self._trainer_logprobs})
        self._wire(folder)

    def _wire(self, folder: Path) -> None:
        config, lock = self.config, threading.Lock()
        self.bank = Bank(config.detectors, batch_seconds=config.daemon.batch_seconds)
        self.worst = WorstRollouts(config.store, self.store, folders=tokenizer_folders(config, self.shadow))
        self.store.token_retention(time.time(), config.store)  # a lower tier than the last daemon's holds at once
        first_t = self._replay()
        self.cursors = Cursors(Database(folder / "control.sqlite"), next_t=self.store.forget_unstored())
        builder = BatchBuilder(started_at=self.started_at, batch_seconds=config.daemon.batch_seconds,
                               watermark_seconds=config.daemon.watermark_seconds, first_t=first_t)
        self.trainer.bet = lambda gains: add_gains(builder, lock, gains)
        self.worker = Worker(config, inbox=self.inbox, builder=builder, builder_lock=lock,
                             views=self._views() if config.weights.dir else None, refuse=self.ingest.refuse,
                             file_rollouts=self._file_rollouts, note=self.trainer.ledger.note,
                             opening=lambda: self.shadow is not None and bool(self.shadow.published), kept=self.cursors.kept)
        self.cursors.read_so_far = self.worker.read_so_far
        load_requests(folder, self.worker.filing.requests)
        self.diagnostician = Diagnostician(config, worker=self.worker, shadow=self.shadow, taps=self.taps,
                                           alerts=self.alerts, say=self.say)
        self.canary = Canary(config.engine.url, config.canary, config.trainer.sampling.sampling(),
                             last_rollout_at=lambda: self.worker.last_rollout_at, say=self.say)
        self.live = Live(self)
        self.exports = Exports(config, self.store, status=self.live.status, incidents=self.live.incidents)
        hooks = Hooks(say=self.say, observe=self.live.observation, quick=self.diagnostician.quick, diagnose=self.diagnostician.start,
                      after_batch=self._after_batch, take_counts=self._take_counts, suspects=self._suspects, storing=self.cursors.storing,
                      requests_state=self._requests_state)
        self.watch = Watch(config, bank=self.bank, builder=builder, builder_lock=lock, store=self.store,
                           alerts=self.alerts, hooks=hooks, clock=time.time)
        self.api: FastAPI = build_api(self.store, self.live)
        self.token = read_token(config)
        self.api.add_middleware(OutsidersNeedTheToken, token=self.token)
        self.heartbeat = heartbeat_of(self)
        self.api.include_router(ingest_router(self.ingest, token=self.token, weights=self.trainer.take_checked_weights))
        self.api.include_router(alerts_router(self.alerts, token=self.token, verdict=self.live.judged))
        self.api.include_router(health_router(self))
        self.api.include_router(backup_router(self.store, folder, token=self.token, keep_status=self.keep_status))
        self.socket = Path(config.daemon.socket or folder / "klaxon.sock")

    def _file_rollouts(self, t: int, pairs: list[tuple[Rollout, Score]]) -> None:
        self.store.append_rollouts(t, pairs)
        self.worst.offer(t, pairs)

    def _after_batch(self) -> None:
        self.diagnostician.after_batch()
        if self.watch.last_batch is not None:
            self.worst.keep(self.watch.last_batch.t)

    def _requests_state(self) -> list[dict[str, Any]]:
        with self.worker.builder_lock:  # the worker learns under it
            return self.worker.filing.requests.to_state()

    def _views(self) -> ShadowViews | None:
        if self.shadow is None:
            return None
        from klaxon.shadow_views import ShadowViews  # imports torch: tier 2 only

        return ShadowViews(self.shadow.scorer, self.shadow.shelf, refresh=self.shadow.refresh, strided=self.shadow.strided)

    def _poll_weights(self) -> None:
        """Take new versions; the first one that is announced where no folder is configured opens tier 2."""
        self.trainer.poll_weights()
        if self.worker.views is None and self.shadow is not None and self.shadow.published:
            self.worker.open_views(self._views())
            self.say("daemon", "tier 2 is open: the first announced weights are whole", {})

    def _replay(self) -> int:
        """Take up the evidence where the last daemon of this run left it; returns the next batch number."""
        for said in self.store.migrated:
            self.say("daemon", said, {})
        folder, detectors = Path(self.config.run.dir), self.config.detectors
        kept, why = load(folder, detectors, batch_seconds=self.config.daemon.batch_seconds)
        self.bank = kept or self.bank
        if why:
            self.say("detector", why, {})
        t = self.bank.last_t if self.bank.last_t is not None else -1
        events = [json.loads(data) for (data,) in self.store.query("SELECT data FROM events WHERE kind = 'resolved'")]
        resolved = {event["t"] for event in events if event["fingerprint"].endswith("/mismatch")}
        for batch in self.store.read_batches(start=t + 1):
            self.bank.update(batch)
            t = batch.t
            if t in resolved:
                self.bank.resolve(t)
        self.bank.notices.clear()  # told when they happened
        if t >= 0:
            self.say("daemon", f"Klaxon took up the run at batch {t + 1}", {})
        return t + 1

    def say(self, kind: str, text: str, data: dict) -> None:
        """File an event for the timeline, and log it."""
        log.info("%s: %s", kind, text)
        try:
            self.store.append_event(at=time.time(), kind=kind, text=text, data=data)
        except Unavailable as error:
            self.counts["store_errors"] += 1
            log.error("this event is not stored: %s", error)

    def _engine_says(self, kind: str, text: str, data: dict) -> None:
        """An event of an engine; one the operator declared harmless beforehand teaches the battery anew, unless an alarm is open."""
        self.say(kind, text, data)
        if kind not in self.config.detectors.battery.rebaseline_on:
            return
        if self.bank.firing:
            self.say("rebaseline_left_out", f"an alarm is open, so what is normal stays what it was: {text}", {})
        else:
            self.watch.rebaseline(text)

    def _rebaseline(self, message: dict) -> None:
        reason = message["reason"]
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError("reason: say in a few words what was changed")
        self.watch.rebaseline(reason.strip()[:300])

    def _heartbeat(self, message: dict) -> None:
        self.taps.beat(message, now=time.time())

    def _trainer_logprobs(self, message: dict) -> None:
        if not self.worker.trainer_says(parse_trainer_word(message, where="trainer")):
            self.counts["trainer_words_dropped"] += 1

    def _event(self, message: dict) -> None:
        data = message.get("data") or {}
        self.say("engine_call", f"{message['name']} {data.get('path', '')}".strip(), dict(data))

    def _suspects(self, first: int, last: int) -> list[str]:
        """Keyed hashes of the rollouts of batches first … last that are far outside the healthy ones, oldest first."""
        return [self.store.request_hash(request) for t, request in list(self.worker.filing.suspects) if first <= t <= last]

    def _take_counts(self) -> dict[str, int]:
        """What was refused or lost since the last batch."""
        taken, self.ingest.counts = self.ingest.counts, Counter()
        self.counts.update(taken)
        return dict(taken)

    def keep_status(self) -> None:
        """Leave the status beside the store, for those who open the files later."""
        try:
            keep_status(Path(self.config.run.dir), {**self.live.status(), "audit": self.live.audit(), "reference_band": self.live.reference_band()})
        except Unavailable as error:
            self.counts["store_errors"] += 1
            log.error("%s", error)

    def retain(self) -> None:
        """Seal the hours that are over, then let go of what outlived its time."""
        now, config, sealed = time.time(), self.config.store, Path(self.config.run.dir) / "sealed"
        seal(self.store.query_arrow, sealed, config.seal, now)
        forget(sealed, config.sealed_ttl_days, now)
        self.store.retention(now, config)

    def chores(self) -> list[tuple]:
        """What APScheduler runs, and how often."""
        store_config = self.config.store
        chores = [
            ("heartbeat", self.live.beat, HEARTBEAT_SECONDS),
            ("status", self.keep_status, STATUS_SECONDS),
            ("metrics", self.trainer.poll_metrics, METRICS_SECONDS),
            ("alerts", lambda: self.alerts.tick(time.time()), ALERTS_SECONDS),
            ("checkpoint", self.store.checkpoint, store_config.checkpoint_seconds),
            ("retention", self.retain, RETENTION_SECONDS),
        ]
        if self.exports.relays:
            chores.append(("exports", self.exports.feed, FEED_SECONDS))
        if self.config.engine.url:
            chores.append(("probe", lambda: self.probe.probe(time.time()), self.config.engine.probe_seconds))
            if self.config.canary.prompts:
                chores.append(("canary", self.canary.sing, self.config.canary.every_seconds))
        if self.heartbeat is not None:
            chores.append(("heartbeat_webhook", self.heartbeat.beat, self.config.alerts.heartbeat_seconds))
        if self.shadow is not None:
            chores.append(("weights", self._poll_weights, self.config.weights.poll_seconds))
        return chores


async def serve(config: Config) -> None:
    """Run the daemon until SIGINT or SIGTERM; then stop the sources, drain, seal and leave.

    Raises:
        KlaxonError: a configured part cannot start.
    """
    daemon = Daemon(config)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(daemon.store.close)
        stack.callback(daemon.cursors.close)
        stack.callback(daemon.worst.keep)
        daemon.alerts.start()
        stack.callback(daemon.alerts.stop)
        daemon.exports.start()
        stack.callback(daemon.exports.stop)
        at_rest = stack.enter_context(contextlib.ExitStack())  # what a daemon that ran does once its threads have ended
        for thread in (daemon.watch, daemon.worker):  # left in the other order: the worker files what has come in, the watch seals it
            thread.start()
            stack.callback(_stop_thread, thread)
        scheduler = schedule(daemon.chores(), daemon.counts)
        scheduler.start()
        stack.callback(scheduler.shutdown)
        for server in servers(daemon):
            await stack.enter_async_context(serving(server, stopping))
        daemon.say("daemon", f"Klaxon watches run {config.run.name}", {})
        for other in stack.enter_context(claimed(config)):
            log.warning("a second sidecar: %s is already watched by run %s (pid %s, %s); stop one of the two", other["what"], *map(other.get, ("run", "pid", "api")))
            daemon.say("second_sidecar", f"{other['what']} is already watched by run {other.get('run')} (pid {other.get('pid')}): every fault is told twice", other)
        await stopping.wait()
        daemon.say("daemon", "Klaxon stops", {})
        at_rest.callback(daemon.keep_status)


def _stop_thread(thread: Worker | Watch) -> None:
    thread.stop()
    thread.join(timeout=20)
