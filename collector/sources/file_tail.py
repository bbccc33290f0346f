"""Tail files of JSON lines as another process appends to them: rollouts, or a trainer's metrics."""

from __future__ import annotations

import os
import stat
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from collector.errors import InputError
from collector.sources.lines import parse_line
from collector.sources.progress import EDGE_BYTES, Progress, digest

MAX_LINE_BYTES = 256 << 20  # a line longer than this is skipped and named, so that it cannot fill the memory
HEAD_BYTES = 256  # start of the file, whose digest is kept to notice one that was written anew in place


@dataclass(frozen=True, slots=True)
class Line:
    """One complete line: its place, and the JSON value it holds or what is wrong with it."""

    start: tuple[int, int]  # byte and line number at which it begins
    end: int  # byte
    edge: tuple[int, str]  # length and digest of its last bytes
    where: str
    item: Any | InputError | None  # None = an empty line


class JsonLinesTail:
    """Complete new lines of a file on each poll; a half-written last line waits for its end.

    A file that is not there yet is simply empty. One that was moved away (rotated) is read to its end before the new one
    begins, and so is the copy of one that was cut; one that shrank, or starts differently, was written anew and is read from its
    start. Both are counted. A file copied to another disk, with all that was read of it, is the same file.
    """

    def __init__(self, path: str | Path, *, expect: type | tuple[type, ...] = dict, state: Sequence[dict[str, Any]] = ()) -> None:
        """`state`: as `state()` gave it in an earlier life; reading goes on from there."""
        self.path = Path(path)
        self.counts: Counter[str] = Counter()  # tail_rotated, tail_truncated
        self._expect = expect
        self._later = deque(state)  # files read after the present one in an earlier life
        self._older: list[tuple[Progress, dict[str, Any]]] = []  # files read before, of which something is not stored yet
        self._guard = threading.Lock()  # one thread reads, another asks for the state
        self._begin(self._later.popleft() if self._later else {})

    def poll(self, limit_bytes: int = 4 << 20) -> list[tuple[str, Any | InputError]]:
        """(where, object or error) of each complete line since the last poll, about `limit_bytes` of them at most."""
        return [(line.where, line.item) for line in self.lines(limit_bytes) if line.item is not None]

    def lines(self, limit_bytes: int = 4 << 20) -> list[Line]:
        """The same with their places, empty lines included; all of one file, whose `progress` is the present one."""
        with self._guard:
            try:
                chunk = self._new(limit_bytes)
            except OSError:
                return []
            return list(self._split(chunk))

    def state(self) -> list[dict[str, Any]]:
        """What an object made in a later life needs to go on: the files in which something is not stored yet, the present one last."""
        with self._guard:
            self._older = [(progress, identity) for progress, identity in self._older if not progress.settled]
            return [identity | progress.state() for progress, identity in [*self._older, (self.progress, self._identity())]] + list(self._later)

    def _new(self, limit_bytes: int) -> bytes:
        found = os.stat(self.path)
        if self._inode is not None and _inode(found) != self._inode and self._continues(self.path):
            self._inode = _inode(found)
        moved = self._inode is not None and _inode(found) != self._inode
        if moved or not self._begins(self.path):
            if rest := self._rest(limit_bytes):
                return rest
            self.counts["tail_rotated" if moved else "tail_truncated"] += 1
            self._restart()
            return self._new(limit_bytes) if self._inode is not None else self._take(self.path, limit_bytes)
        return self._take(self.path, limit_bytes)

    def _take(self, path: Path, limit_bytes: int) -> bytes:
        with path.open("rb") as stream:
            self._inode = _inode(os.fstat(stream.fileno()))
            return self._read(stream, limit_bytes)

    def _rest(self, limit_bytes: int) -> bytes:
        """What was still unread in the file that stood here before, looked for by inode and content beside it."""
        with os.scandir(self.path.parent) as entries:
            others = [Path(entry.path) for entry in entries if entry.name != self.path.name and entry.is_file()]
        moved = next((path for path in others if self._is(path) and self._begins(path)), None)
        moved = moved or next((path for path in others if self._offset and self._continues(path)), None)
        if moved is None:
            return b""
        with moved.open("rb") as stream:
            return self._read(stream, limit_bytes)

    def _is(self, path: Path) -> bool:
        try:
            return _inode(path.stat()) == self._inode
        except OSError:
            return False

    def _begins(self, path: Path) -> bool:
        """Does the file begin as the one that was read, and is it as long."""
        length, known = self._head
        with path.open("rb") as stream:
            return os.fstat(stream.fileno()).st_size >= self._offset and (not length or digest(stream.read(length)) == known)

    def _continues(self, path: Path) -> bool:
        """Does the file hold what was read, as far as its beginning and the end of what is stored tell. False where nothing is."""
        length, known = self.progress.edge
        try:
            if not length or not stat.S_ISREG(path.stat().st_mode) or not self._begins(path):
                return False
            with path.open("rb") as stream:
                stream.seek(self.progress.low - length)
                return digest(stream.read(length)) == known
        except OSError:
            return False

    def _read(self, stream: IO[bytes], limit_bytes: int) -> bytes:
        """Complete lines from the offset on; a line longer than the limit is read to its end."""
        stream.seek(self._offset)
        chunk = stream.read(limit_bytes)
        while chunk and b"\n" not in chunk and len(chunk) < MAX_LINE_BYTES and (more := stream.read(limit_bytes)):
            chunk += more
        end = chunk.rfind(b"\n") + 1
        if not end and len(chunk) >= MAX_LINE_BYTES:
            self._skip = len(chunk)  # what is left of it comes as one more line that is not JSON: named as well
            return b'"longer than Klaxon reads"\n'
        if self._offset == 0 and end:
            head = chunk[: min(end, HEAD_BYTES)]
            self._head = len(head), digest(head)
        return chunk[:end]

    def _split(self, chunk: bytes) -> Iterator[Line]:
        for text in (line + b"\n" for line in chunk.split(b"\n")[:-1]):
            start = self._offset, self._line
            self._offset += self._skip or len(text)
            self._skip = 0
            self._line += 1
            where = f"{self.path}:{self._line}"
            edge = text[-EDGE_BYTES:]
            yield Line(start, self._offset, (len(edge), digest(edge)), where, self._parse(text, where))

    def _restart(self) -> None:
        """On to the next file: where an earlier life left it, or its start."""
        if not self.progress.settled:
            self._older.append((self.progress, self._identity()))
        self._begin(self._later.popleft() if self._later else {})

    def _begin(self, state: dict[str, Any]) -> None:
        self.progress = Progress(state)
        self._offset, self._line = self.progress.recall or (self.progress.low, self.progress.line)
        self._skip = 0
        self._inode: tuple[int, int] | None = tuple(state["inode"]) if state.get("inode") else None
        self._head: tuple[int, str] = tuple(state.get("head", (0, "")))

    def _identity(self) -> dict[str, Any]:
        return {"inode": list(self._inode or ()), "head": list(self._head)}

    def _parse(self, line: bytes, where: str) -> Any | InputError | None:
        if not line.strip():
            return None
        item = parse_line(line, where=where)
        if not isinstance(item, (InputError, self._expect)):
            wanted = "a JSON object" if self._expect is dict else "a JSON object or list"
            return InputError(f"{wanted} is expected", where=where)
        return item


def _inode(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino
