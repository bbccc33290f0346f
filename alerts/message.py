"""Incident → Message: what every receiver is told, before anyone decides how it looks. Pure.

Every message names the statistic and its size, the threshold and the false-alarm budget it keeps, since when, where, why,
the impact where it is known, the next command, and why it was sent. Rollout text, token ids and request ids never enter:
impact is read by known names and numbers only, and every string passes words.clean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import quote

from alerts import runbooks, words
from alerts.incidents import Case
from collector.records import Cause, Diagnosis, Drift
from detectors.streams import cause_of

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One labelled paragraph; `code` marks something to type."""

    name: str
    text: str
    code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message, the same for every receiver. JSON-able: it is stored in the outbox as it will be sent."""

    incident_id: str
    fingerprint: str
    run: str
    state: str  # firing, acknowledged or resolved
    severity: str
    reason: str  # a NotifyReason
    at: float  # UTC seconds, when the state was as told here
    title: str
    headline: str  # one or two sentences: all of it, if nobody reads on
    sections: tuple[Section, ...]
    because: str  # why it was sent, and within which false-alarm budget
    dashboard_url: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)  # the same in numbers, for machines
    id: str = ""  # stable over retries; given by the outbox
    schema: int = SCHEMA

    def to_json(self) -> str:
        """As stored in the outbox."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Message:
        """The inverse of `to_json`."""
        found = json.loads(text)
        return cls(**{**found, "sections": tuple(Section(**section) for section in found["sections"])})


def compose(case: Case, *, reason: str, detail: str, budget_text: str, dashboard_url: str, now: float, runbook_url: str = "",
            chart: Sequence[tuple[float, float]] = ()) -> Message:
    """The message about a case. `reason` is a NotifyReason's value, `detail` says it in words, `dashboard_url` the page's address, `runbook_url` where docs/runbooks/ can be read,
    `chart` ln M over UTC seconds."""
    incident = case.incident
    drift, diagnosis = incident.drifts[0], incident.diagnosis
    parts = (
        Section(name="What", text=_what(drift, diagnosis)),
        Section(name="Alarm", text=_alarm(drift)),
        Section(name="Since", text=_since(case)),
        Section(name="Where", text="; ".join(dict.fromkeys(words.where(each.slice) for each in incident.drifts[:5]))),
        Section(name="Why", text=_why(drift, diagnosis)),
        Section(name="Impact", text=_impact(diagnosis)),
        Section(name="Fix", text=words.clean(diagnosis.fix, limit=600) if diagnosis is not None else ""),
        Section(name="Do next", text=_next(drift, diagnosis), code=True),
        _runbook(drift, diagnosis, runbook_url),
    )
    still_needed = parts if case.is_open else tuple(part for part in parts if part.name not in ("Fix", "Do next", "Runbook"))
    return Message(
        incident_id=incident.id, fingerprint=incident.fingerprint, run=words.clean(incident.run, limit=80), state=incident.state,
        severity=incident.severity, reason=reason, at=now, title=incident.title, headline=_headline(case, now),
        sections=tuple(part for part in still_needed if part.text), because=_because(drift, detail, budget_text),
        dashboard_url=incident_url(dashboard_url, incident.id, run=incident.run, since=case.since[0], slice_=drift.slice, now=now), facts=_facts(case) | ({"chart": [list(point) for point in chart]} if drift.kind == "statistical" and chart else {}))


WINDOWS = (("30m", 1800.0), ("3h", 10_800.0), ("24h", 86_400.0))
"""The page's time ranges (dashboard/place.py) a link may name; longer ago is "all"."""


def incident_url(dashboard_url: str, incident_id: str, *, run: str = "", since: float | None = None, slice_: Mapping[str, str] | None = None, now: float = 0.0) -> str:
    """The incident's page on the dashboard at `dashboard_url`, with the run, the slice it was found in, and a time range that began well before
    the fault did (`since`, UTC seconds) and still shows that when the message is read late; empty where there is no dashboard.

    >>> incident_url("http://127.0.0.1:8501/", "inc_3f2a9d6b1c07")
    'http://127.0.0.1:8501/incident?incident=inc_3f2a9d6b1c07'
    >>> incident_url("http://127.0.0.1:8501", "inc_3f", run="grpo 7b", since=1000.0, slice_={"replica": "http://e1:8000"}, now=3000.0)
    'http://127.0.0.1:8501/incident?run=grpo%207b&incident=inc_3f&window=3h&slice=replica%3Dhttp%3A%2F%2Fe1%3A8000'
    """
    if not dashboard_url:
        return ""
    pairs = [("run", run), ("incident", incident_id)]
    if since is not None:
        pairs.append(("window", next((name for name, seconds in WINDOWS if 2 * (now - since) < seconds), "all")))
    pairs += [("slice", f"{key}={value}") for key, value in (slice_ or {}).items()]
    return f"{dashboard_url.rstrip('/')}/incident?" + "&".join(f"{key}={quote(words.clean(value, limit=200), safe='')}" for key, value in pairs if value)


