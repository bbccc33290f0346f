"""Why the store's file cannot be opened, in words for the operator."""

from __future__ import annotations

import os
import re
from pathlib import Path

import duckdb


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
