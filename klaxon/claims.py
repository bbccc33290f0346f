"""Which daemon of this machine watches what: a locked file for each engine address and rollout path, gone with its process.

A second sidecar on one engine tells every fault twice. Nothing is refused: the second one says it, and `klaxon check` does.
Daemons on other machines are not seen.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from klaxon.config import Config


def claims_of(config: Config) -> list[str]:
    """What a config watches, by names that are the same in every config of this machine."""
    files = [source.path if "://" in source.path else str(Path(source.path).absolute()) for source in config.sources.tailed]
    return [*([config.engine.url.rstrip("/").replace("//localhost", "//127.0.0.1")] if config.engine.url else []), *files]


@contextlib.contextmanager
def claimed(config: Config) -> Iterator[list[dict[str, Any]]]:
    """Hold the claims of this daemon while inside; gives those of others that were there first.

    A place where no lock can be made (a read-only /tmp) is no reason not to run: then nothing is claimed.
    """
    watched, others = claims_of(config), []
    mine = {"run": config.run.name, "pid": os.getpid(), "api": f"http://{config.daemon.host}:{config.daemon.port}"}
    with contextlib.ExitStack() as stack:
        for what in watched:
            with contextlib.suppress(OSError):
                descriptor = os.open(_file(what), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
                stack.callback(os.close, descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    others.append({"what": what, **_read(descriptor)})
                    continue
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(mine).encode(), 0)
        yield others


def held_by_others(watched: Sequence[str]) -> list[dict[str, Any]]:
    """The claims of running daemons on these: {"what", "run", "pid", "api"}."""
    found = []
    for what in watched:
        with contextlib.suppress(OSError):
            descriptor = os.open(_file(what), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append({"what": what, **_read(descriptor)})
            finally:
                os.close(descriptor)
    return found


def _file(what: str) -> Path:
    """A file a user and a thing watched. Users of one machine have folders of their own."""
    folder = Path(tempfile.gettempdir()) / f"klaxon-claims-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / hashlib.sha256(what.encode()).hexdigest()[:32]


def _read(descriptor: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # being written just now
        return {}
    return found if isinstance(found, dict) else {}
