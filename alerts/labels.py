"""Labels of an incident, and matching them by exact value or glob: for routing and for silences. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from alerts.incidents import Case
from collector.records import CAUSES
from detectors.hardfacts import FACTS
from detectors.streams import cause_of

SEVERITIES = ("page", "warn")
FAULTS = ("mismatch", *FACTS)
ROUTES = {"severity": SEVERITIES, "run": (), "cause": tuple(CAUSES), "fault": FAULTS}
"""Label → its known values; () = any."""


def labels(case: Case) -> dict[str, str]:
    """severity, run, cause and fault. The cause is the diagnosis' leading one; before there is one, the alarm's first guess."""
    incident = case.incident
    cause = incident.diagnosis.verdict if incident.diagnosis is not None else cause_of(incident.drifts[0].stream)
    return {"severity": incident.severity, "run": incident.run, "cause": cause, "fault": case.fault}


def slice_labels(case: Case) -> dict[str, set[str]]:
    """Key → values over all alarms of the incident, e.g. {"replica": {"http://10.0.0.3:8000"}}."""
    found: dict[str, set[str]] = {}
    for drift in case.incident.drifts:
        for key, value in drift.slice.items():
            found.setdefault(key, set()).add(str(value))
    return found


def fits(value: str, patterns: Iterable[str]) -> bool:
    """Is the value one of the patterns, or matched by one as a glob?

    >>> fits("engine_unreachable", ["engine_*"]), fits("http://[::1]:8000", ["http://[::1]:8000"]), fits("page", ["warn"])
    (True, True, False)
    """
    return any(value == pattern or fnmatchcase(value, pattern) for pattern in patterns)


def unmatched(match: Mapping[str, Iterable[str]], case: Case) -> str | None:
    """Why an incident does not belong to a receiver with this `match`, in words; None when it does. All labels must fit."""
    if not match:
        return None
    found = labels(case)
    for label, patterns in match.items():
        if not fits(found[label], patterns):
            return f"{label} is {found[label]}; the receiver takes {' or '.join(patterns)}"
    return None


def check_routes(match: Mapping[str, Iterable[str]]) -> None:
    """Raises ValueError: a label or value that can never match, with the nearest right one."""
    for label, patterns in match.items():
        if label not in ROUTES:
            raise ValueError(f"match: {label!r} is none of {', '.join(ROUTES)}")
        for pattern in patterns:
            known = ROUTES[label]
            if known and not any(fits(value, [pattern]) for value in known):
                near = difflib.get_close_matches(pattern, known, n=1, cutoff=0.5)
                raise ValueError(f"match.{label}: {pattern!r} is no known {label}{f'; did you mean {near[0]!r}?' if near else ''}")
