"""JSON lines of a whole file: one object a line, each bad line an error that names its number."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from collector.errors import InputError


def json_lines(source: str | Path | IO[str]) -> Iterator[tuple[str, Any | InputError]]:
    """(where, value or error) of each line that is not blank ("-" is standard input, .gz is unpacked).

    Raises:
        InputError: the file itself cannot be read (missing, a folder).
    """
    name, stream = _open(source)
    with stream:
        number = 0
        try:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    where = f"{name}:{number}"
                    yield where, parse_line(line, where=where)
        except (UnicodeDecodeError, OSError, EOFError) as error:
            where = f"{name}:{number + 1}"
            yield where, InputError(f"cannot be read as text from here on ({error}); rollout JSONL is UTF-8", where=where)


def parse_line(line: str | bytes, *, where: str) -> Any | InputError:
    """The JSON value of one line, or the error that says why it has none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        cut = "" if line[-1:] in ("\n", b"\n") else "; the line is cut short"
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply" if isinstance(error, RecursionError) else str(error)
        return InputError(f"not JSON ({reason}){cut}", where=where)


def _open(source: str | Path | IO[str]) -> tuple[str, IO[str]]:
    if not isinstance(source, (str, Path)):
        return getattr(source, "name", "<stream>"), source
    if str(source) == "-":
        return "<stdin>", io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="strict")
    path = Path(source)
    if path.is_dir():
        raise InputError("is a folder; name a rollout JSONL file", where=str(path))
    try:
        stream = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be opened ({error.strerror or error})", where=str(path)) from None
    return str(path), stream
