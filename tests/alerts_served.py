"""A daemon's API on a port, for tests that talk to it as commands, pages and trainers do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from klaxon.app import Daemon
from klaxon.config import parse_config

RECEIVERS = [{"type": "console", "name": "team"}, {"type": "console", "name": "lead", "escalation": True}]


class Served:
    """A daemon whose API answers at `url`; its threads do not run, so that a test decides what happens when."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon, self.alerts = daemon, daemon.alerts
        self.server = uvicorn.Server(uvicorn.Config(daemon.api, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        deadline = time.monotonic() + 60
        while not self.server.started:
            assert time.monotonic() < deadline and self.thread.is_alive(), "the server does not start"
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        self.daemon.alerts.stop()
        self.daemon.store.close()


@contextmanager
def served_daemon(folder: Path, **sections: Any) -> Iterator[Served]:
    """The daemon of run r1 with its state in `folder`/state, and two receivers on the console."""
    data = {"run": {"name": "r1", "dir": str(folder / "state")}, "shadow": {"enabled": False},
            "alerts": {"console": False, "receivers": RECEIVERS}, **sections}
    served = Served(Daemon(parse_config(data, where="test")))
    try:
        yield served
    finally:
        served.close()
