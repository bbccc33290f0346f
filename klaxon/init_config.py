"""The config.toml that `klaxon init` writes: only the keys that matter for a framework, each with its meaning. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alerts.config import ReceiverConfig
from alerts.receiver_types import TYPES
from collector.errors import ConfigError
from klaxon.config import meaning_of, toml_value
from klaxon.presets import Preset
from klaxon.spine_config import DaemonConfig

PAGE_URL = "http://127.0.0.1:8501"
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET_ENV = {"slack": "SLACK_BOT_TOKEN", "pagerduty": "PAGERDUTY_ROUTING_KEY", "wandb": "WANDB_API_KEY"}
OWN_KEY = {"slack": "channel", "wandb": "path", "alertmanager": "url"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What was told, on the command line or at the prompts; "" and None = nothing."""

    preset: Preset | None
    run: str
    dir: str
    port: int = DaemonConfig.model_fields["port"].default
    engine: str = ""
    rollouts: str = ""
    rollouts_format: str = ""
    weights: str = ""
    layout: str = ""
    trainer_logprobs: str = ""  # push, rollouts, none, or a file
    temperature: float | None = None
    receivers: list[dict[str, Any]] = field(default_factory=list)
    page: bool = False


def receiver_of(text: str) -> dict[str, Any]:
    """A receiver table out of TYPE=VALUE. VALUE names where a secret stands (env:NAME, file:PATH), never the secret itself.

    `slack=CHANNEL[,env:NAME]`, `wandb=ENTITY/PROJECT[,env:NAME]`, `alertmanager=URL[,env:NAME]`, `slack_webhook=env:NAME`, …

    >>> receiver_of("slack=C0123")
    {'type': 'slack', 'channel': 'C0123', 'secret_env': 'SLACK_BOT_TOKEN'}

    Raises:
        ConfigError: no such type, or the value does not fit it. A value that could be a secret is never shown.
    """
    kind, _, value = text.partition("=")
    kind = kind.strip().replace("-", "_")
    if kind not in TYPES:
        raise ConfigError(f"--receiver {kind!r}: the types are {', '.join(TYPES)} (docs/receivers.md)")
    parts = [part.strip() for part in value.split(",") if part.strip()]
    table: dict[str, Any] = {"type": kind}
    if kind in OWN_KEY and parts and not _place(parts[0]):
        table[OWN_KEY[kind]] = parts.pop(0)
    where = "url" if TYPES[kind].address == "secret" else "secret"
    for part in parts:
        if (place := _place(part)) is None:
            raise ConfigError(f"--receiver {kind}: name where its {'address' if where == 'url' else TYPES[kind].secret_is} stands, as env:NAME or "
                              "file:PATH; secrets do not belong on a command line or in config.toml")
        table[f"{where}_{place[0]}"] = place[1]
        where = "secret"
    if TYPES[kind].secret == "must" and not {"secret_env", "secret_file"} & table.keys():
        table["secret_env"] = SECRET_ENV[kind]
    try:
        ReceiverConfig.model_validate(table)
    except ValueError as error:
        said = "; ".join(str(item["msg"]).removeprefix("Value error, ") for item in error.errors())  # type: ignore[attr-defined]
        raise ConfigError(f"--receiver {kind}: {said}") from None
    return table


def _place(part: str) -> tuple[str, str] | None:
    kind, _, name = part.partition(":")
    if kind == "env" and ENV_NAME.fullmatch(name):
        return kind, name
    return (kind, name) if kind == "file" and name else None


class _Writer:
    """Sections in order, each key under the comment that says what it means."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._section = ""

    def key(self, section: str, key: str, value: Any, *, why: str = "", commented: bool = False) -> None:
        if section != self._section:
            self.lines += ["", f"[{section}]"]
            self._section = section
        self.lines.append(f"# {meaning_of(section, key)}" + (f"\n# here: {why}" if why else ""))
        self.lines.append(f"{'# ' if commented else ''}{key} = {toml_value(value)}")

    def note(self, text: str) -> None:
        self.lines.append(f"# {text}")


def render(answers: Answers) -> str:
    """The file's text."""
    preset, out = answers.preset, _Writer()
    whose = f"a {preset.title} run" if preset else "a run"
    out.lines += [f"# Klaxon's configuration for {whose}, written by `klaxon init`. Only keys that matter here; all the others, with their defaults:",
                  "# `python -m klaxon.config`. Secrets never stand here: name an environment variable or a file.",
                  f"# Quickstart: docs/quickstarts/{preset.name}.md" if preset else "# Rollout files, tap and proxy: docs/sources.md, docs/tap.md, docs/proxy.md"]
    out.key("run", "name", answers.run)
    out.key("run", "dir", answers.dir)
    if answers.port != DaemonConfig.model_fields["port"].default:
        out.key("daemon", "port", answers.port)
    out.key("engine", "url", answers.engine)
    _trainer(out, answers)
    _sources(out, answers)
    if preset:
        out.key("metrics", "framework", preset.metrics)
    _preset_keys(out, preset, "metrics")
    _weights(out, answers)
    _preset_keys(out, preset, "signals")
    out.key("detectors", "false_alarms", "1 per 30 days")
    _alerts(out, answers)
    return "\n".join(out.lines) + "\n"


