"""Which data an incident taints: the rollouts since its change interval, out of the store.

Tainted means: of a batch from the earliest plausible changed one on, until the batch in which the incident was resolved
(recovery is judged some batches late, so the end errs on the side of too much). Only compared rollouts have a row; the
others that were seen meanwhile are counted as `not_named`: drop those by weight version or by the times given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from alerts import rows
from alerts.db import Database
from collector.errors import InputError, Unavailable
from collector.store import Store
from detectors.streams import FACT_CAUSES

SCHEMA = 1
HASHED = ("request_hash is a keyed hash; request ids are not stored. It is blake2b(request id in UTF-8, key = bytes.fromhex(KEY), "
          "digest_size = 12).hexdigest(), and KEY is the row request_key of table meta in the run's klaxon.duckdb. "
          "`klaxon quarantine INCIDENT --match FILE` does it for a JSONL of your own request ids.")
_COLUMNS = ("request AS request_hash, t, version, step, prompt_hash, replica, finished_at, n_tokens AS tokens, mean_abs_d, "
            "{inside} AS in_slice")
_TAINTED = "t BETWEEN ? AND ? AND coalesce(traffic, '') <> 'canary'"
_ENDLESS = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What of an incident decides which data are tainted."""

    id: str
    run: str
    fingerprint: str
    state: str
    title: str
    kind: str  # statistical or fact
    stream: str
    cause: str | None
    alarm_t: int
    change_t: tuple[int, int]  # the earliest and the latest plausible first changed batch, over all its alarms
    slice: Mapping[str, str] = field(default_factory=dict)  # where all its alarms agree; {} = the whole fleet


def incidents_of(path: Path) -> list[dict[str, Any]]:
    """The incidents beside a run's store, newest first, as the read API gives them.

    Raises:
        Unavailable: there is no control.sqlite, or it cannot be read.
    """
    if not path.is_file():
        raise Unavailable(f"{path}: is not there; name the run's folder ([run] dir), which holds klaxon.duckdb and control.sqlite")
    database = Database(path)
    try:
        found = rows.cases(database.rows("SELECT * FROM incidents ORDER BY opened_at DESC, id"))
    finally:
        database.close()
    return [{**{name: getattr(case.incident, name) for name in ("id", "run", "fingerprint", "state", "title")},
             "drifts": [rows.drift_to_json(drift) for drift in case.incident.drifts],
             "diagnosis": rows.diagnosis_to_json(case.incident.diagnosis) if case.incident.diagnosis is not None else None} for case in found]


def choose(incidents: Sequence[Mapping[str, Any]], wanted: str) -> Fault:
    """The incident of this id, of this unique beginning of an id, or the newest ("last"). `incidents`: newest first.

    Raises:
        InputError: none or several fit.
    """
    if wanted == "last":
        found = list(incidents[:1])
    else:
        found = [one for one in incidents if one["id"] == wanted] or [
            one for one in incidents if wanted and (one["id"].startswith(wanted) or one["id"].removeprefix("inc_").startswith(wanted))]
    if len(found) > 1:
        raise InputError(f"{wanted!r} begins several incidents: {', '.join(one['id'] for one in found[:5])}", where="INCIDENT")
    if not found:
        known = ", ".join(one["id"] for one in incidents[:5])
        raise InputError(f"no incident {wanted!r}; " + (f"the newest are {known}" if known else "the run has none"), where="INCIDENT")
    return _fault(found[0])


def _fault(found: Mapping[str, Any]) -> Fault:
    drifts = found["drifts"]
    first = drifts[0]
    same = {key: value for key, value in first["slice"].items() if all(one["slice"].get(key) == value for one in drifts)}
    return Fault(
        id=found["id"], run=found["run"], fingerprint=found["fingerprint"], state=found["state"], title=found["title"], kind=first["kind"],
        stream=first["stream"], cause=(found.get("diagnosis") or {}).get("verdict") or FACT_CAUSES.get(first["stream"]),
        alarm_t=min(one["alarm_t"] for one in drifts), slice=same,
        change_t=(min(one["change_t"][0] for one in drifts), max(one["change_t"][1] for one in drifts)))


