"""No daemon answers: what the state files, the lock, the port and the config say of why. Looks, and changes nothing."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alerts.lock import LONGEST, holder_of
from collector.errors import KlaxonError
from klaxon.checks import examine
from klaxon.checks.finding import Finding
from klaxon.config import Config
from klaxon.doctor.link import Link, ago, some, span
from klaxon.doctor.work import size
from klaxon.sealed import CONTROL, STATUS, STORE

PARTS = {"state": "state", "socket": "daemon", "daemon": "daemon", "engine": "engine", "engine upgrade": "engine", "sidecars": "daemon", "rollouts": "tap", "clocks": "clock",
         "metrics": "trainer", "weights": "weights", "shadow": "scorer", "memory": "scorer"}
"""Part of `klaxon check` → link. Receivers ("alerts: …") go to alerts; the others are no links."""
STOPS = ("state", "socket", "daemon", "shadow", "metrics", "reference", "signatures")
"""Parts that keep a daemon from starting when they are bad, in the order it meets them; receivers too."""
FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, len, pid


def links(config: Config, *, now: float, run: str) -> Iterator[Link]:
    """Every link as far as it can be seen without a daemon. `run`: the command that starts it."""
    findings = list(examine(config))
    folder = Path(config.run.dir)
    yield daemon(config, findings, now=now, run=run)
    yield from of_findings(findings)
    yield from disk(config, folder)
    yield Link(name="inbox", state="unknown", text="only a running daemon knows")
    yield Link(name="detectors", state="unknown", text=_last_words(folder, now) or "only a running daemon knows")


def of_findings(findings: list[Finding]) -> Iterator[Link]:
    """What `klaxon check` found, as links."""
    for item in findings:
        name = "alerts" if item.part.startswith("alerts: ") else PARTS.get(item.part)
        if name and name != "daemon" and not (item.state == "warn" and item.part == "engine"):
            state = {"bad": "broken", "warn": "warn", "ok": "ok", "off": "off"}[item.state]
            text = f"{item.part.removeprefix('alerts: ')}: {item.text}" if name == "alerts" else item.text
            yield Link(name=name, state=state, text=some(text, 500), next=item.next)  # type: ignore[arg-type]


def daemon(config: Config, findings: list[Finding], *, now: float, run: str) -> Link:
    """Why nobody answers: somebody else holds the folder, the address is taken, it cannot start, or it was not started."""
    where, folder = f"http://{config.daemon.host}:{config.daemon.port}", Path(config.run.dir)
    store = Path(config.store.path or folder / STORE)
    if holder := held(folder, store):
        return Link(name="daemon", state="broken", next=f"klaxon doctor --url http://HOST:{config.daemon.port}   # where that daemon listens; or stop it",
                    text=f"nobody answers at {where}, but {some(holder)}: a daemon with another address, one that hangs, or one of another container that shares this folder")
    bad = [item for part in STOPS for item in findings if item.part == part and item.state == "bad"] + [
        item for item in findings if item.part.startswith("alerts: ") and item.state == "bad"]
    if bad:
        return Link(name="daemon", state="broken", next=bad[0].next or run, text=f"not running at {where}, and it cannot start: {some(f'{bad[0].part}: {bad[0].text}', 500)}")
    said = _last_words(folder, now)
    return Link(name="daemon", state="broken", next=run, text=f"not running at {where}{': ' + said if said else '; it never ran in ' + str(folder)}")


def held(folder: Path, store: Path) -> str | None:
    """Who holds the run's lock or its store, in words; None when nobody does."""
    if (found := _flocked(folder / f"{CONTROL}.lock")) is not None:
        return f"{folder / CONTROL} is in use by another process{found}"
    if (pid := _locked_by(store)) is not None:
        who = "a process that is not visible from here (it shows as pid 0), in another container or on the host," if pid == 0 else f"pid {pid}"
        return f"{who} holds {store}"
    return None


def _flocked(path: Path) -> str | None:
    """Who holds the lock file; None when nobody does, or it cannot be looked at."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder_of(os.pread(descriptor, LONGEST, 0).decode("utf-8", "replace"))
    finally:
        os.close(descriptor)
    return None


def _locked_by(path: Path) -> int | None:
    """The process that holds DuckDB's lock on a file, 0 for one of another PID namespace; None when there is none."""
    try:
        with path.open("rb") as stream:
            asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(FLOCK, fcntl.fcntl(stream.fileno(), fcntl.F_GETLK, asked))
    except (OSError, struct.error):
        return None
    return None if kind == fcntl.F_UNLCK else pid


def disk(config: Config, folder: Path) -> Iterator[Link]:
    """Room, and what the store takes."""
    existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
    try:
        free = shutil.disk_usage(existing).free
    except OSError as error:
        yield Link(name="store", state="unknown", text=f"{existing}: {error.strerror}")
        return
    store, bound = Path(config.store.path or folder / STORE), config.detectors.facts.disk_free_mb * 2**20
    used = f"{store}: {size(store.stat().st_size)}" if os.access(store, os.F_OK) else f"{store} is not made yet"
    if free < bound:
        yield Link(name="store", state="broken" if free < 2**20 else "warn", next=f"df -h {existing}",
                   text=f"{size(free)} are free at {existing}, the bound is {size(bound)}; {used}")
    else:
        yield Link(name="store", state="ok", text=f"{used}, {size(free)} free")


def _last_words(folder: Path, now: float) -> str:
    """What the last daemon left behind."""
    try:
        kept: dict[str, Any] = json.loads((folder / STATUS).read_text(encoding="utf-8"))
        taken = f"{kept['counts'].get('seen', 0)} rollouts in {span(kept['now'] - kept['started_at'])}"
        return f"the last daemon wrote its status {ago(now, float(kept['now']))} (verdict {some(kept['verdict'], 40)}, {taken})"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def unreachable(error: KlaxonError, url: str) -> Link:
    """Nobody, or somebody else, answers at an address that is all we know."""
    said = some(str(error), 400)
    if "token" in said:
        return Link(name="daemon", state="broken", next="export KLAXON_TOKEN=…   # the daemon's token, then again", text=f"{url} answers, but asks for its token: {said}")
    if "is that a Klaxon daemon" in said or "another program" in said:
        return Link(name="daemon", state="broken", next=f"curl -i {url}/healthz", text=f"something answers at {url}, and it is no Klaxon daemon: {said}")
    return Link(name="daemon", state="broken", next="on its machine: klaxon doctor -c config.toml", text=said)
