"""Asking the daemon whether the rollouts can be trusted. Bounded in time whatever the other end does; never raises."""

from __future__ import annotations

import http.client
import json
import logging
import os
import threading
import time
from typing import Any
from urllib.parse import quote

from klaxon_tap import settings
from klaxon_tap.sender import connect

STATES = ("healthy", "degraded", "mismatch", "unknown")
MAX_BYTES = 64 * 1024
_FIELDS = ("cause", "since", "last_clean_version", "incident")
_log = logging.getLogger("klaxon_tap")
_asking, _asking_pid = threading.Lock(), os.getpid()  # a daemon that hangs costs one thread, not one a call


def verdict(run: str, timeout: float) -> dict[str, Any]:
    """The daemon's answer, or "unknown" with the reason, after at most `timeout` seconds."""
    global _asking, _asking_pid
    ends_at, url = time.monotonic() + timeout, settings.url()
    if url is None:
        return unknown(run, "KLAXON_URL is not set")
    if not settings.KillSwitch().on():
        return unknown(run, "the tap is switched off")
    if _asking_pid != os.getpid():  # a fork may have copied the lock while it was held
        _asking, _asking_pid = threading.Lock(), os.getpid()
    if not _asking.acquire(timeout=timeout):
        return unknown(run, "an earlier question is still unanswered")
    found: list[dict[str, Any]] = []
    try:
        # Names are resolved without a time limit, and an answer can drip: only a thread one walks away from is bounded.
        thread = threading.Thread(target=_ask, args=(url, run, max(0.001, ends_at - time.monotonic()), found), name="klaxon-tap-verdict", daemon=True)
        thread.start()
    except RuntimeError as error:  # no more threads, or the interpreter is ending
        _asking.release()
        return unknown(run, f"{type(error).__name__}: {error}")
    thread.join(max(0.0, ends_at - time.monotonic()))
    return found[0] if found else unknown(run, f"no answer from Klaxon within {timeout:g} s")


def unknown(run: str, why: str) -> dict[str, Any]:
    """What is said when nothing can be."""
    return {"run": run, "state": "unknown", "why": why, "confident": False, "at": time.time(), **dict.fromkeys(_FIELDS)}


def _ask(url: str, run: str, timeout: float, found: list[dict[str, Any]]) -> None:
    try:
        found.append(_answer(url, run, timeout))
    except Exception as error:  # whatever it is, the trainer goes on
        _log.debug("klaxon tap: no verdict (%s: %s)", type(error).__name__, error)
        found.append(unknown(run, f"Klaxon cannot be asked ({type(error).__name__})"))
    finally:
        _asking.release()


def _answer(url: str, run: str, timeout: float) -> dict[str, Any]:
    ends_at = time.monotonic() + timeout
    connection = connect(url)
    connection.timeout = timeout
    try:
        headers = {"Authorization": f"Bearer {token}"} if (token := settings.token()) else {}
        connection.request("GET", f"/v1/verdict?run={quote(run, safe='')}", headers=headers)
        answer = connection.getresponse()
        body = _body(answer, ends_at)
    finally:
        connection.close()
    if answer.status != 200:
        return unknown(run, f"Klaxon answered {answer.status}")
    said = json.loads(body)
    if not isinstance(said, dict) or said.get("state") not in STATES:
        return unknown(run, "the answer is none of Klaxon's")
    return {**unknown(run, ""), **said}


def _body(answer: http.client.HTTPResponse, ends_at: float) -> bytes:
    body = b""
    while piece := answer.read1(8192):
        body += piece
        if len(body) > MAX_BYTES or time.monotonic() > ends_at:
            raise ValueError("the answer is too long or too slow")
    return body
