"""Why the store's file cannot be opened, in words for the operator; and how it is opened all the same when only its log is damaged."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb

from collector.errors import Unavailable

log = logging.getLogger("klaxon.store")


def open_hint(path: Path, error: duckdb.Error) -> str:
    """One sentence, with what to do."""
    text = first_line(error)
    if "lock" in text:
        return f"{path}: another process owns it (one daemon a run){owner(text)}; stop that one or set [store] path. {text}"
    if "not a valid DuckDB" in text:
        return f"{path}: is not a DuckDB file, or is damaged; move it aside, bring back a backup (`klaxon restore`), or set [store] path"
    if "Read-only file system" in text or not os.access(path.parent, os.W_OK):
        return f"{path}: the folder cannot be written by this user, or its file system is read-only; mount it writable, or set [run] dir. {text}"
    return f"{path}: cannot be opened; set [store] path to a writable file. {text}"


def owner(text: str) -> str:
    """Who holds the lock, by DuckDB's own words. PID 0 is a process of another PID namespace.

    >>> owner("Conflicting lock is held in PID 0.")
    ': a process that is not visible from here, in another container or on the host, that shares this folder'
    """
    found = re.search(r"PID (\d+)", text)
    if found is None:
        return ""
    if found.group(1) == "0":
        return ": a process that is not visible from here, in another container or on the host, that shares this folder"
    return f": pid {found.group(1)}"


def first_line(error: BaseException) -> str:
    """Of its text."""
    return str(error).strip().splitlines()[0]


def reopen_without_wal(path: Path, wal: Path, reason: str, *, settings: Mapping[str, Any]) -> tuple[duckdb.DuckDBPyConnection, str]:
    """The log cannot be replayed: keep it aside, then go on with what stands before the damage. Returns the connection and what to tell.

    Raises:
        Unavailable: not even the file alone can be read.
    """
    aside = next(found for number in range(10_000) if not (found := path.with_name(f"{wal.name}.broken-{number}")).exists())
    os.rename(wal, aside)
    found = re.search(r"byte position (\d+)", reason)
    salvaged = aside.read_bytes()[:int(found.group(1))] if found else b""
    for content in (salvaged, b""):
        if content:
            wal.write_bytes(content)
        try:
            connection = duckdb.connect(str(path), config=dict(settings))
        except duckdb.Error as error:
            log.warning("%s: still not readable (%s)", path, error)
            wal.unlink(missing_ok=True)
            continue
        notice = (f"{path}: the write-ahead log was damaged ({reason}); it was moved to {aside}. "
                  f"What stood {'before the damage' if content else 'in the file'} is kept; the newest rows may be missing.")
        log.error(notice)
        return connection, notice
    raise Unavailable(f"{path}: cannot be read, even without its write-ahead log; move it aside and start again")
