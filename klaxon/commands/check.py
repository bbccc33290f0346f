"""`klaxon check`: is the config right, does every part answer, what will Klaxon see and what not?"""

from __future__ import annotations

import glob
import json
import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from alerts.notifiers import build
from collector.errors import ConfigError, KlaxonError, Unavailable
from collector.sources.metrics.registry import open_sources
from collector.sources.metrics.source import MetricsRow
from detectors.hardfacts import dtype_name
from diagnosis.signatures import builtin, library_of
from klaxon.client import get_json
from klaxon.config import Config, load_config
from klaxon.live import TIER_BLIND
from klaxon.planning import share
from klaxon.probe import EngineProbe
from klaxon.run_files import read_band
from klaxon.shadow import why_no_shadow

MARKS = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "bad": "[red]✗[/]", "off": "[dim]–[/]"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One part: how it is and, unless it is fine, what to do."""

    part: str
    state: Literal["ok", "warn", "bad", "off"]
    text: str


def check(config: Annotated[str, typer.Option("--config", "-c", help="The run's config file.")] = "config.toml",
          json_: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False) -> None:
    """Validate config.toml, probe every part, and say the tier, the coverage and the blind spots.

    \b
    Examples:
      klaxon check --config runs/grpo-7b.toml --json

    Exit codes: 0 it can work, 2 something configured cannot.
    """
    loaded = load_config(config)
    findings = [Finding(part="config", state="ok", text=f"{config} is valid"), *examine(loaded)]
    tier, coverage = _tier(loaded, findings)
    blind = [*TIER_BLIND[tier], *(f"{item.part}: {item.text}" for item in findings if item.state == "warn")]
    if json_:
        typer.echo(json.dumps({"tier": tier, "coverage": coverage, "blind_spots": blind,
                               "parts": [asdict(item) for item in findings]}))
    else:
        _show(findings, tier, coverage, blind)
    raise typer.Exit(2 if any(item.state == "bad" for item in findings) else 0)


def examine(config: Config) -> Iterator[Finding]:
    """Every part in the order data flow through it."""
    status = _daemon_status(config)
    own = _own(config, status)
    yield from (_folder(config), _daemon(config, status), _engine(config), _tap(config, own),
                _trainer(config), _contract(config, own), _metrics(config), _reference(config), _weights(config, own), _shadow(config))
    if config.diagnosis.signatures:
        yield _signatures(config.diagnosis.signatures)
    yield from _coverage(config, own)
    yield from _receivers(config)


def _daemon_status(config: Config) -> dict[str, Any] | None:
    try:
        return get_json(f"http://{config.daemon.host}:{config.daemon.port}", "/v1/status")
    except KlaxonError:
        return None


def _own(config: Config, status: dict[str, Any] | None) -> dict[str, Any] | None:
    """The status, unless another run's daemon answered."""
    return status if status is not None and status["run"] == config.run.name else None


def _folder(config: Config) -> Finding:
    folder = Path(config.run.dir)
    existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    if not os.access(existing, os.W_OK):
        return Finding(part="state", state="bad", text=f"{folder} cannot be written; set run.dir")
    return Finding(part="state", state="ok", text=f"{folder} is writable")


def _daemon(config: Config, status: dict[str, Any] | None) -> Finding:
    where = f"http://{config.daemon.host}:{config.daemon.port}"
    if status is None:
        return Finding(part="daemon", state="off", text=f"not running at {where}; start it with `klaxon run`")
    if status["run"] != config.run.name:
        return Finding(part="daemon", state="bad", text=f"{where} watches another run ({status['run']}); set daemon.port")
    return Finding(part="daemon", state="ok", text=f"running at {where}, verdict {status['verdict']}")


