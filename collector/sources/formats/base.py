"""What a rollout format is: a name, how to recognise it, how to read it, and which fields it knows.

A reader never guesses. What a framework does not write stays unknown (None, NaN, ()), and a bad record costs only itself:
it comes as an InputError that names file, record, field and reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from collector.errors import InputError
from collector.records import Rollout
from collector.sources.lines import json_lines

KNOWABLE = ("ids", "engine logprobs", "trainer logprobs", "weight version", "sampling", "sampled mask", "loss mask", "reward", "finish reason", "time", "top logprobs")
"""What a format may know of a rollout; the columns of docs/sources.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What only the operator can say about a file."""

    tokenizer: str = ""  # folder of a tokenizer, for formats that keep text only
    allow_pickle: bool = False  # read pickles (through a restricted unpickler)
    version_at_start: bool = False  # the version at the start of a request holds for all its tokens (no updates in flight)
    counts: Counter[str] = field(default_factory=Counter)  # filled while reading: what was left out, and why


SETTLED_SECONDS = 5.0  # many writers write in place: a file untouched this long is complete


def settled(path: Path, now: float) -> bool:
    """Has nobody written to the file for a while."""
    return now - path.stat().st_mtime >= SETTLED_SECONDS


Items = Iterator[Rollout | InputError]
ParseLine = Callable[[Any, str, ReadOptions], Items]  # (JSON value, where, options) → its rollouts


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One row of the registry.

    `parse` is set where a file holds JSON lines, otherwise `read_file` reads it whole. Files of lines are tailed as they
    grow; whole files, and files of lines that count only once a step is done (`by_step`), are taken once each, when
    `complete` says that their writer is done.
    """

    name: str
    about: str  # one line: whose files, and what they are
    where: str  # where the framework writes them
    turn_on: str  # the setting that makes the framework write them
    knows: frozenset[str]  # of KNOWABLE
    patterns: tuple[str, ...]  # globs below a folder; the first that finds files of this format counts
    matches: Callable[[Path], bool]  # is this file one of them
    parse: ParseLine | None = None
    read_file: Callable[[Path, ReadOptions], Items] | None = None
    by_step: bool = False
    complete: Callable[[Path, float], bool] = lambda path, now: True  # is its writer done (path, UTC seconds)
    needs: str = ""  # extra package, as pip names it

    def read(self, path: Path, options: ReadOptions) -> Items:
        """Rollouts of one file, in order; a bad record comes as its InputError."""
        if self.read_file is not None:
            yield from self.read_file(path, options)
            return
        for where, item in json_lines(path):
            yield from [item] if isinstance(item, InputError) else self.each(item, where, options)

    def each(self, item: Any, where: str, options: ReadOptions) -> Items:
        """Rollouts of one JSON value; its error says where it stands."""
        if self.parse is None:
            return
        try:
            yield from self.parse(item, where, options)
        except InputError as error:
            yield InputError(error.reason, field=error.field, where=where)

    def files(self, path: Path, *, known: Container[Path] = ()) -> list[Path]:
        """The files of this format at `path`: itself, or what its folder holds, in natural order; `known` ones are not sniffed again."""
        if path.is_file():
            return [path]
        for pattern in self.patterns:
            found = sorted((file for file in path.glob(pattern) if file in known or (file.is_file() and self.matches(file))), key=natural)
            if found:
                return found
        return []


def natural(path: Path) -> list[tuple[int, int | str]]:
    """Sort key under which step_10 follows step_9."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", str(path))]


def first_value(path: Path) -> Any:
    """The first JSON value of a file that is not an empty list, None where there is none; for sniffing."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return _first_value(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _first_value(path: Path, _size: int, _mtime: int) -> Any:
    if path.name.removesuffix(".gz").rsplit(".", 1)[-1] not in ("jsonl", "json", "ndjson", "txt", "log"):
        return None
    try:
        for _, item in json_lines(path):
            if not isinstance(item, InputError) and item not in ([], {}):
                return item
    except InputError:
        return None
    return None


def first_keys(path: Path) -> frozenset[str]:
    """Keys of the first object of a JSON-lines file; empty for anything else."""
    value = first_value(path)
    return frozenset(value) if isinstance(value, dict) else frozenset()


def whole(obj: Any) -> dict[str, Any]:
    """The record itself, when it is an object."""
    if not isinstance(obj, dict):
        raise InputError(f"a JSON object is expected, not {type(obj).__name__}")
    return obj


def required(obj: dict[str, Any], name: str) -> Any:
    """A field that must be there."""
    if obj.get(name) is None:
        raise InputError("is required and missing", field=name)
    return obj[name]
