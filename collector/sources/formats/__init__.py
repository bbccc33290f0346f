"""Rollouts from every framework's own files, behind one seam.

FORMATS is the registry; `read_any` reads a file or a folder of any of them. A new format is one module and one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from collector.errors import ConfigError, InputError
from collector.sources.formats.base import KNOWABLE, Format, Items, ReadOptions
from collector.sources.formats.hygiene import Hygiene
from collector.sources.formats.klaxon_jsonl import KLAXON
from collector.sources.formats.nemo_rl import NEMO_RL
from collector.sources.formats.open_instruct import OPEN_INSTRUCT
from collector.sources.formats.pipelinerl import PIPELINERL
from collector.sources.formats.prime_batches import PRIME_BATCHES
from collector.sources.formats.prime_rl import PRIME_RL
from collector.sources.formats.skyrl import SKYRL
from collector.sources.formats.slime import SLIME
from collector.sources.formats.text_only import TRL, VERL, is_text_only
from collector.sources.rollout_json import read_rollouts

__all__ = ["FORMATS", "KNOWABLE", "Format", "Hygiene", "ReadOptions", "detect", "format_named", "is_text_only", "list_formats", "read_any"]

FORMATS: dict[str, Format] = {one.name: one for one in (
    KLAXON, PIPELINERL, PRIME_RL, PRIME_BATCHES, NEMO_RL, SLIME, OPEN_INSTRUCT, SKYRL, VERL, TRL,
)}
"""Name → format. Where a folder holds several, the earlier one wins: the one that knows more stands first."""

BINARY = (".pt", ".pkl", ".bin", ".parquet", ".npz", ".safetensors")


def format_named(name: str) -> Format:
    """The format of this name.

    Raises:
        ConfigError: there is none; the text lists them.
    """
    if name not in FORMATS:
        raise ConfigError(f"{name!r} is no rollout format; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def list_formats() -> str:
    """One line a format, for people."""
    width = max(map(len, FORMATS))
    return "\n".join(f"  {name:{width}}  {one.about}" for name, one in FORMATS.items())


def detect(path: str | Path) -> Format | None:
    """The format of a file or of what a folder holds; None where no format recognises it."""
    path = Path(path)
    if path.is_dir():
        return next((one for one in FORMATS.values() if one.files(path)), None)
    return next((one for one in FORMATS.values() if one.matches(path)), None)


def read_any(path: str | Path, format: str | None = None, *, options: ReadOptions | None = None, now: float | None = None) -> Items:
    """Rollouts of a file or folder ("-" is standard input), in order; a bad record comes as its InputError.

    Duplicates (same request id, same tokens) are dropped, times from the future (against `now`, UTC seconds) counted: see
    `options.counts`. Without `format` it is recognised by its content.

    Raises:
        ConfigError: no such format, or a package it needs is missing.
        InputError: the path cannot be read, or is of no known format.
    """
    options = options or ReadOptions()
    kind = format_named(format) if format else None
    yield from Hygiene(options.counts).sift(_read(str(path), kind, options, now), now=now)


def _read(name: str, kind: Format | None, options: ReadOptions, now: float | None) -> Items:
    path = Path(name)
    if name == "-":
        yield from read_rollouts(name)
        return
    if not path.exists():
        raise InputError("cannot be opened (No such file or directory)", where=name)
    kind = kind or detect(path) or _fallback(path)
    yield from _files(kind, path, options, now)


def _files(kind: Format, path: Path, options: ReadOptions, now: float | None) -> Iterator:
    files = kind.files(path)
    whole = [file for file in files if path.is_file() or now is None or kind.complete(file, now)]
    options.counts["incomplete_files"] += len(files) - len(whole)
    if not whole:
        waiting = f" ({len(files)} are still being written)" if files else ""
        raise InputError(f"holds no complete file of format {kind.name}{waiting}; it would be at {kind.where}", where=str(path))
    for file in whole:
        try:
            yield from kind.read(file, options)
        except InputError as error:
            if len(whole) == 1:
                raise
            yield error


def _fallback(path: Path) -> Format:
    """Text that no format knows is read as rollout JSONL, whose parser says what is wrong with each line."""
    if path.is_dir() or path.name.removesuffix(".gz").endswith(BINARY):
        raise InputError(f"is of no known rollout format; say which with --format, one of\n{list_formats()}", where=str(path))
    return KLAXON