def _engine(config: Config) -> Finding:
    if not config.engine.url:
        return Finding(part="engine", state="warn", text="engine.url is empty: the engine's health and settings are known from the tap alone")
    probe = EngineProbe(config.engine.url, lambda *_: None)
    if not probe.probe(time.time()):
        return Finding(part="engine", state="bad", text=f"{config.engine.url} does not answer /health; is it up, is the port right?")
    mode = probe.facts.get("logprobs_mode")
    if mode is None:
        return Finding(part="engine", state="ok", text=f"vLLM {probe.facts.get('version')} answers; its settings are hidden (no dev mode)")
    if mode != config.trainer.expected_logprobs_mode:
        return Finding(part="engine", state="bad", text=f"logprobs_mode is {mode}, but the trainer takes them for "
                       f"{config.trainer.expected_logprobs_mode}: start the engine with --logprobs-mode {config.trainer.expected_logprobs_mode}")
    return Finding(part="engine", state="ok", text=f"vLLM {probe.facts.get('version')} answers, logprobs_mode {mode}")


def _tap(config: Config, status: dict[str, Any] | None) -> Finding:
    if config.sources.files:
        return _files(config)
    if not config.sources.tap:
        return Finding(part="rollouts", state="bad", text="no source: sources.tap is false and sources.files is empty")
    alive = [tap for tap in (status or {}).get("taps", []) if tap["alive"]]
    if alive:
        return Finding(part="rollouts", state="ok", text=f"tap heard: {', '.join(tap['source'] + ' ' + tap['engine'] for tap in alive)}")
    how = "pip install klaxon-tap beside vLLM and set KLAXON_URL"
    return Finding(part="rollouts", state="warn", text=f"no tap is heard{'' if status else ' (no daemon to hear it)'}; {how}")


def _files(config: Config) -> Finding:
    """What stands at each path of sources.files, and whether it holds logprobs at all."""
    from collector.sources.formats import FORMATS, detect

    found = []
    for source in config.sources.tailed:
        if "://" in source.path:
            found.append(source.path)
            continue
        if not Path(source.path).exists():
            return Finding(part="rollouts", state="warn", text=f"{source.path} is not there yet")
        kind = FORMATS[source.format] if source.format else detect(source.path)
        if kind is None:
            return Finding(part="rollouts", state="warn", text=f"{source.path} holds no rollout format Klaxon recognises (yet); docs/sources.md lists them")
        if "engine logprobs" not in kind.knows:
            return Finding(part="rollouts", state="bad", text=f"{source.path} is {kind.about}; turn on the tap, or put a proxy in front of the engine")
        found.append(f"{source.path} ({kind.name})")
    return Finding(part="rollouts", state="ok", text=f"{len(found)} to tail: {', '.join(found)}")


def _trainer(config: Config) -> Finding:
    if config.trainer.sampling.temperature is None:
        return Finding(part="trainer", state="warn", text="trainer.sampling.temperature is not declared: rollouts that do not say it "
                       "themselves cannot be scored")
    return Finding(part="trainer", state="ok", text=f"assumes T = {config.trainer.sampling.temperature:g}, {config.trainer.expected_logprobs_mode}")


def _contract(config: Config, status: dict[str, Any] | None) -> Finding:
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


def _metrics(config: Config) -> Finding:
    try:
        sources = open_sources(config.metrics.sources, metrics_file=config.trainer.metrics_file)
        rows = {f"{source.name} {number}": sum(isinstance(row, MetricsRow) for row in source.poll(time.time()))
                for number, source in enumerate(sources, 1)}
    except ConfigError as error:
        return Finding(part="metrics", state="bad", text=str(error))
    except Unavailable as error:
        return Finding(part="metrics", state="warn", text=str(error))
    if not rows:
        return Finding(part="metrics", state="off", text="no source of trainer metrics in [metrics]: only what the trainer pushes")
    if empty := [name for name, found in rows.items() if not found]:
        return Finding(part="metrics", state="warn", text=f"nothing to read yet in {', '.join(empty)}")
    return Finding(part="metrics", state="ok", text=", ".join(f"{name}: {found} rows" for name, found in rows.items()))


def _reference(config: Config) -> Finding:
    if not config.reference.band:
        return Finding(part="reference", state="off", text="no [reference] band: the trainer's metrics are compared with nothing")
    try:
        band = read_band(config.reference.band, only=config.reference.metrics)
    except KlaxonError as error:
        return Finding(part="reference", state="bad", text=str(error))
    said = f"{len(band.metrics)} metrics of {len(band.runs)} run(s): {', '.join(band.metrics)}"
    unknown = "" if band.seed_variance_known else f"; seed variance unknown, tolerance {band.tolerance}"
    return Finding(part="reference", state="ok", text=said + unknown)


