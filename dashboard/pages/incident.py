"""Incident: from the link in the alert to an understood cause. What, where, since when, why, what it costs, what to do, and taking it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import streamlit as st

from dashboard import incident_panels as panels
from dashboard import place, signed
from dashboard.asking import CHARTS_SECONDS, REFRESH_SECONDS, UNREADABLE, connection
from dashboard.access import Person
from dashboard.client import Disconnected, api_url
from dashboard.client_incident import Dossier, Refused, acknowledge, dossier, listing, silence
from dashboard.daemons import Unusable
from dashboard.drawing import header, safely
from dashboard.panels import away
from dashboard.trouble import Trouble
from dashboard.words import clock, plain

log = logging.getLogger("klaxon.dashboard")

LENGTHS = ("30m", "1h", "2h", "8h", "1d", "7d")


@st.cache_data(ttl=REFRESH_SECONDS / 2, max_entries=4, show_spinner=False)
def _listing(base: str) -> list[dict[str, Any]]:
    return listing(connection(base))


@st.cache_data(ttl=REFRESH_SECONDS / 2, max_entries=16, show_spinner=False)
def _dossier(base: str, incident: str) -> Dossier:
    return dossier(connection(base), incident)


def _known() -> tuple[list[dict[str, Any]], Trouble | None]:
    """The incidents there are, or those there were last and what keeps us from knowing."""
    before = st.session_state.get("last-listing", [])
    try:
        found = _listing(api_url())
    except Disconnected as error:
        return before, error.trouble
    if not isinstance(found, list) or not all(isinstance(one, dict) and "id" in one for one in found):
        return before, UNREADABLE
    st.session_state["last-listing"] = found
    return found, None


def _chosen(known: list[dict[str, Any]]) -> str | None:
    """What the address names, else the newest that is open, else the newest."""
    still_open = [item for item in known if item.get("state") != "resolved"]
    return place.incident() or next((str(item["id"]) for item in [*still_open, *known]), None)


def _choose(known: list[dict[str, Any]], chosen: str | None) -> None:
    """The list of incidents; the choice goes into the address."""
    names = {str(item["id"]): f"{item.get('title')} · {item.get('state')} · {clock(item.get('opened_at'), now=0)}" for item in known}
    if len(names) < 2 and chosen in names:
        return
    st.session_state["incident-choice"] = chosen if chosen in names else None
    st.selectbox("Incident", list(names), format_func=names.__getitem__, key="incident-choice", placeholder="Choose an incident",
                 on_change=lambda: place.later(incident=st.session_state["incident-choice"]), label_visibility="collapsed")


@st.fragment(run_every=REFRESH_SECONDS)
def _head(incident: str) -> None:
    """What, where, since when, who has it."""
    found, problem = _look(incident)
    if problem:
        _cut_off(None if found is None else found.shot.status, problem)
    if found is not None:
        safely(panels.headline, found)


@st.fragment(run_every=CHARTS_SECONDS)
def _story(incident: str) -> None:
    """What to do, and why: drawn anew every few seconds."""
    found, _ = _look(incident)
    if found is None:
        return
    safely(panels.next_step, found)
    safely(panels.chart, found)
    safely(panels.why, found)
    safely(panels.impact, found)
    safely(panels.where, found)
    left, right = st.columns(2, gap="medium")
    with left:
        safely(panels.messages, found)
        safely(panels.history, found)
    with right:
        safely(panels.events, found)


def _exists(incident: str) -> bool:
    """False, and said, where the daemon knows no such incident; a daemon that does not answer is left to the page's parts."""
    try:
        _dossier(api_url(), incident)
    except Refused as error:
        _say("unknown", st.warning, ":material/search_off:", "No such incident", f"The daemon says: {plain(error)}.\n\nChoose one from the list above, or see "
             "**Now**. A link from another run belongs to that run's dashboard; incidents older than the newest 50 are found by their id alone.")
        return False
    except Exception:
        return True
    return True


def _look(incident: str) -> tuple[Dossier | None, Trouble | None]:
    """The newest dossier, or the last one that came and why there is no newer."""
    key = "last-dossier"
    before = st.session_state.get(key)
    before = before if before is not None and before.incident.get("id") == incident else None
    try:
        st.session_state[key] = _dossier(api_url(), incident)
        st.session_state["seen_at"] = time.time()
        return st.session_state[key], None
    except Disconnected as error:
        return before, error.trouble
    except Exception:  # the page must stay readable whatever the daemon answers; the log keeps the details
        log.exception("the incident could not be read")
        return before, UNREADABLE


