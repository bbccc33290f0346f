"""What stands before the page where people sign in: nobody gets past the proxy, and a link survives the sign-in. ASGI middleware."""

from __future__ import annotations

from urllib.parse import quote, unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dashboard.access import Header, not_the_proxy

HEALTH = ("/_stcore/health", "/healthz")  # for probes that know nothing; they tell nothing
CALLBACK = "/oauth2callback"
PLACE_COOKIE = "klaxon_place"
OWN = ("/_stcore/", "/static/", "/auth/", "/media/", "/component/", "/app/static/", CALLBACK)
LONGEST_PLACE = 2000  # characters
SIGN_IN_SECONDS = 900


class ProxyOnly:
    """Refuses, for HTTP and WebSocket alike, whatever does not come from the trusted proxy with a person's name."""

    def __init__(self, app: ASGIApp, *, header: Header, secret: str) -> None:
        self._app, self._header, self._secret = app, header, secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """403 with the reason, else go on."""
        if scope["type"] in ("http", "websocket") and scope["path"] not in HEALTH:
            peer = scope["client"][0] if scope.get("client") else None
            if why := not_the_proxy(peer, Headers(scope=scope).items(), self._header, secret=self._secret):
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008, "reason": why})
                else:
                    await PlainTextResponse(f"Klaxon's page: {why}.\n", status_code=403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class ComeBack:
    """Streamlit leads everybody who has signed in to its first page. This remembers the link that was opened, and leads there instead."""

    def __init__(self, app: ASGIApp, *, secure: bool) -> None:
        self._app, self._secure = app, secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Set the cookie with a page's HTML; use it, once, on the way back from the provider."""
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        there = path + (f"?{scope['query_string'].decode('latin-1')}" if scope.get("query_string") else "")
        is_page = not path.startswith(OWN) and "text/html" in headers.get("accept", "") and is_place(there)
        kept = unquote(cookie_parser(headers.get("cookie", "")).get(PLACE_COOKIE, ""))

        async def passing(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                if is_page:
                    answered.append("set-cookie", self._cookie(quote(there, safe=""), SIGN_IN_SECONDS))
                elif path == CALLBACK and message["status"] in (302, 303, 307) and is_place(kept):
                    answered["location"] = kept
                    answered.append("set-cookie", self._cookie("", 0))
            await send(message)

        await self._app(scope, receive, passing)

    def _cookie(self, value: str, seconds: int) -> str:
        return f"{PLACE_COOKIE}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax" + ("; Secure" if self._secure else "")


def is_place(text: str) -> bool:
    """Is this a path of this page, and of nobody else's?

    >>> is_place("/incident?incident=inc_1"), is_place("//evil.example/x"), is_place("https://evil.example"), is_place("/\\\\evil"), is_place("")
    (True, False, False, False, False)
    """
    if not text.startswith("/") or text.startswith("//") or len(text) > LONGEST_PLACE or not text.isprintable() or not text.isascii() or "\\" in text:
        return False
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return not parts.scheme and not parts.netloc
