"""What people sign in with, for tests: a small OpenID provider and a signing-in reverse proxy, both over real HTTP; and the page started with a sign-in file."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import httpx
import uvicorn
import websockets
from fastapi import FastAPI, Form, Request, Response, WebSocket
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.websockets import WebSocketDisconnect

PEOPLE = {
    "ada": {"sub": "1", "name": "Ada Lovelace", "email": "ada@example.org", "email_verified": True, "groups": ["sre", "ml"]},
    "bob": {"sub": "2", "name": "Bob", "email": "bob@example.org", "email_verified": True, "groups": ["ml"]},
    "eve": {"sub": "3", "name": "Eve", "email": "eve@elsewhere.org", "email_verified": True, "groups": []},
    "mallory": {"sub": "4", "name": "Mallory", "email": "ada@example.org", "email_verified": False, "groups": []},
}
SECRET = "a-secret-of-the-proxy-and-the-page"
CLIENT_SECRET = "the-client-secret"
ROLES = '[roles]\noncall = ["group:sre"]\nreaders = ["*@example.org"]\n'


@contextlib.contextmanager
def served(app: FastAPI, port: int) -> Iterator[str]:
    """An application on a loopback port."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", ws="websockets-sansio", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline and thread.is_alive(), "the server does not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(60)


def provider(issuer: str, *, client_id: str = "klaxon") -> FastAPI:
    """An OpenID provider (authorisation code with PKCE) whose sign-in page is a list of links."""
    app, key, codes = FastAPI(), RSAKey.generate_key(2048, parameters={"kid": "k1"}), {}

    @app.get("/.well-known/openid-configuration")
    def configuration() -> Response:
        return JSONResponse({
            "issuer": issuer, "authorization_endpoint": f"{issuer}/authorize", "token_endpoint": f"{issuer}/token", "jwks_uri": f"{issuer}/jwks",
            "response_types_supported": ["code"], "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["RS256"],
            "code_challenge_methods_supported": ["S256"], "token_endpoint_auth_methods_supported": ["client_secret_basic"]})

    @app.get("/jwks")
    def jwks() -> Response:
        return JSONResponse({"keys": [key.as_dict(private=False)]})

    @app.get("/authorize")
    def authorize(request: Request) -> Response:
        asked = dict(request.query_params)
        assert asked["client_id"] == client_id and asked["response_type"] == "code" and asked["code_challenge_method"] == "S256"
        links = "".join(f'<a href="/chosen/{name}?{urlencode(asked)}">{name}</a> ' for name in PEOPLE)
        return HTMLResponse(f"<h1>Who are you?</h1>{links}")

    @app.get("/chosen/{name}")
    def chosen(name: str, request: Request) -> Response:
        asked, code = dict(request.query_params), secrets.token_urlsafe(16)
        codes[code] = (name, asked)
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}", status_code=302)

    @app.post("/token")
    def token(request: Request, code: str = Form(), code_verifier: str = Form()) -> Response:
        name, asked = codes.pop(code)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(code_verifier.encode()).digest()).rstrip(b"=").decode()
        given = base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode()
        if challenge != asked["code_challenge"] or given != f"{client_id}:{CLIENT_SECRET}":
            return JSONResponse({"error": "invalid_client"}, status_code=401)
        now = int(time.time())
        claims = {"iss": issuer, "aud": client_id, "iat": now, "exp": now + 600, "nonce": asked["nonce"], **PEOPLE[name]}
        return JSONResponse({"access_token": "x", "token_type": "Bearer", "expires_in": 600, "id_token": jwt.encode({"alg": "RS256", "kid": "k1"}, claims, key)})

    return app


