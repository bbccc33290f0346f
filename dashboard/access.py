"""Who may look, and who may act: sign-in settings out of a file, and a person's role out of what the identity provider or the proxy says. Pure but for reading files.

    # sign-in.toml: one of [oidc] and [header], and [roles]
    [oidc]                                 # OpenID Connect
    page_url = "https://klaxon.example.org"          # the page's address as people type it; register page_url/oauth2callback at the provider
    server_metadata_url = "https://id.example.org/.well-known/openid-configuration"
    client_id = "klaxon"
    client_secret_file = "client-secret"             # beside this file unless absolute

    [header]                               # a proxy that has signed the person in
    user = "X-Auth-Request-Email"
    groups = "X-Auth-Request-Groups"                 # optional: names with commas between
    proxies = ["10.1.2.3", "10.9.0.0/16"]            # who may say so; an address or a network
    secret_header = "X-Klaxon-Proxy-Secret"          # the proxy sends it; needed unless every proxy is on loopback
    secret_file = "proxy-secret"

    [roles]
    oncall = ["ada@example.org", "group:sre"]        # may acknowledge and silence
    readers = ["*@example.org"]                      # may look; "*" = everybody who is signed in
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from dashboard.daemons import Unusable, read_secret, read_table

Role = Literal["oncall", "reader"]
LONGEST = 200  # characters of a name or an address
MOST_GROUPS = 500
SECRET_CHARACTERS = 16  # at least, of a secret that proves the proxy
DEFAULT_HOURS = 24.0
ROLE_WORDS: dict[Role, str] = {"oncall": "on call", "reader": "read only"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Oidc:
    """An OpenID provider. `hours`: how long a sign-in lasts."""

    page_url: str
    server_metadata_url: str
    client_id: str
    client_secret_file: str
    cookie_secret_file: str = ""  # empty: a new secret at every start, and everybody signs in anew
    groups_claim: str = "groups"
    scope: str = "openid email profile"
    hours: float = DEFAULT_HOURS


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A proxy that names the person in a header of every request."""

    user: str
    proxies: tuple[str, ...]
    groups: str = ""
    secret_header: str = ""
    secret_file: str = ""
    page_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignIn:
    """One of the two ways, and who may do what."""

    oidc: Oidc | None
    header: Header | None
    oncall: tuple[str, ...]
    readers: tuple[str, ...]

    def role(self, mail: str, groups: Iterable[str] = ()) -> Role | None:
        """What a signed-in person may do; None = nothing.

        >>> who = SignIn(oidc=None, header=None, oncall=("Ada@x.org", "group:sre"), readers=("*@x.org",))
        >>> who.role("ada@x.org"), who.role("bob@x.org"), who.role("eve@y.org"), who.role("eve@y.org", ["sre"])
        ('oncall', 'reader', None, 'oncall')
        """
        if mail.casefold().startswith("group:") or "*" in mail:  # a name somebody gave himself to pass for a line of the list
            mail = ""
        said = {mail.casefold(), *(f"group:{name}".casefold() for name in groups), "*"} - {""}
        if "@" in mail:
            said.add("*@" + mail.casefold().rpartition("@")[2])
        for role, listed in (("oncall", self.oncall), ("reader", self.readers)):
            if said & {one.casefold() for one in listed}:
                return role
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Who looks at the page. `name` is what acknowledgements and silences carry; empty where nobody signs in (loopback)."""

    name: str
    role: Role | None

    @property
    def may_act(self) -> bool:
        """May acknowledge and silence."""
        return self.role == "oncall"


def from_claims(claims: Mapping[str, Any], settings: SignIn) -> Person:
    """The person of an ID token's claims. An e-mail the provider says is not verified counts for nothing.

    >>> settings = SignIn(oidc=Oidc(page_url="", server_metadata_url="", client_id="", client_secret_file=""), header=None, oncall=("ada@x.org",), readers=())
    >>> from_claims({"name": "Ada", "email": "ada@x.org"}, settings).name
    'Ada (ada@x.org)'
    >>> from_claims({"name": "Ada", "email": "ada@x.org", "email_verified": False, "sub": "7"}, settings)
    Person(name='Ada (7)', role=None)
    """
    mail = _line(claims.get("email")) if claims.get("email_verified", True) in (True, "true") else ""
    told = claims.get(settings.oidc.groups_claim if settings.oidc else "groups")
    groups = [told] if isinstance(told, str) else [one for one in told if isinstance(one, str)][:MOST_GROUPS] if isinstance(told, Sequence) else []
    known, name = mail or _line(claims.get("sub")), _line(claims.get("name"))
    return Person(name=f"{name} ({known})"[:LONGEST] if name and name != known else known, role=settings.role(mail, groups))


def from_headers(headers: Sequence[tuple[str, str]], settings: SignIn) -> Person:
    """The person the proxy names; whether it was the proxy is `not_the_proxy`'s question. `headers`: names and values."""
    header = settings.header
    user = _line(_one(headers, header.user)) if header else ""
    groups = [one.strip() for one in (_one(headers, header.groups) or "").split(",") if one.strip()][:MOST_GROUPS] if header and header.groups else []
    return Person(name=user, role=settings.role(user, groups) if user else None)


