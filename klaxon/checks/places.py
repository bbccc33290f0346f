"""Can the state folder, the socket and the volumes be used, by this user, on this file system?"""

from __future__ import annotations

import errno
import os
import pwd
import socket as sockets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from klaxon.checks.finding import Finding
from klaxon.config import Config

LONGEST_SOCKET = 107  # bytes of a Unix socket's path: sun_path of Linux without its end
STATE_FILES = ("klaxon.duckdb", "klaxon.duckdb.wal", "control.sqlite")


def folder(config: Config) -> Finding:
    """The state folder: there or to be made, writable, with files of its own that are writable too."""
    place = Path(config.run.dir)
    existing = next((path for path in (place, *place.absolute().parents) if path.exists()), place)
    if why := cannot_write(existing):
        return Finding(part="state", state="bad", text=f"{place} cannot be written: {why}; set run.dir to a folder that can", next=f"touch {existing}/probe")
    if place.is_dir():
        locked = [name for name in STATE_FILES if (place / name).exists() and not os.access(place / name, os.R_OK | os.W_OK)]
        if locked:
            return Finding(part="state", state="bad", next=f"sudo chown -R {_me()} {place}",
                           text=f"{place / locked[0]} belongs to {_owner(place / locked[0])} and cannot be written by {_me()}: an earlier daemon ran as somebody else")
    return Finding(part="state", state="ok", text=f"{place} is writable")


def cannot_write(place: Path) -> str | None:
    """Why no file can be made in this folder, in plain words; None when one can (it is gone again)."""
    if not place.is_dir():
        return f"{place} is no folder"
    try:
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return _why(error, place)


def cannot_read(place: Path) -> str | None:
    """Why a file or folder cannot be read by this user; None when it can, or is not there."""
    wanted = os.R_OK | os.X_OK if place.is_dir() else os.R_OK
    if not place.exists():  # also where a folder above it may not be entered
        above = next((path for path in place.absolute().parents if path.exists()), Path("/"))
        return None if os.access(above, os.X_OK) else f"{above} may not be entered by {_me()} ({_owner(above)})"
    return None if os.access(place, wanted) else f"{place} may not be read by {_me()} ({_owner(place)})"


def socket(config: Config, status: dict[str, Any] | None) -> Iterator[Finding]:
    """The taps' socket; nothing where no tap is expected. `status` is the running daemon's, None without one."""
    if not config.sources.tap:
        return
    path = Path(config.daemon.socket or Path(config.run.dir) / "klaxon.sock")
    if problem := _socket_problem(path, running=status is not None):
        yield problem
        return
    closed = _closed_above(path)
    heard = any(tap["alive"] for tap in (status or {}).get("taps", []) if tap["source"] != "trainer")
    if closed and not heard and status is not None:
        yield Finding(part="socket", state="warn", next=f"chmod o+x {closed}",
                      text=f"{closed} ({_owner(closed)}) lets no other user in: an engine that runs as another user than {_me()} cannot reach {path}; "
                      "or set daemon.socket to a shared folder")
        return
    yield Finding(part="socket", state="ok", text=f"{path}" + (" answers" if status is not None else " can be made"))


def _socket_problem(path: Path, *, running: bool) -> Finding | None:
    if (length := len(os.fsencode(str(path)))) > LONGEST_SOCKET:
        return Finding(part="socket", state="bad", text=f"{path} is {length} bytes long, a socket's path may have {LONGEST_SOCKET}: set daemon.socket, e.g. /tmp/klaxon.sock")
    if why := cannot_read(path.parent):
        return Finding(part="socket", state="bad", text=f"{path} cannot be made or reached: {why}; set daemon.socket", next=f"ls -ld {path.parent}")
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        return Finding(part="socket", state="bad", text=f"{path} is a file, not a socket, and would be deleted: set daemon.socket, or move it", next=f"mv {path} {path}.old")
    existing = next((one for one in (path.parent, *path.absolute().parent.parents) if one.exists()), path.parent)
    if why := cannot_write(existing):
        return Finding(part="socket", state="bad", text=f"{path} cannot be made: {why}; set daemon.socket")
    if running and not path.exists() and not path.is_absolute():
        return Finding(part="socket", state="warn", text=f"the daemon runs, but {path} is not in this folder: run.dir is relative and the daemon was started elsewhere; check from there")
    if running and (why := _no_answer(path)):
        return Finding(part="socket", state="bad", text=f"the daemon runs, but nobody answers at {path} ({why}): taps cannot reach it", next="klaxon run   # after stopping the daemon")
    return None


def _no_answer(path: Path) -> str | None:
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except OSError as error:
            return error.strerror or type(error).__name__
    return None


def _closed_above(path: Path) -> Path | None:
    """The first folder above it that other users may not enter."""
    return next((one for one in reversed(path.absolute().parents) if one.exists() and not one.stat().st_mode & stat.S_IXOTH), None)


def _why(error: OSError, place: Path) -> str:
    if error.errno == errno.EROFS:
        return f"{place} is on a read-only file system (in a container: mount a volume there)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{_me()} may not write in {place} ({_owner(place)})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {place} is full"
    return f"{place}: {error.strerror}"


def _owner(place: Path) -> str:
    try:
        found = place.stat()
    except OSError:
        return "owner unknown"
    try:
        name = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        name = str(found.st_uid)
    return f"{name}, mode {stat.filemode(found.st_mode)}"


def _me() -> str:
    """This process's user; its number where it has no name, as in containers."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