def proxy(upstream: str, *, secret: str = SECRET) -> FastAPI:
    """A reverse proxy for HTTP and WebSocket that has signed everybody in as whoever the cookie `who` names."""
    app = FastAPI()

    def headers(cookies: dict[str, str], given: list[tuple[str, str]]) -> list[tuple[str, str]]:
        person = PEOPLE[cookies["who"]]
        own = {"x-auth-request-email", "x-auth-request-groups", "x-klaxon-proxy-secret"}
        kept = [(name, value) for name, value in given if name not in own and not name.startswith("sec-websocket") and name not in ("connection", "upgrade")]
        return [*kept, ("X-Auth-Request-Email", person["email"]), ("X-Auth-Request-Groups", ",".join(person["groups"])), ("X-Klaxon-Proxy-Secret", secret)]

    @app.websocket("/{path:path}")
    async def stream(websocket: WebSocket, path: str) -> None:
        spoken = [one.strip() for one in websocket.headers.get("sec-websocket-protocol", "").split(",") if one.strip()]
        sent = [(name, value) for name, value in headers(websocket.cookies, websocket.headers.items()) if name not in ("host", "origin", "user-agent")]
        async with websockets.connect(f"{upstream.replace('http', 'ws', 1)}/{path}", additional_headers=[*sent, ("Host", websocket.headers["host"])],
                                      origin=websocket.headers["origin"], subprotocols=spoken, max_size=None) as above:
            await websocket.accept(subprotocol=above.subprotocol)
            await _both_ways(websocket, above)

    @app.get("/{path:path}")
    async def pass_on(request: Request, path: str) -> Response:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            answer = await client.get(f"{upstream}/{path}", params=request.query_params, headers=headers(request.cookies, request.headers.items()))
        left = {"content-encoding", "content-length", "transfer-encoding", "connection"}
        made = Response(answer.content, status_code=answer.status_code)
        made.raw_headers = [(name.encode(), value.encode()) for name, value in answer.headers.multi_items() if name not in left] + [(b"content-length", str(len(answer.content)).encode())]
        return made

    return app


async def _both_ways(below: WebSocket, above: websockets.ClientConnection) -> None:
    import asyncio

    async def up() -> None:
        with contextlib.suppress(WebSocketDisconnect, websockets.ConnectionClosed):
            while True:
                await above.send(await below.receive_bytes())

    async def down() -> None:
        with contextlib.suppress(WebSocketDisconnect, websockets.ConnectionClosed, RuntimeError):
            async for message in above:
                await below.send_bytes(message)

    tasks = [asyncio.create_task(up()), asyncio.create_task(down())]
    _, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def oidc_file(folder: Path, *, issuer: str, page: str) -> Path:
    """A sign-in file for the provider."""
    (folder / "client-secret").write_text(CLIENT_SECRET + "\n")
    path = folder / "sign-in.toml"
    path.write_text(f'[oidc]\npage_url = "{page}"\nserver_metadata_url = "{issuer}/.well-known/openid-configuration"\nclient_id = "klaxon"\n'
                    f'client_secret_file = "client-secret"\n{ROLES}')
    return path


def header_file(folder: Path) -> Path:
    """A sign-in file for the proxy."""
    (folder / "proxy-secret").write_text(SECRET)
    path = folder / "sign-in.toml"
    path.write_text('[header]\nuser = "X-Auth-Request-Email"\ngroups = "X-Auth-Request-Groups"\nproxies = ["127.0.0.1"]\n'
                    f'secret_header = "X-Klaxon-Proxy-Secret"\nsecret_file = "proxy-secret"\n{ROLES}')
    return path


@contextlib.contextmanager
def launched(log: Path, *options: str, port: int, ready: str = "/_stcore/health", **environ: str) -> Iterator[str]:
    """The page as `klaxon dashboard` starts it, answering."""
    argv = [sys.executable, "-m", "klaxon", "dashboard", "--port", str(port), *options]
    with log.open("wb") as out, subprocess.Popen(argv, env={**os.environ, **environ}, stdout=out, stderr=subprocess.STDOUT) as page:
        try:
            deadline = time.monotonic() + 120
            while True:
                assert page.poll() is None and time.monotonic() < deadline, log.read_text()
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"http://127.0.0.1:{port}{ready}", trust_env=False).status_code == 200:
                        break
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            page.terminate()
