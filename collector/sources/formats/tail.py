"""A live source: a file or folder of any format, read as it grows.

Formats that grow by lines are tailed by lines, each file on its own; formats of whole files are read once each when their
writer is done (a marker, a rename, or a file that has settled). A path that is not there yet is simply empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from collector.errors import InputError, KlaxonError
from collector.records import Rollout
from collector.sources.file_tail import JsonLinesTail
from collector.sources.formats import BINARY, Format, Hygiene, ReadOptions, detect, format_named, is_text_only
from collector.sources.formats.base import Items
from collector.sources.formats.klaxon_jsonl import KLAXON

LIST_SECONDS = 2.0
LIMIT = 256  # rollouts of one poll: a step's file holds thousands, and the scorer takes them in groups


class SourceTail:
    """One entry of [sources] files. `counts` holds what was dropped or noticed on the way, since the start."""

    def __init__(self, path: str | Path, format: str | None = None, *, options: ReadOptions | None = None) -> None:
        self.path = Path(path)
        self.options = options or ReadOptions()
        self.counts = self.options.counts
        self._format = format_named(format) if format else None
        self._hygiene = Hygiene(self.counts)
        self._tails: dict[Path, JsonLinesTail] = {}
        self._drained: dict[Path, tuple[int, int, int]] = {}
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
            if isinstance(item, InputError):
                taken.append(item)
            elif self._hygiene.keep(item, now=now) and not is_text_only(item):
                taken.append(item)
        return taken

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
        tail = self._tails.setdefault(file, JsonLinesTail(file, expect=(dict, list)))
        before = Counter(tail.counts)
        lines = tail.poll()
        self.counts.update(tail.counts - before)
        if not lines:
            self._drained[file] = state
        for where, item in lines:
            yield from [item] if isinstance(item, InputError) else kind.each(item, where, self.options)

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
            if self._drained.get(file) == state or not kind.complete(file, now):
                return
            self._drained[file] = state
            yield from kind.read(file, self.options)
        except OSError:
            return  # gone between listing and reading
        except KlaxonError as error:
            yield error if isinstance(error, InputError) else InputError(str(error))


def _state(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
