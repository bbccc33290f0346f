"""Send messages to the Klaxon daemon without ever holding up the process they come from.

`put` never blocks and never raises: a full queue drops the message and counts it. The queue is bounded twice, by
messages and by what they hold, so that a daemon that is away never costs the engine its memory. One background thread
builds the messages, posts batches of JSON lines over a Unix socket or HTTP, waits out a daemon that is away (backoff),
and beats every few seconds.
"""

from __future__ import annotations

import atexit
import http.client
import json
import logging
import os
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Union
from urllib.parse import urlsplit

log = logging.getLogger("klaxon_tap")

QUEUE_MESSAGES = 4096
QUEUE_ITEMS = 2_000_000  # one item = one (token, logprob) pair; about 150 bytes while it waits
BATCH_MESSAGES, BATCH_ITEMS = 64, 100_000
HEARTBEAT_SECONDS = 5.0
TIMEOUT_SECONDS = 5.0
BACKOFF_SECONDS, BACKOFF_MAX_SECONDS = 0.5, 15.0
EXIT_FLUSH_SECONDS = 1.0
GIVE_UP = (400, 401, 403, 404, 413)  # answers that trying again does not change: the batch is dropped, counted


Message = dict[str, Any]
Entry = tuple[Union[Message, Callable[[], Iterable[Message]]], int]


