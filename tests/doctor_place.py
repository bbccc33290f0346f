"""A run for the tests of `klaxon doctor`: its config, a daemon in this process whose parts can be broken, taps, another user."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from klaxon.app import Daemon
from klaxon.config import load_config
from klaxon.demo.settings import write_config
from klaxon.doctor.link import Link, first_broken
from klaxon.doctor.walk import walk
from klaxon.serving import servers
from klaxon_tap.sender import Sender
from test_command_daemon import free_port, get, wait

NOBODY = 65534
ROLLOUT = {"kind": "rollout", "prompt_token_ids": [1, 2], "token_ids": [3, 4], "logprobs": [-0.5, -1.5], "trainer_logprobs": [-0.51, -1.49], "sampling": {"temperature": 1.0}}


class Place:
    """A config with short batches and no scorer, unless told otherwise. `sections` replace whole keys of theirs."""

    def __init__(self, folder: Path, **sections: dict[str, Any]) -> None:
        self.folder, self.port = folder, free_port()
        self.url, self.state = f"http://127.0.0.1:{self.port}", folder / "state"
        settings: dict[str, dict[str, Any]] = {
            "run": {"name": "t", "dir": str(self.state)}, "shadow": {"enabled": False}, "alerts": {"console": False},
            "daemon": {"port": self.port, "batch_seconds": 0.3, "watermark_seconds": 0.1}}
        for name, keys in sections.items():
            settings[name] = {**settings.get(name, {}), **keys}
        self.config = write_config(folder / "config.toml", settings)

    def links(self, *, remote: bool = False) -> dict[str, Link]:
        """What doctor finds, by name."""
        return {link.name: link for link in walk(None if remote else load_config(self.config), self.url, run=f"klaxon run -c {self.config}")}

    def culprit(self, **how: Any) -> Link | None:
        """The first broken link."""
        return first_broken(self.links(**how).values())

    def until(self, name: str, words: str, *, remote: bool = False) -> Link:
        """Ask again until the first broken link is this one, and says these words; its text and next command are returned."""
        found = wait(lambda: (one := self.culprit(remote=remote)) and one.name == name and words in one.text and one)
        assert found.next, f"no next command: {found}"
        return found

    @contextlib.contextmanager
    def daemon(self, *, threads: tuple[str, ...] = ("worker", "watch")) -> Iterator[Daemon]:
        """A daemon of this process, its API really served; only the named threads are started."""
        daemon = Daemon(load_config(self.config))
        listening = servers(daemon)
        serving = [threading.Thread(target=server.run) for server in listening]
        for thread in serving:
            thread.start()
        started = [getattr(daemon, name) for name in threads]
        for thread in started:
            thread.start()
        try:
            wait(lambda: get(self.url, "/healthz")["ok"])
            yield daemon
        finally:
            for thread in started:
                thread.stop()
                thread.join(20)
            for server, thread in zip(listening, serving, strict=True):
                server.should_exit = True
                thread.join(20)
            daemon.alerts.stop(drain_seconds=0.0)
            daemon.cursors.close()
            daemon.store.close()

    @contextlib.contextmanager
    def tap(self, *, token: str | None = None, source: str = "plugin", queue: int = 100, **about: Any) -> Iterator[Sender]:
        """A real tap's sender towards the daemon; `about` goes into its heartbeats."""
        sender = Sender(self.url, token=token, source=source, about=lambda: {"engine": "http://e:8000", **about}, heartbeat_seconds=0.2, queue_messages=queue)
        sender.start()
        try:
            yield sender
        finally:
            sender.close(5.0)


@contextlib.contextmanager
def flowing(tap: Sender) -> Iterator[None]:
    """Rollouts without an end, five a second."""
    stop, number = threading.Event(), iter(range(10**9))
    thread = threading.Thread(target=lambda: all(tap.put(rollout(next(number))) or True for _ in iter(lambda: stop.wait(0.2), True)))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def rollout(number: int) -> dict[str, Any]:
    """One that can be compared."""
    return {**ROLLOUT, "request_id": f"r{number}", "finished_at": time.time()}


def as_nobody(config: Path, url: str) -> dict[str, Any]:
    """What doctor finds as another user: a child that gives its rights up once all is imported."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    return _child(f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})", config, url)


def read_only(config: Path, url: str, place: Path) -> dict[str, Any]:
    """What doctor finds where a folder lies on a read-only file system, in a mount namespace of its own."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs root and mount namespaces")
    mount = f"import subprocess; subprocess.run(['mount', '--bind', {str(place)!r}, {str(place)!r}], check=True); subprocess.run(['mount', '-o', 'remount,bind,ro', {str(place)!r}], check=True)"
    return _child(mount, config, url, before=("unshare", "-m"))


def elsewhere(config: Path, url: str) -> dict[str, Any]:
    """What doctor finds in a PID namespace of its own, as in another container."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-pf", "--mount-proc", "true"], capture_output=True).returncode:
        pytest.skip("needs root and PID namespaces")
    return _child("pass", config, url, before=("unshare", "-pf", "--mount-proc"))


def _child(prepare: str, config: Path, url: str, *, before: tuple[str, ...] = ()) -> dict[str, Any]:
    code = f"""
import json, os
from dataclasses import asdict
import klaxon.checks, klaxon.checks.engine, klaxon.checks.places, klaxon.doctor.walk, pwd
from klaxon.config import load_config
from klaxon.doctor.link import first_broken
config = load_config({str(config)!r})
klaxon.doctor.walk.walk(config, {url!r})  # so that all is imported that another user may not read
{prepare}
found = klaxon.doctor.walk.walk(config, {url!r})
print(json.dumps({{**asdict(first_broken(found)), "links": {{link.name: asdict(link) for link in found}}}}))
"""
    done = subprocess.run([*before, sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
