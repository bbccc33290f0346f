"""One daemon a state file: an operating system's lock on a file beside it, gone with the process however it ends."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from collector.errors import Unavailable


LONGEST = 128  # bytes of the lock file


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
            said = os.pread(self._file, LONGEST, 0).decode("utf-8", "replace")
            os.close(self._file)
            raise Unavailable(f"{state}: is in use by another process{holder_of(said)}: one daemon a run. "
                              "Stop that one, or give this run its own [run] dir in config.toml") from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()} {_namespace()} {socket.gethostname()}".encode()[:LONGEST], 0)

    def release(self) -> None:
        """Let the next daemon in; the file stays. A second call does nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def holder_of(said: str) -> str:
    """Who holds a lock, by what the lock file says, as it goes on in a sentence; "" where that is unknown.

    >>> holder_of("12")
    ' (pid 12)'
    """
    pid, _, rest = said.strip().partition(" ")
    namespace, _, host = rest.partition(" ")
    if not pid.isdigit():
        return ""
    if not namespace or namespace == _namespace():
        return f" (pid {pid})"
    shown = "".join(letter for letter in host if letter.isalnum() or letter in "-._")[:64]
    return f" of another container or machine (there pid {pid}{f', host {shown}' if shown else ''}; from here it may show as pid 0)"


def _namespace() -> str:
    """The PID namespace of this process: a pid means nothing in another."""
    try:
        return os.readlink("/proc/self/ns/pid").strip("pid:[]") or "-"
    except OSError:
        return "-"
