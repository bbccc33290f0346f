"""Tail files of JSON lines as another process appends to them: rollouts, or a trainer's metrics."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import IO, Any

from collector.errors import InputError
from collector.sources.lines import parse_line

MAX_LINE_BYTES = 256 << 20  # a line longer than this is skipped and named, so that it cannot fill the memory
HEAD_BYTES = 256  # start of the file, kept to notice one that was written anew in place


class JsonLinesTail:
    """Complete new lines of a file on each poll; a half-written last line waits for its end.

    A file that is not there yet is simply empty. One that was moved away (rotated) is read to its end before the new one
    begins; one that shrank, or starts differently, was written anew and is read from its start. Both are counted.
    """

    def __init__(self, path: str | Path, *, expect: type | tuple[type, ...] = dict) -> None:
        self.path = Path(path)
        self.counts: Counter[str] = Counter()  # tail_rotated, tail_truncated
        self._expect = expect
        self._inode: tuple[int, int] | None = None
        self._restart()

    def poll(self, limit_bytes: int = 4 << 20) -> list[tuple[str, Any | InputError]]:
        """(where, object or error) of each complete line since the last poll, about `limit_bytes` of them at most."""
        try:
            chunk = self._rest_of_a_moved_file(limit_bytes) or self._new(limit_bytes)
        except OSError:
            return []
        return [item for line in chunk.splitlines(keepends=True) if (item := self._parse(line)) is not None]

    def _new(self, limit_bytes: int) -> bytes:
        with self.path.open("rb") as stream:
            self._inode = _inode(os.fstat(stream.fileno()))
            if os.fstat(stream.fileno()).st_size < self._offset or stream.read(len(self._head)) != self._head:
                self.counts["tail_truncated"] += 1
                self._restart()
            return self._read(stream, limit_bytes)

    def _rest_of_a_moved_file(self, limit_bytes: int) -> bytes:
        """What was still unread in the file that stood here before, looked for by inode beside it."""
        if self._inode is None or _inode(self.path.stat()) == self._inode:
            return b""
        with os.scandir(self.path.parent) as entries:
            moved = next((entry.path for entry in entries if _inode(entry.stat()) == self._inode), None)
        if moved is not None:
            with open(moved, "rb") as stream:
                if rest := self._read(stream, limit_bytes):
                    return rest
        self.counts["tail_rotated"] += 1
        self._restart()
        return b""

    def _read(self, stream: IO[bytes], limit_bytes: int) -> bytes:
        """Complete lines from the offset on; a line longer than the limit is read to its end."""
        stream.seek(self._offset)
        chunk = stream.read(limit_bytes)
        while chunk and b"\n" not in chunk and len(chunk) < MAX_LINE_BYTES and (more := stream.read(limit_bytes)):
            chunk += more
        end = chunk.rfind(b"\n") + 1
        if not end and len(chunk) >= MAX_LINE_BYTES:
            self._offset += len(chunk)  # what is left of it comes as one more line that is not JSON: named as well
            return b'"longer than Klaxon reads"\n'
        if self._offset == 0 and end:
            self._head = chunk[: min(end, HEAD_BYTES)]
        self._offset += end
        return chunk[:end]

    def _restart(self) -> None:
        self._offset = self._line = 0
        self._head = b""

    def _parse(self, line: bytes) -> tuple[str, Any | InputError] | None:
        self._line += 1
        if not line.strip():
            return None
        where = f"{self.path}:{self._line}"
        item = parse_line(line, where=where)
        if not isinstance(item, (InputError, self._expect)):
            wanted = "a JSON object" if self._expect is dict else "a JSON object or list"
            return where, InputError(f"{wanted} is expected", where=where)
        return where, item


def _inode(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino
