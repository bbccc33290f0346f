"""Ask a running daemon, for the command line."""

from __future__ import annotations

from typing import Any

import httpx

from collector.errors import InputError, Unavailable

DEFAULT_URL = "http://127.0.0.1:8765"


def get_json(url: str, path: str) -> Any:
    """GET a JSON document of the read API.

    Raises:
        Unavailable: nobody answers there, or the answer is an error.
        InputError: somebody else answers there.
    """
    return _get(url, path).json()


def get_bytes(url: str, path: str, **params: Any) -> bytes:
    """GET a body of the read API (Arrow). Raises as `get_json`."""
    return _get(url, path, **params).content


def _get(url: str, path: str, **params: Any) -> httpx.Response:
    try:
        response = httpx.get(url.rstrip("/") + path, params=params, timeout=10.0, trust_env=False)
        response.raise_for_status()
        response.headers["content-type"].encode("ascii")
    except httpx.HTTPStatusError as error:
        raise Unavailable(f"{url}{path} answered {error.response.status_code}: is that a Klaxon daemon?") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(f"no Klaxon daemon answers at {url} ({type(error).__name__}); start one with `klaxon run`, "
                          "or name its address with --url") from None
    except KeyError:
        raise InputError("the answer has no content type: is that a Klaxon daemon?", where=url) from None
    return response
