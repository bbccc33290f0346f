"""Ask a running daemon, for the command line and for scripts; with the token of KLAXON_TOKEN where there is one.

An address is http://host:port, https://host:port, or unix:///path/to/klaxon.sock: the taps' socket answers the same questions.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx

from collector.errors import InputError, Unavailable

DEFAULT_URL = "http://127.0.0.1:8765"
TIMEOUT_SECONDS = 10.0


def get_json(url: str, path: str, **params: Any) -> Any:
    """GET a JSON document of the read API.

    Raises:
        Unavailable: nobody answers there, or the answer is an error.
        InputError: somebody else answers there.
    """
    response = _get(url, path, **params)
    try:
        return response.json()
    except ValueError:
        raise InputError(f"what answers {path} is no JSON: that is another program, not a Klaxon daemon", where=url) from None


def get_bytes(url: str, path: str, **params: Any) -> bytes:
    """GET a body of the read API (Arrow). Raises as `get_json`."""
    return _get(url, path, **params).content


def post_json(url: str, path: str, body: Any) -> Any:
    """POST a question to the read API and return the JSON answer. Raises as `get_json`."""
    return _asked("POST", url, path, json=body).json()


def write_json(method: str, url: str, path: str, body: Any = None) -> Any:
    """POST or DELETE; returns the JSON answer.

    Raises:
        Unavailable: nobody answers there, or the daemon wants another token.
        InputError: the daemon says what is wrong with the request.
    """
    return _asked(method, url, path, **({} if body is None else {"json": body})).json()


def post_message(url: str, message: dict[str, Any]) -> None:
    """Hand one message to POST /v1/ingest, with the token of KLAXON_TOKEN where there is one.

    Raises:
        Unavailable: nobody answers there, or the daemon refuses it.
        InputError: the daemon cannot read the message.
    """
    try:
        with _open(url) as client:
            response = client.post("/v1/ingest", content=json.dumps(message).encode())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(_NOBODY.format(url=url, error=type(error).__name__)) from None
    if response.status_code != 202:
        raise Unavailable(f"{url} refuses it ({response.status_code}): {response.text[:200]}")
    if response.json().get("refused"):
        raise InputError("the daemon could not read it; `klaxon status` counts it", where=url)


_NOBODY = "no Klaxon daemon answers at {url} ({error}); start one with `klaxon run`, or name its address with --url"


def _token() -> dict[str, str]:
    token = os.environ.get("KLAXON_TOKEN", "")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _open(url: str) -> httpx.Client:
    """A client of one address. Raises Unavailable: it names a socket that is not there."""
    common: dict[str, Any] = {"headers": _token(), "timeout": TIMEOUT_SECONDS, "trust_env": False}
    if url.startswith("unix://"):
        path = url.removeprefix("unix://")
        if not Path(path).is_socket():
            raise Unavailable(_NOBODY.format(url=url, error="there is no such socket"))
        return httpx.Client(base_url="http://klaxon", transport=httpx.HTTPTransport(uds=path), **common)
    return httpx.Client(base_url=url.rstrip("/"), **common)


def _get(url: str, path: str, **params: Any) -> httpx.Response:
    return _asked("GET", url, path, params=params)


def _asked(method: str, url: str, path: str, **how: Any) -> httpx.Response:
    try:
        with _open(url) as client:
            response = client.request(method, path, **how)
        response.raise_for_status()
        response.headers["content-type"].encode("ascii")
    except httpx.HTTPStatusError as error:
        if (said := _said(error.response)) is not None:
            raise (InputError(said) if error.response.status_code in (400, 404, 422) else Unavailable(f"{url}: {said}")) from None
        raise Unavailable(f"{url}{path} answered {error.response.status_code}: is that a Klaxon daemon?") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(_NOBODY.format(url=url, error=type(error).__name__)) from None
    except KeyError:
        raise InputError("the answer has no content type: is that a Klaxon daemon?", where=url) from None
    return response


def _said(response: httpx.Response) -> str | None:
    """What a Klaxon daemon says is wrong; None when it is none of ours that answers."""
    try:
        said = response.json()
    except ValueError:
        return None
    return str(said["error"]) if isinstance(said, dict) and "error" in said else None
