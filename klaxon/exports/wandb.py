"""Weights & Biases: `klaxon/*` in a run of Klaxon's own beside the trainer's, or inside the trainer's where that runs in shared mode.

The client lives in a process of its own (wandb_child.py): the daemon imports no wandb, and nothing in it can hold the daemon up.
The client takes every number at once and uploads later, so a server that fails afterwards shows as its complaints.
"""

from __future__ import annotations

import json
import netrc
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from alerts.notifiers.wandb_alert import own_run
from alerts.receiver_types import read_secret
from collector.errors import ConfigError, Unavailable
from klaxon.config import Config
from klaxon.exports.points import Note, Point

CHILD = Path(__file__).with_name("wandb_child.py")
INIT_SECONDS, ANSWER_SECONDS, FINISH_SECONDS = 60.0, 30.0, 8.0
POLL_SECONDS = 0.25
COMPLAINT = re.compile(r"\b(?:retrying|errors?|fail(?:ed|ure)?|timed? ?out|refused|denied)\b", re.IGNORECASE)
NOT_HANDED_ON = ("WANDB_SERVICE", "WANDB_MODE", "WANDB_DISABLED", "WANDB_SILENT", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_API_KEY")
DEFAULT_URL = "https://api.wandb.ai"


def server(config: Config) -> str:
    """Address of the W&B server."""
    return (config.exports.wandb.base_url or os.environ.get("WANDB_BASE_URL") or DEFAULT_URL).rstrip("/")


def api_key(config: Config) -> str:
    """The key: file, environment variable, or what `wandb login` stored. Raises ConfigError: there is none; says what to do."""
    given, url = config.exports.wandb, server(config)
    if given.key_file:
        return read_secret("", given.key_file, whose="exports.wandb", what="API key")
    if found := os.environ.get(given.key_env, "").strip():
        return found
    if found := _from_netrc(urlsplit(url).hostname or ""):
        return found
    raise ConfigError(f"exports.wandb: there is no API key for {url}: set {given.key_env} for the daemon, name a file with exports.wandb.key_file, "
                      'run `wandb login`, or set exports.wandb.mode = "offline" (written to a folder, sent later by `wandb sync`) or "off"')


def place(config: Config) -> tuple[str, str]:
    """(entity, project). Raises ConfigError: no project is named anywhere."""
    given = config.exports.wandb
    read = [source.path.split("/") for source in config.metrics.sources if source.type == "wandb_api"]
    entity, project = read[0][:2] if read and len(read[0]) >= 2 else ("", "")
    project = given.project or os.environ.get("WANDB_PROJECT", "") or project
    if not project:
        raise ConfigError("exports.wandb.project: name the project of the trainer's run (or set WANDB_PROJECT for the daemon)")
    return given.entity or os.environ.get("WANDB_ENTITY", "") or entity, project


def check(config: Config) -> None:
    """Raises ConfigError: the library, the key, the project or the folder is missing; says what to do. Asks no server."""
    if find_spec("wandb") is None:
        raise ConfigError('exports.wandb: this needs wandb, which is not installed; pip install "klaxon-rl[wandb]", or set exports.wandb.mode = "off"')
    place(config)
    if config.exports.wandb.mode != "offline":
        api_key(config)


def where(config: Config) -> str:
    """Where the numbers go, in words."""
    entity, project = place(config)
    given = config.exports.wandb
    named = "/".join(part for part in (entity, project, given.run_id or own_run(config.run.name)) if part)
    if given.mode == "offline":
        return f"{_folder(config) / 'wandb'} (offline: `wandb sync` sends it to {named})"
    return f"{named} on {server(config)}{', the trainer’s run in shared mode' if given.mode == 'shared' else ''}"


def settings_of(config: Config) -> dict[str, Any]:
    """What the child gives wandb.init: {"init": its arguments, "settings": those of wandb.Settings}."""
    given, (entity, project) = config.exports.wandb, place(config)
    shared = {"x_primary": False, "x_label": "klaxon", "x_update_finish_state": False} if given.mode == "shared" else {}
    init: dict[str, Any] = {"entity": entity or None, "project": project, "id": given.run_id or own_run(config.run.name), "dir": str(_folder(config))}
    if given.mode != "shared":
        init |= {"group": given.group or os.environ.get("WANDB_RUN_GROUP") or config.run.name, "name": f"klaxon {config.run.name}", "job_type": "klaxon",
                 "config": {"klaxon": {"run": config.run.name, "false_alarms": config.detectors.false_alarms,
                                       "batch_seconds": config.daemon.batch_seconds}}}
    if given.mode == "online":
        init["resume"] = "allow"
    settings = {"mode": given.mode, "base_url": server(config), "console": "off", "program": "klaxon", "disable_git": True, "disable_code": True, "save_code": False,
                "x_disable_stats": True, "x_disable_meta": True, "x_save_requirements": False, "init_timeout": INIT_SECONDS - 10, **shared}
    return {"init": init, "settings": settings}


class WandbSink:
    """One run, open in a child process."""

    def __init__(self, config: Config, *, halt: threading.Event | None = None) -> None:
        """`halt`: Klaxon stops, so nobody waits for the server any more.

        Raises:
            Unavailable: the client does not start, or the server does not take the run.
            ConfigError: as `check`.
        """
        self._halt = halt or threading.Event()
        _folder(config).mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if name not in NOT_HANDED_ON}
        if config.exports.wandb.mode != "offline":
            environment["WANDB_API_KEY"] = api_key(config)
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._said: queue.Queue[str] = queue.Queue(50)
        self._last_words = ""
        # -P: the script's folder is no place to import from; a session of its own: Ctrl-C is the daemon's
        self._child = subprocess.Popen([sys.executable, "-P", str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                       env=environment, text=True, encoding="utf-8", errors="replace", start_new_session=True)
        self._readers = [threading.Thread(target=read, args=(pipe,), name="klaxon-export-wandb-pipe", daemon=True)
                         for read, pipe in ((self._read_answers, self._child.stdout), (self._read_words, self._child.stderr))]
        for reader in self._readers:
            reader.start()
        try:
            self._ask(settings_of(config), seconds=INIT_SECONDS, until=self._halt)
        except Unavailable:
            self._end()
            raise

    def write(self, item: Point | Note) -> None:
        """Hand it to the client. Raises Unavailable."""
        if isinstance(item, Note):
            self._ask({"alert": {"title": item.title, "text": item.text, "level": item.level}}, seconds=ANSWER_SECONDS)
        else:
            self._ask({"log": item.values}, seconds=ANSWER_SECONDS)

    def trouble(self) -> str:
        """The client's newest complaint about its server since the last call."""
        said = ""
        while not self._said.empty():
            said = self._said.get_nowait()
        return said

    def close(self) -> None:
        """Let what was logged leave, for a while. Raises Unavailable: it did not all leave in time."""
        try:
            if self._child.stdin is not None:
                self._child.stdin.close()
            self._child.wait(FINISH_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            raise Unavailable(f"W&B's client did not finish within {FINISH_SECONDS:.0f} s: its last numbers may be missing") from None
        finally:
            self._end()

    def _ask(self, message: dict[str, Any], *, seconds: float, until: threading.Event | None = None) -> None:
        try:
            assert self._child.stdin is not None  # a pipe was asked for
            self._child.stdin.write(json.dumps(message) + "\n")
            self._child.stdin.flush()
            line = self._answer(seconds, until)
        except OSError:
            line = None
        if line is None:
            self._child.wait(ANSWER_SECONDS)
            raise Unavailable(f"W&B's client has ended (exit code {self._child.returncode}){self._because()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Unavailable(f"W&B refuses: {answer['error']}")

    def _answer(self, seconds: float, until: threading.Event | None) -> str | None:
        """The next line; None = the client has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not (until is not None and until.is_set()):
            try:
                return self._answers.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
        raise Unavailable(f"W&B's client does not answer within {seconds:.0f} s{self._because()}")

    def _because(self) -> str:
        return f"; it said: {self._last_words}" if self._last_words else ""

    def _read_answers(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._answers.put(line)
        self._answers.put(None)

    def _read_words(self, pipe: IO[str]) -> None:
        for line in _lines(pipe):
            if COMPLAINT.search(line):
                self._last_words = line
                if not self._said.full():
                    self._said.put_nowait(line)

    def _end(self) -> None:
        """Nothing of the child stays."""
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait(ANSWER_SECONDS)
        for reader in self._readers:
            reader.join(ANSWER_SECONDS)
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was still in it had nobody to read it
                    pass


def _lines(pipe: IO[str]) -> Iterator[str]:
    for line in pipe:
        if said := line.removeprefix("wandb:").strip():
            yield said


def _folder(config: Config) -> Path:
    return Path(config.exports.wandb.dir or config.run.dir).absolute()


def _from_netrc(host: str) -> str:
    """What `wandb login` stored for a host; "" = nothing."""
    named = os.environ.get("NETRC")
    for path in ([Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]):
        try:
            found = netrc.netrc(path).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if found and found[2]:
            return found[2]
    return ""
