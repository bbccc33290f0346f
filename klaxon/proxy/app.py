"""The reverse proxy, as an ASGI app: requests and answers pass through unchanged, piece by piece as they arrive.

Only hop-by-hop headers differ, and Host names the engine, as if the client had asked it directly. When the client goes
away its request to the engine is broken off too, so that the engine stops generating.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import httpx

from collector.errors import ConfigError
from klaxon.proxy.observer import UPDATE_PATHS, Observer, Watch

log = logging.getLogger("klaxon.proxy")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection",
                        b"te", b"trailer", b"transfer-encoding", b"upgrade"))
CONNECT_SECONDS = 10.0
IDLE_SECONDS = 2.0  # shorter than the 5 s after which engines close idle connections, so that none closes under a request
TIMEOUTS = {"connect": CONNECT_SECONDS, "read": None, "write": None, "pool": None}  # a generation may take its time


class Proxy:
    """One engine behind one address.

    Args:
        upstream: the engine's URL; a path in it is put before every request's path.
        observer: sees what passes by.
    """

    def __init__(self, upstream: str, observer: Observer) -> None:
        """Raises ConfigError for a URL that is not http or https."""
        self.counts: Counter[str] = Counter()  # requests, upstream_down, upstream_broke, upstream_5xx, client_gone
        self.name = str(_checked(upstream)).rstrip("/")
        self._upstream, self._observer = _checked(upstream), observer
        self._down = False
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=IDLE_SECONDS)
        self._transport = httpx.AsyncHTTPTransport(limits=limits, trust_env=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        self.counts["requests"] += 1
        started, path = time.time(), scope["path"]
        watch = self._observer.watch(scope["method"], path, scope["headers"])
        passing = _Passing(receive, send, watch, has_body=_has_body(scope["headers"]))
        work = asyncio.create_task(self._forward(scope, passing))
        gone = asyncio.create_task(passing.client_gone())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if passing.ended:  # the end of the answer ends `gone` too; let the engine's connection be put back
                await asyncio.wait({work})
            self.counts["client_gone"] += not work.done()
        finally:
            for task in (work, gone):
                task.cancel()
            results = await asyncio.gather(work, gone, return_exceptions=True)
            if watch is not None:
                self._observer.finish(watch)
            if path in UPDATE_PATHS and scope["method"] == "POST":
                self._observer.update_call(path, scope["query_string"], passing.status, started)
        if isinstance(results[0], Exception) and not passing.gone:
            raise results[0]

    async def aclose(self) -> None:
        """Close the connections to the engine."""
        await self._transport.aclose()

    async def _forward(self, scope: Scope, passing: _Passing) -> None:
        request = self._request(scope, passing)
        try:
            response = await self._transport.handle_async_request(request)
        except httpx.TransportError as error:
            if not passing.gone:
                await self._unreachable(passing, error)
            return
        self._down = False
        try:
            self.counts["upstream_5xx"] += response.status_code >= 500
            await passing.start(response.status_code, _end_to_end(response.headers.raw))
            async for part in response.aiter_raw():
                await passing.part(part)
            await passing.end()
        except httpx.TransportError as error:  # leaving now breaks the client's connection too, as the engine did
            self.counts["upstream_broke"] += 1
            log.warning("the engine broke off an answer to %s (%s)", scope["path"], type(error).__name__)
        finally:
            await response.aclose()

    def _request(self, scope: Scope, passing: _Passing) -> httpx.Request:
        headers = [(name, value) for name, value in _end_to_end(scope["headers"]) if name not in (b"host", b"expect")]
        target = self._upstream.raw_path.rstrip(b"/") + (scope.get("raw_path") or scope["path"].encode())
        query = scope.get("query_string") or b""
        return httpx.Request(
            scope["method"], self._upstream, headers=[(b"host", self._upstream.netloc), *headers],
            content=passing.body() if passing.has_body else None,
            extensions={"target": target + (b"?" + query if query else b""), "timeout": TIMEOUTS})

    async def _unreachable(self, passing: _Passing, error: Exception) -> None:
        self.counts["upstream_down"] += 1
        text = f"klaxon proxy: the engine at {self.name} does not answer ({type(error).__name__}); is it running there?"
        if not self._down:
            self._down = True
            log.warning("%s Until it answers again, this is only counted.", text)
        body = json.dumps({"error": {"message": text, "type": "upstream_unreachable", "code": 502}}).encode()
        await passing.start(502, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))])
        await passing.part(body)
        await passing.end()


class _Passing:
    """Both directions of one request, copied to its watch as they pass."""

    def __init__(self, receive: Receive, send: Send, watch: Watch | None, *, has_body: bool) -> None:
        self.has_body = has_body
        self.gone = self.ended = False
        self.status = 0
        self._receive, self._send, self._watch = receive, send, watch
        self._uploaded = asyncio.Event()
        if not has_body:
            self._uploaded.set()

    async def body(self) -> AsyncIterator[bytes]:
        """The request's body as it arrives."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                self._uploaded.set()
                raise ConnectionResetError("the client went away")
            if part := message.get("body", b""):
                if self._watch is not None:
                    self._watch.asked.add(part)
                yield part
            more = message.get("more_body", False)
        self._uploaded.set()

    async def client_gone(self) -> None:
        """Return when the client has gone. Listens only once its body is through, or there is none."""
        await self._uploaded.wait()
        while not self.gone and (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = not self.ended

    async def start(self, status: int, headers: Headers) -> None:
        """Send the status line and the headers."""
        self.status = status
        if self._watch is not None:
            self._watch.start(status, headers)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def part(self, part: bytes) -> None:
        """Send one piece of the body."""
        if self._watch is not None:
            self._watch.answered.add(part)
        await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def end(self) -> None:
        """Send the end of the body."""
        self.ended = True
        if self._watch is not None:
            self._watch.whole = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Headers without those that belong to one connection only."""
    listed = list(headers)
    named = {token.strip().lower() for name, value in listed if name.lower() == b"connection" for token in value.split(b",")}
    return [(name, value) for name, value in listed if name.lower() not in HOP_BY_HOP and name.lower() not in named]


def _has_body(headers: Headers) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)


def _checked(upstream: str) -> httpx.URL:
    try:
        url = httpx.URL(upstream)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.userinfo:
        raise ConfigError("--upstream is not an engine's address; write http://HOST:PORT, e.g. http://127.0.0.1:8000 "
                          "(no user, password or query: clients send their own headers)")
    return url
