"""Tail files of JSON lines as another process appends to them: rollouts, or a trainer's metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from collector.errors import InputError
from collector.records import Rollout
from collector.sources.rollout_json import parse_rollout
from collector.sources.trainer_logprobs import TrainerSide, parse_trainer_side

Parsed = TypeVar("Parsed")


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
        return where, parse_line(line, where=where)


def parse_line(line: bytes, *, where: str) -> dict[str, Any] | InputError:
    """One line as a JSON object."""
    try:
        obj = json.loads(line)
    except (ValueError, RecursionError) as error:
        return InputError(f"not JSON ({error})", where=where)
    return obj if isinstance(obj, dict) else InputError("a JSON object is expected", where=where)


class RolloutTail:
    """Rollouts of a tailed JSONL file."""

    def __init__(self, path: str | Path) -> None:
        self._tail = JsonLinesTail(path)

    def poll(self) -> list[Rollout | InputError]:
        """New rollouts, a refused line as its InputError."""
        return [_parsed(parse_rollout, where, item) for where, item in self._tail.poll()]


class TrainerTail:
    """What the trainer says of its rollouts, from a tailed JSONL file."""

    def __init__(self, path: str | Path) -> None:
        self._tail = JsonLinesTail(path)

    def poll(self) -> list[TrainerSide | InputError]:
        """New lines, a refused one as its InputError."""
        return [_parsed(parse_trainer_side, where, item) for where, item in self._tail.poll()]


def read_trainer_file(path: str | Path) -> Iterator[TrainerSide | InputError]:
    """Every line of a whole file, a last one without its newline too.

    Raises:
        InputError: it cannot be opened.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"cannot be opened ({error.strerror or error})", where=str(path)) from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield _parsed(parse_trainer_side, where, parse_line(line, where=where))


def _parsed(parse: Callable[..., Parsed], where: str, item: dict[str, Any] | InputError) -> Parsed | InputError:
    if isinstance(item, InputError):
        return item
    try:
        return parse(item, where=where)
    except InputError as error:
        return error
