"""Walk the chain: ask the daemon if it answers, look at the files if it does not."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from collector.errors import InputError, KlaxonError, Unavailable
from klaxon.checks import examine
from klaxon.checks.places import folder, socket
from klaxon.claims import claims_of, held_by_others
from klaxon.client import get_json
from klaxon.config import Config
from klaxon.doctor import down, feed, work
from klaxon.doctor.link import ORDER, Link, ago, some, worst

EVENTS = 2000  # newest ones looked at


def walk(config: Config | None, url: str, *, run: str = "klaxon run") -> list[Link]:
    """Every link in order. `config`: None from another machine, where only the daemon's address is known; `run`: what starts the daemon."""
    try:
        status = get_json(url, "/v1/status")
        if not isinstance(status, dict) or "run" not in status:
            raise InputError("answers /v1/status with something else: is that a Klaxon daemon?", where=url)
    except KlaxonError as error:
        if config is None:
            return _whole([down.unreachable(error, url)], "the daemon does not answer: not looked at from here")
        return _whole(list(down.links(config, now=time.time(), run=run)), "not looked at: no daemon")
    if config is not None and status["run"] != config.run.name:
        other = Link(name="daemon", state="broken", next="set daemon.port in config.toml, then: klaxon run",
                     text=f"{url} watches another run ({some(status['run'], 80)}), not {config.run.name}")
        return _whole([other, *down.of_findings(list(examine(config)))], "not looked at: another run's daemon answers")
    if status.get("sealed"):
        return _whole([Link(name="daemon", state="broken", text=f"{url} serves the files of a stopped run; no daemon watches it", next=run)], "a stopped run")
    return _whole([*_running(url, status), *(_local(config, status) if config is not None else ())], "not told by this daemon")


def _running(url: str, status: Mapping[str, Any]) -> Iterator[Link]:
    try:
        health = get_json(url, "/v1/health")
    except (InputError, Unavailable) as error:
        yield Link(name="daemon", state="warn", text=f"{url} runs, but does not tell of its parts ({some(error)}): an older Klaxon?", next="klaxon status")
        return
    events = _events(url)
    yield Link(name="state", state="ok", text=f"{some(health['dir'])} on {some(health['host'], 80)}")
    yield Link(name="daemon", state="ok", since=health["started_at"],
               text=f"run {some(status['run'], 80)}, pid {health['pid']}, klaxon {some(health['klaxon'], 40)}, started {ago(health['now'], health['started_at'])}")
    for other in (row for row in events if row.get("kind") == "second_sidecar" and row["at"] >= health["started_at"]):
        yield Link(name="daemon", state="warn", since=other["at"],
                   text=some(other["text"]), next=f"klaxon status --url {some((other.get('data') or {}).get('api'), 100)}   # stop one of the two")
    yield from feed.engine(health, events)
    yield from feed.tap(health, status)
    yield feed.clock(health, status)
    yield feed.inbox(health, status)
    yield work.trainer(health, status)
    yield work.weights(health, status)
    yield work.scorer(health, status)
    yield work.detectors(health, status)
    yield from work.store(health, status)
    yield from work.alerts(status, health["now"])
    yield from work.exports(status)


def _local(config: Config, status: Mapping[str, Any]) -> Iterator[Link]:
    """What can be seen only from this machine, beside a daemon that answers."""
    for item in (folder(config), *socket(config, dict(status))):
        if item.state in ("bad", "warn"):
            yield Link(name={"state": "state", "socket": "tap"}[item.part], state="broken" if item.state == "bad" else "warn", text=some(item.text, 500), next=item.next)
    for one in held_by_others(claims_of(config)):
        if one.get("run") != config.run.name:
            yield Link(name="daemon", state="warn", next=f"klaxon status --url {some(one.get('api'), 100)}   # stop one of the two",
                       text=f"{some(one['what'])} is also watched by run {some(one.get('run'), 80)} (pid {some(one.get('pid'), 20)}): every fault is told twice")


def _events(url: str) -> list[dict[str, Any]]:
    try:
        found = get_json(url, "/v1/events", limit=EVENTS)
    except KlaxonError:
        return []
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _whole(links: list[Link], why: str) -> list[Link]:
    """The gravest of each name, in order, the others unknown."""
    found = {link.name: link for link in worst(links)}
    return [found.get(name, Link(name=name, state="off" if name == "exporters" else "unknown", text="none configured" if name == "exporters" else why)) for name in ORDER]