def not_the_proxy(peer: str | None, headers: Sequence[tuple[str, str]], header: Header, *, secret: str) -> str:
    """Why a request is not believed to come from the trusted proxy; empty = it is. `peer`: the other end of the connection."""
    if not _among(peer, header.proxies):
        return "this page is reached through its proxy only"
    if header.secret_header:
        given = _one(headers, header.secret_header)
        if not given or not hmac.compare_digest(given.encode(), secret.encode()):
            return "the proxy's secret is missing or wrong"
    if not _line(_one(headers, header.user)):
        return f"the proxy named nobody in {header.user}, or named more than one"
    return ""


def read(path: Path) -> SignIn:
    """The settings of a file. Raises: Unusable, with what to do."""
    said = read_table(path)
    if unknown := sorted(set(said) - {"oidc", "header", "roles"}):
        raise Unusable(f"{path}: {unknown[0]} is unknown; [oidc] or [header], and [roles] are known")
    if len({"oidc", "header"} & set(said)) != 1:
        raise Unusable(f"{path}: needs either [oidc] or [header], and not both")
    roles = _table(said.get("roles", {}), {"oncall", "readers"}, where=f"{path}: [roles]")
    lists = {name: _names(roles.get(name, []), where=f"{path}: [roles] {name}") for name in ("oncall", "readers")}
    if not any(lists.values()):
        raise Unusable(f"{path}: [roles] lets nobody in; list e-mails, \"*@example.org\", \"group:NAME\" or \"*\" in oncall and readers")
    found = SignIn(oidc=_oidc(said["oidc"], path) if "oidc" in said else None, header=_header(said["header"], path) if "header" in said else None, **lists)
    return found


def is_loopback(address: str) -> bool:
    """Does a server on this address hear its own machine only?

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0"), is_loopback("")
    (True, True, True, False, False)
    """
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _oidc(said: Any, path: Path) -> Oidc:
    where = f"{path}: [oidc]"
    table = _table(said, set(Oidc.__dataclass_fields__), where=where)
    for key in ("page_url", "server_metadata_url"):
        table[key] = _web(table.get(key), where=f"{where} {key}", path=key != "page_url")
    for key in ("client_id", "client_secret_file"):
        _text(table.get(key), where=f"{where} {key}")
    for key in ("client_secret_file", "cookie_secret_file"):
        if table.get(key):
            table[key] = str(path.parent.resolve() / _text(table[key], where=f"{where} {key}"))
            read_secret(table[key], where=f"{where} {key}")
    hours = table.get("hours", DEFAULT_HOURS)
    if not isinstance(hours, (int, float)) or isinstance(hours, bool) or not 0 < hours <= 720:
        raise Unusable(f"{where} hours: a number above 0 and at most 720 is expected")
    return Oidc(**{**table, "hours": float(hours)})


