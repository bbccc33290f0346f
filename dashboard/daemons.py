"""The daemons the page shows: from `--api`, or a file; carried to the page's process in its environment, without their tokens.

    # daemons.toml (JSON with the same names will do)
    [[daemons]]
    name = "grpo-7b"                       # best the run's own [run] name: links of its alerts then lead here at once
    url = "https://gpu-12.example.org:8765"
    token_file = "grpo-7b.token"           # what the daemon asks for off its own machine; beside this file unless absolute
    ca_file = "ca.pem"                     # who signed the daemon's certificate, where the system does not know
"""

from __future__ import annotations

import json
import os
import ssl
import tomllib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

DEFAULT_API = "http://127.0.0.1:8765"
KNOWN = ("name", "url", "token_file", "ca_file")
LONGEST_NAME = 100  # characters


class Unusable(Exception):
    """What the user gave cannot be used; the text says what, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """One daemon's read API. `name` is what people call it and `run=` in the address; empty for the only one of `--api URL`."""

    name: str
    url: str
    token_file: str = ""
    ca_file: str = ""
    from_file: bool = False  # then KLAXON_TOKEN is not for it: one daemon's token is never shown to another

    @property
    def shown(self) -> str:
        """What to call it on the page, not escaped."""
        return self.name or self.url


def from_flags(given: Sequence[str]) -> tuple[Daemon, ...]:
    """`--api` as given: URL alone, or NAME=URL, which more than one needs.

    >>> [(one.name, one.url) for one in from_flags(["a=http://h:1/", "b=http://h:2"])]
    [('a', 'http://h:1'), ('b', 'http://h:2')]

    Raises:
        Unusable: no URL, no name, or a name twice.
    """
    found = []
    for text in given:
        name, sign, url = text.partition("=")
        named = bool(sign) and "://" not in name
        if not named and len(given) > 1:
            raise Unusable(f"--api {text}: with more than one daemon each needs a name: --api NAME=URL")
        found.append(_daemon({"name": name, "url": url} if named else {"url": text}, where=f"--api {text}", named=named))
    return _distinct(found, where="--api")


def from_file(path: Path) -> tuple[Daemon, ...]:
    """The daemons of a TOML or JSON file. Raises: Unusable."""
    said = read_table(path)
    listed = said.get("daemons")
    if unknown := sorted(set(said) - {"daemons"}):
        raise Unusable(f"{path}: {unknown[0]} is unknown; the file lists [[daemons]] with {', '.join(KNOWN)}")
    if not isinstance(listed, list) or not listed:
        raise Unusable(f"{path}: lists no daemon; write [[daemons]] with a name and a url for each")
    found = []
    for number, one in enumerate(listed, start=1):
        where = f"{path}: daemon {number}"
        if not isinstance(one, Mapping):
            raise Unusable(f"{where}: a table with {', '.join(KNOWN)} is expected")
        if unknown := sorted(set(one) - set(KNOWN)):
            raise Unusable(f"{where}: {unknown[0]} is unknown; {', '.join(KNOWN)} are known")
        beside = {key: str(path.parent.resolve() / str(one[key])) for key in ("token_file", "ca_file") if one.get(key)}
        found.append(_daemon({**one, **beside}, where=where, named=True, from_file=True))
    return _distinct(found, where=str(path))


def read_table(path: Path) -> dict[str, Any]:
    """A TOML file, or JSON where it is named so. Raises: Unusable."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise Unusable(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise Unusable(f"{path}: is no {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from None
    if not isinstance(found, dict):
        raise Unusable(f"{path}: a table is expected, not {type(found).__name__}")
    return found


def read_secret(path: str, *, where: str) -> str:
    """The one line of a file that holds a secret. Raises: Unusable."""
    try:
        found = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise Unusable(f"{where}: {path} cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from None
    if not found or not found.isprintable() or not found.isascii():
        raise Unusable(f"{where}: {path} must hold one line of printable ASCII")
    return found


def environment(daemons: Sequence[Daemon]) -> dict[str, str]:
    """What the page's process is told; `configured` is its inverse."""
    if len(daemons) == 1 and not daemons[0].name:
        return {"KLAXON_API": daemons[0].url, "KLAXON_DAEMONS": ""}
    return {"KLAXON_API": daemons[0].url, "KLAXON_DAEMONS": json.dumps([asdict(one) for one in daemons])}


def configured() -> tuple[Daemon, ...]:
    """The daemons this page shows: KLAXON_DAEMONS, else the one at KLAXON_API."""
    if told := os.environ.get("KLAXON_DAEMONS"):
        return tuple(Daemon(**one) for one in json.loads(told))
    return (Daemon(name="", url=os.environ.get("KLAXON_API", DEFAULT_API).rstrip("/")),)


def connect(daemon: Daemon, *, timeout_seconds: float) -> httpx.Client:
    """A connection with the daemon's token and certificate. Raises: Unusable."""
    verify: ssl.SSLContext | bool = True
    if daemon.ca_file:
        try:
            verify = ssl.create_default_context(cafile=daemon.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise Unusable(f"{daemon.shown}: ca_file {daemon.ca_file} cannot be used ({error.strerror or error})") from None
    return httpx.Client(base_url=daemon.url, timeout=timeout_seconds, trust_env=False, auth=_Token(daemon), verify=verify)


class _Token(httpx.Auth):
    """The daemon's token, read anew for every request, so that a new one needs no restart of the page."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        daemon = self._daemon
        try:
            token = read_secret(daemon.token_file, where=daemon.shown) if daemon.token_file else "" if daemon.from_file else os.environ.get("KLAXON_TOKEN", "")
        except Unusable:
            token = ""  # the daemon then says what it misses
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        yield request


def _daemon(said: Mapping[str, Any], *, where: str, named: bool, from_file: bool = False) -> Daemon:
    name, url = said.get("name", ""), said.get("url", "")
    if named and (not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME or not name.isprintable()):
        raise Unusable(f"{where}: needs a name of at most {LONGEST_NAME} printable characters")
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        usable = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and parts.username is None
    except ValueError:
        usable = False
    if not usable:
        raise Unusable(f"{where}: {url!r} is no address of a daemon; one looks like {DEFAULT_API}")
    token_file = str(said.get("token_file") or "")
    if token_file:
        read_secret(token_file, where=where)
    found = Daemon(name=str(name).strip(), url=url.rstrip("/"), token_file=token_file, ca_file=str(said.get("ca_file") or ""), from_file=from_file)
    connect(found, timeout_seconds=1.0).close()
    return found


def _distinct(found: Sequence[Daemon], *, where: str) -> tuple[Daemon, ...]:
    for part, values in (("name", [one.name for one in found]), ("url", [one.url for one in found])):
        if twice := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
            raise Unusable(f"{where}: the {part} {twice[0]} is given twice")
    return tuple(found)
