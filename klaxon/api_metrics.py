"""What Prometheus scrapes: gauges of the run as it stands, computed at the scrape.

A dead Klaxon must page: `absent_over_time(klaxon_heartbeat_timestamp_seconds[5m])`; docs/prometheus-rules.yml has the rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from collector.store import Store

VERDICTS = ("starting", "healthy", "learning", "mismatch", "blind")

GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "klaxon_heartbeat_timestamp_seconds": ("when the daemon last completed a round, UTC seconds", ("heartbeat_at",)),
    "klaxon_tier": ("0 = engine only, 1 = trainer logprobs, 2 = shadow scorer", ("tier",)),
    "klaxon_ln_m": ("evidence of a mismatch: natural log of the weighted average e-value M", ("ln_m",)),
    "klaxon_ln_a": ("alarm threshold on klaxon_ln_m", ("ln_a",)),
    "klaxon_floor_nats": ("mean |d| a healthy engine of this kind still has, nats", ("floor_nats",)),
    "klaxon_scorer_tokens_per_second": ("tokens the shadow scorer rescored a second", ("scorer", "tokens_per_second")),
    "klaxon_scorer_backlog_rollouts": ("rollouts waiting for the scorer", ("scorer", "backlog")),
    "klaxon_scorer_oldest_unscored_seconds": ("how long the oldest waiting rollout has waited for a score", ("scorer", "oldest_unscored_seconds")),
    "klaxon_scorer_coverage_ratio": ("share of the sampled tokens that were scored, 0 to 1", ("scorer", "coverage")),
    "klaxon_weight_lag_versions": ("versions the engine is behind the trainer", ("weights", "lag")),
    "klaxon_rollout_lag_versions": ("mean lag of the last rollouts behind the newest published version", ("weights", "rollout_lag", "lag_mean")),
    "klaxon_unknown_version_ratio": ("share of the last rollouts whose weight version is unknown or unpublished", ("weights", "rollout_lag", "unknown_share")),
    "klaxon_store_bytes": ("bytes of the store on disk", ("storage", "bytes")),
}
"""Name → (help, path in the status object). A value that is unknown is left out."""

SIGNALS = {"mean_abs_d": "klaxon_mean_abs_d_nats", "mean_d": "klaxon_mean_d_nats", "k3": "klaxon_k3_nats",
           "clip_rate": "klaxon_clip_rate_ratio", "ess": "klaxon_ess_ratio"}
"""Column of the newest scored batch → metric name."""


class RunCollector(Collector):
    """Reads the daemon's status and the newest scored batch at every scrape."""

    def __init__(self, store: Store, live: Any, *, faults: Callable[[], int]) -> None:
        self._store, self._live, self._faults = store, live, faults

    def describe(self) -> list[Metric]:
        """Nothing in advance: the names depend on what is known."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric of the run."""
        status = self._live.status()
        status = {"heartbeat_at": status.get("now"), **status}
        for name, (text, path) in GAUGES.items():
            yield from _gauge(name, text, _dig(status, path))
        verdict = GaugeMetricFamily("klaxon_verdict", "1 for the verdict that holds", labels=["verdict"])
        for name in VERDICTS:
            verdict.add_metric([name], float(status.get("verdict") == name))
        yield verdict
        yield from self._signals()
        yield from _counts(status)
        yield from _taps(status.get("taps") or ())
        yield from _receivers(status.get("receivers") or (), now=status.get("now"))
        firing = sum(item.get("state") != "resolved" for item in self._live.incidents())
        yield from _gauge("klaxon_incidents_open", "incidents that are firing or acknowledged", firing)
        yield CounterMetricFamily("klaxon_api_faults", "requests of the read API that failed", value=self._faults())

    def _signals(self) -> Iterator[Metric]:
        columns = ", ".join(SIGNALS)
        rows = self._store.query(f"SELECT {columns} FROM series WHERE n_tokens > 0 ORDER BY t DESC LIMIT 1")
        for name, value in zip(SIGNALS.values(), rows[0] if rows else (), strict=False):
            yield from _gauge(name, "of the newest scored batch", value)


def _gauge(name: str, text: str, value: Any) -> Iterator[Metric]:
    if isinstance(value, (int, float)) and not math.isnan(value):
        yield GaugeMetricFamily(name, text, value=float(value))


def _counts(status: Mapping[str, Any]) -> Iterator[Metric]:
    family = CounterMetricFamily("klaxon_count", "rollouts and tokens by what became of them", labels=["what"])
    for what, value in (status.get("counts") or {}).items():
        if isinstance(value, (int, float)):
            family.add_metric([what], float(value))
    yield family


def _taps(taps: Any) -> Iterator[Metric]:
    labels = ["source", "engine"]
    seen = GaugeMetricFamily("klaxon_tap_last_seen_timestamp_seconds", "last heartbeat of a tap, UTC seconds", labels=labels)
    alive = GaugeMetricFamily("klaxon_tap_up", "1 while a tap's heartbeat is fresh", labels=labels)
    dropped = CounterMetricFamily("klaxon_tap_dropped", "rollouts a tap dropped rather than block its engine", labels=labels)
    for tap in taps:
        key = [str(tap.get("source")), str(tap.get("engine"))]
        alive.add_metric(key, float(bool(tap.get("alive"))))
        if tap.get("last_seen") is not None:
            seen.add_metric(key, float(tap["last_seen"]))
        dropped.add_metric(key, float(tap.get("dropped") or 0))
    yield from (seen, alive, dropped)


def _receivers(receivers: Any, *, now: Any) -> Iterator[Metric]:
    up = GaugeMetricFamily("klaxon_alerts_receiver_up", "0 while a receiver is left alone because it failed too often", labels=["receiver"])
    waiting = GaugeMetricFamily("klaxon_alerts_waiting", "messages that have not left yet", labels=["receiver"])
    dead = GaugeMetricFamily("klaxon_alerts_dead_letters", "messages that were given up", labels=["receiver"])
    oldest = GaugeMetricFamily("klaxon_alerts_oldest_waiting_seconds", "how long the oldest of them has waited", labels=["receiver"])
    for receiver in receivers:
        key, since = [str(receiver.get("receiver"))], receiver.get("oldest_at")
        up.add_metric(key, float(receiver.get("breaker") == "closed"))
        waiting.add_metric(key, float(receiver.get("waiting") or 0))
        dead.add_metric(key, float(receiver.get("dead") or 0))
        oldest.add_metric(key, max(0.0, now - since) if since is not None and now is not None else 0.0)
    yield from (up, waiting, dead, oldest)


def _dig(status: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = status
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
