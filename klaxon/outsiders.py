"""Who is not on this machine needs the token, for reading too.

The daemon refuses to listen off loopback without a token (read_token). Where one is set, a request over the taps' socket
or from a loopback address is let through to its route (which may ask for the token itself: ingest and every write do); any
other must carry it. /healthz alone answers everybody, for probes that know nothing.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from collector.errors import ConfigError
from klaxon.config import Config

OPEN_TO_ALL = ("/healthz",)


class OutsidersNeedTheToken:
    """ASGI middleware; without a token it lets everything through."""

    def __init__(self, app: ASGIApp, *, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 to an outsider without the token, else go on."""
        if scope["type"] == "http" and self._token and scope["path"] not in OPEN_TO_ALL and is_outside(scope.get("client")):
            given = Headers(scope=scope).get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._token.encode()):
                refusal = JSONResponse({"error": "bad or missing token: set KLAXON_TOKEN to the daemon's token"}, status_code=401)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def is_outside(client: tuple[str, int] | None) -> bool:
    """Does a request come from another machine? None or an empty host is the Unix socket.

    >>> is_outside(None), is_outside(("127.0.0.1", 5)), is_outside(("::1", 5)), is_outside(("10.0.0.9", 5)), is_outside(("?", 5))
    (False, False, False, True, True)
    """
    if client is None or not client[0]:
        return False
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0])
    except ValueError:
        return True
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_loopback


def read_token(config: Config) -> str | None:
    """The tap token from its file or environment variable; None = no token asked (loopback and socket only).

    Raises:
        ConfigError: the file cannot be read, or the API would be reachable from outside without a token.
    """
    daemon = config.daemon
    if daemon.token_file:
        try:
            found = Path(daemon.token_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"daemon.token_file: {daemon.token_file} cannot be read ({error.strerror})") from None
        if not found:
            raise ConfigError(f"daemon.token_file: {daemon.token_file} is empty; put the token there")
        return found
    token = os.environ.get(daemon.token_env) or None
    if token is None and daemon.host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(f"daemon.host is {daemon.host}, reachable from outside: set {daemon.token_env} or "
                          "daemon.token_file, or go back to 127.0.0.1")
    return token
