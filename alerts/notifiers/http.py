"""One POST, guarded: no redirects, a time limit, a bounded answer, and no way into private networks by DNS.

The address of a name is checked on the very connection that is used, so a second DNS answer cannot slip in between.
Through a proxy (HTTPS_PROXY and the like) the proxy resolves the name and the check is the proxy's. Errors never name
the URL or a secret, and what a receiver echoes of them is blanked before anybody sees it.
"""

from __future__ import annotations

import functools
import http.client
import ipaddress
import math
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import urlsplit

from alerts.config import ReceiverConfig
from alerts.receiver_types import is_loopback
from alerts.notifiers.bounded import BoundedResponse
from collector.errors import GiveUp, RetryLater

MAX_ANSWER_BYTES = 64 * 1024
MAX_RETRY_AFTER_SECONDS = 3600.0
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a receiver said."""

    status: int
    headers: Mapping[str, str]
    body: str  # at most MAX_ANSWER_BYTES of it


_overheard: ContextVar[list[Answer] | None] = ContextVar("klaxon_answers_of_receivers", default=None)


@contextmanager
def overheard() -> Iterator[list[Answer]]:
    """Inside the block every answer this thread gets is also put into the list; for trying a receiver out."""
    found: list[Answer] = []
    token = _overheard.set(found)
    try:
        yield found
    finally:
        _overheard.reset(token)


def poster(receiver: ReceiverConfig, url: str, *, timeout_seconds: float, secrets: tuple[str | None, ...] = ()) -> Poster:
    """A poster to `url` under the receiver's rules, which never repeats `secrets`."""
    return Poster(url, allow_private=receiver.allow_private, timeout_seconds=timeout_seconds, secrets=tuple(each for each in secrets if each))


class Poster:
    """POSTs to one fixed URL, or below it."""

    def __init__(self, url: str, *, allow_private: bool, timeout_seconds: float, secrets: tuple[str, ...] = ()) -> None:
        self.url, self._timeout = url, timeout_seconds
        path = url.partition("://")[2].partition("/")[2]
        self._hidden = sorted({text for text in (url, path, *secrets) if len(text) >= 6}, key=len, reverse=True)
        host = urlsplit(url).hostname or ""
        connect = functools.partial(_connect, allow_private=allow_private, allow_loopback=is_loopback(host))
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        proxied = not is_loopback(host) and urlsplit(url).scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)
        if not proxied:
            handlers += [urllib.request.ProxyHandler({}), _Http(connect), _Https(connect)]
        self._opener = urllib.request.build_opener(*handlers)

    def post(self, body: bytes, headers: Mapping[str, str], *, below: str = "") -> Answer:
        """Send once, to the URL with `below` appended.

        Raises:
            RetryLater: no connection, no answer in time, or it broke off.
            GiveUp: the address leads into a private network and that is not allowed.
        """
        answer = self._sent(urllib.request.Request(self.url + below, data=body, headers={"User-Agent": "klaxon", **headers}, method="POST"))
        for hidden in self._hidden:
            answer = replace(answer, body=answer.body.replace(hidden, "…"))
        if (found := _overheard.get()) is not None:
            found.append(answer)
        return answer

    def _sent(self, request: urllib.request.Request) -> Answer:
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return Answer(status=response.status, headers=dict(response.headers.items()), body=self._read(response))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(status=error.code, headers=dict(error.headers.items()), body=self._read(error))
        except urllib.error.URLError as error:
            reason = error.reason
            _fail(reason if isinstance(reason, BaseException) else error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            _fail(error)

    def _read(self, response: Any) -> str:
        """A little of the answer: enough to say why; a slow or endless one costs no more than the time limit (through a proxy, between bytes)."""
        found, ends_at = b"", time.monotonic() + self._timeout
        try:
            while len(found) < MAX_ANSWER_BYTES and time.monotonic() < ends_at:
                if not (piece := response.read1(4096)):
                    break
                found += piece
        except (OSError, http.client.HTTPException):
            pass  # the status line has already decided
        return found.decode("utf-8", "replace")


def judge(answer: Answer) -> None:
    """Silence for 2xx.

    Raises:
        RetryLater: 408, 425, 429 and 5xx, with the receiver's Retry-After.
        GiveUp: any other status, redirects included.
    """
    if 200 <= answer.status < 300:
        return
    said = f"HTTP {answer.status}" + (f" ({answer.body.strip()[:80]!r})" if answer.body.strip() else "")
    if answer.status in (408, 425, 429) or answer.status >= 500:
        after = next((value for key, value in answer.headers.items() if key.lower() == "retry-after"), None)
        raise RetryLater(f"the receiver answered {said}", after_seconds=_seconds(after))
    if 300 <= answer.status < 400:
        raise GiveUp(f"the receiver answered HTTP {answer.status}, a redirect; Klaxon follows none: configure the final address")
    raise GiveUp(f"the receiver refused the message: {said}")


def _seconds(after: str | None) -> float | None:
    """Retry-After as seconds, from either of its forms; at most an hour."""
    if after is None:
        return None
    try:
        found = float(after)
    except ValueError:
        try:
            found = parsedate_to_datetime(after).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(max(found, 0.0), MAX_RETRY_AFTER_SECONDS) if math.isfinite(found) else None


def _fail(error: BaseException) -> NoReturn:
    if isinstance(error, GiveUp):
        raise error
    if isinstance(error, TimeoutError):
        raise RetryLater("the receiver did not answer in time") from None
    if isinstance(error, ssl.SSLCertVerificationError):
        raise RetryLater("the receiver's certificate is not trusted; if it is your own, name its authority in SSL_CERT_FILE") from None
    raise RetryLater(f"the receiver cannot be reached ({type(error).__name__})") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        return None


class _Http(urllib.request.HTTPHandler):
    def __init__(self, connect: Any) -> None:
        super().__init__()
        self._connect = connect

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_opened, http.client.HTTPConnection, self._connect), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, connect: Any) -> None:
        super().__init__()
        self._connect = connect

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_opened, http.client.HTTPSConnection, self._connect), req)


def _opened(kind: Any, connect: Any, host: str, **options: Any) -> http.client.HTTPConnection:
    connection: Any = kind(host, **options)
    connection._create_connection = connect  # http.client's one hook below TLS; certificates are still checked against the name
    connection.response_class = BoundedResponse
    return connection


def _connect(address: tuple[str, int], timeout: float, source_address: object = None, *,
             allow_private: bool, allow_loopback: bool) -> socket.socket:
    """socket.create_connection, to permitted addresses only; all of them together get `timeout` seconds."""
    refused, last, ends_at = False, OSError("no address"), time.monotonic() + timeout
    for family, kind, protocol, _, where in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        if not _permitted(str(where[0]), allow_private=allow_private, allow_loopback=allow_loopback):
            refused = True
            continue
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(max(ends_at - time.monotonic(), 0.001))
            connection.connect(where)
            connection.settimeout(timeout)
            return connection
        except OSError as error:
            connection.close()
            last = error
    if refused:
        raise GiveUp("the receiver's name leads to a private address; set allow_private = true if that is meant")
    raise last


def _permitted(host: str, *, allow_private: bool, allow_loopback: bool) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        address = _inner(address) or address
    if address.is_loopback:
        return allow_loopback or allow_private
    return allow_private or (address.is_global and not address.is_multicast)


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address an IPv6 one stands for: mapped, 6to4, or NAT64."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
