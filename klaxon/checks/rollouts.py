"""Where rollouts come from: a tap that is heard, or files that are there, readable, and of the framework the config says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from collector.sources.config import FileSource
from collector.sources.formats import FORMATS, Format, detect
from klaxon.checks.finding import Finding
from klaxon.checks.places import cannot_read
from klaxon.config import Config
from klaxon.presets import preset_of_format


def rollouts(config: Config, status: dict[str, Any] | None) -> Finding:
    """`status` is that of this run's daemon, None without one."""
    if config.sources.files:
        return files(config)
    if not config.sources.tap:
        return Finding(part="rollouts", state="bad", text="no source: sources.tap is false and sources.files is empty")
    alive = [tap for tap in (status or {}).get("taps", []) if tap["alive"] and tap["source"] != "trainer"]
    if alive:
        return Finding(part="rollouts", state="ok", text=f"tap heard: {', '.join(tap['source'] + ' ' + tap['engine'] for tap in alive)}")
    how = "pip install klaxon-tap beside vLLM and set KLAXON_URL"
    return Finding(part="rollouts", state="warn", text=f"no tap is heard{'' if status else ' (no daemon to hear it)'}; {how}", next="" if status else "klaxon run")


def files(config: Config) -> Finding:
    """What stands at each path of sources.files, and whether it holds logprobs at all."""
    found = []
    for source in config.sources.tailed:
        if "://" in source.path:
            found.append(source.path)
            continue
        problem, kind = _file(source)
        if problem is not None:
            return problem
        found.append(f"{source.path} ({kind.name})" if kind else source.path)
    return Finding(part="rollouts", state="ok", text=f"{len(found)} to tail: {', '.join(found)}")


def hold_both_sides(config: Config) -> bool:
    """Do files of sources.files hold the trainer's logprobs too, by their format."""
    kinds = [FORMATS.get(source.format) or detect(source.path) for source in config.sources.tailed if "://" not in source.path]
    return any(kind is not None and kind.name != "klaxon" and "trainer logprobs" in kind.knows for kind in kinds)


def _file(source: FileSource) -> tuple[Finding | None, Format | None]:
    path, declared = Path(source.path), FORMATS.get(source.format)
    if why := cannot_read(path):
        return Finding(part="rollouts", state="bad", text=f"{why}: run Klaxon as a user that may, or open it", next=f"ls -ld {path.parent} {path}"), None
    if not path.exists():
        other = _other(path.parent, declared) if path.parent.is_dir() else None
        return _foreign(source, declared, other, f"{path} is not there, but {path.parent}") if other else (
            Finding(part="rollouts", state="warn", text=f"{path} is not there yet"), None)
    kind = detect(path)
    if declared is not None and kind is not declared and not _holds(declared, path):
        if kind is not None:
            return _foreign(source, declared, kind, str(path))
        return Finding(part="rollouts", state="warn", text=f"{path} holds no {declared.name} file yet; it would be at {declared.where}"), None
    kind = declared or kind
    if kind is None:
        return Finding(part="rollouts", state="warn", text=f"{path} holds no rollout format Klaxon recognises (yet); docs/sources.md lists them"), None
    if "engine logprobs" not in kind.knows:
        return Finding(part="rollouts", state="bad", text=f"{path} is {kind.about}; turn on the tap, or put a proxy in front of the engine", next="klaxon proxy --help"), None
    return None, kind


def _holds(kind: Format, path: Path) -> bool:
    return bool(kind.files(path)) if path.is_dir() else kind.matches(path)


def _other(folder: Path, declared: Format | None) -> Format | None:
    """A format other than the declared one that a folder's own files are of."""
    found = detect(folder) if declared is not None else None
    return found if found is not declared else None


def _foreign(source: FileSource, declared: Format | None, kind: Format, what: str) -> tuple[Finding, None]:
    """Files of another framework than the config's: name the preset that fits."""
    preset = preset_of_format(kind.name)
    fits = f"the preset that fits is {preset.name}" if preset else f'write format = "{kind.name}"'
    command = f"klaxon init --framework {preset.name} --rollouts {source.path} --force" if preset else ""
    return Finding(part="rollouts", state="bad", next=command, text=f"{what} holds {kind.about}, not {declared.name if declared else 'what is configured'}: {fits}"), None
