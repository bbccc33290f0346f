"""Who looks at this page, as Streamlit knows it: the gate before every page, and the corner that says who is signed in."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from pathlib import Path

import streamlit as st

from dashboard.access import ROLE_WORDS, Person, SignIn, from_claims, from_headers, not_the_proxy, read
from dashboard.daemons import Unusable, read_secret
from dashboard.launch import SETTINGS
from dashboard.words import plain

AGAIN_SECONDS = 60.0
LOCAL = Person(name="", role="oncall")


def person() -> Person:
    """Who it is, read anew: a role taken away in the file counts from the next look on. Raises: Unusable, with why nobody is let in."""
    path = os.environ.get(SETTINGS, "")
    if not path:
        return LOCAL
    settings = _settings(path)
    return _by_header(settings) if settings.header else _by_oidc(settings)


def require() -> None:
    """Let the reader in, or say why not and stop the page."""
    try:
        found = person()
    except Unusable as error:
        _closed("Sign-in is out of order", f"{plain(error)}. Nobody is let in until this is mended; the file is read anew every time.")
    if not found.name and found is not LOCAL:
        _ask()
    if found.role is None:
        _closed("You are not on the list", f"You are signed in as **{plain(found.name)}**, who may not see this page. Whoever runs it can add you to `[roles]` in its sign-in file.")
    if found is not LOCAL:
        with st.sidebar:
            _corner()


def author() -> str:
    """The signed-in person's name; empty where nobody signs in. Raises: Unusable where this person may not act (any more)."""
    found = person()
    if not found.may_act:
        raise Unusable(f"{found.name or 'You'} may look, not act: [roles] oncall in the page's sign-in file lists who may")
    return found.name


@lru_cache(maxsize=4)
def _read(path: str, changed: int) -> SignIn:
    return read(Path(path))


def _settings(path: str) -> SignIn:
    try:
        return _read(path, os.stat(path).st_mtime_ns)
    except OSError as error:
        raise Unusable(f"{path}: cannot be read ({error.strerror})") from None


def _by_oidc(settings: SignIn) -> Person:
    if not st.user.is_logged_in:
        return Person(name="", role=None)
    claims = st.user.to_dict()
    signed_at = claims.get("iat")
    if not isinstance(signed_at, (int, float)) or time.time() - signed_at > 3600 * settings.oidc.hours:
        return Person(name="", role=None)
    return from_claims(claims, settings)


def _by_header(settings: SignIn) -> Person:
    """The guard before the page has looked already (dashboard/guard.py); this looks again, so that a page without the guard lets nobody in."""
    header = settings.header
    headers = [(key, value) for key in dict.fromkeys(key.lower() for key in st.context.headers) for value in st.context.headers.get_all(key)]
    secret = read_secret(header.secret_file, where="[header] secret_file") if header.secret_file else ""
    peers = [st.context.ip_address] if st.context.ip_address else ["127.0.0.1", "::1"]  # Streamlit does not say which loopback it was
    if all(reasons := [not_the_proxy(peer, headers, header, secret=secret) for peer in peers]):
        raise Unusable(reasons[0])
    return from_headers(headers, settings)


@st.fragment(run_every=AGAIN_SECONDS)
def _corner() -> None:
    try:
        found = person()
    except Unusable:
        st.rerun()
    if found.role is None:
        st.rerun()
    with st.container(key="person", gap=None):
        st.caption(f":material/person: **{plain(found.name)}**, {ROLE_WORDS[found.role]}")
        if _is_oidc() and st.button("Sign out", icon=":material/logout:", type="tertiary"):  # no callback: what that sends can be lost
            st.logout()


def _is_oidc() -> bool:
    return _settings(os.environ[SETTINGS]).oidc is not None


def _ask() -> None:
    with st.container(key="state-signed-out", width=460):
        st.markdown("## Klaxon\n\nSign in to see this run. You come back to the link you opened.")
        if st.button("Sign in", icon=":material/login:", type="primary"):
            st.login()
    st.stop()


def _closed(title: str, text: str) -> None:
    with st.container(key="state-closed"):
        st.error(f"## {title}\n\n{text}", icon=":material/lock:")
        if os.environ.get(SETTINGS) and st.user.get("is_logged_in") and st.button("Sign out", icon=":material/logout:"):
            st.logout()
    st.stop()
