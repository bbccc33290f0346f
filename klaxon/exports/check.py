"""What `klaxon check` says of each exporter: is it on, does it work, what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import httpx

from collector.errors import ConfigError
from klaxon.config import Config
from klaxon.exports import tensorboard, wandb

PATIENCE_SECONDS = 5.0
Looked = tuple[str, Literal["ok", "warn", "bad", "off"], str]
_VIEWER = "query Viewer { viewer { id username } }"


def looked_at(config: Config, status: Mapping[str, Any] | None) -> Iterator[Looked]:
    """(part, state, text) of each exporter; `status` is the running daemon's, None where none runs."""
    yield ("export: prometheus", *_prometheus(config, status))
    running = {one["exporter"]: one for one in (status or {}).get("exports") or ()}
    for name, look in (("wandb", _wandb), ("tensorboard", _tensorboard)):
        yield (f"export: {name}", *(_running(running[name]) if name in running else look(config)))


def _prometheus(config: Config, status: Mapping[str, Any] | None) -> tuple[Literal["ok", "bad", "off"], str]:
    url = f"http://{config.daemon.host}:{config.daemon.port}/metrics"
    if status is None:
        return "off", f"{url} answers once `klaxon run` is up (docs/monitoring.md has the scrape job, the rules and the dashboard)"
    try:
        text = httpx.get(url, timeout=PATIENCE_SECONDS, trust_env=False).raise_for_status().text
    except httpx.HTTPError as error:
        return "bad", f"{url} does not answer ({error}); see the daemon's log"
    return "ok", f"{url} has {sum(not line.startswith('#') for line in text.splitlines())} series"


def _running(one: Mapping[str, Any]) -> tuple[Literal["ok", "warn"], str]:
    """What the daemon itself says of it."""
    done = f"{one['written']} batches written to {one['where']}"
    if one["state"] in ("failing", "complaining"):
        return "warn", f"{done}; it fails ({one['failed']} times refused, {one['complaints']} complaints): {one['last_error']}; the batches wait in the store"
    return "ok", done if one["state"] == "ok" else f"on, nothing to write yet: {one['where']}"


def _wandb(config: Config) -> tuple[Literal["ok", "bad", "off"], str]:
    given = config.exports.wandb
    if given.mode == "off":
        return "off", 'exports.wandb.mode = "off"'
    try:
        wandb.check(config)
        where = wandb.where(config)
        if given.mode != "offline":
            _ask_server(config)
    except ConfigError as error:
        return "bad", str(error)
    return "ok", where


def _ask_server(config: Config) -> None:
    """Raises ConfigError: the server does not answer, or does not know the key."""
    url = wandb.server(config)
    try:
        answer = httpx.post(f"{url}/graphql", json={"query": _VIEWER}, auth=("api", wandb.api_key(config)), timeout=PATIENCE_SECONDS)
        viewer = (answer.json().get("data") or {}).get("viewer") if answer.status_code == 200 else None
    except httpx.HTTPError as error:
        raise ConfigError(f"exports.wandb: {url} does not answer ({type(error).__name__}); is it reachable from here? "
                          'mode = "offline" needs no server') from None
    except ValueError:
        raise ConfigError(f"exports.wandb: {url} answers something that is no JSON; is a proxy or a login page in between?") from None
    if answer.status_code in (401, 403) or (answer.status_code == 200 and viewer is None):
        raise ConfigError(f"exports.wandb: {url} does not know the API key; make a new one in its user settings and set {config.exports.wandb.key_env}")
    if answer.status_code != 200:
        raise ConfigError(f"exports.wandb: {url} answers HTTP {answer.status_code}; try again later, or see its status page")


def _tensorboard(config: Config) -> tuple[Literal["ok", "bad", "off"], str]:
    folder = config.exports.tensorboard_dir
    if not folder:
        return "off", "exports.tensorboard_dir is empty"
    try:
        tensorboard.check(Path(folder))
    except ConfigError as error:
        return "bad", str(error)
    return "ok", f"event files in {folder}"
