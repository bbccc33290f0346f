"""What the Tokens page asks: the rollouts furthest off, and one of them token by token.

Token ids and text leave here only as far as [store] tokens allows now, whatever an earlier daemon stored.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from collector.errors import InputError
from collector.store import Store
from collector.token_reads import MOST, AskedTokens, read_kept, read_tokens
from klaxon import quarantine
from klaxon.answers import arrow_bytes
from klaxon.slice_routes import ARROW, Name, Time, filters_of

DIGITS = 6  # significant, of a number on its way to the page


def token_router(store: Store, live: Any) -> APIRouter:
    """GET /v1/tokens (Arrow) and /v1/tokens/{rollout} (JSON). A question that cannot be answered is 400 with {"error": text}."""
    router = APIRouter()

    @router.get("/v1/tokens")
    def kept(start: Time = None, end: Time = None, incident: Name = None, kind: Annotated[str, Query(max_length=16)] = "worst",
             only: Annotated[list[str] | None, Query(max_length=16, description="key=value, repeatable")] = None,
             limit: Annotated[int, Query(ge=1, le=MOST)] = 50) -> Response:
        filters = filters_of(only or ())
        batches: tuple[int, int | None] = (0, None)
        if incident is not None:
            fault = quarantine.choose(live.incidents(), incident)
            batches = quarantine.span(store, fault)
            filters = {**({"replica": fault.slice["replica"]} if "replica" in fault.slice else {}), **filters}
        try:
            found = read_kept(store, AskedTokens(start=start, end=end, batches=batches, only=filters, kind=kind, limit=limit))
            return Response(arrow_bytes(found), media_type=ARROW)
        except ValueError as error:
            raise InputError(str(error)) from None

    @router.get("/v1/tokens/{rollout}")
    def tokens(rollout: str) -> Response:
        found = read_tokens(store, rollout[:64], tier=tier_of(live))
        if found is None:
            raise InputError("no tokens are kept of this rollout: it was not among those furthest off, or its time is over ([store] tokens_ttl_days)")
        return Response(json.dumps(_plain(found), allow_nan=False), media_type="application/json")

    return router


def tier_of(live: Any) -> str:
    """What [store] tokens of this daemon is; where nobody says, only numbers leave."""
    told = getattr(live, "storage", dict)()
    return str(told.get("tokens") or "numbers")


def _plain(value: Any) -> Any:
    """Numbers short, null for what is none."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: item if key.endswith("_at") else _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
