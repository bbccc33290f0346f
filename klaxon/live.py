"""What the daemon knows right now, as plain data for the read API; and as an Observation for the hard facts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collector.records import Incident
from collector.sources.refusals import added
from detectors.hardfacts import EngineSeen, Observation
from klaxon.audit_view import audit_view
from klaxon.band_view import band_view
from klaxon.comparisons import comparisons
from klaxon.progress import Progress, first_batch, not_firing
from klaxon.verdict import Seen, Verdict, judge

if TYPE_CHECKING:
    from klaxon.app import Daemon

SCORED = ("tokens_scored",)  # the one token count of the scorer that is no refusal
BLINDING = ("engine_unreachable", "no_rollouts", "tap_silent", "scorer_behind", "store_refusing", "disk_low")  # facts that say Klaxon sees nothing
TIER_BLIND = {
    0: ["anything self-consistent: a hidden temperature or top-p, stale weights, head precision",
        "the trainer's view: no trainer logprobs arrive and no weights are configured"],
    1: ["what the trainer itself gets wrong", "which fault it is, beyond shapes (needs weights and a scorer)"],
    2: [],
}


class Live:
    """Status, incidents and observations of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.heartbeat_at = time.time()

    def beat(self) -> None:
        """The daemon's own heartbeat, by the scheduler: if it stops, so has the scheduler."""
        self.heartbeat_at = time.time()

    def incidents(self, limit: int = 50) -> list[dict[str, Any]]:
        """Newest incidents first."""
        return self._daemon.alerts.incidents(limit)

    def status(self) -> dict[str, Any]:
        """One picture of the whole, fit for JSON."""
        daemon, now = self._daemon, time.time()
        verdict, text = self._verdict(now)
        watch, bank = daemon.watch, daemon.bank
        return {
            "run": daemon.config.run.name, "tier": self.tier, "now": now, "started_at": daemon.started_at,
            "heartbeat_at": self.heartbeat_at, "verdict": verdict, "verdict_text": text,
            "budget": daemon.config.detectors.false_alarms, "ln_m": _finite(bank.ln_m), "ln_a": bank.ln_a,
            "learning": bank.learning, "honesty": bank.honesty(), "batch_seconds": daemon.config.daemon.batch_seconds,
            "first_batch": first_batch(watch.closed, daemon.worker.counts, seconds_left=watch.builder.seconds_left(now)),
            "t": watch.last_batch.t if watch.last_batch else None,
            "last_batch_at": watch.last_batch.closed_at if watch.last_batch else None, "taps": daemon.taps.listing(now),
            "engine": {**daemon.taps.engine_config(), **daemon.probe.facts,
                       "url": daemon.config.engine.url, "reachable_at": daemon.probe.reachable_at},
            "scorer": self._scorer(), "weights": self._weights(), "counts": self._counts(),
            "populations": watch.recent.populations(), "signals": watch.recent.signals(), "staleness": watch.recent.staleness(),
            "floor_nats": watch.floor_nats, "blind_spots": self._blind_spots(now),
            "refusals": daemon.ingest.refusals[-5:], "storage": self.storage(),
            "notices": daemon.store.notices, "trainer": daemon.trainer.latest,
            "alerts_delivered": daemon.alerts.delivered_count(), "receivers": daemon.alerts.receivers(now),
            "detectors_at": watch.ticked_at, "exports": daemon.exports.status(),
        }

    def reference_band(self) -> dict[str, Any]:
        """GET /v1/reference-band."""
        return band_view(self._daemon.trainer.band)

    def audit(self) -> dict[str, Any]:
        """GET /v1/audit."""
        return audit_view(self._daemon)

    def comparisons(self) -> list[dict[str, Any]]:
        """GET /v1/comparisons."""
        return comparisons(Path(self._daemon.config.run.dir))

    @property
    def tier(self) -> int:
        """2 with a shadow that has weights, 1 with trainer logprobs, else 0."""
        daemon = self._daemon
        if daemon.shadow is not None and daemon.shadow.shelf.versions():
            return 2
        return 1 if daemon.worker.trainer_logprobs_seen else 0

    def observation(self, now: float) -> Observation:
        """What the hard facts judge beyond a batch."""
        daemon = self._daemon
        engines = {}
        heard, patience = daemon.taps.last_heard(), daemon.config.detectors.facts.no_rollouts_seconds
        versions = {replica: label for replica, (label, at) in list(daemon.worker.replica_versions.items()) if now - at < patience}
        if daemon.config.engine.url:
            engines[daemon.config.engine.url] = EngineSeen(
                reachable_since=daemon.probe.reachable_since, reachable_at=daemon.probe.reachable_at,
                heartbeat_at=heard, version=None if versions else daemon.probe.facts.get("weight_version"),
                expects_tap=daemon.config.sources.tap)
        return Observation(
            now=now, started_at=daemon.started_at, engines=engines, last_rollout_at=daemon.worker.last_rollout_at,
            longest_rollout_gap_seconds=daemon.worker.longest_gap_seconds, published=daemon.trainer.ledger.published(), versions=versions,
            oldest_unscored_at=daemon.worker.oldest_unscored_at, disk_free_bytes=daemon.store.free_bytes(),
            store_refusing_since=daemon.watch.store_refusing_since, declared_dtype=daemon.config.contract.engine_dtype,
            engine_dtype=_engine_dtype(daemon.taps.engine_config()), trainer=daemon.trainer.health.facts(now))

    def judged(self, run: str, now: float) -> Verdict:
        """GET /v1/verdict: may a trainer trust what it gets?"""
        daemon, batch = self._daemon, self._daemon.watch.last_batch
        compared = [item.rollout.version for item in list(daemon.worker.recent) if batch is not None and item.t <= batch.t]
        seen = Seen(run=daemon.config.run.name, last_rollout_at=daemon.worker.last_rollout_at, last_compared_at=daemon.worker.last_scored_at,
                    last_batch_at=batch.closed_at if batch is not None else None, batch_seconds=daemon.config.daemon.batch_seconds,
                    compared_version=compared[-1] if compared else None)
        return judge(seen, daemon.alerts.open_cases(), run=run, now=now)

    def _verdict(self, now: float) -> tuple[str, str]:
        daemon = self._daemon
        firing = daemon.alerts.open_incidents()
        for verdict, matches in (("mismatch", _is_mismatch), ("blind", lambda incident: not _is_mismatch(incident))):
            if found := [incident for incident in firing if matches(incident)]:
                return verdict, found[0].title
        left = daemon.watch.builder.seconds_left(now)
        return not_firing(Progress(now=now, last_rollout_at=daemon.worker.last_rollout_at, batch_seconds=daemon.config.daemon.batch_seconds,
                                   seconds_left=left, taken=daemon.worker.counts, closed=daemon.watch.closed, tap=daemon.config.sources.tap))

    def storage(self) -> dict[str, Any]:
        """Bytes, and what is kept a token ([store] tokens)."""
        daemon = self._daemon
        return {"bytes": daemon.store.size_bytes(), "free_bytes": daemon.store.free_bytes(), "tokens": daemon.config.store.tokens,
                "tokens_ttl_days": daemon.config.store.tokens_ttl_days, "tokens_words_ttl_hours": daemon.config.store.tokens_words_ttl_hours,
                "token_texts_missing": daemon.worst.counts["token_texts_missing"], "tokenizers": dict(daemon.worst.texts.failures)}

    def _scorer(self) -> dict[str, Any]:
        worker, shadow = self._daemon.worker, self._daemon.shadow
        scored, seen = worker.counts["tokens_scored"], worker.counts["tokens_seen"]
        oldest = worker.oldest_unscored_at
        return {
            "state": "off" if worker.views is None else "on", "device": shadow.device if shadow else None,
            "tokens_per_second": scored / worker.busy_seconds if worker.busy_seconds else None,
            "backlog": len(worker.inbox),
            "oldest_unscored_seconds": max(0.0, time.time() - oldest) if oldest is not None else None,
            "last_scored_at": worker.last_scored_at,
            "coverage": scored / seen if seen else None,
        }

    def _weights(self) -> dict[str, Any]:
        daemon = self._daemon
        ledger, engine = daemon.trainer.ledger, daemon.worker.newest_version
        versions = [label for label, _ in ledger.published()]
        lag = len(versions) - 1 - versions.index(engine) if engine in versions else None
        found = {"trainer_version": versions[-1] if versions else None, "engine_version": engine, "lag": lag,
                 "engine_label": daemon.probe.facts.get("weight_version"), "versions_seen": len(versions),
                 "rollout_lag": ledger.figures(), "every": daemon.config.weights.every, "pending": []}
        if daemon.shadow is not None:
            found["counts"] = added(daemon.shadow.follower.counts, daemon.shadow.shelf.counts)
            found["pending"] = [f"{name}: {why}" for name, why in list(daemon.shadow.follower.pending.items())]
        return found

    def _counts(self) -> dict[str, int]:
        daemon = self._daemon
        return added(daemon.counts, daemon.ingest.counts, daemon.worker.counts, daemon.worker.input_counts,
                     daemon.worker.filing.join.counts, daemon.worst.counts, daemon.canary.counts, daemon.exports.counts, daemon.watch.counts,
                     _from_taps(daemon.taps.counts()),
                     {"metrics_refused": daemon.trainer.refused, "metrics_polls_failed": daemon.trainer.counts.total()},
                     daemon.trainer.input_counts, self._from_scorer())

    def _from_scorer(self) -> dict[str, int]:
        """Tokens the scorer left out, by reason: unknown or missing versions, foreign ids, …; every pass counts, also those with older weights."""
        views = self._daemon.worker.views
        counts = views.scorer.counts if views is not None else {}
        return {f"left_out_{name}": count for name, count in dict(counts).items() if name.startswith("tokens_") and name not in SCORED}

    def _blind_spots(self, now: float) -> list[str]:
        daemon, spots = self._daemon, list(TIER_BLIND[self.tier])
        if not any(tap["alive"] for tap in daemon.taps.listing(now)) and daemon.config.sources.tap:
            spots.append("the engine: no tap is heard")
        unscored, seen = daemon.worker.counts["unscored"], daemon.worker.counts["seen"]
        if unscored:
            spots.append(f"{unscored} of {seen} rollouts could not be scored (weights not available, or refused)")
        if self.tier == 1 and (silent := seen - daemon.worker.counts["scored"]):
            spots.append(f"{silent} of {seen} rollouts the trainer has said nothing about (yet)")
        if moved := daemon.worker.counts["trainer_moved_on"]:
            spots.append(f"{moved} rollouts the trainer recomputed with newer weights: staleness and mismatch are mixed there")
        if (limit := daemon.worker.sampler.limit) is not None:
            spots.append(f"the scorer is slower than its budget: {limit:,.0f} of {daemon.config.sampler.tokens_per_minute:,} tokens a minute are scored until it has caught up")
        if strided := daemon.worker.counts["skipped_by_stride"]:
            spots.append(f"{strided} of {seen} rollouts come from versions that are not scored ([weights] every = {daemon.config.weights.every})")
        if foreign := self._from_scorer().get("left_out_tokens_token_out_of_range"):
            spots.append(f"{foreign} tokens of rollouts with ids beyond the model's vocabulary: another tokenizer or model")
        unknown = daemon.trainer.ledger.figures()["unknown_share"]
        if unknown and daemon.trainer.ledger.published():
            spots.append(f"the weights of {unknown:.0%} of the last rollouts: their version is unknown or was never published")
        told = daemon.taps.counts()
        if dropped := told["dropped"]:
            spots.append(f"{dropped} rollouts dropped inside the engine's tap")
        if pictures := told["multimodal"]:
            spots.append(f"{pictures} requests with pictures or sound: their placeholders cannot be scored from token ids")
        if unusable := sum(count for name, count in told.items() if name.startswith("unusable")):
            spots.append(f"{unusable} generations behind the proxy without ids or logprobs (docs/proxy.md says what to ask the engine for)")
        if silent := told["without_logprobs"]:
            spots.append(f"{silent} requests whose client asked for no logprobs (KLAXON_FORCE_LOGPROBS=1 on the tap asks for them)")
        if daemon.bank.learning and self.tier > 0:
            spots.append("slow drift: the battery is still learning what normal looks like")
        return spots


def _from_taps(told: Mapping[str, int]) -> dict[str, int]:
    return {"dropped_by_taps": told.get("dropped", 0), **{name: count for name, count in told.items() if name != "dropped"}}


def _engine_dtype(config: Mapping[str, Any]) -> str | None:
    """The precision the engine itself reports: its quantisation where it has one, else its dtype."""
    return config.get("quantization") or config.get("dtype")


def _is_mismatch(incident: Incident) -> bool:
    drift = incident.drifts[0]
    return drift.kind == "statistical" or drift.stream not in BLINDING


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None
