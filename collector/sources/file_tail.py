"""Tail files of JSON lines as another process appends to them: rollouts, or a trainer's metrics."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any, BinaryIO

from collector.errors import InputError
from collector.records import Rollout
from collector.sources.rollout_json import parse_rollout


class JsonLinesTail:
    """Complete new lines of a file on each poll; a half-written last line waits for its end.

    A file that is not there yet is simply empty. One that shrank, or no longer has a line end where reading stopped, was
    replaced and is read from its start. One that was rotated (renamed, a new one in its place) is first read to its end
    where it still lies beside the new one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._offset = 0
        self._line = 0
        self._inode: int | None = None

    def poll(self, limit_bytes: int = 4 << 20) -> list[tuple[str, dict[str, Any] | InputError]]:
        """(where, object or error) of each complete line since the last poll, at most `limit_bytes` of them."""
        try:
            status = self.path.stat()
        except OSError:
            return []
        if self._inode not in (None, status.st_ino):
            if (rotated := self._rotated()) is not None and (rest := self._read(rotated, limit_bytes)):
                return rest  # perhaps more: the new file waits for the next poll
            self._offset = self._line = 0
        self._inode = status.st_ino
        return self._read(self.path, limit_bytes)

    def _rotated(self) -> Path | None:
        """Where the file that was being read lies now."""
        for path in self.path.parent.glob(f"{glob.escape(self.path.name)}*"):
            try:
                if path.stat().st_ino == self._inode:
                    return path
            except OSError:
                continue
        return None

    def _read(self, path: Path, limit_bytes: int) -> list[tuple[str, dict[str, Any] | InputError]]:
        try:
            with path.open("rb") as stream:
                if not self._continues(stream):
                    self._offset = self._line = 0
                stream.seek(self._offset)
                chunk = stream.read(limit_bytes)
        except OSError:
            return []
        end = chunk.rfind(b"\n") + 1
        self._offset += end
        return [item for line in chunk[:end].splitlines() if (item := self._parse(line)) is not None]

    def _continues(self, stream: BinaryIO) -> bool:
        """Does the file still hold what was read of it, as far as its length and the last line end tell?"""
        if self._offset == 0:
            return True
        stream.seek(self._offset - 1)
        return stream.read(1) == b"\n"

    def _parse(self, line: bytes) -> tuple[str, dict[str, Any] | InputError] | None:
        self._line += 1
        if not line.strip():
            return None
        where = f"{self.path}:{self._line}"
        try:
            obj = json.loads(line)
        except (ValueError, RecursionError) as error:
            return where, InputError(f"not JSON ({error})", where=where)
        if not isinstance(obj, dict):
            return where, InputError("a JSON object is expected", where=where)
        return where, obj


class RolloutTail:
    """Rollouts of a tailed JSONL file."""

    def __init__(self, path: str | Path) -> None:
        self._tail = JsonLinesTail(path)

    def poll(self) -> list[Rollout | InputError]:
        """New rollouts, a refused line as its InputError."""
        return [_rollout(where, item) for where, item in self._tail.poll()]


def _rollout(where: str, item: dict[str, Any] | InputError) -> Rollout | InputError:
    if isinstance(item, InputError):
        return item
    try:
        return parse_rollout(item, where=where)
    except InputError as error:
        return error
