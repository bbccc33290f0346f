"""Does the engine answer, is it what it was, and does only one sidecar watch it?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from collector.errors import KlaxonError
from klaxon.checks.finding import Finding
from klaxon.claims import claims_of, held_by_others
from klaxon.client import get_json
from klaxon.config import Config
from klaxon.probe import EngineProbe

EVENTS = 2000  # newest events of the daemon looked at
VERSION_KEYS = ("version", "vllm_version")


def engine(config: Config) -> Finding:
    """Health, version and the one setting that everything depends on."""
    url, wanted = config.engine.url, config.trainer.expected_logprobs_mode
    if not url:
        return Finding(part="engine", state="warn", text="engine.url is empty: the engine's health and settings are known from the tap alone")
    probe = EngineProbe(url, lambda *_: None)
    if not probe.probe(time.time()):
        return Finding(part="engine", state="bad", text=f"{url} does not answer /health; is it up, is the port right?", next=f"curl -i {url.rstrip('/')}/health")
    mode, version = probe.facts.get("logprobs_mode"), probe.facts.get("version")
    if version is None:
        return Finding(part="engine", state="warn", text=f"{url} answers, but not as vLLM: its settings stay unknown, and its rollouts come through `klaxon proxy` (docs/proxy.md)",
                       next=f"klaxon proxy --upstream {url}")
    if mode is None:
        return Finding(part="engine", state="ok", text=f"vLLM {version} answers; its settings are hidden (no dev mode)")
    if mode != wanted:
        return Finding(part="engine", state="bad", next=f"klaxon audit {url}", text=f"logprobs_mode is {mode}, but the trainer takes them for "
                       f"{wanted}: start the engine with --logprobs-mode {wanted}")
    return Finding(part="engine", state="ok", text=f"vLLM {version} answers, logprobs_mode {mode}")


def upgraded(config: Config, status: dict[str, Any] | None) -> Iterator[Finding]:
    """An engine whose version changed under the running daemon, until somebody declares what is normal now."""
    if status is None:
        return
    try:
        events = get_json(f"http://{config.daemon.host}:{config.daemon.port}", f"/v1/events?limit={EVENTS}")
    except KlaxonError:
        return
    rows = sorted((row for row in events if isinstance(row, dict)), key=lambda row: row.get("at") or 0.0) if isinstance(events, list) else []
    declared = max((row["at"] for row in rows if row.get("kind") == "rebaseline"), default=0.0)
    changes = [row for row in rows if row.get("kind") == "engine_config" and row["at"] > max(declared, status["started_at"])
               and (row.get("data") or {}).get("key") in VERSION_KEYS]
    if not changes:
        return
    before, after, at = changes[0]["data"]["before"], changes[-1]["data"]["after"], changes[0]["at"]
    silent = config.sources.tap and not any(tap["alive"] for tap in status["taps"] if tap["source"] != "trainer")
    deaf = "; and no tap is heard since: klaxon-tap must be installed in the new environment too" if silent else ""
    yield Finding(part="engine upgrade", state="warn", next=f'klaxon audit {config.engine.url or "ENGINE_URL"}; klaxon rebaseline "vLLM {after}"',
                  text=f"vLLM went from {before} to {after} at {datetime.fromtimestamp(at, UTC):%H:%M} UTC under this daemon: what it learnt as normal "
                  f"is the old engine's, and defaults may have moved{deaf}")


def sidecars(config: Config, status: dict[str, Any] | None) -> Iterator[Finding]:
    """Another daemon of this machine on the same engine or files; or a tap and a proxy that both report one engine."""
    others = [one for one in held_by_others(claims_of(config)) if status is None or one.get("run") != config.run.name]
    for one in others:
        yield Finding(part="sidecars", state="bad", next=f"klaxon status --url {one.get('api')}",
                      text=f"{one['what']} is already watched by run {one.get('run')} (pid {one.get('pid')}, {one.get('api')}): every fault would be told twice; "
                      "stop one of the two")
    sources: dict[str, set[str]] = {}
    for tap in (status or {}).get("taps", []):
        if tap["alive"] and tap["source"] != "trainer":
            sources.setdefault(_host(tap["engine"]), set()).add("proxy" if "proxy" in tap["source"] else "tap")
    for name, kinds in sources.items():
        if len(kinds) > 1:
            yield Finding(part="sidecars", state="bad", text=f"tap and proxy both report {name}: every rollout counts twice. Stop `klaxon proxy`, or start the engine with KLAXON_TAP=off")


def _host(name: str) -> str:
    return name.partition("#")[0].rstrip("/")
