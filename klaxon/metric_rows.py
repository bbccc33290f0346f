"""The table of what Prometheus gets: name (unit at its end), type, labels beside `run`, meaning, and where it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from collector.sources.metrics.names import STANDARD
from klaxon.metric_picture import Picture

VERDICTS = ("starting", "healthy", "learning", "mismatch", "blind")
STATES = ("firing", "acknowledged")
DROPS = ("dropped_inbox_full", "dropped_by_taps", "without_logprobs", "multimodal", "aborted", "late", "unscored", "skipped_by_stride",
         "own_experiments", "trainer_words_dropped")
DROP_PREFIXES = ("refused_", "unusable_")
TOKEN_DROPS = ("tokens_unscored", "tokens_skipped_by_stride")

Sample = tuple[tuple[str, ...], float]


class Exported(NamedTuple):
    """One metric."""

    name: str
    kind: Literal["gauge", "counter"]
    labels: tuple[str, ...]
    meaning: str
    read: Callable[[Picture], Iterable[Sample]]


def _one(value: Any) -> Iterator[Sample]:
    """A single number; nothing where it is unknown."""
    if isinstance(value, (int, float)) and not math.isnan(value):
        yield (), float(value)


def _at(*path: str) -> Callable[[Picture], Iterable[Sample]]:
    return lambda picture: _one(picture.get(*path))


def _newest(column: str) -> Callable[[Picture], Iterable[Sample]]:
    return lambda picture: _one(picture.newest.get(column))


def _heartbeats(picture: Picture) -> Iterator[Sample]:
    taps = [tap["last_seen"] for tap in picture.get("taps") or () if tap.get("last_seen") and tap.get("source") != "trainer"]
    found = {"daemon": picture.get("heartbeat_at") or picture.get("now"), "detectors": picture.get("detectors_at"),
             "engine": picture.get("engine", "reachable_at"), "scorer": picture.get("scorer", "last_scored_at"), "tap": max(taps, default=None)}
    for part, at in found.items():
        for _, number in _one(at):
            yield (part,), number


def _quantiles(picture: Picture) -> Iterator[Sample]:
    for quantile, column in (("0.5", "p50_abs_d"), ("0.99", "p99_abs_d")):
        for _, number in _one(picture.newest.get(column)):
            yield (quantile,), number


def _incidents(picture: Picture) -> Iterator[Sample]:
    """By the verdict where there is one, else the hard fact, else `diagnosing`."""
    counted: dict[tuple[str, str], float] = {}
    for incident in picture.incidents:
        drift = (incident.get("drifts") or [{}])[0]
        cause = (incident.get("diagnosis") or {}).get("verdict") or (drift.get("stream") if drift.get("kind") == "fact" else "diagnosing")
        key = str(incident.get("state")), str(cause)
        counted[key] = counted.get(key, 0.0) + 1.0
    yield from counted.items()


def _counts(names: Iterable[str], prefixes: tuple[str, ...] = ()) -> Callable[[Picture], Iterable[Sample]]:
    """Counts of the status by name."""
    def read(picture: Picture) -> Iterator[Sample]:
        for name, value in (picture.get("counts") or {}).items():
            if (name in names or name.startswith(prefixes)) and isinstance(value, (int, float)):
                yield (name.removeprefix("left_out_"),), float(value)
    return read


def _taps(name: str, *, default: float | None = None) -> Callable[[Picture], Iterable[Sample]]:
    def read(picture: Picture) -> Iterator[Sample]:
        for tap in picture.get("taps") or ():
            for _, number in _one(tap.get(name, default)):
                yield (str(tap.get("source")), str(tap.get("engine"))), number
    return read


def _receivers(number_of: Callable[[Mapping[str, Any], float], float]) -> Callable[[Picture], Iterable[Sample]]:
    def read(picture: Picture) -> Iterator[Sample]:
        for receiver in picture.get("receivers") or ():
            yield (str(receiver.get("receiver")),), number_of(receiver, picture.get("now") or 0.0)
    return read


def _oldest(receiver: Mapping[str, Any], now: float) -> float:
    since = receiver.get("oldest_at")
    return max(0.0, now - since) if since is not None else 0.0


def _exports(number_of: Callable[[Mapping[str, Any]], Any]) -> Callable[[Picture], Iterable[Sample]]:
    def read(picture: Picture) -> Iterator[Sample]:
        for one in picture.get("exports") or ():
            for _, number in _one(number_of(one)):
                yield (str(one["exporter"]),), number
    return read


def _trainer(picture: Picture) -> Iterator[Sample]:
    for name in STANDARD:
        for _, number in _one(picture.get("trainer", name)):
            yield (name,), number


EXPORTED: tuple[Exported, ...] = (
    Exported("klaxon_heartbeat_timestamp_seconds", "gauge", ("part",),
             "when a part was last seen at work, UTC seconds: daemon (its scheduler), detectors, tap, engine, scorer", _heartbeats),
    Exported("klaxon_verdict", "gauge", ("verdict",), f"1 for the verdict that holds, 0 for the others: {', '.join(VERDICTS)}",
             lambda picture: [((name,), float(picture.get("verdict") == name)) for name in VERDICTS]),
    Exported("klaxon_tier", "gauge", (), "0 = engine only, 1 = trainer logprobs, 2 = shadow scorer", _at("tier")),
    Exported("klaxon_learning", "gauge", (), "1 while the battery still learns what is normal", lambda picture: _one(picture.get("learning"))),
    Exported("klaxon_k3_nats", "gauge", (), "mean e^d − 1 − d, an estimate of KL(p‖q), of the newest compared batch, nats", _newest("k3")),
    Exported("klaxon_mean_abs_d_nats", "gauge", (), "mean |d| of the newest compared batch, nats", _newest("mean_abs_d")),
    Exported("klaxon_mean_d_nats", "gauge", (), "mean d = log q − log p of the newest compared batch, nats", _newest("mean_d")),
    Exported("klaxon_abs_d_nats", "gauge", ("quantile",), "quantiles 0.5 and 0.99 of |d| of the newest compared batch, nats", _quantiles),
    Exported("klaxon_floor_nats", "gauge", (), "mean |d| of this run while nothing fired (median of batches), nats", _at("floor_nats")),
    Exported("klaxon_clip_rate_ratio", "gauge", (),
             "share of the tokens of the newest compared batch whose ratio lies outside the clip range, 0 to 1", _newest("clip_rate")),
    Exported("klaxon_ess_ratio", "gauge", (), "effective sample size of the newest compared batch as a share of its tokens, 0 to 1", _newest("ess")),
    Exported("klaxon_compared_tokens", "gauge", (), "tokens compared in that batch", _newest("n_tokens")),
    Exported("klaxon_compared_batch_timestamp_seconds", "gauge", (), "end of that batch, UTC seconds", _newest("closed_at")),
    Exported("klaxon_batch_number", "gauge", (), "number of the newest batch, compared or not", _at("t")),
    Exported("klaxon_ln_m", "gauge", (), "evidence of a mismatch: natural log of the weighted average e-value M", _at("ln_m")),
    Exported("klaxon_ln_a", "gauge", (), "alarm threshold on `klaxon_ln_m` and `klaxon_stream_ln_share`", _at("ln_a")),
    Exported("klaxon_stream_ln_share", "gauge", ("stream",),
             "natural log of what one stream contributes to M (weight times its e-value); at `klaxon_ln_a` it raises the alarm alone",
             lambda picture: [((stream,), share) for stream, share in picture.streams.items()]),
    Exported("klaxon_alarms", "gauge", (), "alarms raised since the detectors began", _at("honesty", "alarms")),
    Exported("klaxon_promised_false_alarms", "gauge", (),
             "false alarms the budget allows in the same time", _at("honesty", "promised_false_alarms")),
    Exported("klaxon_incidents_open", "gauge", (), "incidents that fire or are acknowledged", lambda picture: _one(len(picture.incidents))),
    Exported("klaxon_incidents", "gauge", ("state", "cause"),
             "the same by state (firing, acknowledged) and cause: the verdict, the hard fact, or `diagnosing`; a pair without incidents has no sample",
             _incidents),
    Exported("klaxon_scorer_coverage_ratio", "gauge", (),
             "share of the sampled tokens that were compared since the start, 0 to 1", _at("scorer", "coverage")),
    Exported("klaxon_scorer_tokens_per_second", "gauge", (),
             "tokens the shadow scorer scores in a second of its work", _at("scorer", "tokens_per_second")),
    Exported("klaxon_scorer_backlog_rollouts", "gauge", (), "rollouts waiting for the scorer", _at("scorer", "backlog")),
    Exported("klaxon_scorer_oldest_unscored_seconds", "gauge", (),
             "how long the oldest of them has waited; no sample while none waits", _at("scorer", "oldest_unscored_seconds")),
    Exported("klaxon_rollouts_dropped_total", "counter", ("reason",),
             "rollouts (of `trainer_words_dropped`: words of the trainer) that were not compared, by reason", _counts(DROPS, DROP_PREFIXES)),
    Exported("klaxon_tokens_left_out_total", "counter", ("reason",),
             "tokens that were not compared, by reason; the scorer counts every pass", _counts(TOKEN_DROPS, ("left_out_tokens_",))),
    Exported("klaxon_count_total", "counter", ("what",),
             "everything Klaxon counts, drops among them, as `klaxon status --json` names it", _counts((), ("",))),
    Exported("klaxon_weight_lag_versions", "gauge", (), "versions the engine is behind the trainer", _at("weights", "lag")),
    Exported("klaxon_weight_versions", "gauge", (), "weight versions seen so far", _at("weights", "versions_seen")),
    Exported("klaxon_rollout_lag_versions", "gauge", (),
             "mean lag of the last rollouts behind the newest published version", _at("weights", "rollout_lag", "lag_mean")),
    Exported("klaxon_unknown_version_ratio", "gauge", (),
             "share of the last rollouts whose weight version is unknown or unpublished, 0 to 1", _at("weights", "rollout_lag", "unknown_share")),
    Exported("klaxon_trainer_step", "gauge", (), "newest step the trainer logged", _at("trainer", "step")),
    Exported("klaxon_trainer_metric", "gauge", ("metric",),
             "the trainer's own metrics of that step under their standard names (docs/trainer-metrics.md), in their own units", _trainer),
    Exported("klaxon_tap_up", "gauge", ("source", "engine"), "1 while a tap's heartbeat is fresh", _taps("alive")),
    Exported("klaxon_tap_last_seen_timestamp_seconds", "gauge", ("source", "engine"), "last heartbeat of a tap, UTC seconds", _taps("last_seen")),
    Exported("klaxon_tap_dropped_total", "counter", ("source", "engine"),
             "rollouts a tap dropped rather than block its engine", _taps("dropped", default=0)),
    Exported("klaxon_store_bytes", "gauge", (), "bytes of the store on disk", _at("storage", "bytes")),
    Exported("klaxon_store_free_bytes", "gauge", (), "free bytes of that disk", _at("storage", "free_bytes")),
    Exported("klaxon_alerts_delivered_total", "counter", (), "messages accepted by receivers", _at("alerts_delivered")),
    Exported("klaxon_alerts_receiver_up", "gauge", ("receiver",),
             "0 while a receiver is left alone because it failed too often", _receivers(lambda one, now: float(one.get("breaker") == "closed"))),
    Exported("klaxon_alerts_waiting", "gauge", ("receiver",),
             "messages in the outbox that have not left yet", _receivers(lambda one, now: float(one.get("waiting") or 0))),
    Exported("klaxon_alerts_oldest_waiting_seconds", "gauge", ("receiver",),
             "how long the oldest of them has waited, 0 = none waits", _receivers(_oldest)),
    Exported("klaxon_alerts_dead_letters", "gauge", ("receiver",),
             "messages that were given up", _receivers(lambda one, now: float(one.get("dead") or 0))),
    Exported("klaxon_export_up", "gauge", ("exporter",),
             "0 while an exporter (wandb, tensorboard) or the server behind it fails", _exports(lambda one: one["state"] not in ("failing", "complaining"))),
    Exported("klaxon_export_written_total", "counter", ("exporter",),
             "batches an exporter took since the start", _exports(lambda one: one["written"])),
    Exported("klaxon_export_failed_total", "counter", ("exporter",),
             "attempts that failed since the start; each is tried again", _exports(lambda one: one["failed"])),
    Exported("klaxon_export_behind_batches", "gauge", ("exporter",),
             "stored batches an exporter has not taken yet", _exports(lambda one: one.get("behind"))),
    Exported("klaxon_api_faults_total", "counter", (), "requests of the read API that failed", lambda picture: _one(picture.faults)),
)
