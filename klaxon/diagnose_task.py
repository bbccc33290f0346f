"""Diagnosis of a live alarm: the quick guess for the first message, the verdict when the scorer has competed them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from threading import Thread
from typing import TYPE_CHECKING

from collector.errors import KlaxonError
from collector.records import Diagnosis, Drift, Rollout
from diagnosis.causes import CAUSE_TEXTS
from diagnosis.exact_ids import ENOUGH_SHARE, compare_ids
from diagnosis.impact import impact
from diagnosis.quick import quick_diagnosis
from diagnosis.shape import shape_of
from diagnosis.signatures import library_of, with_signatures
from klaxon.config import Config
from klaxon.experiments import EXPERIMENTS, Finding, recent_prompts, run

if TYPE_CHECKING:
    from alerts.service import Alerts
    from klaxon.shadow import Say, Shadow
    from klaxon.taps import TapBook
    from klaxon.filing import Scored
    from klaxon.worker import Worker

log = logging.getLogger("klaxon.diagnosis")
ATTEMPTS = 8  # competitions an incident gets while the verdict is not confident
BEFORE_THE_CHANGE = 3  # versions: the estimated change can be late when a fault grows from update to update
FRESH_ROLLOUTS = 12  # new scored rollouts before the next one


class Diagnostician:
    """Runs `diagnosis.compete.diagnose` on the worker's thread, again while it is not sure and new rollouts come."""

    def __init__(self, config: Config, *, worker: Worker, shadow: Shadow | None, taps: TapBook, alerts: Alerts,
                 say: Say) -> None:
        self.config, self.worker, self.shadow, self.taps = config, worker, shadow, taps
        self.alerts, self.say = alerts, say
        self._library = library_of(config.diagnosis.signatures)
        self._drift: Drift | None = None  # the alarm whose cause is still sought
        self._attempts = 0
        self._judged_at = 0  # rollouts scored when the last competition began
        self._findings: list[Finding] = []  # of this incident's experiments
        self._verdict: Diagnosis | None = None  # the newest, without them

    def quick(self, drifts: Sequence[Drift]) -> Diagnosis | None:
        """The leading explanation at the moment of the alarm, marked not confident."""
        found = quick_diagnosis(drifts, engine_config=self.taps.engine_config(),
                                expected_mode=self.config.trainer.expected_logprobs_mode)
        return found and self._addressed(found)

    def _addressed(self, found: Diagnosis) -> Diagnosis:
        """The commands with this run's addresses filled in."""
        if not self.config.engine.url:
            return found
        return replace(found, next=found.next.replace("ENGINE_URL", self.config.engine.url.rstrip("/")))

    def start(self, drift: Drift) -> None:
        """Queue the competition for `drift`; without a shadow the quick diagnosis stays, and gets its impact."""
        if self.shadow is None:
            self.worker.submit(lambda: self._weigh(drift))
            return
        self._drift, self._attempts, self._findings = drift, 0, []
        self._submit()

    def after_batch(self) -> None:
        """Try again once enough new rollouts were scored."""
        fresh = self.worker.counts["scored"] - self._judged_at
        if self._drift is not None and 0 < self._attempts < ATTEMPTS and fresh >= FRESH_ROLLOUTS:
            self._submit()

    def _weigh(self, drift: Drift) -> None:
        """Tier 0 and 1: what the alarm is worth, beside the first guess at its cause; token ids that differ are no guess."""
        recent = list(self.worker.recent)
        ids = compare_ids([item.rollout for item in recent if item.t >= drift.change_t[1]])
        exact = ids.verdict() if ids is not None and ids.share >= ENOUGH_SHARE else None
        for incident in self.alerts.open_incidents():
            found = exact and self._addressed(exact) or incident.diagnosis
            if found is not None and incident.drifts[0].kind == "statistical":
                self.alerts.attach_diagnosis(incident.id, self._weighed(found, recent, drift), now=time.time())

    def _weighed(self, found: Diagnosis, recent: Sequence[Scored], drift: Drift) -> Diagnosis:
        """The diagnosis with its impact since the change, and with the known faults its shape resembles."""
        seen = [(item.t, item.rollout, item.score) for item in recent]
        worth = impact(seen, change_t=drift.change_t, limits=self.config.signals.limits(), correction=self.config.contract.correction)
        return with_signatures(replace(found, impact=worth), shape_of(seen, change_t=drift.change_t, slice_=drift.slice), self._library)

    def _submit(self) -> None:
        self._judged_at = self.worker.counts["scored"]
        self._attempts += 1
        self.worker.submit(self._compete)

    def _compete(self) -> None:
        from collector.shadow.plan import older_than_their_group
        from diagnosis.compete import diagnose

        drift = self._drift
        if drift is None or self.shadow is None:
            return
        settings, recent = self.config.diagnosis, list(self.worker.recent)
        settled = older_than_their_group([item.rollout for item in recent])  # before some of a group are left out
        suspects = [rollout for item, rollout in zip(recent, settled, strict=True) if item.t >= drift.change_t[1]][-settings.max_rollouts:]
        started = time.monotonic()
        try:
            verdict = diagnose(suspects, self.shadow.scorer, versions=self._candidates(recent, drift), config=settings,
                               engine_config=self.taps.engine_config(), deep=False)  # the search would take the scorer for minutes
        except KlaxonError as error:
            self.say("diagnosis_failed", f"diagnosis did not finish: {error}", {})
            return
        self._verdict = self._addressed(self._weighed(verdict, recent, drift))
        verdict = self._addressed(with_findings(self._verdict, self._findings))
        sure = "confident" if verdict.confident else "not sure"
        self.say("diagnosis", f"{verdict.verdict} ({sure}) from {verdict.tokens} tokens in {time.monotonic() - started:.1f} s",
                 {"verdict": verdict.verdict, "confident": verdict.confident})
        self._attach(verdict)
        if verdict.confident:
            self._drift = None
        if self._attempts == 1 and settings.experiments and self.config.engine.url:
            Thread(target=self._experiment, args=(suspects, self._findings), name="klaxon-experiments", daemon=True).start()

    def _experiment(self, suspects: Sequence[Rollout], findings: list[Finding]) -> None:
        """What the operator allows, beside the worker: the engine's answers take as long as they take. `findings`: this incident's."""
        floor = self._verdict.floor_nats if self._verdict is not None else None
        limit = self.config.diagnosis.at_floor_ratio * (floor or self.config.diagnosis.fp32_floor_nats)
        for name in self.config.diagnosis.experiments:
            try:
                found = run(name, self.config.engine.url, recent_prompts(suspects), limit_nats=limit)
            except KlaxonError as error:
                self.say("experiment_failed", f"experiment {name} was not made: {error}", {"experiment": name})
                continue
            findings.append(found)
            self.say("experiment", found.text, {"experiment": name, "decisive": found.decisive})
        if findings and findings is self._findings and self._verdict is not None:  # else another alarm has begun meanwhile
            self._attach(self._addressed(with_findings(self._verdict, findings)))

    def _candidates(self, recent: Sequence[Scored], drift: Drift) -> list[str]:
        """Weight versions an engine that went stale at the change can still be using: from a few before the last clean one.

        Passing every version ever seen would spend the search on versions nobody has used for hours.
        """
        versions = self.shadow.shelf.versions() if self.shadow else []
        clean = [versions.index(item.rollout.version) for item in recent
                 if item.t < drift.change_t[0] and item.rollout.version in versions]
        return versions[max(0, max(clean, default=0) - BEFORE_THE_CHANGE):]

    def _attach(self, verdict: Diagnosis) -> None:
        for incident in self.alerts.open_incidents():
            if incident.drifts[0].kind == "statistical":
                self.alerts.attach_diagnosis(incident.id, verdict, now=time.time())


