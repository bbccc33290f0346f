"""Inhibit: a cause silences its consequences. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from alerts.incidents import Case, overlap
from alerts.notice import Log, Notice, NotifyReason
from collector.records import Drift

STALE = "stale_weights"
STALE_FACTS = ("label_moved_weights_same", "weights_never_move")
INHIBITED_BY = {
    "no_rollouts": ("engine_unreachable", "tap_silent"),
    "tap_silent": ("engine_unreachable",),
    "mismatch": (*STALE_FACTS, STALE),
    "label_moved_weights_same": (STALE,),
    "weights_never_move": (STALE,),
}
"""Consequence → the faults that explain it: while one of them is open, the consequence is recorded, not sent. "stale_weights"
is an incident with that verdict, confident. Of two that explain each other, the one opened first is told."""

MOVED_BY_STALE_WEIGHTS = ("kl", "clip_rate", "mismatch_kl", "mismatch_abs_d", "ess", "k1", "k2", "k3")
"""Metrics that weights left behind must move; entropy, reward or loss are faults of their own."""


def inhibit(notices: tuple[Notice, ...], log: Log, now: float) -> tuple[Notice, ...]:
    """A cause silences its consequences; a resolved notice still goes out to whoever was told."""
    causes = _Causes(log.open_cases)
    found: dict[str, str | None] = {}
    for notice in notices:
        case = notice.case
        if case.incident.id not in found:
            found[case.incident.id] = causes.explaining(case) if case.is_open else None
    return tuple(notice if notice.reason is not None or (why := found[notice.case.incident.id]) is None
                 else replace(notice, reason=NotifyReason.INHIBITED, detail=why) for notice in notices)


class _Causes:
    """Open cases that can explain others, by what they mean and by replica: with a thousand open ones none is compared with all."""

    def __init__(self, cases: Iterable[Case]) -> None:
        wanted = {cause for causes in INHIBITED_BY.values() for cause in causes}
        self._by: dict[tuple[str, str], dict[str, list[Case]]] = defaultdict(lambda: defaultdict(list))
        for case in cases:
            if (name := _meaning(case)) in wanted:
                self._by[case.incident.run, name][_replica(case)].append(case)

    def explaining(self, case: Case) -> str | None:
        """Which open incident explains this one, in words; None when none does."""
        for cause in INHIBITED_BY.get(case.fault, ()):
            places = self._by.get((case.incident.run, cause), {})
            replica = _replica(case)
            groups = [places.get(replica, ()), places.get("", ())] if replica else places.values()
            for other in (one for group in groups for one in group):
                if _explains(other, case):
                    verdict = f" of {other.fault}, confident," if cause == STALE else ""
                    return f"{cause}{verdict} is open ({other.incident.id}) and explains it"
        return None


def _explains(other: Case, case: Case) -> bool:
    if other.incident.id == case.incident.id or not overlap(other.incident.drifts[0].slice, case.incident.drifts[0].slice):
        return False
    if case.fault == "mismatch" and not _is_of_stale_weights(case):
        return False
    mutual = _meaning(case) in INHIBITED_BY.get(other.fault, ())
    return not mutual or _age(other) < _age(case)


def _is_of_stale_weights(case: Case) -> bool:
    """Does a mismatch look as stale weights make it look? A confident verdict decides; before it, the leading streams do."""
    found = case.incident.diagnosis
    if found is not None and found.confident:
        return found.verdict == STALE
    return all(moved_by_stale_weights(drift) for drift in case.incident.drifts)


def moved_by_stale_weights(drift: Drift) -> bool:
    """Is this alarm one that stale weights raise: KL, clip rate, the battery, or the explanation itself?

    >>> moved_by_stale_weights(Drift(kind="statistical", stream="trainer_metrics:clip_rate", statistic=9.0, threshold=8.0, alarm_t=1, change_t=(1, 1)))
    True
    """
    kind, _, rest = drift.stream.partition(":")
    if kind in ("trainer_metrics", "reference"):
        return rest.partition(":")[0] in MOVED_BY_STALE_WEIGHTS
    return kind == "battery" or drift.stream.startswith(f"explain:{STALE}")


def _meaning(case: Case) -> str:
    """What an open case can explain others as: its fault, or stale weights once that is its confident verdict."""
    found = case.incident.diagnosis
    return STALE if case.fault == "mismatch" and found is not None and found.confident and found.verdict == STALE else case.fault


def _age(case: Case) -> tuple[float, str]:
    return case.incident.opened_at, case.incident.id


def _replica(case: Case) -> str:
    return case.incident.drifts[0].slice.get("replica", "")