def _header(said: Any, path: Path) -> Header:
    where = f"{path}: [header]"
    table = _table(said, set(Header.__dataclass_fields__), where=where)
    for key in ("user", "groups", "secret_header"):
        if key == "user" or table.get(key):
            if not all(sign.isalnum() or sign == "-" for sign in _text(table.get(key), where=f"{where} {key}")):
                raise Unusable(f"{where} {key}: {table[key]!r} is no name of a header")
    table["proxies"] = _names(table.get("proxies"), where=f"{where} proxies")
    try:
        nets = [ipaddress.ip_network(one, strict=False) for one in table["proxies"]]
    except ValueError as error:
        raise Unusable(f"{where} proxies: {error}; addresses like 10.1.2.3 or networks like 10.9.0.0/16 are expected") from None
    if not nets:
        raise Unusable(f"{where} proxies: name the addresses the proxy connects from, or anybody could name himself")
    if bool(table.get("secret_header")) != bool(table.get("secret_file")):
        raise Unusable(f"{where}: secret_header and secret_file belong together")
    if table.get("secret_file"):
        table["secret_file"] = str(path.parent.resolve() / _text(table["secret_file"], where=f"{where} secret_file"))
        if len(read_secret(table["secret_file"], where=f"{where} secret_file")) < SECRET_CHARACTERS:
            raise Unusable(f"{where} secret_file: at least {SECRET_CHARACTERS} characters; `openssl rand -hex 32` makes some")
    elif not all(net.is_loopback for net in nets):
        raise Unusable(f"{where}: a proxy on another machine must prove itself: set secret_header and secret_file, or let it run on this machine with proxies = [\"127.0.0.1\"]")
    if table.get("page_url"):
        table["page_url"] = _web(table["page_url"], where=f"{where} page_url", path=False)
    return Header(**table)


def _table(said: Any, known: set[str], *, where: str) -> dict[str, Any]:
    if not isinstance(said, Mapping):
        raise Unusable(f"{where}: a table is expected")
    if unknown := sorted(set(said) - known):
        raise Unusable(f"{where} {unknown[0]} is unknown; {', '.join(sorted(known))} are known")
    return dict(said)


def _names(said: Any, *, where: str) -> tuple[str, ...]:
    if not isinstance(said, list) or not all(isinstance(one, str) and one.strip() for one in said):
        raise Unusable(f"{where}: a list of texts is expected")
    if odd := [one for one in said if "*" in one and one != "*" and not (one.startswith("*@") and "*" not in one[1:])]:
        raise Unusable(f"{where}: {odd[0]!r}: only \"*\" and \"*@example.org\" stand for many")
    return tuple(one.strip() for one in said)


def _text(said: Any, *, where: str) -> str:
    if not isinstance(said, str) or not said.strip():
        raise Unusable(f"{where}: is missing")
    return said.strip()


def _web(said: Any, *, where: str, path: bool) -> str:
    text = _text(said, where=where).rstrip("/")
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (path or not parts.path) and not parts.query
    except ValueError:
        usable = False
    if not usable:
        raise Unusable(f"{where}: {text!r} is no address such as https://klaxon.example.org")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise Unusable(f"{where}: {text} would carry sign-ins unencrypted; https is needed off this machine")
    return text


def _one(headers: Sequence[tuple[str, str]], name: str) -> str | None:
    """The value of a header that is there once; None = not there, or more than once."""
    found = [value for key, value in headers if key.lower() == name.lower()]
    return found[0] if len(found) == 1 else None


def _among(peer: str | None, proxies: Sequence[str]) -> bool:
    try:
        address = ipaddress.ip_address((peer or "").partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in ipaddress.ip_network(one, strict=False) for one in proxies)


def _line(said: Any) -> str:
    text = " ".join(said.split()) if isinstance(said, str) else ""
    return text[:LONGEST] if text.isprintable() else ""
