"""Which of several runs the reader looks at: `run` in the address, and the list to choose from in the sidebar."""

from __future__ import annotations

import streamlit as st

from dashboard import place
from dashboard.daemons import Daemon, configured
from dashboard.fleet import EVERY_SECONDS, Fleet
from dashboard.words import plain

_CHOICE, _CHOSEN, _BEFORE = "place-run-choice", "place-run-chosen", "place-daemon"
PATIENCE_SECONDS = 3.0  # for a daemon to say which run it watches, where a link names a run by that


@st.cache_resource
def _fleet(daemons: tuple[Daemon, ...]) -> Fleet:
    return Fleet(daemons)


def named(run: str, daemons: tuple[Daemon, ...]) -> Daemon | None:
    """The daemon called `run` here, else the one that says it watches the run of that name; None = there is none."""
    if not run:
        return daemons[0]
    if found := next((one for one in daemons if one.name == run), None):
        return found
    known = _fleet(daemons).look(patience_seconds=PATIENCE_SECONDS)
    if found := next((one for one in daemons if known[one.url].run == run), None):
        return found
    alone = daemons[0] if len(daemons) == 1 and not daemons[0].name else None
    return alone if alone is not None and not known[alone.url].run else None  # one that is away may well be it


def here() -> Daemon:
    """The daemon of the run the address names; the first where it names none."""
    daemons = configured()
    return named(place.run(), daemons) or daemons[0]


def enter() -> bool:
    """Called once a run, before anything is asked. False, and said, where the address names a run that is not here; what was kept of
    another run is forgotten."""
    daemons = configured()
    found = named(place.run(), daemons)
    if found is None:
        _unknown(daemons)
        return False
    if st.session_state.get(_BEFORE, found.url) != found.url:
        for key in [key for key in st.session_state if not str(key).startswith("place-")]:
            del st.session_state[key]
    st.session_state[_BEFORE] = found.url
    if len(daemons) > 1:
        with st.sidebar:
            _list()
    return True


@st.fragment(run_every=EVERY_SECONDS)
def _list() -> None:
    daemons = configured()
    known, current = _fleet(daemons).look(patience_seconds=0.5), here()
    st.session_state[_CHOICE] = current.name
    st.radio("Runs", [one.name for one in daemons], format_func=plain, key=_CHOICE, captions=[known[one.url].text() for one in daemons], on_change=_choose,
             help="Every daemon this page was started with. The choice is kept in the address.")
    if st.session_state.pop(_CHOSEN, False):
        st.rerun()  # the whole page: everything on it is of another run


def _choose() -> None:
    """Another run: the page and the time range stay, an incident or a slice of the old run does not."""
    place.later(**{**dict.fromkeys(place.KEYS), "run": st.session_state[_CHOICE], "window": place.window()})
    st.session_state[_CHOSEN] = True


def _unknown(daemons: tuple[Daemon, ...]) -> None:
    known = _fleet(daemons).look()
    with st.container(key="state-unknown-run"):
        st.warning(f"## No such run\n\nThe address names the run **{plain(place.run())}**, which is not among the daemons of this page. Choose one below. To see that run, "
                   "start the page with its daemon too: `klaxon dashboard --api NAME=URL`, or name it in the file of `--daemons`.", icon=":material/search_off:")
    for one in daemons:
        run = one.name or known[one.url].run
        place.link("now", f"**{plain(run or one.url)}** · {known[one.url].text()}", run=run or None, incident=None, slice=None)
