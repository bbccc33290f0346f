"""Tail files of JSON lines as another process appends to them: rollouts, or a trainer's metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from collector.errors import InputError
from collector.records import Rollout
from collector.sources.rollout_json import parse_rollout


class JsonLinesTail:
    """Complete new lines of a file on each poll; a half-written last line waits for its end.

    A file that is not there yet is simply empty. One that shrank was replaced and is read from its start.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._offset = 0
        self._line = 0

    def poll(self, limit_bytes: int = 4 << 20) -> list[tuple[str, dict[str, Any] | InputError]]:
        """(where, object or error) of each complete line since the last poll, at most `limit_bytes` of them."""
        try:
            size = self.path.stat().st_size
            if size < self._offset:
                self._offset = self._line = 0
            if size == self._offset:
                return []
            with self.path.open("rb") as stream:
                stream.seek(self._offset)
                chunk = stream.read(limit_bytes)
        except OSError:
            return []
        end = chunk.rfind(b"\n") + 1
        self._offset += end
        return [item for line in chunk[:end].splitlines() if (item := self._parse(line)) is not None]

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
