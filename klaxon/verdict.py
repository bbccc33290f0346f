"""May a trainer trust the rollouts it gets? The answer of GET /v1/verdict, for a trainer that polls. Pure.

mismatch   an incident says that engine and trainer disagree; it stays so until the incident is resolved, silenced or not
unknown    Klaxon cannot say: nothing was compared yet, data or Klaxon itself stand still, or it is another run. Never a guess
degraded   what was compared is fine, but another incident is open (a disk, one of several engines, the trainer's own health)
healthy    recent rollouts were compared and nothing is open

A mismatch outlives a silence of the engine: a trainer that pauses on it does not thereby turn it into "unknown".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from alerts.incidents import Case
from detectors.streams import FACT_CAUSES

MISMATCH_FACTS = tuple(FACT_CAUSES)
NO_MISMATCH = ("healthy", "policy_lag")  # confident verdicts that take a statistical alarm back
FRESH_SECONDS = 60.0  # at least; see fresh_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What GET /v1/verdict answers; JSON-able."""

    run: str
    state: Literal["healthy", "degraded", "mismatch", "unknown"]
    why: str  # one sentence for a log line
    cause: str | None = None  # the leading cause of a mismatch, one of CAUSES
    confident: bool = False  # the cause is a confident verdict, or a hard fact's
    since: tuple[float, float] | None = None  # UTC seconds: earliest and latest plausible start
    last_clean_version: str | None = None  # of the diagnosis; while healthy the newest version that was compared
    incident: str | None = None
    at: float = 0.0  # UTC seconds of this answer

    def to_json(self) -> dict[str, Any]:
        """As answered."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the daemon saw last, UTC seconds; None = never."""

    run: str
    last_rollout_at: float | None
    last_compared_at: float | None
    last_batch_at: float | None  # end of the last closed batch
    batch_seconds: float
    compared_version: str | None = None  # newest weight version among the compared rollouts


def fresh_seconds(batch_seconds: float) -> float:
    """How old the newest rollout, comparison and batch may be for a verdict: three batches, at least a minute."""
    return max(FRESH_SECONDS, 3 * batch_seconds)


def judge(seen: Seen, cases: Sequence[Case], *, run: str, now: float) -> Verdict:
    """The verdict on `run` ("" = the daemon's own) from the open cases and what was seen."""
    if run and run != seen.run:
        return Verdict(run=run, state="unknown", why=f"this daemon watches run {seen.run}, not {run}", at=now)
    mismatches = [case for case in cases if _is_mismatch(case)]
    stale = _stale(seen, now)
    if mismatches:
        return _mismatch(seen, mismatches, stale, now)
    if stale is not None:
        return Verdict(run=seen.run, state="unknown", why=stale, at=now)
    if cases:
        first = min(cases, key=_opened)
        return Verdict(run=seen.run, state="degraded", why=f"open: {_named(first)}", since=first.since,
                       last_clean_version=seen.compared_version, incident=first.incident.id, at=now)
    return Verdict(run=seen.run, state="healthy", why="the rollouts compared last agree with the trainer",
                   last_clean_version=seen.compared_version, at=now)


def _is_mismatch(case: Case) -> bool:
    if case.fault != "mismatch":
        return case.fault in MISMATCH_FACTS
    diagnosis = case.incident.diagnosis
    return diagnosis is None or not diagnosis.confident or diagnosis.verdict not in NO_MISMATCH


def _named(case: Case) -> str:
    diagnosis = case.incident.diagnosis
    return case.incident.title + (f" ({diagnosis.verdict})" if diagnosis is not None and diagnosis.confident else "")


def _stale(seen: Seen, now: float) -> str | None:
    """Why nothing can be said, or None when the data are fresh. A clock that went back makes nothing stale."""
    bound = fresh_seconds(seen.batch_seconds)
    for at, never, old in (
        (seen.last_rollout_at, "no rollout has arrived yet", "no rollout has arrived for {} s"),
        (seen.last_compared_at, "no rollout could be compared with the trainer yet", "no rollout was compared with the trainer for {} s"),
        (seen.last_batch_at, "the first batch is being collected", "Klaxon has closed no batch for {} s"),
    ):
        if at is None:
            return never
        if now - at > bound:
            return old.format(round(now - at))
    return None


def _mismatch(seen: Seen, found: list[Case], stale: str | None, now: float) -> Verdict:
    first = min(found, key=_opened)
    case = min(found, key=lambda case: (not _sure(case), _opened(case)))
    diagnosis = case.incident.diagnosis
    cause = diagnosis.verdict if diagnosis is not None else FACT_CAUSES.get(case.incident.drifts[0].stream)
    clean = diagnosis.impact.get("last_clean_version") if diagnosis is not None else None
    return Verdict(run=seen.run, state="mismatch", why=case.incident.title + (f"; {stale}" if stale is not None else ""), cause=cause,
                   confident=_sure(case), since=first.since, last_clean_version=None if clean is None else str(clean),
                   incident=case.incident.id, at=now)


def _sure(case: Case) -> bool:
    diagnosis = case.incident.diagnosis
    return diagnosis.confident if diagnosis is not None else case.incident.drifts[0].kind == "fact"


def _opened(case: Case) -> float:
    return case.incident.opened_at
