"""Incidents: one fault, one incident. Pure rules; the rows are in rows.py.

Identity is the fingerprint: the run, and either "mismatch" (every statistical alarm is a symptom of one fault) or the
hard fact's name and slice. States: firing → acknowledged → resolved. A resolved fault that comes back soon reopens its
incident (and is counted: flapping); one that comes back later is a new incident.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote

from alerts import words
from collector.records import Diagnosis, Drift, Incident

WARNINGS = frozenset({"disk_low", "scorer_behind", "trainer_learns_nothing"})  # faults nobody must be woken for; all others page
MAX_DRIFTS = 20  # an incident keeps its first alarm and the newest of the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An incident and when its fault began."""

    incident: Incident
    since: tuple[float, float]  # UTC seconds: earliest and latest plausible start
    returns: int = 0  # how often it came back soon after its end, without a calm time in between
    changed_at: float | None = None  # UTC seconds, when it last opened, came back or ended; None = unknown
    owed: bool = False  # its end is still to be told to somebody
    acknowledgement: str = ""  # "acknowledged by ada: looking into it", while it is

    @property
    def is_open(self) -> bool:
        """Firing or acknowledged."""
        return self.incident.state != "resolved"

    @property
    def fault(self) -> str:
        """What the fingerprint calls the fault: "mismatch" or a fact's name."""
        return fault(self.incident.drifts[0])


def fault(drift: Drift) -> str:
    """"mismatch" for a statistical alarm, the fact's name for a fact."""
    return "mismatch" if drift.kind == "statistical" else drift.stream


def fingerprint(run: str, drift: Drift) -> str:
    """The identity of the fault behind an alarm; readable, stable over restarts.

    >>> drift = Drift(kind="fact", stream="engine_unreachable", statistic=1, threshold=1, alarm_t=3, change_t=(3, 3), slice={"replica": "a"})
    >>> fingerprint("r1", drift)
    'r1/engine_unreachable/replica=a'
    """
    parts = [run, fault(drift)]
    if drift.kind == "fact":
        parts += [f"{key}={value}" for key, value in sorted(drift.slice.items())]
    return "/".join(quote(part, safe=":=.-_#+ ") for part in parts)


def incident_id(fingerprint_: str, earlier: int) -> str:
    """The id of the incident of this fault that had `earlier` ones before it: the same alarms give the same ids."""
    return "inc_" + hashlib.blake2b(f"{fingerprint_}\n{earlier}".encode(), digest_size=6).hexdigest()


def opened(drift: Drift, *, run: str, id: str, now: float, closed_at: float, batch_seconds: float) -> Case:
    """A new case. `closed_at` is the UTC end of the batch that raised the alarm, `batch_seconds` its length."""
    if drift.kind == "statistical":
        title = words.MISMATCH_TITLE
    else:
        title = words.FACT_TITLES.get(drift.stream, words.clean(drift.stream.replace("_", " ").capitalize(), limit=80))
    incident = Incident(
        id=id, fingerprint=fingerprint(run, drift), run=run, state="firing", severity="warn" if fault(drift) in WARNINGS else "page",
        opened_at=now, updated_at=now, title=title, drifts=(drift,))
    return Case(incident=incident, since=_since(drift, alarm_t=drift.alarm_t, closed_at=closed_at, batch_seconds=batch_seconds), changed_at=now)


def updated(case: Case, drift: Drift, *, now: float, batch_seconds: float) -> Case:
    """The case after another alarm of the same fault: a repeat replaces its predecessor, a new slice is added.

    The first alarm's batch stays the alarm; the estimate of the change follows the newest evidence.
    """
    before = case.incident.drifts
    known = {_symptom(old): old for old in before}
    old = known.get(_symptom(drift))
    if old is not None:
        drift = replace(drift, alarm_t=min(old.alarm_t, drift.alarm_t))
    known[_symptom(drift)] = drift
    drifts = tuple(known.values())
    if len(drifts) > MAX_DRIFTS:
        drifts = (drifts[0], *drifts[-(MAX_DRIFTS - 1):])
    since = case.since
    if _symptom(drift) == _symptom(before[0]) and drift.change_t != before[0].change_t:
        ends_at = case.since[1] + (before[0].alarm_t - before[0].change_t[1]) * batch_seconds
        since = _since(drift, alarm_t=before[0].alarm_t, closed_at=ends_at, batch_seconds=batch_seconds)
    return replace(case, incident=replace(case.incident, drifts=drifts, updated_at=now), since=since)


def diagnosed(case: Case, diagnosis: Diagnosis, *, now: float) -> Case:
    """The case with its diagnosis."""
    return replace(case, incident=replace(case.incident, diagnosis=diagnosis, updated_at=now))


def acknowledged(case: Case, *, now: float, by: str = "", reason: str = "") -> Case:
    """The case once a human has taken it."""
    said = f"acknowledged{f' by {words.clean(by, limit=60)}' if by else ''}{f': {words.clean(reason, limit=200)}' if reason else ''}"
    return replace(case, incident=replace(case.incident, state="acknowledged", updated_at=now), acknowledgement=said)


def resolved(case: Case, *, now: float, calm_seconds: float = 900.0) -> Case:
    """The case once its fault is gone. It had stayed for `calm_seconds`: its earlier returns are forgotten."""
    calm = case.changed_at is not None and now - case.changed_at >= calm_seconds
    return replace(case, incident=replace(case.incident, state="resolved", updated_at=now, resolved_at=now),
                   changed_at=now, returns=0 if calm else case.returns)


def reopened(case: Case, drift: Drift, *, now: float, batch_seconds: float) -> Case:
    """The case once its fault is back: it fires again, unacknowledged, and its cause is sought anew."""
    again = replace(case, incident=replace(case.incident, state="firing", resolved_at=None, diagnosis=None),
                    changed_at=now, returns=case.returns + 1, owed=False, acknowledgement="")
    return updated(again, drift, now=now, batch_seconds=batch_seconds)


def returned_soon(case: Case, *, now: float, window_seconds: float) -> bool:
    """Did the resolved case end less than `window_seconds` ago? A clock that went back does not make it long ago."""
    return case.changed_at is not None and now - case.changed_at < window_seconds


def overlap(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Can two slices mean the same place? They do unless they name the same key differently.

    >>> overlap({"replica": "a"}, {}), overlap({"replica": "a"}, {"replica": "b"})
    (True, False)
    """
    return all(other.get(key, value) == value for key, value in one.items())


def _symptom(drift: Drift) -> tuple[str, ...]:
    """What makes two alarms of one incident the same alarm: the leading stream may change from batch to batch."""
    name = drift.stream if drift.kind == "fact" else "statistical"
    return (name, *(f"{key}={value}" for key, value in sorted(drift.slice.items())))


def _since(drift: Drift, *, alarm_t: int, closed_at: float, batch_seconds: float) -> tuple[float, float]:
    earliest, latest = drift.change_t
    return closed_at - (alarm_t - earliest + 1) * batch_seconds, closed_at - (alarm_t - latest) * batch_seconds
