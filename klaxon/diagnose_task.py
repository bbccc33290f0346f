"""Diagnosis of a live alarm: the quick guess for the first message, the verdict when the scorer has competed them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from collector.errors import KlaxonError
from collector.records import Diagnosis, Drift
from diagnosis.impact import impact
from diagnosis.quick import quick_diagnosis
from klaxon.config import Config

if TYPE_CHECKING:
    from alerts.service import Alerts
    from klaxon.shadow import Say, Shadow
    from klaxon.taps import TapBook
    from klaxon.worker import Scored, Worker

log = logging.getLogger("klaxon.diagnosis")


class Diagnostician:
    """Runs `diagnosis.compete.diagnose` on the worker's thread, again while it is not sure and new rollouts come."""

    def __init__(self, config: Config, *, worker: Worker, shadow: Shadow | None, taps: TapBook, alerts: Alerts,
                 say: Say) -> None:
        self.config, self.worker, self.shadow, self.taps = config, worker, shadow, taps
        self.alerts, self.say = alerts, say
        self.latest: Diagnosis | None = None

    def quick(self, drifts: Sequence[Drift]) -> Diagnosis | None:
        """The leading explanation at the moment of the alarm, marked not confident."""
        return quick_diagnosis(drifts, engine_config=self.taps.engine_config(),
                               expected_mode=self.config.trainer.expected_logprobs_mode)

    def start(self, drift: Drift) -> None:
        """Queue the competition for `drift`; without a shadow the quick diagnosis stays."""
        if self.shadow is None:
            self.latest = self.quick([drift])
            return
        self.latest = None
        self.worker.submit(lambda: self._attempt(drift, attempt=1))

    def _attempt(self, drift: Drift, *, attempt: int) -> None:
        from diagnosis.compete import diagnose

        settings = self.config.diagnosis
        recent = list(self.worker.recent)
        suspects = [item for item in recent if item.t >= drift.change_t[0]][-settings.max_rollouts:]
        started = time.monotonic()
        try:
            verdict = diagnose([item.rollout for item in suspects], self.shadow.scorer,
                               versions=self.shadow.shelf.versions(), config=settings,
                               engine_config=self.taps.engine_config())
        except KlaxonError as error:
            self.say("diagnosis_failed", f"diagnosis did not finish: {error}", {})
            return
        verdict = with_impact(verdict, recent, drift)
        self.latest = verdict
        self._publish(drift, verdict, time.monotonic() - started)

    def _publish(self, drift: Drift, verdict: Diagnosis, seconds: float) -> None:
        now = time.time()
        sure = "confident" if verdict.confident else "not sure"
        self.say("diagnosis", f"{verdict.verdict} ({sure}) from {verdict.tokens} tokens in {seconds:.1f} s",
                 {"verdict": verdict.verdict, "confident": verdict.confident})
        for incident in self.alerts.open_incidents():
            if incident["fingerprint"].endswith("mismatch") and drift.kind == "statistical":
                self.alerts.attach_diagnosis(incident["id"], verdict, now=now)


def with_impact(verdict: Diagnosis, recent: Sequence[Scored], drift: Drift) -> Diagnosis:
    """The verdict with last clean version, tainted rollouts and share of tokens since the change."""
    from dataclasses import replace

    return replace(verdict, impact=impact([(item.t, item.rollout, item.score) for item in recent],
                                          change_t=drift.change_t))
