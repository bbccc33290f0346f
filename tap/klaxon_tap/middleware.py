"""ASGI middleware for `vllm serve --middleware klaxon_tap.middleware.KlaxonMiddleware`: the public, robust fallback.

It copies what passes by and forwards every byte unchanged. While the plugin is at work in the same process it only
reports weight-update calls; otherwise it reports rollouts too, as far as the client itself asked for what is needed:
logprobs, and token ids (`return_token_ids`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any

from klaxon_tap import plugin, settings
from klaxon_tap.rollout import SAMPLING
from klaxon_tap.sender import Sender

log = logging.getLogger("klaxon_tap")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

ROLLOUT_PATHS = ("/v1/completions", "/v1/chat/completions", "/inference/v1/generate")
UPDATE_PATHS = ("/pause", "/resume", "/start_weight_update", "/update_weights", "/finish_weight_update",
                "/update_weight_version", "/collective_rpc", "/reset_prefix_cache", "/sleep", "/wake_up", "/load_lora_adapter")
MAX_BODY_BYTES = 32 << 20
BYTES_PER_ITEM = 150  # as the sender's queue counts


class KlaxonMiddleware:
    """Wraps the server's ASGI app. A fault in here is counted; the request goes on."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self.faults = 0
        self._kill = settings.KillSwitch()
        self._engine = settings.engine()
        url = settings.url()
        self._sender = Sender(url, token=settings.token(), source="middleware",
                              about=lambda: {"engine": self._engine, "passive": plugin.active(),
                                             "faults": self.faults}) if url else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; the wrapped app's own exceptions pass through."""
        path = scope.get("path", "")
        if self._sender is not None:
            self._sender.start()  # with the server's first event: heartbeats begin in the process that serves
        if self._sender is None or scope.get("type") != "http" or scope.get("method") != "POST" or not self._kill.on():
            await self.app(scope, receive, send)
        elif path in UPDATE_PATHS:
            await self._watch_update(scope, receive, send, path)
        elif path in ROLLOUT_PATHS and not plugin.active():
            await self._watch_rollout(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _watch_update(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        started, status = time.time(), 0

        async def seen(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, seen)
        finally:
            data = {"path": path, "query": scope.get("query_string", b"").decode("latin-1"), "status": status,
                    "seconds": round(time.time() - started, 3)}
            self._sender.put({"kind": "event", "name": "weight_update_call", "at": started, "data": data})

    async def _watch_rollout(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked, answered = _Copy(), _Copy()

        async def hear() -> MutableMapping[str, Any]:
            message = await receive()
            asked.add(message.get("body", b""))
            return message

        async def tell(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.body":
                answered.add(message.get("body", b""))
            await send(message)

        await self.app(scope, hear, tell)
        at = time.time()
        self._sender.put(lambda: self._read(asked, answered, at), items=(asked.size + answered.size) // BYTES_PER_ITEM + 1)

    def _read(self, asked: _Copy, answered: _Copy, at: float) -> list[dict[str, Any]]:
        """In the sender's thread: what the copies say; nothing, and a fault counted, when they cannot be read."""
        try:
            return list(rollouts(asked.json(), answered.documents(), engine=self._engine, at=at))
        except Exception as error:
            self.faults += 1
            if self.faults == 1:
                log.warning("klaxon tap: an answer was not understood (%s: %s); further ones are counted",
                            type(error).__name__, error)
            return []


class _Copy:
    """A bounded copy of a body that passes by."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.size = 0

    def add(self, part: bytes) -> None:
        self.size += len(part)
        if self.size <= MAX_BODY_BYTES:
            self._parts.append(part)

    def json(self) -> dict[str, Any]:
        found = json.loads(b"".join(self._parts))
        return found if isinstance(found, dict) else {}

    def documents(self) -> list[dict[str, Any]]:
        """The answer as JSON documents: one, or one an event of a stream (SSE)."""
        if self.size > MAX_BODY_BYTES:
            return []
        body = b"".join(self._parts)
        if body.lstrip().startswith(b"data:"):
            events = (line[5:].strip() for line in body.splitlines() if line.startswith(b"data:"))
            return [json.loads(event) for event in events if event and event != b"[DONE]"]
        return [json.loads(body)]


def rollouts(asked: dict[str, Any], documents: list[dict[str, Any]], *, engine: str, at: float) -> Iterator[dict[str, Any]]:
    """Rollout messages out of one answer; a choice without token ids or logprobs is left out."""
    choices: dict[int, dict[str, Any]] = {}
    prompt: list[int] | None = None
    request_id = next((str(doc.get("id") or doc.get("request_id")) for doc in documents), "unknown")
    for document in documents:
        prompt = document.get("prompt_token_ids") or prompt
        for choice in document.get("choices") or []:
            prompt = choice.get("prompt_token_ids") or prompt
            _merge(choices.setdefault(int(choice.get("index", 0)), {"tokens": [], "logprobs": [], "top": []}), choice)
    prompt = prompt or asked.get("token_ids")
    sampling = {name: asked[name] for name in SAMPLING if isinstance(asked.get(name), (int, float))}
    sampling |= {name: value for name, value in (asked.get("sampling_params") or {}).items() if name in SAMPLING and value is not None}
    for index, choice in sorted(choices.items()):
        if prompt and choice["tokens"] and len(choice["logprobs"]) == len(choice["tokens"]):
            yield {"kind": "rollout", "schema": 1, "source": "middleware", "engine": engine,
                   "request_id": request_id if len(choices) == 1 else f"{request_id}-{index}", "finished_at": at,
                   "prompt_token_ids": prompt, "token_ids": choice["tokens"], "logprobs": choice["logprobs"],
                   "engine_sampling": sampling, "finish_reason": choice.get("finish"),
                   **({"top_logprobs": choice["top"]} if any(choice["top"]) else {}),
                   **({"weight_versions": choice["versions"]} if choice.get("versions") else {})}


def _merge(into: dict[str, Any], choice: dict[str, Any]) -> None:
    """Add one choice, or one piece of it, to what was heard of it before."""
    into["tokens"] += choice.get("token_ids") or []
    logprobs = choice.get("logprobs") or {}
    if "token_logprobs" in logprobs:
        into["logprobs"] += logprobs["token_logprobs"] or []
        tops = logprobs.get("top_logprobs") or [None] * len(logprobs["token_logprobs"] or [])
        into["top"] += [_top((row or {}).items()) for row in tops]
    elif "content" in logprobs:
        entries = logprobs["content"] or []
        into["logprobs"] += [entry.get("logprob") for entry in entries]
        into["top"] += [_top((top.get("token_id", top.get("token")), top.get("logprob"))
                             for top in entry.get("top_logprobs") or []) for entry in entries]
    into["finish"] = choice.get("finish_reason") or into.get("finish")
    spans = choice.get("weight_versions") or []
    into["versions"] = [span for span in map(_span, spans) if span] or into.get("versions")


def _top(pairs: Iterable[tuple[Any, Any]]) -> list[list[Any]] | None:
    """[[token id, logprob], …]; None unless every token is named by its id: 7, or "token_id:7" (vLLM, on request)."""
    found = []
    for name, logprob in pairs:
        if isinstance(name, str) and name.startswith("token_id:") and name[9:].isdigit():
            name = int(name[9:])
        if not isinstance(name, int):
            return None
        found.append([name, logprob])
    return found or None


def _span(span: Any) -> list[Any] | None:
    """[start, end, version] of one span as vLLM writes it; None for "default", which means unknown."""
    if isinstance(span, dict):
        span = [span.get("start"), span.get("end"), span.get("version", span.get("weight_version"))]
    return list(span) if len(span) == 3 and span[2] not in (None, "default") else None
