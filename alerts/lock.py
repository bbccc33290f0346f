"""One daemon a state file: an operating system's lock on a file beside it, gone with the process however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from collector.errors import Unavailable


class StateLock:
    """Held from construction to `release`, or until the process dies (kill -9 included)."""

    def __init__(self, state: Path) -> None:
        """Lock `state`'s lock file.

        Raises:
            Unavailable: another process holds it, or the file cannot be made.
        """
        path = state.with_name(f"{state.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(f"{path}: the lock file cannot be opened ({error.strerror})") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._file, 32, 0).decode("ascii", "replace").strip()
            os.close(self._file)
            raise Unavailable(f"{state}: is in use by another process{f' (pid {holder})' if holder.isdigit() else ''}: one daemon a run. "
                              "Stop that one, or give this run its own [run] dir in config.toml") from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let the next daemon in; the file stays. A second call does nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