def _trainer(out: _Writer, answers: Answers) -> None:
    out.key("trainer", "expected_logprobs_mode", "processed_logprobs")
    if answers.temperature is not None:
        out.key("trainer.sampling", "temperature", answers.temperature)
    elif answers.preset and answers.preset.says_sampling:
        out.key("trainer.sampling", "temperature", 1.0, commented=True, why=f"{answers.preset.title}'s files say it themselves; the tap and the proxy need it")
    else:
        out.key("trainer.sampling", "temperature", 1.0, why="ASSUMED by `klaxon init`, not read from your trainer: write what it divides its logits by")


def _sources(out: _Writer, answers: Answers) -> None:
    preset = answers.preset
    if answers.rollouts:
        out.key("sources", "tap", False, why="the rollouts come from files; with klaxon-tap in the engine instead, true and no files (both report twice)")
        entry = {"path": answers.rollouts} | ({"format": answers.rollouts_format} if answers.rollouts_format else {})
        allowed = {"allow_pickle": True} if preset and preset.rollouts.allow_pickle else {}
        out.key("sources", "files", [entry | allowed])
        if allowed:
            out.note("the dump is a pickle; Klaxon's restricted unpickler builds tensors and arrays only")
    else:
        out.key("sources", "tap", True, why="KLAXON_URL of the engine's process points here (docs/tap.md)")
        if preset and preset.rollouts.by == "files":
            out.key("sources", "files", [{"path": preset.rollouts.path, "format": preset.rollouts.formats[0]}], commented=True,
                    why=f"STILL TO BE NAMED: where {preset.title} writes them; then tap = false")
    side = answers.trainer_logprobs
    if side == "push":
        out.note(f"the trainer's own logprobs are pushed: klaxon_tap.push_logprobs, KLAXON_URL={push_url(answers)}")
    elif side == "rollouts":
        out.note("the trainer's own logprobs stand in the same files")
    elif side not in ("", "none"):
        out.key("sources", "trainer_files", [side])


def push_url(answers: Answers) -> str:
    """Where a trainer on this machine pushes to."""
    return f"http://127.0.0.1:{answers.port}" if answers.rollouts else f"unix://{Path(answers.dir).absolute()}/klaxon.sock"


def _weights(out: _Writer, answers: Answers) -> None:
    preset = answers.preset
    layout = answers.layout or (preset.weights.layout if preset else "auto")
    how = preset.weights.how if preset else ""
    if answers.weights:
        out.key("weights", "dir", answers.weights)
        out.key("weights", "layout", layout)
        out.key("shadow", "body_dtype", "bfloat16", why="the trainer's, not the engine's: write what yours computes in")
        out.key("shadow", "head_dtype", "float32")
    else:
        out.key("weights", "dir", preset.weights.dir if preset else "", commented=True, why=how)
        out.key("weights", "layout", layout)
    _preset_keys(out, preset, "shadow")


def _preset_keys(out: _Writer, preset: Preset | None, section: str) -> None:
    for key, value in (preset.config.get(section, {}) if preset else {}).items():
        out.key(section, key, value, why=preset.why.get(f"{section}.{key}", "") if preset else "")


def _alerts(out: _Writer, answers: Answers) -> None:
    out.key("alerts", "dashboard_url", PAGE_URL if answers.page else "")
    if not answers.receivers:
        out.note("nobody but the daemon's standard error hears of alerts yet: `klaxon init --receiver slack=CHANNEL`, docs/receivers.md")
    for table in answers.receivers:
        out.lines += ["", "[[alerts.receivers]]", *(f"{key} = {toml_value(value)}" for key, value in table.items())]
