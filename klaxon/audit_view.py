"""The engine's audit as the daemon knows it without asking anybody: what its probe and its tap told, judged as `klaxon audit` does.

What only a fresh look tells (generation_config.json, the environment, prefix-cache hits) stays unknown here; `klaxon audit ENGINE_URL` asks.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collector.store import Store
from diagnosis.engine_audit import MIGRATION, audit
from diagnosis.engine_told import Assumed, Told
from klaxon.config import Config
from klaxon.probe import SETTINGS

if TYPE_CHECKING:
    from klaxon.app import Daemon

HISTORY_KINDS = ("engine_config", "engine_restart", "engine_down", "engine_up", "tap")
MOST_EVENTS = 200
MOST_CALLS = 500
MOST_PREFLIGHTS = 5
MOST_PREFLIGHT_BYTES = 100_000


def audit_view(daemon: Daemon) -> dict[str, Any]:
    """checks (name, state, seen, why, do; the first `migration` are the move from V0 to V1), engine, url, vllm_version, history, preflights."""
    tap, facts = daemon.taps.engine_config(), daemon.probe.facts
    told = Told(version=tap.get("vllm_version") or facts.get("version"), config=_sections(facts), tap=tap, weight_label=facts.get("weight_version"),
                calls=_calls(daemon.store) if len(_engines(daemon)) <= 1 else ())
    heard = bool(tap or facts)
    return {"checks": [asdict(check) for check in audit(told, assumed(daemon.config))] if heard else [], "migration": MIGRATION,
            "engine": tap.get("engine") or daemon.config.engine.url or None, "url": daemon.config.engine.url or None, "vllm_version": told.version,
            "engines": _engines(daemon), "history": history(daemon.store), "preflights": preflights(Path(daemon.config.run.dir)),
            "preflight_folder": str(daemon.config.run.dir)}


def assumed(config: Config) -> Assumed:
    """What config.toml declares of the trainer; a default is no declaration."""
    def said(section: Any, key: str) -> Any:
        return getattr(section, key) if key in section.model_fields_set else None

    return Assumed(
        logprobs_mode=said(config.trainer, "expected_logprobs_mode"), sampling=config.trainer.sampling.sampling(),
        body_dtype=said(config.shadow, "body_dtype"), head_dtype=said(config.shadow, "head_dtype"), engine_dtype=config.contract.engine_dtype or None,
        floor_nats=config.contract.floor_nats, correction=said(config.contract, "correction"))


def _sections(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The probe's settings where /server_info had them; None when it told none."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, (section, key) in SETTINGS.items():
        if name in facts:
            found[section][key] = facts[name]
    return dict(found) or None


def _engines(daemon: Daemon) -> list[str]:
    return sorted({str(tap.get("engine")) for tap in daemon.taps.listing(0.0) if tap.get("source") != "trainer"})


def _calls(store: Store) -> tuple[tuple[str, str], ...]:
    """(path, query) of the weight-update calls the tap saw succeed, oldest first."""
    rows = store.query("SELECT data FROM events WHERE kind = 'engine_call' ORDER BY \"at\" DESC LIMIT ?", [MOST_CALLS])
    found = [json.loads(data) for (data,) in reversed(rows)]
    return tuple((str(one.get("path", "")), str(one.get("query", ""))) for one in found if isinstance(one, dict) and one.get("status") == 200)


def history(store: Store) -> list[dict[str, Any]]:
    """What happened to the engine's settings, newest first: at (UTC seconds), kind, text, key, before, after."""
    rows = store.query(f'SELECT "at", kind, text, data FROM events WHERE kind IN ({", ".join("?" * len(HISTORY_KINDS))}) ORDER BY "at" DESC LIMIT ?',
                       [*HISTORY_KINDS, MOST_EVENTS])
    told = []
    for at, kind, text, data in rows:
        said = json.loads(data)
        diff = {name: _short(said.get(name)) for name in ("key", "before", "after")} if kind == "engine_config" and isinstance(said, dict) else {}
        told.append({"at": at, "kind": kind, "text": _short(text), **diff})
    return told


def _short(value: Any) -> str:
    return str(value)[:300]


def preflights(folder: Path) -> list[dict[str, Any]]:
    """Reports of `klaxon preflight --json` kept in the run's folder as preflight*.json, newest first: file, at, passed, rows; or file, problem."""
    try:
        files = sorted(folder.glob("preflight*.json"), key=lambda path: path.stat().st_mtime, reverse=True)[:MOST_PREFLIGHTS]
    except OSError:
        return []
    return [_preflight(path) for path in files]


def _preflight(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_PREFLIGHT_BYTES:
            return {"file": path.name, "problem": f"is larger than {MOST_PREFLIGHT_BYTES:,} bytes and is not shown"}
        body = json.loads(path.read_text(encoding="utf-8"))
        rows = [{name: _short(row.get(name, "")) for name in ("name", "state", "seen", "do")} for row in body["rows"]]
        return {"file": path.name, "at": path.stat().st_mtime, "passed": bool(body["passed"]), "engine": _short(body.get("engine", "")), "rows": rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {"file": path.name, "problem": f"is no report of klaxon preflight --json ({type(error).__name__})"}