def effect(drift: Drift, diagnosis: Diagnosis | None) -> tuple[float, str] | None:
    """Size and unit of the fault: the alarm's own, else what the diagnosis measured against "healthy"."""
    if drift.effect is not None:
        return drift.effect, drift.effect_unit
    if diagnosis is not None:
        for cause in diagnosis.causes:
            if cause.cause == "healthy" and cause.residual_nats is not None:
                return cause.residual_nats, "nats"
    return None


def measured(diagnosis: Diagnosis | None) -> bool:
    """Does the diagnosis rest on re-scored rollouts, or is it a first guess?"""
    return diagnosis is not None and any(cause.residual_nats is not None for cause in diagnosis.causes)


def _headline(case: Case, now: float) -> str:
    incident = case.incident
    drift, diagnosis = incident.drifts[0], incident.diagnosis
    if not case.is_open:
        lasted = words.duration((incident.resolved_at or now) - incident.opened_at)
        said = f" The cause was {diagnosis.verdict}." if diagnosis is not None and diagnosis.confident else ""
        return f"Resolved after {lasted}.{said}"
    if drift.kind == "fact":
        return words.clean(drift.text) or f"{incident.title}."
    if diagnosis is None:
        return f"Diagnosing. Leading explanation so far: {_named(cause_of(drift.stream))}."
    if diagnosis.verdict == "healthy":
        return "Diagnosis: the rollouts re-scored so far look healthy; this may be a false alarm, or the fault is over."
    if not diagnosis.confident:
        return f"Diagnosing; no single cause stands out yet. Leading explanation: {_named(diagnosis.verdict)}."
    return f"Cause: {_named(diagnosis.verdict)}."


def _what(drift: Drift, diagnosis: Diagnosis | None) -> str:
    if drift.kind == "fact":
        return ""  # it is the headline
    found = effect(drift, diagnosis)
    if found is None:
        said = words.STREAMS_IN_WORDS.get(drift.stream.partition(":")[0], "The logprobs of engine and trainer moved apart")
        return f"{said}; its size in nats is not measured yet."
    size, unit = found
    if unit != "nats":
        return f"Effect {words.amount(size, unit)}."
    said = f"Mean |log q − log p| is {words.amount(size, unit)} a token"
    floor = diagnosis.floor_nats if diagnosis is not None else None
    if floor is None:
        return f"{said}; the floor of a healthy pair is not known yet."
    times = f"{words.number(size / floor)}× the" if floor > 0 else "against"
    return f"{said}, {times} {words.amount(floor, 'nats')} of a healthy pair (the floor)."


def _alarm(drift: Drift) -> str:
    if drift.kind == "fact":
        return f"Hard fact, seen in batch {drift.alarm_t}: it holds or it does not; there is no threshold to cross by chance."
    return (f"Evidence ln M = {words.number(drift.statistic)} crossed the threshold ln A = {words.number(drift.threshold)} "
            f"in batch {drift.alarm_t}; leading stream {words.clean(drift.stream, limit=60)}.")


def _since(case: Case) -> str:
    earliest, latest = case.incident.drifts[0].change_t
    if case.incident.drifts[0].kind == "fact":
        return f"first seen at {words.clock(case.incident.opened_at)}"
    batches = f"batch {earliest}" if earliest == latest else f"batches {earliest} to {latest}"
    return f"{words.interval(*case.since)} ({batches})"


def _why(drift: Drift, diagnosis: Diagnosis | None) -> str:
    if drift.kind == "fact" and (diagnosis is None or diagnosis.verdict in ("healthy", "unexplained")):
        return ""  # the fact speaks for itself
    if diagnosis is None:
        return f"Not known yet. Leading explanation: {cause_of(drift.stream)}, from the stream that raised the alarm."
    ranked = sorted(diagnosis.causes, key=lambda cause: cause.cause != diagnosis.verdict)
    said = [f"{diagnosis.verdict} ({'confident' if diagnosis.confident else 'not confident yet'})"]
    if ranked and ranked[0].residual_nats is not None:
        said.append(_compared(ranked[0], [cause for cause in ranked[1:] if cause.residual_nats is not None]))
    said += [words.clean(line) for cause in ranked[:1] for line in cause.evidence[:4]]
    return "\n• ".join(said)


def _compared(best: Cause, others: list[Cause]) -> str:
    left = f"explains all but {words.number(best.residual_nats or 0.0)} nats a token, over {best.tokens:,} tokens"
    if not others:
        return left
    second = min(others, key=lambda cause: cause.residual_nats or 0.0)
    return f"{left}; the next best, {second.cause}, leaves {words.number(second.residual_nats or 0.0)}"