LEFTOVERS = ("engine_numerics", "unexplained")
"""Verdicts for want of a better one."""


def with_findings(verdict: Diagnosis, findings: Sequence[Finding]) -> Diagnosis:
    """The diagnosis with what experiments said among the leading cause's evidence.

    A decisive finding makes a leading cause sure. It brings its cause to the lead where the verdict is not sure or a leftover, and the cause
    explains the tokens better than healthy.
    """
    if not findings or not verdict.causes:
        return verdict
    doubtful = not verdict.confident
    for finding in findings:
        if finding.decisive and (cause := EXPERIMENTS[finding.name].confirms):
            verdict = _confirmed(verdict, cause)
    first, *rest = verdict.causes
    own = [f"without the experiment {text}" if text.startswith("not sure:") and doubtful and verdict.confident else text for text in first.evidence]
    return replace(verdict, causes=(replace(first, evidence=(*(one.text for one in findings), *own)), *rest))


def _confirmed(verdict: Diagnosis, cause: str) -> Diagnosis:
    if verdict.verdict == cause:
        return replace(verdict, confident=True)
    left = {one.cause: one.residual_nats for one in reversed(verdict.causes) if one.residual_nats is not None}
    if verdict.confident and verdict.verdict not in LEFTOVERS or left.get(cause, math.inf) >= left.get("healthy", math.inf):
        return verdict
    mine = next(one for one in verdict.causes if one.cause == cause)
    rest = tuple(one for one in verdict.causes if one is not mine)
    text = CAUSE_TEXTS[cause]
    return replace(verdict, verdict=cause, confident=True, causes=(mine, *rest), next=text.next, fix=text.fix)
