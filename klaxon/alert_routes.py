"""What people do to incidents, over HTTP: acknowledge, silence, ask why. For the command line, the page and scripts.

Writes ask for the daemon's token wherever one is set; off loopback the daemon does not start without one (outsiders.read_token).
A browser may not write at all: a request that names an Origin, or is no JSON, is refused, so that no web page the operator
happens to visit can silence alerts of a daemon on loopback.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from alerts import runbooks
from alerts.service import Alerts
from collector.errors import InputError
from klaxon.verdict import Verdict

MAX_BODY_BYTES = 64 * 1024


def alerts_router(alerts: Alerts, *, token: str | None, verdict: Callable[[str, float], Verdict], clock: Callable[[], float] = time.time) -> APIRouter:
    """GET /v1/incidents/open, /v1/incidents/{id}, /v1/runbooks/{name}, /v1/silences, /v1/messages/unsent and
    /v1/verdict; POST /v1/incidents/{id}/ack, /v1/silences and /v1/messages/{id}/resend; DELETE /v1/silences/{id}. A mistake answers 400 with {"error": text}, a missing token 401, a browser 403."""
    router = APIRouter()
    add_reads(router, alerts, verdict, clock)

    @router.post("/v1/incidents/{incident}/ack")
    async def acknowledge(incident: str, request: Request) -> Response:
        if (refused := refusal(request, token)) is not None:
            return refused
        said = await _body(request, {"author", "reason"})
        found = await run_in_threadpool(alerts.acknowledge, incident, by=said.get("author", ""), reason=str(said.get("reason", "")), now=clock())
        return JSONResponse({"id": found.id, "state": found.state, "title": found.title})

    @router.post("/v1/silences")
    async def silence(request: Request) -> Response:
        if (refused := refusal(request, token)) is not None:
            return refused
        said = await _body(request, None)
        return JSONResponse(await run_in_threadpool(alerts.desk.silence, said, now=clock()), status_code=201)

    @router.post("/v1/messages/{message}/resend")
    async def resend(message: str, request: Request) -> Response:
        if (refused := refusal(request, token)) is not None:
            return refused
        await _body(request, set())
        return JSONResponse({"id": message, "sends": await run_in_threadpool(alerts.redeliver, message)})

    @router.delete("/v1/silences/{silence}")
    async def expire(silence: str, request: Request) -> Response:
        if (refused := refusal(request, token, body=False)) is not None:
            return refused
        return JSONResponse(await run_in_threadpool(alerts.desk.expire, silence, now=clock()))

    return router


def add_reads(router: APIRouter, alerts: Alerts, verdict: Callable[[str, float], Verdict], clock: Callable[[], float]) -> None:
    @router.get("/v1/incidents/open")
    def open_incidents(limit: Annotated[int, Query(ge=1, le=10_000)] = 1000) -> Response:
        return JSONResponse(alerts.desk.open_incidents(limit))

    @router.get("/v1/incidents/{incident}")
    def explain(incident: str) -> Response:
        return JSONResponse(alerts.desk.explain(incident, now=clock()))

    @router.get("/v1/runbooks/{name}")
    def runbook(name: str) -> Response:
        return JSONResponse({"name": name, "text": runbooks.page(name)})

    @router.get("/v1/silences")
    def silences(ended: bool = False) -> Response:
        return JSONResponse(alerts.desk.silences(clock(), ended=ended))

    @router.get("/v1/messages/unsent")
    def unsent() -> Response:
        return JSONResponse(alerts.undelivered())

    @router.get("/v1/verdict")
    def read_verdict(run: Annotated[str, Query(max_length=512)] = "") -> Response:
        return JSONResponse(verdict(run, clock()).to_json())


def refusal(request: Request, token: str | None, *, body: bool = True) -> Response | None:
    """Why this request may not write (a browser, no token, no JSON body); None when it may."""
    if request.headers.get("origin") is not None:
        return JSONResponse({"error": "browsers may not write here"}, status_code=403)
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if token and not hmac.compare_digest(given.encode(), token.encode()):
        return JSONResponse({"error": "bad or missing token: set KLAXON_TOKEN to the daemon's token"}, status_code=401)
    if body and request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return JSONResponse({"error": "a body of application/json is expected"}, status_code=415)
    return None


async def _body(request: Request, known: set[str] | None) -> dict[str, Any]:
    raw = b""
    async for piece in request.stream():
        raw += piece
        if len(raw) > MAX_BODY_BYTES:
            raise InputError(f"the body is longer than {MAX_BODY_BYTES} bytes")
    try:
        said = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        raise InputError("the body is not JSON") from None
    if not isinstance(said, dict):
        raise InputError("a JSON object is expected")
    if known is not None and (unknown := sorted(set(said) - known)):
        raise InputError(f"is unknown; {' and '.join(sorted(known))} are known", field=unknown[0])
    return said
