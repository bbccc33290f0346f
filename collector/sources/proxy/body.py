"""Bodies of requests and answers as JSON documents: out of gzip, out of server-sent events (SSE)."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

MAX_PLAIN_BYTES = 256 << 20  # a compressed body may not grow past this


def plain(parts: Iterable[bytes], encoding: str) -> bytes | None:
    """The body without its content encoding; None when it is one that cannot be read here, or grows without bound."""
    body = b"".join(parts)
    name = encoding.strip().lower()
    if name in ("", "identity") or not body:
        return body
    if name not in ("gzip", "x-gzip", "deflate"):
        return None
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # gzip or zlib by their header, else deflate without one
        decoder = zlib.decompressobj(window)
        try:
            out = decoder.decompress(body, MAX_PLAIN_BYTES)
        except zlib.error:
            continue
        return None if decoder.unconsumed_tail else out
    return None


def documents(body: bytes, content_type: str) -> tuple[list[dict[str, Any]], bool]:
    """(JSON objects, did they come as a stream of events). A list at the top level gives its objects.

    Raises:
        ValueError: a plain body that is no JSON.
    """
    if content_type.lower().startswith("text/event-stream") or body.lstrip()[:5] == b"data:":
        return [found for found in map(_event, events(body)) if found is not None], True
    found = json.loads(body) if body.strip() else []
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, dict)], False


def events(body: bytes) -> Iterator[bytes]:
    """The data of each event; comments and other fields are passed over, an event cut short comes last as it is."""
    data: list[bytes] = []
    for line in body.splitlines():
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            yield b"\n".join(data)
            data = []
    if data:
        yield b"\n".join(data)


def _event(data: bytes) -> dict[str, Any] | None:
    if data.strip() in (b"", b"[DONE]"):
        return None
    try:
        found = json.loads(data)
    except ValueError:  # cut short
        return None
    return found if isinstance(found, dict) else None
