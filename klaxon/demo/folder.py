"""The folder one demo lives in: claimed by one demo at a time, emptied at the start, kept at the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from collector.errors import ConfigError

_MARK = ".klaxon-demo"
_LONGEST_SOCKET = 100
"""A Unix socket's path must fit into 108 bytes (104 on macOS)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Where things lie. All paths are absolute."""

    root: Path
    socket: Path

    @property
    def state(self) -> Path:
        """Klaxon's own files."""
        return self.root / "state"

    @property
    def logs(self) -> Path:
        """One log for every child."""
        return self.root / "logs"

    @property
    def training(self) -> Path:
        """The trainer's metrics.jsonl and weights/."""
        return self.root / "training"

    @property
    def received(self) -> Path:
        """JSONL of the alerts that arrived."""
        return self.root / "received.jsonl"

    @property
    def held(self) -> Path:
        """The trainer writes it when it waits."""
        return self.training / "HELD"

    @property
    def go_on(self) -> Path:
        """The trainer waits for it."""
        return self.training / "CONTINUE"


@contextlib.contextmanager
def claim(root: Path) -> Iterator[Folder]:
    """An empty folder of one's own, for as long as the context lasts. An earlier demo's files in it are removed.

    Raises:
        ConfigError: somebody else's files lie there, another demo runs there, or it cannot be written.
    """
    root = root.resolve()
    try:
        if root.exists() and any(root.iterdir()) and not (root / _MARK).exists():
            raise ConfigError(f"{root} holds other files; name a new or empty folder with --dir")
        root.mkdir(parents=True, exist_ok=True)
        mark = (root / _MARK).open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{root} cannot be used ({error.strerror}); name another folder with --dir") from None
    with mark, contextlib.ExitStack() as stack:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another demo runs in {root}; stop it first, or name another folder with --dir") from None
        folder = Folder(root=root, socket=_socket(root, stack))
        for part in (folder.state, folder.logs, folder.training):
            shutil.rmtree(part, ignore_errors=True)
        folder.received.unlink(missing_ok=True)
        (folder.training / "weights").mkdir(parents=True)
        yield folder


def _socket(root: Path, stack: contextlib.ExitStack) -> Path:
    usual = root / "state" / "klaxon.sock"
    if len(os.fsencode(usual)) <= _LONGEST_SOCKET:
        return usual
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="klaxon-"))) / "klaxon.sock"
