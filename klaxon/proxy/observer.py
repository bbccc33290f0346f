"""Watches what passes by: bounded copies of both bodies, read later in the sender's thread. Nothing here can hold up or
change the traffic; a fault is counted and logged once."""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from collector.sources.proxy import body, dialects
from collector.sources.proxy.exchange import Exchange

log = logging.getLogger("klaxon.proxy")

MAX_BODY_BYTES = 32 << 20  # one body
MAX_COPIES_BYTES = 512 << 20  # all bodies copied at a time
BYTES_PER_ITEM = 150  # as the sender's queue counts

CUMULATIVE = ("/generate",)  # SGLang's streams repeat all tokens so far in every event: the last one is enough

UPDATE_PATHS = frozenset((
    "/pause", "/resume", "/start_weight_update", "/update_weights", "/finish_weight_update", "/update_weight_version",
    "/collective_rpc", "/reset_prefix_cache", "/sleep", "/wake_up", "/load_lora_adapter",  # vLLM
    "/update_weights_from_disk", "/update_weights_from_tensor", "/update_weights_from_distributed", "/flush_cache",
    "/update_weights_from_ipc", "/pause_generation", "/continue_generation",  # SGLang
    "/lora-adapters",  # llama.cpp
))


class Sink(Protocol):
    """Where messages go: `klaxon_tap.sender.Sender`."""

    def put(self, message: dict[str, Any] | Callable[[], Iterable[dict[str, Any]]], *, items: int = 1) -> bool:
        """Queue; never blocks, never raises."""


class Copy:
    """A bounded copy of one body: all of it, or nothing; its end only, where `end_tells_all`."""

    def __init__(self, room: Room) -> None:
        self.parts: deque[bytes] = deque()
        self.size = 0
        self.whole = True  # nothing was left out
        self.end_tells_all = False
        self._room = room

    @property
    def kept(self) -> bool:
        """Is there something to read?"""
        return self.whole or self.end_tells_all

    def add(self, part: bytes) -> None:
        """Keep a reference to one more piece; without room for it drop the oldest pieces, or the whole copy."""
        if not self.kept:
            return
        while self.end_tells_all and self.parts and self.size + len(part) > MAX_BODY_BYTES:
            self.whole = False
            self._give_back(self.parts.popleft())
        if self.size + len(part) > MAX_BODY_BYTES or not self._room.take(len(part)):
            self.whole = self.end_tells_all = False
            while self.parts:
                self._give_back(self.parts.popleft())
            return
        self.size += len(part)
        self.parts.append(part)

    def _give_back(self, part: bytes) -> None:
        self.size -= len(part)
        self._room.give_back(len(part))


class Room:
    """Bytes that all copies together may hold. Used in the event loop only."""

    def __init__(self, capacity: int) -> None:
        self._free = capacity

    def take(self, size: int) -> bool:
        """Claim `size` bytes; False when they are not there."""
        if size > self._free:
            return False
        self._free -= size
        return True

    def give_back(self, size: int) -> None:
        """Return claimed bytes."""
        self._free += size


class Watch:
    """One request to a route that generates. Filled while it passes by, handed to `Observer.finish` at its end."""

    def __init__(self, path: str, room: Room) -> None:
        self.path = path
        self.asked, self.answered = Copy(room), Copy(room)
        self.asked_headers: dict[str, str] = {}
        self.status = 0
        self.headers: dict[str, str] = {}
        self.whole = False  # the answer came to its end

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """The answer begins."""
        self.status, self.headers = status, lower(headers)
        events = self.headers.get("content-type", "").startswith("text/event-stream")
        self.answered.end_tells_all = events and self.path in CUMULATIVE


class Observer:
    """Turns finished exchanges into messages for the daemon.

    Args:
        sink: takes messages.
        engine: the name this engine goes by.
        only: the engine's dialect, or "auto".
        tokenizer: a way back from token texts to ids, if the operator named one.
        on: the kill switch; while it says no nothing is watched.
    """

    def __init__(self, *, sink: Sink, engine: str, only: str = "auto", tokenizer: dialects.Ids | None = None,
                 on: Callable[[], bool] = lambda: True) -> None:
        self.engine, self.faults = engine, 0
        self.counts: dict[str, Counter[str]] = {}  # dialect → rollouts, aborted, unusable_<reason>
        self._sink, self._only, self._tokenizer, self._on = sink, only, tokenizer, on
        self._room = Room(MAX_COPIES_BYTES)
        self._said: set[tuple[str, str]] = set()

    def watch(self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> Watch | None:
        """Start to watch a request; None when no dialect reads its route."""
        try:
            if method != "POST" or not dialects.watched(path) or not self._on():
                return None
            watch = Watch(path, self._room)
            watch.asked_headers = lower(headers)
            return watch
        except Exception as error:
            self._fault(error)
            return None

    def finish(self, watch: Watch) -> None:
        """The request has ended, one way or another: queue what was heard."""
        try:
            size = watch.asked.size + watch.answered.size
            if watch.status in (0, 200):  # 0 = the client left before an answer began
                at, name = time.time(), f"proxy-{uuid.uuid4().hex[:16]}"
                self._sink.put(lambda: self._messages(watch, at, name), items=size // BYTES_PER_ITEM + 1)
            self._room.give_back(size)  # from here on the sender's queue bounds it
        except Exception as error:
            self._fault(error)

    def update_call(self, path: str, query: bytes, status: int, started: float) -> None:
        """A call that changes the engine's weights or caches, for the timeline."""
        data = {"path": path, "query": query.decode("latin-1"), "status": status,
                "seconds": round(time.time() - started, 3)}
        if self._on():
            self._sink.put({"kind": "event", "name": "weight_update_call", "at": started, "data": data})

    def heartbeat(self) -> dict[str, Any]:
        """What the heartbeat adds."""
        counts = {name: dict(found) for name, found in list(self.counts.items())}
        return {"engine": self.engine, "faults": self.faults, "dialects": counts,
                "without_logprobs": sum(found.get("unusable_no_logprobs", 0) for found in counts.values())}

    def _messages(self, watch: Watch, at: float, name: str) -> list[dict[str, Any]]:
        """In the sender's thread: what the copies say; nothing, and a fault counted, when they cannot be read."""
        try:
            dialect, findings = self._read(watch, name)
        except Exception as error:
            self._fault(error)
            return []
        if dialect is None:
            return []
        self._count(dialect, findings.counts)
        common = {"kind": "rollout", "source": "proxy", "engine": self.engine, "finished_at": at}
        aborted = {"schema": 1, "request_id": name, "aborted": True, "finish_reason": "abort"}
        return [{**common, **found} for found in findings.rollouts] + [{**common, **aborted}] * findings.counts["aborted"]

    def _read(self, watch: Watch, name: str) -> tuple[str | None, dialects.Findings]:
        asked = body.plain(watch.asked.parts, watch.asked_headers.get("content-encoding", ""))
        answer = body.plain(watch.answered.parts, watch.headers.get("content-encoding", ""))
        try:
            request = body.documents(asked or b"{}", "application/json")[0][0]
        except (ValueError, IndexError):
            request = {}
        dialect = dialects.choose(watch.path, request, only=self._only)
        if not watch.asked.whole or not watch.answered.kept or (not watch.answered.whole and _several(request)):
            return _guess(watch.path, dialect), _only("unusable_too_large")
        if asked is None or answer is None:
            return _guess(watch.path, dialect), _only("unusable_encoding")
        if dialect is None:
            return None, dialects.Findings()
        if not watch.answered.whole:
            answer = answer.partition(b"\n\n")[2]  # the first event may have lost its beginning
        try:
            documents, streamed = body.documents(answer, watch.headers.get("content-type", ""))
        except ValueError:
            return dialect, _only("unusable_unreadable" if watch.whole else "aborted")
        exchange = Exchange(asked=request, documents=documents, streamed=streamed, whole=watch.whole,
                            headers=watch.headers)
        return dialect, dialects.read(dialect, exchange, fallback_id=name, tokenizer=self._tokenizer)

    def _count(self, dialect: str, counts: Counter[str]) -> None:
        self.counts.setdefault(dialect, Counter()).update(counts)
        for key in counts:
            reason = key.removeprefix("unusable_")
            if reason in dialects.UNUSABLE and (dialect, reason) not in self._said:
                self._said.add((dialect, reason))
                log.warning("%s: a generation cannot be used: %s; further ones are counted (%s)", dialect,
                            dialects.UNUSABLE[reason], key)

    def _fault(self, error: Exception) -> None:
        self.faults += 1
        if self.faults == 1:
            log.warning("an exchange was not understood (%s: %s); the traffic goes on, further ones are counted",
                        type(error).__name__, error)


def _only(count: str) -> dialects.Findings:
    return dialects.Findings(counts=Counter({count: 1}))


def _several(request: dict[str, Any]) -> bool:
    """Does a request to SGLang's /generate ask for more than one generation?"""
    params = request.get("sampling_params") or {}
    ids = request.get("input_ids")
    return (not isinstance(params, dict) or params.get("n", 1) != 1 or isinstance(request.get("text"), list)
            or (isinstance(ids, list) and bool(ids) and isinstance(ids[0], list)))


def _guess(path: str, dialect: str | None) -> str:
    """A name to count under when the request could not be read."""
    return dialect or next(name for name, each in dialects.DIALECTS.items() if path in each.routes)


def lower(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by name in lower case."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
