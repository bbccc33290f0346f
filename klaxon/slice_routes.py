"""What the pages beyond the first one ask of the daemon: slices over time, coverage by stratum, the band of reference runs, the audit.

Reads only. Every answer is bounded (breakdown.MAX_ROWS rows, 500 strata, GRID points a metric), whatever the range.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from collector import breakdown
from collector.breakdown_rollouts import LABELLED, read_rollout_breakdown
from collector.coverage import read_coverage
from collector.errors import InputError
from collector.records import Population
from collector.store import Store
from collector.throughput import read_throughput
from klaxon.answers import Answers

Time = Annotated[float | None, Query(allow_inf_nan=False, description="UTC seconds")]
Name = Annotated[str | None, Query(max_length=512)]
KEYS = tuple(dict.fromkeys((*breakdown.SLICED, *LABELLED)))
ARROW = "application/vnd.apache.arrow.stream"


def slices_router(store: Store, live: Any, answers: Answers) -> APIRouter:
    """GET /v1/breakdown, /v1/coverage, /v1/throughput, /v1/reference-band, /v1/comparisons and /v1/audit. A question that cannot be answered is 400 with {"error": text}."""
    router = APIRouter()

    @router.get("/v1/breakdown")
    def read_breakdown(by: Annotated[str, Query(max_length=64)] = "replica", start: Time = None, end: Time = None,
                       points: Annotated[int, Query(ge=0, le=breakdown.MAX_POINTS, description="0 = the range as a whole")] = 0,
                       most: Annotated[int, Query(ge=1, le=breakdown.MAX_KEYS)] = breakdown.MAX_KEYS,
                       only: Annotated[list[str] | None, Query(max_length=512, description="key=value, repeatable")] = None,
                       population: Annotated[Population, Query()] = "served") -> Response:
        asked = breakdown.Asked(by=tuple(by.split(",")), start=start, end=end, points=points, most=most, only=filters_of(only or ()),
                                population=population)
        if unknown := {*asked.by, *asked.only} - {*KEYS}:
            raise InputError(f"{', '.join(sorted(unknown))} is none of {', '.join(KEYS)}")
        labelled = bool({*asked.by, *asked.only} - {*breakdown.SLICED})
        read, tables = (read_rollout_breakdown, ("rollouts", "batches")) if labelled else (breakdown.read_breakdown, ("slices", "batches", "weights"))
        question = ("breakdown", asked.by, points, most, tuple(sorted(asked.only.items())), population)
        try:
            return _arrow(answers.table(question, tables, (start, end), lambda: read(store, asked)))
        except ValueError as error:
            raise InputError(str(error)) from None

    @router.get("/v1/coverage")
    def coverage(start: Time = None, end: Time = None) -> Response:
        return _arrow(answers.table("coverage", ("batches", "rollouts"), (start, end), lambda: read_coverage(store, start=start, end=end)))

    @router.get("/v1/throughput")
    def throughput(start: Time = None, end: Time = None, points: Annotated[int, Query(ge=1, le=breakdown.MAX_POINTS)] = 60) -> Response:
        return _arrow(answers.table(("throughput", points), ("batches", "series"), (start, end),
                                    lambda: read_throughput(store, start=start, end=end, points=points)))

    @router.get("/v1/reference-band")
    def reference_band() -> Response:
        return _json(_asked(live, "reference_band", default={}))

    @router.get("/v1/comparisons")
    def comparisons() -> Response:
        return _json(_asked(live, "comparisons", default=[]))

    @router.get("/v1/audit")
    def audit() -> Response:
        return _json(_asked(live, "audit", default={"checks": [], "why": "this daemon offers no audit"}))

    return router


def filters_of(only: Iterable[str]) -> dict[str, str]:
    """["replica=a", …] by key. Raises InputError: a part without "=", or a key named twice."""
    found: dict[str, str] = {}
    for part in only:
        key, sign, value = part.partition("=")
        if not sign or key in found:
            raise InputError(f"only: {part[:80]!r} is not one key=value")
        found[key] = value
    return found


def _asked(live: Any, name: str, *, default: Any) -> Any:
    """What a running daemon says; a store served without one says the default."""
    told: Callable[[], Any] | None = getattr(live, name, None)
    return default if told is None else told()


def _json(value: Any) -> Response:
    return Response(json.dumps(value, allow_nan=False), media_type="application/json")


def _arrow(stream: bytes) -> Response:
    return Response(stream, media_type=ARROW)
