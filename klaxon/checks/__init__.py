"""The parts `klaxon check` looks at, a file a kind: places, the engine, rollouts, the scorer, settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from collector.errors import InputError, Unavailable
from klaxon.checks.clocks import clocks
from klaxon.checks.engine import engine, sidecars, upgraded
from klaxon.checks.finding import Finding
from klaxon.checks.places import folder, socket
from klaxon.checks.rollouts import rollouts
from klaxon.checks.scorer import memory, shadow, weights
from klaxon.checks.settings import contract, coverage, daemon, metrics, receivers, reference, signatures, trainer
from klaxon.client import get_json
from klaxon.config import Config
from klaxon.exports.check import looked_at

__all__ = ["Finding", "daemon_status", "examine", "own_status"]


def examine(config: Config) -> Iterator[Finding]:
    """Every part in the order data flow through it."""
    status = daemon_status(config)
    own = own_status(config, status)
    yield folder(config)
    yield daemon(config, status)
    yield from socket(config, own)
    yield engine(config)
    yield from upgraded(config, own)
    yield from sidecars(config, own)
    yield rollouts(config, own)
    yield from clocks(config, own)
    yield from (trainer(config), contract(config, own), metrics(config), reference(config), weights(config, own), shadow(config))
    yield from memory(config)
    if config.diagnosis.signatures:
        yield signatures(config.diagnosis.signatures)
    yield from coverage(config, own)
    yield from receivers(config)
    yield from (Finding(part=part, state=state, text=text) for part, state, text in looked_at(config, own))


def daemon_status(config: Config) -> dict[str, Any] | None:
    """The status of whatever daemon answers at the configured address; {} when it is another program, None when nobody does."""
    try:
        found = get_json(f"http://{config.daemon.host}:{config.daemon.port}", "/v1/status")
    except InputError:
        return {}
    except Unavailable as error:
        return {} if "is that a Klaxon daemon" in str(error) else None
    return found if isinstance(found, dict) and "run" in found else {}


def own_status(config: Config, status: dict[str, Any] | None) -> dict[str, Any] | None:
    """The status, when it is of this run's daemon."""
    return status if status and status["run"] == config.run.name else None
