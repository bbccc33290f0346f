"""A live source: a file or folder of any format, read as it grows.

Formats that grow by lines are tailed by lines, each file on its own; formats of whole files are read once each when their
writer is done (a marker, a rename, or a file that has settled). A path that is not there yet is simply empty. Every rollout carries
a mark (collector/sources/progress.py), so that a daemon that was stopped or killed reads on behind what is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from collector.errors import InputError, KlaxonError
from collector.records import Rollout
from collector.sources.file_tail import JsonLinesTail
from collector.sources.formats import BINARY, Format, Hygiene, ReadOptions, detect, format_named, is_text_only
from collector.sources.formats.base import Items
from collector.sources.formats.klaxon_jsonl import KLAXON
from collector.sources.progress import Mark, Progress

LIST_SECONDS = 2.0
LIMIT = 256  # rollouts of one poll: a step's file holds thousands, and the scorer takes them in groups
FileState = tuple[int, int, int]  # inode, size, time of the last change


class SourceTail:
    """One entry of [sources] files. `counts` holds what was dropped or noticed on the way, since the start."""

    def __init__(self, path: str | Path, format: str | None = None, *, options: ReadOptions | None = None,
                 kept: Mapping[str, Sequence[dict[str, Any]]] | None = None) -> None:
        """`kept`: file → state, as `states` gave it in an earlier life."""
        self.path = Path(path)
        self.options = options or ReadOptions()
        self.counts = self.options.counts
        self._kept = kept or {}
        self._format = format_named(format) if format else None
        self._hygiene = Hygiene(self.counts)
        self._tails: dict[Path, JsonLinesTail] = {}
        self._wholes: dict[Path, tuple[FileState, Progress]] = {}
        self._drained: dict[Path, FileState] = {}
        self._read: dict[Path, FileState] = {}  # files read whole, to their end
        self._listed: tuple[float, list[Path]] | None = None
        self._pending: Iterator[Rollout | InputError] = iter(())

    def poll(self, now: float) -> list[Rollout | InputError]:
        """At most LIMIT of them; what is left waits in the file, not in memory."""
        taken: list[Rollout | InputError] = []
        while len(taken) < LIMIT:
            item = next(self._pending, None)
            if item is None:
                self._pending = self._next(now)
                item = next(self._pending, None)
            if item is None:
                break
            if isinstance(item, InputError) or self._wanted(item, now):
                taken.append(item)
        return taken

    def states(self) -> dict[str, list[dict[str, Any]]]:
        """File → what is needed to go on reading it in a later life."""
        found = {_key(file): tail.state() for file, tail in list(self._tails.items())}
        for file, (state, progress) in list(self._wholes.items()):
            found[_key(file)] = [{"whole": list(state[1:]), "read": self._read.get(file) == state and progress.settled, **progress.state()}]
        return found

    def _wanted(self, rollout: Rollout, now: float) -> bool:
        if rollout.mark is not None and rollout.mark.recalled:
            return True
        wanted = self._hygiene.keep(rollout, now=now) and not is_text_only(rollout)
        if not wanted and rollout.mark is not None:
            rollout.mark.settle()
        return wanted

    def _next(self, now: float) -> Iterator[Rollout | InputError]:
        """The items of whatever is new."""
        if self._format is None and self.path.exists():
            self._format = detect(self.path) or (KLAXON if self._is_text() else None)
        if self._format is None:
            return iter(())  # not there, or nothing recognisable in it yet
        return self._new(self._format, now)

    def _new(self, kind: Format, now: float) -> Items:
        for file in self._files(kind, now):
            if kind.parse is not None and not kind.by_step and file.suffix != ".gz":
                yield from self._lines(kind, file)
            else:
                yield from self._whole(kind, file, now)

    def _files(self, kind: Format, now: float) -> list[Path]:
        """What there is to read; a folder is listed at most every LIST_SECONDS."""
        if not self.path.is_dir():
            return [self.path] if self.path.exists() else []
        if self._listed is None or abs(now - self._listed[0]) >= LIST_SECONDS:
            known = set(self._listed[1]) if self._listed else set()
            self._listed = now, kind.files(self.path, known=known)
        return self._listed[1]

    def _lines(self, kind: Format, file: Path) -> Items:
        """New complete lines; a file in which nothing moved since its last line is not opened again."""
        try:
            state = _state(file)
        except OSError:
            return
        if self._drained.get(file) == state:
            return
        tail = self._tails.get(file)
        if tail is None:
            tail = self._tails[file] = JsonLinesTail(file, expect=(dict, list), state=self._kept.get(_key(file), ()))
        before = Counter(tail.counts)
        lines = tail.lines()
        self.counts.update(tail.counts - before)
        if not lines:
            self._drained[file] = state
        for line in lines:
            items = [] if line.item is None else [line.item] if isinstance(line.item, InputError) else list(kind.each(line.item, line.where, self.options))
            tail.progress.open(line.end, len(items), line=line.start[1] + 1, edge=line.edge)
            yield from _marked(items, tail.progress, line.end, start=line.start, name=file.name)

    def _is_text(self) -> bool:
        """A file whose complete lines no format knows: read as rollout JSONL, whose parser says what is wrong with them."""
        if self.path.is_dir() or self.path.name.removesuffix(".gz").endswith(BINARY):
            return False
        with self.path.open("rb") as stream:
            lines = stream.read(1 << 20).split(b"\n")[:-1]
        return any(line.strip() not in (b"", b"[]", b"{}") for line in lines)

    def _whole(self, kind: Format, file: Path, now: float) -> Items:
        """A file once, when it is complete; one written anew is read again, and its repeated rollouts are dropped."""
        try:
            state = _state(file)
            if self._drained.get(file) == state or self._was_read(file, state) or not kind.complete(file, now):
                return
            self._drained[file] = state
            [kept] = self._kept.get(_key(file)) or [{}]
            progress = Progress(kept if kept.get("whole") == list(state[1:]) else None)
            self._wholes[file] = state, progress
            for record, item in enumerate(kind.read(file, self.options), 1):
                progress.open(record, 1)
                yield from _marked([item], progress, record, start=(0, 0), name=file.name)
            self._read[file] = state
        except OSError:
            return  # gone between listing and reading
        except KlaxonError as error:
            yield error if isinstance(error, InputError) else InputError(str(error))

    def _was_read(self, file: Path, state: FileState) -> bool:
        """Has an earlier life stored the whole of this very file."""
        [kept] = self._kept.get(_key(file)) or [{}]
        if not kept.get("read") or kept.get("whole") != list(state[1:]):
            return False
        self._drained[file] = state
        return True


def _marked(items: Sequence[Rollout | InputError], progress: Progress, record: int, *, start: tuple[int, int], name: str) -> Items:
    """The items of one record that are not stored yet, each with its mark; an error is told here and now, so it is settled."""
    for place, item in enumerate(items):
        stored = progress.stored(record, place)
        if isinstance(item, InputError):
            progress.settle(record, place)
            if not stored:
                yield item
        elif not stored or progress.recall is not None:
            yield replace(item, mark=Mark(progress=progress, record=record, item=place, start=start, name=name, recalled=stored))


def _key(file: Path) -> str:
    return str(file.absolute())


def _state(file: Path) -> FileState:
    stat = file.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
