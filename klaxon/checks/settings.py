"""What the config says, held against itself and against what answers: trainer, contract, metrics, band, receivers."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from typing import Any

from alerts.notifiers import build
from collector.errors import ConfigError, KlaxonError, Unavailable
from collector.sources.metrics.names import detect
from collector.sources.metrics.registry import open_sources
from collector.sources.metrics.source import MetricsRow
from detectors.hardfacts import dtype_name
from diagnosis.signatures import builtin, library_of
from klaxon.checks.finding import Finding
from klaxon.config import Config
from klaxon.planning import share
from klaxon.presets import presets
from klaxon.run_files import read_band


def daemon(config: Config, status: dict[str, Any] | None) -> Finding:
    """Is one running for this run, or for another at its address?"""
    where = f"http://{config.daemon.host}:{config.daemon.port}"
    if status is None:
        return Finding(part="daemon", state="off", text=f"not running at {where}; start it with `klaxon run`", next="klaxon run")
    if not status:
        return Finding(part="daemon", state="bad", text=f"another program answers at {where}: `klaxon run` could not listen there; set daemon.port", next=f"ss -ltnp 'sport = :{config.daemon.port}'")
    if status["run"] != config.run.name:
        return Finding(part="daemon", state="bad", text=f"{where} watches another run ({status['run']}); set daemon.port")
    return Finding(part="daemon", state="ok", text=f"running at {where}, verdict {status['verdict']}")


def trainer(config: Config) -> Finding:
    """What the trainer is said to assume."""
    if config.trainer.sampling.temperature is None:
        return Finding(part="trainer", state="warn", text="trainer.sampling.temperature is not declared: rollouts that do not say it "
                       "themselves cannot be scored")
    return Finding(part="trainer", state="ok", text=f"assumes T = {config.trainer.sampling.temperature:g}, {config.trainer.expected_logprobs_mode}")


def contract(config: Config, status: dict[str, Any] | None) -> Finding:
    """What [contract] accepts, and where it contradicts what is known."""
    given, limits = config.contract, config.signals
    said = [f"mean |d| up to {given.floor_nats:g} nats" if given.floor_nats else "", f"ESS from {given.min_ess:g}" if given.min_ess else "",
            f"engine {given.engine_dtype}" if given.engine_dtype else "",
            f"correction {given.correction}" + (f" at {given.cap:g}" if given.cap else "") if given.correction != "none" else ""]
    if not any(said):
        return Finding(part="contract", state="off", text="no accepted mismatch in [contract]: every mismatch counts")
    wrong = []
    acts = {"tis": ("tis_cap", limits.tis_cap), "icepop": ("icepop", limits.icepop[1]), "mask": ("mis", limits.mis[1])}.get(given.correction)
    if acts and given.cap and given.cap != acts[1]:
        wrong.append(f"contract.cap is {given.cap:g}, Klaxon computes the correction with signals.{acts[0]} = {acts[1]:g}")
    engine = (status or {}).get("engine") or {}
    runs = engine.get("quantization") or engine.get("dtype")
    if given.engine_dtype and runs and dtype_name(runs) != dtype_name(given.engine_dtype):
        wrong.append(f"the engine reports {runs}")
    return Finding(part="contract", state="warn" if wrong else "ok", text="; ".join([f"accepts {', '.join(part for part in said if part)}", *wrong]))


def metrics(config: Config) -> Finding:
    """Each source of trainer metrics, polled once; and whether their names are those of the framework that is configured."""
    try:
        sources = open_sources(config.metrics.sources, metrics_file=config.trainer.metrics_file)
        polled = {f"{source.name} {number}": [row for row in source.poll(time.time()) if isinstance(row, MetricsRow)] for number, source in enumerate(sources, 1)}
    except ConfigError as error:
        return Finding(part="metrics", state="bad", text=str(error))
    except Unavailable as error:
        return Finding(part="metrics", state="warn", text=str(error))
    rows = {name: len(found) for name, found in polled.items()}
    if not rows:
        return Finding(part="metrics", state="off", text="no source of trainer metrics in [metrics]: only what the trainer pushes")
    if empty := [name for name, found in rows.items() if not found]:
        return Finding(part="metrics", state="warn", text=f"nothing to read yet in {', '.join(empty)}")
    logged = detect({name for found in polled.values() for row in found for name in row.values})
    if logged and config.metrics.framework not in ("auto", "none", logged):
        fits = next((preset.name for preset in presets().values() if preset.metrics == logged), "")
        return Finding(part="metrics", state="warn", next=f"klaxon init --framework {fits} --force" if fits else "",
                       text=f"the names are {logged}'s, but metrics.framework is {config.metrics.framework}: none of them is understood; the preset that fits is {fits or logged}")
    return Finding(part="metrics", state="ok", text=", ".join(f"{name}: {found} rows" for name, found in rows.items()))


def reference(config: Config) -> Finding:
    """The band of trusted runs."""
    if not config.reference.band:
        return Finding(part="reference", state="off", text="no [reference] band: the trainer's metrics are compared with nothing")
    try:
        band = read_band(config.reference.band, only=config.reference.metrics)
    except KlaxonError as error:
        return Finding(part="reference", state="bad", text=str(error))
    said = f"{len(band.metrics)} metrics of {len(band.runs)} run(s): {', '.join(band.metrics)}"
    unknown = "" if band.seed_variance_known else f"; seed variance unknown, tolerance {band.tolerance}"
    return Finding(part="reference", state="ok", text=said + unknown)


def signatures(path: str) -> Finding:
    """A file of signatures of one's own."""
    try:
        own = len(library_of(path)) - len(builtin())
    except KlaxonError as error:
        return Finding(part="signatures", state="bad", text=str(error))
    return Finding(part="signatures", state="ok", text=f"{own} of {path}, beside Klaxon's {len(builtin())}")


def coverage(config: Config, status: dict[str, Any] | None) -> Iterator[Finding]:
    """What the budget allows of what the engine makes, once there is something to count."""
    counts = (status or {}).get("counts") or {}
    if status is None or not counts.get("tokens_seen"):
        return
    made = 60 * counts["tokens_seen"] / max(1.0, status["now"] - status["started_at"])
    budget, every = config.sampler.tokens_per_minute, config.weights.every
    text = (f"{share(status['scorer']['coverage'] or 0.0)} of {counts['tokens_seen']:,} tokens scored; the engine makes {made:,.0f} a minute, "
            f"[sampler] tokens_per_minute = {budget:,} allows {share(min(1.0, budget / made))}")
    if every > 1:
        text += f", [weights] every = {every} skipped {counts.get('skipped_by_stride', 0):,} rollouts"
    yield Finding(part="coverage", state="ok" if status["scorer"]["coverage"] else "warn", text=text)


def receivers(config: Config) -> Iterator[Finding]:
    """Who hears of alerts: each can be built, its secret is there. Nothing is sent."""
    for receiver in (*config.alerts.all_receivers(), *filter(None, [config.alerts.heartbeat()])):
        part = f"alerts: {receiver.name}"
        try:
            build(receiver, timeout_seconds=config.alerts.timeout_seconds)
        except KlaxonError as error:
            yield Finding(part=part, state="bad", text=str(error))
            continue
        yield Finding(part=part, state="ok", text=f"configured (nothing was sent; `klaxon alerts test {shlex.quote(receiver.name)}` sends)")