def _impact(diagnosis: Diagnosis | None) -> str:
    """Known names and numbers only: request ids become a count, anything else is left out."""
    found = dict(diagnosis.impact) if diagnosis is not None else {}
    said = []
    for key, label in (("last_clean_version", "last clean weight version"), ("first_tainted_version", "first tainted")):
        if found.get(key) is not None:
            said.append(f"{label} {words.clean(found[key], limit=40)}")
    tainted = found.get("tainted_requests")
    count = len(tainted) if isinstance(tainted, Sized) and not isinstance(tainted, str) else _as_number(tainted)
    if count:
        share = _as_number(found.get("token_share"))
        of = f", {words.amount(share, 'fraction')} of the tokens at hand" if share is not None else ""
        said.append(f"{count:,.0f} scored rollouts since the change are tainted{of}")
    before, after = _as_number(found.get("clip_rate_before")), _as_number(found.get("clip_rate_after"))
    if before is not None and after is not None:
        said.append(f"PPO clip rate from the mismatch alone {words.amount(before, 'fraction')} before, {words.amount(after, 'fraction')} since")
    ess_before, ess_after = _as_number(found.get("ess_before")), _as_number(found.get("ess_after"))
    if ess_before is not None and ess_after is not None:
        said.append(f"effective sample size {words.amount(ess_before, 'fraction')} before, {words.amount(ess_after, 'fraction')} since")
    gradient = found.get("gradient_after")
    bias = gradient.get("uncorrected") if isinstance(gradient, Mapping) else None
    relative, angle = (_as_number(bias.get(key)) if isinstance(bias, Mapping) else None for key in ("relative_bias", "angle_degrees"))
    if relative is not None and angle is not None:
        said.append(f"policy gradient off by {words.amount(relative, 'fraction')}, {words.number(angle)}°, before any correction")
    line = "; ".join(said)
    return f"{line[:1].upper()}{line[1:]}." if said else ""


def _next(drift: Drift, diagnosis: Diagnosis | None) -> str:
    if diagnosis is not None and diagnosis.next:
        return words.clean(diagnosis.next, limit=500)
    return words.FACT_NEXT.get(drift.stream, words.DEFAULT_NEXT) if drift.kind == "fact" else words.DEFAULT_NEXT


def _runbook(drift: Drift, diagnosis: Diagnosis | None, url: str) -> Section:
    """Where the page about the verdict, the fact or the leading explanation is read: a link, else the command that prints it."""
    said = drift.stream if drift.kind == "fact" else cause_of(drift.stream)
    name = diagnosis.verdict if diagnosis is not None and diagnosis.verdict != "healthy" else said
    if name not in runbooks.names():
        return Section(name="Runbook", text="")
    return Section(name="Runbook", text=f"{url.rstrip('/')}/{name}.md" if url else f"klaxon runbook {name}", code=not url)


def _because(drift: Drift, detail: str, budget_text: str) -> str:
    budget = words.clean(budget_text, limit=80) or "not stated"
    if drift.kind == "fact":
        return f"Sent because {detail}. Hard facts spend nothing of the false-alarm budget ({budget})."
    return f"Sent because {detail}. False-alarm budget: {budget}; a healthy run crosses this threshold no more often than that."


def _facts(case: Case) -> dict[str, Any]:
    incident = case.incident
    drift, diagnosis = incident.drifts[0], incident.diagnosis
    found = effect(drift, diagnosis)
    return {
        "kind": drift.kind, "stream": words.clean(drift.stream, limit=80), "statistic": _finite(drift.statistic),
        "threshold": _finite(drift.threshold), "alarm_t": drift.alarm_t, "change_t": list(drift.change_t), "since": list(case.since),
        "slice": {words.clean(key, limit=30): words.clean(value, limit=80) for key, value in drift.slice.items()},
        "effect": _finite(found[0]) if found else None, "effect_unit": found[1] if found else None,
        "floor_nats": _finite(diagnosis.floor_nats) if diagnosis is not None else None,
        "cause": diagnosis.verdict if diagnosis is not None else None,
        "leading_explanation": diagnosis.verdict if diagnosis is not None else cause_of(drift.stream),
        "confident": diagnosis.confident if diagnosis is not None else False,
        "opened_at": incident.opened_at, "resolved_at": incident.resolved_at,
    }


def _named(cause: str) -> str:
    return f"{cause} ({words.CAUSES_IN_WORDS[cause]})" if cause in words.CAUSES_IN_WORDS else words.clean(cause, limit=40)


def _finite(value: float | None) -> float | None:
    """JSON knows no NaN and no infinity."""
    return float(value) if value is not None and math.isfinite(value) else None


def _as_number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