class Sender:
    """A bounded queue and the thread that empties it. Start-up is lazy: the thread starts with the first message.

    Args:
        url: "unix:///run/klaxon.sock" or "http://host:port".
        token: bearer token, or None.
        source: "plugin", "middleware", "proxy" or "trainer".
        about: called for each heartbeat; returns what the heartbeat adds (engine, config, …).
    """

    def __init__(self, url: str, *, token: str | None, source: str, about: Callable[[], dict[str, Any]] = dict,
                 queue_messages: int = QUEUE_MESSAGES, queue_items: int = QUEUE_ITEMS,
                 heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self.url, self.source = url, source
        self.sent = self.dropped = self.errors = 0
        self.last_error: str | None = None
        self._headers = {"Content-Type": "application/x-ndjson"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._about, self._heartbeat_seconds = about, heartbeat_seconds
        self._queue: queue.Queue[Entry] = queue.Queue(queue_messages)
        self._max_items, self._items = queue_items, 0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._pid = 0
        self._closing = threading.Event()

    def put(self, message: Message | Callable[[], Iterable[Message]], *, items: int = 1) -> bool:
        """Queue one message, or a call that makes messages in the sender's thread. Never blocks, never raises.

        Args:
            message: one JSON object, or a function of nothing that returns some.
            items: how many (token, logprob) pairs it holds: its share of the queue.

        Returns:
            False when it had to be dropped (and was counted).
        """
        try:
            self.start()
            with self._lock:
                if self._items and self._items + items > self._max_items:
                    raise queue.Full
                self._queue.put_nowait((message, items))
                self._items += items
        except queue.Full:
            self.dropped += 1
            return False
        return True

    def start(self) -> None:
        """Start the thread in this process (again, after a fork); heartbeats begin at once. Never raises."""
        if self._pid == os.getpid():
            return
        with self._lock:
            if self._pid == os.getpid():
                return
            self._queue, self._items = queue.Queue(self._queue.maxsize), 0
            self._thread = threading.Thread(target=self._run, name="klaxon-tap", daemon=True)
            try:
                self._thread.start()
                atexit.register(self.close)
            except RuntimeError as error:  # no more threads, or the interpreter is ending
                self._fault(error)
            self._pid = os.getpid()

    @property
    def running(self) -> bool:
        """Is the thread at work in this process?"""
        return self._pid == os.getpid() and self._thread is not None and self._thread.is_alive()

    def close(self, timeout: float = EXIT_FLUSH_SECONDS) -> None:
        """Send what is queued for at most `timeout` seconds, then end the thread."""
        self._closing.set()
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join(timeout)

    def _run(self) -> None:
        pending: list[bytes] = []
        next_beat, backoff, wait_until = 0.0, BACKOFF_SECONDS, 0.0
        while True:
            now = time.monotonic()
            pending = pending or self._collect(min(0.5, max(0.05, next_beat - now)))
            beat = now >= next_beat
            if self._closing.is_set() and not pending:
                return
            if not (pending or beat) or now < wait_until:
                if now < wait_until:
                    self._closing.wait(min(0.2, wait_until - now))
                continue
            verdict, retry_after = self._post([*pending, *self._lines(self._heartbeat())] if beat else pending)
            if verdict == "retry" and not self._closing.is_set():
                wait_until = time.monotonic() + (retry_after or random.uniform(0.2, backoff))
                backoff = min(backoff * 2, BACKOFF_MAX_SECONDS)
                continue
            self.sent += len(pending) if verdict == "ok" else 0
            self.dropped += 0 if verdict == "ok" else len(pending)
            pending, backoff = [], BACKOFF_SECONDS
            next_beat = time.monotonic() + self._heartbeat_seconds if beat else next_beat
            if verdict == "retry":
                return

    def _collect(self, patience: float) -> list[bytes]:
        """Lines of the next batch; waits at most `patience` seconds for the first message."""
        found: list[bytes] = []
        taken = items = 0
        while taken < BATCH_MESSAGES and items < BATCH_ITEMS:
            try:
                message, size = self._queue.get(timeout=patience) if not taken else self._queue.get_nowait()
            except queue.Empty:
                break
            with self._lock:
                self._items -= size
            taken, items = taken + 1, items + size
            found += self._lines(message)
        return found

    def _lines(self, message: Message | Callable[[], Iterable[Message]]) -> list[bytes]:
        """JSON lines of one queue entry; one that cannot be made is dropped, counted and logged once."""
        try:
            return [json.dumps(one).encode() for one in (message() if callable(message) else (message,))]
        except Exception as error:  # a foreign object must not end the thread
            self.dropped += 1
            self._fault(error)
            return []

    def _heartbeat(self) -> dict[str, Any]:
        beat = {"kind": "heartbeat", "source": self.source, "pid": os.getpid(), "host": socket.gethostname(), "at": time.time(), "sent": self.sent,
                "dropped": self.dropped, "queued": self._queue.qsize(), "errors": self.errors, "last_error": self.last_error}
        try:
            beat.update(self._about())
        except Exception as error:  # a heartbeat without details is better than none
            self._fault(error)
        return beat

    def _post(self, lines: list[bytes]) -> tuple[str, float | None]:
        """("ok" | "drop" | "retry", seconds the daemon asked to wait)."""
        if not lines:
            return "ok", None
        try:
            connection = connect(self.url)
            try:
                connection.request("POST", "/v1/ingest", body=b"\n".join(lines), headers=self._headers)
                answer = connection.getresponse()
                answer.read()
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            self._fault(error)
            return "retry", None
        except ValueError as error:  # a URL or token that cannot be sent
            self._fault(error)
            return "drop", None
        if answer.status < 300:
            return "ok", None
        self._fault(RuntimeError(f"the daemon answered {answer.status}"))
        if answer.status in GIVE_UP:
            return "drop", None
        return "retry", _seconds(answer.getheader("Retry-After"))

    def _fault(self, error: Exception) -> None:
        self.errors += 1
        text = f"{type(error).__name__}: {error}"
        if text != self.last_error:
            self.last_error = text
            log.warning("klaxon tap: %s (%s); rollouts queue up to %d, then are dropped and counted", self.url, text,
                        self._queue.maxsize)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def connect(url: str) -> http.client.HTTPConnection:
    """A connection to the daemon; not opened yet. Raises ValueError for a URL that is none of ours."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return _UnixConnection(parts.path)
    if parts.scheme == "http" and parts.hostname:
        return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=TIMEOUT_SECONDS)
    if parts.scheme == "https" and parts.hostname:
        return http.client.HTTPSConnection(parts.hostname, parts.port or 443, timeout=TIMEOUT_SECONDS)
    raise ValueError(f"KLAXON_URL is {url!r}; write unix:///path/klaxon.sock, http://host:port or https://host:port")


def _seconds(text: str | None) -> float | None:
    try:
        return min(60.0, max(0.0, float(text))) if text else None
    except ValueError:
        return None
