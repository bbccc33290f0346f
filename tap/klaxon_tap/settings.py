"""Settings of the tap, all from the environment of the process it is loaded into."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

KILL_CHECK_SECONDS = 1.0


def url() -> str | None:
    """KLAXON_URL: where the daemon listens; None = the tap stays out."""
    return os.environ.get("KLAXON_URL") or None


def token() -> str | None:
    """KLAXON_TOKEN, or the content of KLAXON_TOKEN_FILE."""
    if path := os.environ.get("KLAXON_TOKEN_FILE"):
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except OSError:
            return None
    return os.environ.get("KLAXON_TOKEN") or None


def engine() -> str:
    """KLAXON_ENGINE: the name this engine goes by; default http://host:port of a `vllm serve`, else host:pid."""
    return os.environ.get("KLAXON_ENGINE") or _served_at(sys.argv) or f"{socket.gethostname()}:{os.getpid()}"


def _served_at(argv: list[str]) -> str | None:
    """http://host:port out of vLLM's command line; None when this process is no vLLM server."""
    program = Path(argv[0]) if argv else Path()
    if program.name not in ("vllm", "api_server.py") or (program.name == "vllm" and "serve" not in argv):
        return None
    words = [part for word in argv for part in word.split("=", 1)]
    given = {flag: words[at + 1] for flag in ("--host", "--port", "--uds")
             if (at := words.index(flag) if flag in words else -1) >= 0 and at + 1 < len(words)}
    if "--uds" in given:
        return None
    host = given.get("--host", "0.0.0.0")
    return f"http://{socket.gethostname() if host in ('0.0.0.0', '::', '') else host}:{given.get('--port', '8000')}"


def weights_dir() -> str | None:
    """KLAXON_WEIGHTS_DIR: where publish_weights writes versions; None = nowhere."""
    return os.environ.get("KLAXON_WEIGHTS_DIR") or None


def forced_logprobs() -> int | None:
    """KLAXON_FORCE_LOGPROBS: logprobs to ask for where the caller asked for none; None = observe only (default)."""
    text = os.environ.get("KLAXON_FORCE_LOGPROBS", "")
    return int(text) if text.isdigit() and int(text) > 0 else None


class KillSwitch:
    """KLAXON_TAP=off at start, or the file named by KLAXON_KILL_FILE appearing at any time (looked at once a second)."""

    def __init__(self) -> None:
        self._off = os.environ.get("KLAXON_TAP", "on").lower() in ("off", "0", "false", "no")
        self._file = os.environ.get("KLAXON_KILL_FILE") or None
        self._checked_at = float("-inf")
        self._file_there = False

    def on(self) -> bool:
        """True while the tap may work."""
        if self._off or self._file is None:
            return not self._off
        now = time.monotonic()
        if now - self._checked_at >= KILL_CHECK_SECONDS:
            self._checked_at, self._file_there = now, os.path.exists(self._file)
        return not self._file_there
