"""A run's state in one file, and back: a tar of the store, the incidents, the detectors' state and a manifest with digests.

The manifest stands first. What is unpacked is exactly what it names, under plain names, with the digests it gives; nothing is left
behind by a restore that fails or is interrupted.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import duckdb

from alerts.db import SCHEMA_VERSION
from alerts.lock import StateLock
from collector.errors import ConfigError, InputError, Unavailable
from collector.store import Store
from collector.store_migrations import VERSION
from klaxon.bank_state import NAME as BANK
from klaxon.sealed import CONTROL, STATUS, STORE

MANIFEST = "manifest.json"
FORMAT = 1
CHUNK = 1 << 20
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
Progress = Callable[[int], object]  # bytes done since the last call


def copy_running(store: Store, folder: Path, to: Path) -> None:
    """The files of a running daemon as of one moment, into `to`; for the daemon itself. Raises Unavailable."""
    def beside() -> None:
        _copy_sqlite(folder / CONTROL, to / CONTROL)
        _copy_beside(folder, to)  # the detectors' state too: it is saved behind its batch, and may never be ahead of the store

    store.copy_to(to / STORE, beside=beside)


def copy_stopped(folder: Path, to: Path) -> None:
    """The files of a run whose daemon is down, into `to`.

    Raises:
        Unavailable: there is no store, a daemon holds the folder, or something cannot be read.
    """
    if not (folder / STORE).is_file():
        raise Unavailable(f"{folder}: holds no {STORE}; name a run's folder ([run] dir in its config.toml), or the address of its daemon")
    lock = StateLock(folder / CONTROL)
    try:
        for name in (STORE, f"{STORE}.wal"):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, to / name)
        if (folder / CONTROL).is_file():
            _copy_sqlite(folder / CONTROL, to / CONTROL)
        _copy_beside(folder, to)
    except OSError as error:
        raise Unavailable(f"{folder}: cannot be copied to {to} ({error.strerror}); is there room? TMPDIR names another place") from None
    finally:
        lock.release()


def _copy_sqlite(source: Path, to: Path) -> None:
    try:
        with closing(sqlite3.connect(source, timeout=10.0)) as one, closing(sqlite3.connect(to)) as other:
            one.backup(other)
    except sqlite3.Error as error:
        raise Unavailable(f"{source}: cannot be copied ({error})") from None


def _copy_beside(folder: Path, to: Path) -> None:
    for name in (STATUS, BANK):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, to / name)


def manifest_of(folder: Path, *, now: float) -> dict[str, Any]:
    """What copied files hold, with a digest each. `now`: UTC seconds.

    Raises:
        Unavailable: the copied store cannot be read.
    """
    try:
        with closing(duckdb.connect(str(folder / STORE), read_only=True)) as store:
            [(format_,)] = store.execute("SELECT value FROM meta WHERE key = 'version'").fetchall()
            [(batches, first, last)] = store.execute("SELECT count(*), min(opened_at), max(closed_at) FROM batches").fetchall()
            [(rollouts,)] = store.execute("SELECT count(*) FROM rollouts").fetchall()
    except (duckdb.Error, ValueError) as error:
        raise Unavailable(f"{STORE}: the copy cannot be read ({str(error).splitlines()[0]}); the store is damaged: start the daemon once, "
                          "it moves a damaged log aside, and back up again") from None
    incidents, schema = 0, 0
    if (folder / CONTROL).is_file():
        with closing(sqlite3.connect(folder / CONTROL)) as control:
            [(schema,)] = control.execute("PRAGMA user_version").fetchall()
            [(incidents,)] = control.execute("SELECT count(*) FROM incidents").fetchall()
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in sorted(folder.iterdir())}
    return {"klaxon_backup": FORMAT, "klaxon": _klaxon(), "made_at": now, "run": _run(folder), "store_format": int(format_), "control_schema": schema,
            "batches": batches, "from": first, "to": last, "rollouts": rollouts, "incidents": incidents, "files": files}


def write_tar(folder: Path, manifest: Mapping[str, Any], out: IO[bytes], *, mode: str = "w|", progress: Progress = lambda _: None) -> None:
    """The manifest and its files as a tar stream; `mode` as tarfile's (w|, w|gz)."""
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        text = json.dumps(manifest, indent=1).encode()
        head = tarfile.TarInfo(MANIFEST)
        head.size, head.mtime, head.mode = len(text), int(manifest["made_at"]), 0o600
        archive.addfile(head, _Counted(_bytes(text), lambda _: None))
        for name, about in manifest["files"].items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = about["bytes"], int(manifest["made_at"]), 0o600
            with (folder / name).open("rb") as stream:
                archive.addfile(info, _Counted(stream, progress))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a backup, checked. Raises InputError: it is none, is cut short, or a newer Klaxon wrote it."""
    try:
        with tarfile.open(path, "r|*") as archive:
            first = archive.next()
            stream = archive.extractfile(first) if first is not None and first.name == MANIFEST and first.isreg() and first.size < 1 << 20 else None
            found = json.loads(stream.read()) if stream is not None else None
    except FileNotFoundError:
        raise InputError("is not there", where=str(path)) from None
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"is no backup of `klaxon backup`, or is damaged ({error})", where=str(path)) from None
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict) or STORE not in found["files"]:
        raise InputError("is no backup of `klaxon backup`: it does not begin with its manifest", where=str(path))
    newer = [f"{what} {found.get(key)}, this Klaxon knows up to {most}" for key, what, most in (
        ("klaxon_backup", "backup format", FORMAT), ("store_format", "store format", VERSION), ("control_schema", "incident schema", SCHEMA_VERSION))
        if not isinstance(found.get(key), int) or found[key] > most]
    if newer:
        raise InputError(f"a newer Klaxon ({found.get('klaxon')}) wrote it: {'; '.join(newer)}; install that one", where=str(path))
    return found


def unpack(path: Path, to: Path, *, progress: Progress = lambda _: None) -> dict[str, Any]:
    """Write a backup's files into the new folder `to`, whole or not at all; returns the manifest.

    Raises:
        InputError: the backup is damaged or holds something it may not.
        ConfigError: the folder is not empty, or cannot be written.
    """
    found = read_manifest(path)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} is not empty: nothing is ever restored over what is there; name a new folder, or move this one aside")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{to.name}.restoring-", dir=to.parent) as made:
            fresh = Path(made) / "files"
            fresh.mkdir(mode=0o700)
            _extract(path, found["files"], fresh, progress)
            if to.exists():
                to.rmdir()
            fresh.rename(to)
    except OSError as error:
        raise ConfigError(f"{to}: cannot be written ({error.strerror})") from None
    return found


def _extract(path: Path, files: Mapping[str, Any], to: Path, progress: Progress) -> None:
    left = dict(files)
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.name == MANIFEST and len(left) == len(files):
                    continue
                about = left.pop(member.name, None)
                if not PLAIN.fullmatch(member.name) or not member.isreg() or not isinstance(about, dict):
                    raise InputError(f"holds {member.name!r}, which its manifest does not name or no backup holds: nothing was restored", where=str(path))
                if member.size != about.get("bytes"):
                    raise InputError(f"{member.name} has {member.size} bytes, its manifest says {about.get('bytes')}: damaged", where=str(path))
                stream, digest = archive.extractfile(member), hashlib.sha256()
                with (to / member.name).open("xb") as out:
                    while stream is not None and (chunk := stream.read(CHUNK)):
                        digest.update(chunk)
                        out.write(chunk)
                        progress(len(chunk))
                if digest.hexdigest() != about.get("sha256"):
                    raise InputError(f"{member.name} does not have the digest its manifest gives: damaged, nothing was restored", where=str(path))
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f"is damaged or cut short ({error}): nothing was restored", where=str(path)) from None
    if left:
        raise InputError(f"lacks {', '.join(left)}: cut short, nothing was restored", where=str(path))


class _Counted:
    """A stream that tells how much was read of it."""

    def __init__(self, stream: IO[bytes], progress: Progress) -> None:
        self._stream, self._progress = stream, progress

    def read(self, size: int = -1) -> bytes:
        chunk = self._stream.read(size)
        self._progress(len(chunk))
        return chunk


def _bytes(text: bytes) -> IO[bytes]:
    import io

    return io.BytesIO(text)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _run(folder: Path) -> str:
    try:
        return str(json.loads((folder / STATUS).read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _klaxon() -> str:
    try:
        return version("klaxon-rl")
    except PackageNotFoundError:
        return "unknown"
