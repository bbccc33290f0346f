"""POST /v1/ingest: what taps and trainers push. One JSON object a line; a bad line never costs its neighbours.

Kinds: rollout, heartbeat, metrics, weights, event (docs/tap.md describes each).
"""

from __future__ import annotations

import hmac
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from collector.errors import InputError, KlaxonError
from collector.sources.inbox import TapInbox
from collector.sources.refusals import reason_of
from collector.sources.rollout_json import parse_rollout

Handler = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Ingest:
    """Routes pushed lines. `handlers` take heartbeat, metrics, weights and event objects as they are."""

    inbox: TapInbox
    handlers: dict[str, Handler]
    counts: Counter[str] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)  # the newest few, for the operator
    unauthorised: dict[str, Any] | None = None  # the newest sender without the right token: at (UTC seconds), sender, token (did it have one)

    def take(self, body: bytes, *, sender: str) -> tuple[int, list[dict[str, Any]]] | None:
        """Handle one body; returns (accepted, refused lines with reasons), or None when the inbox has no room for it.

        A body is taken whole or not at all, so that a tap which tries again never sends a rollout twice.
        """
        lines = body.splitlines()
        if len(self.inbox) and len(self.inbox) + len(lines) > self.inbox.capacity:
            self.counts["deferred_bodies"] += 1
            return None
        accepted, refused = 0, []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                self._take_line(line, where=f"{sender} line {number}")
                accepted += 1
            except InputError as error:
                refused.append({"line": number, "reason": str(error)})
                self.refuse(error)
        return accepted, refused

    def refuse(self, error: InputError) -> None:
        """Count a refused rollout or line, and remember why."""
        self.counts["refused"] += 1
        self.counts[f"refused_{reason_of(error)}"] += 1
        if error.reason.startswith("length mismatch"):
            self.counts["length_mismatch"] += 1
        self.refusals = [*self.refusals[-19:], str(error)]

    def _take_line(self, line: bytes, *, where: str) -> None:
        try:
            obj = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not JSON ({error})", where=where) from None
        if not isinstance(obj, dict):
            raise InputError("a JSON object is expected", where=where)
        kind = obj.get("kind", "rollout")
        if kind == "rollout":
            if obj.get("aborted") and not obj.get("token_ids"):
                self.counts["aborted"] += 1
            elif not self.inbox.offer(parse_rollout(obj, where=where)):
                self.counts["dropped_inbox_full"] += 1
            return
        if kind not in self.handlers:
            raise InputError(f"{kind!r} is none of rollout, {', '.join(self.handlers)}", field="kind", where=where)
        try:
            self.handlers[kind](obj)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"a {kind} message cannot be read ({type(error).__name__}: {error})", where=where) from None


def ingest_router(ingest: Ingest, *, token: str | None,
                  weights: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> APIRouter:
    """POST /v1/ingest: 401 without the token, 429 with Retry-After when the inbox is full, else 202.
    POST /v1/weights {"version", "path"} where `weights` takes it: 202, or 422 with the reason its folder is not believed."""
    router = APIRouter()

    def unauthorised(request: Request) -> Response | None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not token or hmac.compare_digest(given.encode(), token.encode()):
            return None
        ingest.counts["unauthorised"] += 1
        ingest.unauthorised = {"at": time.time(), "sender": request.client.host if request.client else "socket", "token": bool(given)}
        return JSONResponse({"error": "bad or missing token: set KLAXON_TOKEN on the tap"}, status_code=401)

    @router.post("/v1/ingest")
    async def post(request: Request) -> Response:
        if (refusal := unauthorised(request)) is not None:
            return refusal
        sender = request.client.host if request.client else "socket"
        taken = ingest.take(await request.body(), sender=sender)
        if taken is None:
            return JSONResponse({"error": "the inbox is full; wait"}, status_code=429, headers={"Retry-After": "1"})
        return JSONResponse({"accepted": taken[0], "refused": taken[1]}, status_code=202)

    @router.post("/v1/weights")
    async def announce(request: Request) -> Response:
        if (refusal := unauthorised(request)) is not None:
            return refusal
        try:
            message = json.loads(await request.body())
            if weights is None:
                raise InputError("this daemon takes no weights")
            return JSONResponse(await run_in_threadpool(weights, message), status_code=202)
        except (ValueError, RecursionError) as error:
            return JSONResponse({"error": f"not JSON ({error})"}, status_code=422)
        except KlaxonError as error:
            return JSONResponse({"error": str(error)}, status_code=422)

    return router