def summary(store: Store, fault: Fault) -> dict[str, Any]:
    """What is tainted, in numbers fit for JSON; shares are fractions, times UTC seconds, None = the store cannot tell.

    token_share: tokens that arrived since the change, of all that arrived in the run. group_share: prompts under one weight
    version, of the rollouts with a row. Both reach back as far as the store keeps batches and rollouts ([store] ..._ttl_days).
    """
    first, last = span(store, fault)
    named, tokens, groups, inside = store.query(
        "SELECT count(*), coalesce(sum(n_tokens), 0)::BIGINT, count(DISTINCT (prompt_hash, version)) FILTER (prompt_hash IS NOT NULL), "
        f"count(*) FILTER ({_inside(fault)}) FROM rollouts WHERE {_TAINTED}", [*_slice_values(fault), first, _end(last)])[0]
    versions = [version for (version,) in store.query(
        f"SELECT version FROM rollouts WHERE {_TAINTED} AND version IS NOT NULL GROUP BY version ORDER BY min(t), min(finished_at), version",
        [first, _end(last)])]
    clean_version, clean_step = _last_clean(store, first)
    arrived, since, until, newest = _arrived(store, first, last)
    all_groups = store.query("SELECT count(DISTINCT (prompt_hash, version)) FILTER (prompt_hash IS NOT NULL) FROM rollouts "
                             "WHERE coalesce(traffic, '') <> 'canary'")[0][0]
    return {
        "schema": SCHEMA, "run": fault.run, "incident": fault.id, "title": fault.title, "state": fault.state, "cause": fault.cause,
        "change_t": list(fault.change_t), "batches": [first, newest if last is None else last], "since": since, "until": until,
        "last_clean_version": clean_version, "last_clean_step": clean_step, "tainted_versions": versions,
        "rollouts": named, "tokens": tokens, "groups": groups, "seen": arrived["seen"], "not_named": max(0, arrived["seen"] - named),
        "token_share": arrived["tokens_seen"] / arrived["all_tokens"] if arrived["all_tokens"] else None,
        "group_share": groups / all_groups if all_groups else None,
        "slice": dict(fault.slice), "in_slice": inside, "note": _note(fault), "ids": HASHED,
    }


def tainted(store: Store, fault: Fault) -> pa.Table:
    """One row a tainted rollout, oldest first: request_hash, t, version, step, prompt_hash, replica, finished_at (UTC seconds),
    tokens, mean_abs_d (nats), in_slice (is it of the slice the alarm names? all are, when it names none)."""
    first, last = span(store, fault)
    return store.query_arrow(f"SELECT {_COLUMNS.format(inside=_inside(fault))} FROM rollouts WHERE {_TAINTED} ORDER BY t, finished_at, request",
                             [*_slice_values(fault), first, _end(last)])


def span(store: Store, fault: Fault) -> tuple[int, int | None]:
    """First and last tainted batch; the last is None while the incident is open."""
    if fault.state != "resolved":
        return fault.change_t[0], None
    ends = [event["t"] for (data,) in store.query("SELECT data FROM events WHERE kind = 'resolved'")
            if (event := json.loads(data)).get("fingerprint") == fault.fingerprint and event.get("t", -1) >= fault.alarm_t]
    return fault.change_t[0], min(ends, default=None)


def _end(last: int | None) -> int:
    return _ENDLESS if last is None else last


def _inside(fault: Fault) -> str:
    """Is the rollout of the slice? A position bucket is no property of a whole rollout, so the replica alone decides."""
    return "replica = ?" if "replica" in fault.slice else "true"


def _slice_values(fault: Fault) -> list[str]:
    return [fault.slice["replica"]] if "replica" in fault.slice else []


def _last_clean(store: Store, first: int) -> tuple[str | None, str | None]:
    found = store.query("SELECT version, step FROM rollouts WHERE t < ? AND version IS NOT NULL ORDER BY t DESC, finished_at DESC LIMIT 1", [first])
    if not found:  # the rollouts' rows may have outlived their time, the batches' have not
        found = store.query("SELECT version, NULL FROM slices WHERE t < ? AND version IS NOT NULL ORDER BY t DESC, seq DESC LIMIT 1", [first])
    return found[0] if found else (None, None)


def _arrived(store: Store, first: int, last: int | None) -> tuple[dict[str, int], float | None, float | None, int | None]:
    """What arrived, from the batches' own counts; when the first and the last tainted batch opened and closed; the newest batch."""
    sums = {"seen": 0, "tokens_seen": 0, "all_tokens": 0}
    since, until, newest = None, None, None
    for t, opened_at, closed_at, text in store.query("SELECT t, opened_at, closed_at, counts FROM batches ORDER BY t"):
        counts = json.loads(text)
        sums["all_tokens"] += counts.get("tokens_seen", 0)
        if first <= t <= _end(last):
            sums["seen"] += counts.get("seen", 0)
            sums["tokens_seen"] += counts.get("tokens_seen", 0)
            since, until, newest = opened_at if since is None else since, closed_at, t
    return sums, since, until, newest


def _note(fault: Fault) -> str:
    if fault.kind == "fact" and fault.stream not in FACT_CAUSES:
        return f"{fault.stream} says nothing against the data themselves: these rollouts were produced while it held"
    return ""
