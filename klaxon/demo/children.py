"""Child processes of the demo: own process groups, logs in files, no orphans.

Every child leads a session of its own, so Ctrl-C in the terminal reaches the demo alone, which then stops the
children in order: SIGINT to the child, SIGTERM and at last SIGKILL to its whole process group. Should the demo itself
be killed, the kernel tells each child to go (Linux).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from collector.errors import ConfigError, Unavailable

_PR_SET_PDEATHSIG = 1
# Loaded before any fork: loading a library between fork and exec can deadlock.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Child:
    """One supervised process. `command` runs with `env` added to this process's environment; output goes to `log`."""

    def __init__(self, name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None,
                 cwd: Path | None = None) -> None:
        self.name, self.command, self.log = name, list(command), log
        self._env, self._cwd = dict(env or {}), cwd
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it appends to its log.

        Raises:
            Unavailable: the program is not there, or may not be run.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self._cwd,
                    env={**os.environ, **self._env}, start_new_session=True, preexec_fn=_die_with_parent)
            except OSError as error:
                raise Unavailable(f"the {self.name} could not be started: {self.command[0]}: {error.strerror}") from None

    @property
    def pid(self) -> int | None:
        """Its process id, None before the start."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs or before it started."""
        return self._process.poll() if self._process else None

    def tail(self, lines: int = 12) -> str:
        """The last lines of its log."""
        return tail(self.log, lines)

    def interrupt(self) -> None:
        """SIGINT to the child alone, as Ctrl-C in its own terminal would."""
        if self.running:
            self._own().send_signal(signal.SIGINT)

    def stop(self, *, int_seconds: float = 10.0, term_seconds: float = 5.0) -> None:
        """Stop it and everything it started: SIGINT, then SIGTERM, then SIGKILL. Does nothing when it never ran."""
        if self._process is None:
            return
        self.interrupt()
        self._wait(int_seconds)
        self._signal_group(signal.SIGTERM)
        self._wait(term_seconds)
        # What it started may still be tidying up: multiprocessing's tracker unlinks shared memory after everybody left.
        deadline = time.monotonic() + term_seconds
        while self._signal_group(0) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to its whole process group, and reap it."""
        if self._process is None:
            return
        self._signal_group(signal.SIGKILL)
        self._process.wait()

    def _own(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"the {self.name} was never started")
        return self._process

    def _wait(self, seconds: float) -> bool:
        try:
            self._own().wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _signal_group(self, number: int) -> bool:
        """Signal the group (0 only asks); False when nobody is left in it."""
        try:
            os.killpg(self._own().pid, number)
        except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
            return False
        return True


class Children:
    """The demo's children. As a context manager it stops whatever it started, last started first."""

    def __init__(self) -> None:
        self._started: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop_all()

    def start(self, child: Child) -> Child:
        """Start a child and answer for it from now on. Raises as Child.start."""
        child.start()
        if child not in self._started:
            self._started.append(child)
        return child

    def adopt(self, child: Child) -> None:
        """Answer for a child somebody else starts and restarts (the engine)."""
        self._started.append(child)

    def stop_all(self) -> None:
        """Stop all in reverse order; a second Ctrl-C meanwhile kills what is left at once."""
        try:
            while self._started:
                self._started[-1].stop()
                self._started.pop()
        except KeyboardInterrupt:
            self.kill_all()

    def kill_all(self) -> None:
        """SIGKILL to every process group, no waiting for goodbyes."""
        while self._started:
            self._started.pop().kill()


def tail(path: Path, lines: int = 12) -> str:
    """The last lines of a text file; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 32_768))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-lines:])


def require_free_port(port: int, what: str, remedy: str) -> None:
    """Make sure nobody listens on 127.0.0.1:port yet.

    Raises:
        ConfigError: naming the port, what it was for, and what to do about it.
    """
    if not _is_free(port):
        raise ConfigError(f"port {port} on 127.0.0.1, meant for {what}, is taken by another program; {remedy}")


def free_port(first: int, *, tries: int = 50) -> int:
    """The first free port on loopback from `first` on.

    Raises:
        ConfigError: none of them is free.
    """
    for port in range(first, first + tries):
        if _is_free(port):
            return port
    raise ConfigError(f"no free port between {first} and {first + tries - 1} on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _die_with_parent() -> None:
    # A shell's background job starts with SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