def _signatures(path: str) -> Finding:
    try:
        own = len(library_of(path)) - len(builtin())
    except KlaxonError as error:
        return Finding(part="signatures", state="bad", text=str(error))
    return Finding(part="signatures", state="ok", text=f"{own} of {path}, beside Klaxon's {len(builtin())}")


def _weights(config: Config, status: dict[str, Any] | None) -> Finding:
    if not config.weights.dir:
        return _announced(config, status)
    if not glob.has_magic(config.weights.dir) and not Path(config.weights.dir).is_dir():
        return Finding(part="weights", state="warn", text=f"{config.weights.dir} is not there yet")
    from collector.weights.follower import WeightFollower

    follower = WeightFollower(config.weights)
    found = follower.poll(time.time())
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(follower.pending.items())[:2]) or "the folder is empty"
        return Finding(part="weights", state="warn", text=f"no complete version in {config.weights.dir} ({reasons}); "
                       f"layout {config.weights.layout}: {follower.layout.note}")
    return Finding(part="weights", state="ok", text=f"{len(found)} complete versions, newest {found[-1].version}")


def _announced(config: Config, status: dict[str, Any] | None) -> Finding:
    """Without a folder versions come from announcements, or not at all."""
    if not config.weights.announced or why_no_shadow(config):
        return Finding(part="weights", state="off", text="no folder and no announcements are followed: no shadow (tiers 0 and 1)")
    seen = (status or {}).get("weights") or {}
    if not seen.get("versions_seen"):
        return Finding(part="weights", state="off", text="no version announced yet: call klaxon_tap.publish_weights(model, version) in "
                       "the trainer, or set weights.dir (docs/weights.md)")
    pending = f"; not believed: {seen['pending'][0]}" if seen.get("pending") else ""
    return Finding(part="weights", state="warn" if pending else "ok", text=f"{seen['versions_seen']} versions announced, newest {seen['trainer_version']}{pending}")


def _shadow(config: Config) -> Finding:
    if why := why_no_shadow(config):
        broken = bool(config.weights.dir and config.shadow.enabled)
        return Finding(part="shadow", state="bad" if broken else "off", text=why)
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return Finding(part="shadow", state="ok", text=f"{config.shadow.body_dtype} body, {config.shadow.head_dtype} head, on {device}")


def _coverage(config: Config, status: dict[str, Any] | None) -> Iterator[Finding]:
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


def _receivers(config: Config) -> Iterator[Finding]:
    for receiver in (*config.alerts.all_receivers(), *filter(None, [config.alerts.heartbeat()])):
        part = f"alerts: {receiver.name}"
        try:
            build(receiver, timeout_seconds=config.alerts.timeout_seconds)
        except KlaxonError as error:
            yield Finding(part=part, state="bad", text=str(error))
            continue
        yield Finding(part=part, state="ok", text=f"configured (nothing was sent; `klaxon alerts test {shlex.quote(receiver.name)}` sends)")


def _tier(config: Config, findings: list[Finding]) -> tuple[int, float | None]:
    """The tier this config reaches, and the running daemon's coverage (scored share of tokens), None when not running."""
    states = {item.part: item.state for item in findings}
    status = _own(config, _daemon_status(config))
    coverage = status["scorer"]["coverage"] if status else None
    if states.get("weights") in ("ok", "warn") and states.get("shadow") == "ok":
        return 2, coverage
    return (status["tier"] if status else 0), coverage


def _show(findings: list[Finding], tier: int, coverage: float | None, blind: list[str]) -> None:
    console = Console()
    table = Table(box=None, show_header=False, padding=(0, 1))
    for item in findings:
        table.add_row(MARKS[item.state], item.part, item.text)
    console.print(table)
    seen = "" if coverage is None else f", {coverage:.0%} of tokens scored so far"
    console.print(f"\nTier {tier}{seen}.", style="bold", highlight=False)
    console.print("Klaxon cannot see:" if blind else "No known blind spot at this tier.", highlight=False)
    for spot in blind:
        console.print(f"  · {spot}", style="yellow", markup=False, highlight=False)