def _cut_off(status: Mapping[str, Any] | None, problem: Trouble) -> None:
    said = away(status, problem, api_url())
    _say("disconnected", st.warning, ":material/cloud_off:", said.title, said.text)


def _nothing(problem: Trouble | None) -> None:
    """No incident to show: not connected, or none yet."""
    if problem:
        _cut_off(None, problem)
    else:
        _say("none", st.success, ":material/check_circle:", "No incident", "Nothing has been found in this run so far. That is health only where Klaxon looks: "
             "**Now** says whether it is still learning and what it cannot see. `klaxon demo --replay` shows what an incident looks like.")


@st.fragment(run_every=REFRESH_SECONDS)
def _wait() -> None:
    """Until there is an incident."""
    known, problem = _known()
    if known and not problem:
        st.rerun()
    _nothing(problem)


@st.fragment
def _act(incident: str) -> None:
    """Take it, or have quiet. Not drawn anew by itself: what is being typed stays."""
    said, done = st.session_state.pop("incident-said", None), st.session_state.setdefault("incident-done", 0)  # a new key closes what was open
    who = signed.person()
    stored = bool(((st.session_state.get("last-dossier") and st.session_state["last-dossier"].shot.status) or {}).get("sealed"))
    if stored or not who.may_act:
        with st.container(horizontal=True, gap="small", vertical_alignment="center", key="act"):
            st.button("Acknowledge", icon=":material/person_check:", disabled=True)
            st.button("Silence", icon=":material/notifications_off:", disabled=True)
            st.caption("A stored run: nothing can be changed here." if stored else "You may look, not act: whoever runs this page lists who is on call.", width="content")
        return
    with st.container(horizontal=True, gap="small", key="act"):
        with st.popover("Acknowledge", icon=":material/person_check:", type="primary", key=f"acknowledge-{done}"), st.form("acknowledge", border=False):
            st.markdown("**I have it.** No repeats and no escalation; those who were told hear who has it.")
            author = _author("ack", who)
            reason = st.text_input("What you are doing about it", key="ack-reason", max_chars=200)
            if st.form_submit_button("Acknowledge", icon=":material/person_check:", type="primary"):
                _do("Acknowledged", author, reason, lambda who, why: acknowledge(connection(api_url()), incident, author=who, reason=why))
        with st.popover("Silence", icon=":material/notifications_off:", key=f"silence-{done}"), st.form("silence", border=False):
            st.markdown("**Tell nobody** about this fault for a while. It is still watched and recorded.")
            author = _author("silence", who)
            reason = st.text_input("Why", key="silence-reason", max_chars=200)
            length = st.selectbox("For", LENGTHS, index=2, key="silence-length")
            if st.form_submit_button("Silence", icon=":material/notifications_off:"):
                _do("Silenced", author, reason, lambda who, why: silence(connection(api_url()), incident, length=length, author=who, reason=why))
    if said:
        with st.container(key="said"):
            st.success(plain(said), icon=":material/check_circle:")


def _author(form: str, who: Person) -> str:
    """Who acts: the signed-in person, else the name that is typed."""
    if not who.name:
        return st.text_input("Your name", key=f"{form}-author", max_chars=60)
    st.caption(f"As **{plain(who.name)}**")
    return who.name


def _do(done: str, author: str, reason: str, act: Any) -> None:
    """Write to the daemon; what came of it is said on the page. Where people sign in, their name counts, whatever the form says."""
    try:
        who, why = signed.author() or author.strip(), reason.strip()
    except Unusable as error:
        st.error(f"Nothing was changed. {plain(error)}.", icon=":material/lock:")
        return
    if not who or not why:
        st.error("Both your name and a reason are needed: whoever comes next reads them.", icon=":material/edit:")
        return
    try:
        act(who, why)
    except (Refused, Disconnected) as error:
        st.error(f"Nothing was changed. {plain(str(error)[:1].upper() + str(error)[1:])}.", icon=":material/error:")
        return
    st.session_state["incident-done"] += 1
    st.session_state["incident-said"] = f"{done} by {who}: {why}"
    _dossier.clear()
    _listing.clear()
    st.rerun()


def _say(state: str, box: Any, icon: str, title: str, text: str) -> None:
    with st.container(key=f"state-{state}"):
        box(f"## {title}\n\n{text}", icon=icon)


header(":material/notifications_active: Incident", windows=False)
_incidents, _problem = _known()
_incident = _chosen(_incidents)
if _incidents:
    _choose(_incidents, _incident)
if _incident is None:
    _wait()
elif _exists(_incident):
    _head(_incident)
    _act(_incident)
    _story(_incident)
