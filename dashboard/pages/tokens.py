"""Tokens: the rollouts furthest off, and one of them token by token, coloured by d. What a model wrote is hostile: it is only ever text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pandas as pd
import streamlit as st

from dashboard import frame, place, slice_words, token_charts, token_view, token_words
from dashboard.asking import connection
from dashboard.client import Disconnected, api_url
from dashboard.client_incident import Refused, read
from dashboard.frame import REFRESH_SECONDS, Seen, download, nothing, safely, tiles, title
from dashboard.words import clock, number, plain

MOST = 15  # rollouts listed
KEYS = ("replica", "position", "version", "cached", "env", "turn")
KINDS = {"worst": "Furthest off", "ordinary": "Ordinary, by chance", "all": "Both"}
MORE = {"off": "`[store] tokens = \"off\"` keeps nothing a token. `numbers` keeps logprobs, entropy and rank of a few rollouts a batch; `hashes`, `ids` and `text` open more.",
        "numbers": "Numbers only: `[store] tokens = \"numbers\"` keeps no ids and no text. `hashes` shows which tokens are equal, `ids` and `text` what they are, "
                   "from the next batch on. Until then each box is a token.",
        "hashes": "Keyed hashes in place of the text: equal tokens have equal hashes. `[store] tokens = \"ids\"` or `\"text\"` opens more, from the next batch on.",
        "ids": "Token ids in place of the text: `[store] tokens = \"text\"` opens it, from the next batch on."}


@st.cache_data(ttl=60, max_entries=16, show_spinner=False)
def _tokens(base: str, rollout: str) -> dict[str, Any]:
    """One kept rollout. Raises Refused or Disconnected."""
    return read(connection(base), f"/v1/tokens/{quote(rollout, safe='')}")


def _go(rollout: str | None) -> None:
    """Look at this one from the next run on: an address set in a callback reaches the browser one run late."""
    st.session_state["rollout_next"] = rollout


def _clicked(key: str) -> None:
    picked = ((st.session_state.get(key) or {}).get("selection") or {}).get("pick") or []
    if picked and picked[0].get("rollout"):
        _go(str(picked[0]["rollout"]))


def _asked(seen: Seen, kind: str) -> dict[str, Any]:
    """What is asked of the daemon: an incident stands in place of the window."""
    only = tuple(f"{key}={value}" for key, value in slice_words.known(place.slice_()).items() if key in KEYS)
    if (incident := place.incident()) is not None:
        return {"incident": incident, "only": only, "kind": kind, "limit": MOST}
    return {"start": seen.start, "only": only, "kind": kind, "limit": MOST}


@st.fragment(run_every=REFRESH_SECONDS)
def _list(window: str) -> None:
    """Which rollouts there are; a choice, or the first one that comes, draws the page anew."""
    if "rollout_next" in st.session_state:
        place.go(rollout=st.session_state.pop("rollout_next"))
        st.rerun()
    seen = frame.look(window)
    if seen is None:
        return
    safely(_filter)
    kind = st.segmented_control("Which rollouts", list(KINDS), format_func=KINDS.__getitem__, default="worst", key="tokens_kind", required=True, label_visibility="collapsed",
                                help="Of each batch a few rollouts keep their tokens: those furthest off, and some drawn by chance to compare with")
    found = safely(_listed, seen, kind)
    names = [] if found is None else [str(one) for one in found["request"]]
    fresh = bool(names) and not st.session_state.get("tokens_names") and place.rollout() is None
    st.session_state["tokens_names"], st.session_state["tokens_status"] = names, dict(seen.status)
    if fresh and st.session_state.get("tokens_shown") is None:
        st.rerun()


def _listed(seen: Seen, kind: str) -> pd.DataFrame:
    found = frame.table("/v1/tokens", **_asked(seen, kind))
    with st.container(border=True, key="chart-worst"):
        head = title("Worst rollouts", "The kept rollouts by how far off they are: the sum of |log q − log p| over (scored tokens + 16), so that one odd token of a short answer "
                     "does not outweigh a long answer that is off throughout. Click one to read it.")
        if found.empty:
            nothing(_why_empty(seen))
            return found
        chosen = place.rollout() or str(found["request"].iloc[0])
        if (known := int(found["of"].iloc[0])) > len(found):
            st.caption(f"The first {len(found)} of {known:,}.")
        key = f"plot-worst-{st.session_state.get('tokens_round', 0)}"
        st.vega_lite_chart(token_charts.worst_rows(found, chosen), token_charts.worst(), width="stretch", key=key, on_select=lambda: _clicked(key), selection_mode="pick",
                           alt="Kept rollouts by shrunk mean |d|, nats")
        download(head, lambda: found.assign(versions=[", ".join(map(str, one)) for one in found["versions"]]), "worst-rollouts")
    return found


def _filter() -> None:
    """What the list is narrowed to, and the way back."""
    slice_, incident = slice_words.known(place.slice_()), place.incident()
    left_out = {key: value for key, value in slice_.items() if key not in KEYS}
    if not slice_ and incident is None:
        return
    said = [f"since the change of incident **{plain(incident)}**"] if incident else []
    said += [f"**{plain(slice_words.say({key: value}))}**" for key, value in slice_.items() if key in KEYS]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f":material/filter_alt: Only {', '.join(said) or 'the window'}."
                    + (f" {plain(slice_words.say(left_out))} is no property of a whole rollout: not narrowed by it." if left_out else ""), width="content")
        if st.button("Show everything", key="tokens_off", icon=":material/filter_alt_off:", type="tertiary"):
            place.go(incident=None, slice=None)
            st.rerun()


def _why_empty(seen: Seen) -> str:
    storage = seen.status.get("storage") or {}
    if storage.get("tokens") == "off":
        return "Nothing is kept a token: set [store] tokens = \"numbers\" (or hashes, ids, text) in config.toml and restart the daemon."
    if place.incident() or slice_words.known(place.slice_()):
        return (f"No kept rollout fits. Show everything, or look further back; they are kept for {number(storage.get('tokens_ttl_days'))} days ([store] tokens_ttl_days).")
    if seen.status.get("tier") == 0:
        return "Tier 0 has no trainer logprobs to compare with: set [weights] for the shadow scorer, or let the trainer push its logprobs."
    return "No rollout's tokens are kept in this window yet: the first come when a batch with compared rollouts closes. Look further back, or see on Now what Klaxon waits for."


@st.fragment
def _rollout() -> None:
    """The chosen rollout. Not drawn anew by itself: what is being read stays."""
    if "rollout_next" in st.session_state:
        st.rerun()
    names: list[str] = st.session_state.get("tokens_names") or []
    chosen = place.rollout() or (names[0] if names else None)
    st.session_state["tokens_shown"] = chosen
    if chosen is None:
        return
    _steps(names, chosen)
    try:
        found = _tokens(api_url(), chosen)
    except Refused as error:
        with st.container(key="state-unknown"):
            st.warning(f"**No such rollout** The daemon says: {plain(error)}. Choose one from the list above.", icon=":material/search_off:")
        return
    except Disconnected as error:
        st.warning(f"This rollout is not there: {plain(error)}.", icon=":material/cloud_off:")
        return
    safely(_facts, found)
    safely(_read, found)
    safely(_along, found)


def _steps(names: list[str], chosen: str) -> None:
    """Previous and next, by button and by key."""
    at = names.index(chosen) if chosen in names else None
    with st.container(horizontal=True, vertical_alignment="center", key="steps"):
        for label, key, step, icon in (("Previous", "P", -1, ":material/arrow_back:"), ("Next", "N", 1, ":material/arrow_forward:")):
            to = (at + step) if at is not None else 0
            there = 0 <= to < len(names) and names[to] != chosen
            st.button(label, key=f"tokens_{label.lower()}", icon=icon, shortcut=key, disabled=not there, on_click=_go, args=(names[to] if there else chosen,))
        st.markdown(f"Rollout `{''.join(sign for sign in chosen if sign.isalnum())[:24]}`" + (f" · {at + 1} of {len(names)}" if at is not None else " · not in the list above"), width="content")


def _facts(found: Mapping[str, Any]) -> None:
    source = {"shadow": "Klaxon's scorer under the generating weights", "trainer": "the trainer's own logprobs"}.get(str(found.get("source")), "unknown")
    now = float((st.session_state.get("tokens_status") or {}).get("now") or found["kept_at"])
    tiles([("Mean |d|", f"{number(found['mean_abs_d'])} nats", f"largest {number(found['max_abs_d'])}", "Mean of |log q − log p| over the rollout's scored tokens."),
           ("Tokens", f"{found['n_scored']:,}", f"scored of {found['n_tokens']:,}; prompt {found['n_prompt']:,}", "Completion tokens with a logprob on both sides."),
           ("Weight version", ", ".join(map(str, found["versions"])) or "unknown", f"q: {source}", "The weights that generated the tokens, and whose logprobs the engine is held against."),
           ("Replica", slice_words.short(found["replica"]), f"batch {found['t']} · {clock(found['finished_at'] or found['kept_at'], now=now)}", "Which engine sampled it, and when it was finished.")])
    facts = [("kept as", {"worst": "furthest off in its batch", "ordinary": "ordinary, by chance"}.get(str(found["kind"]), found["kind"])), ("environment", found["env"]), ("turn", found["turn"]),
             ("reward", None if found["reward"] is None else number(found["reward"])), ("ended by", found["finish_reason"]),
             ("prefix cache", None if found["cached"] is None else f"{found['cached']:,} of {found['n_prompt']:,} prompt tokens")]
    st.caption(" · ".join(f"{name} **{plain(value)}**" for name, value in facts if value is not None))


def _read(found: Mapping[str, Any]) -> None:
    with st.container(border=True, key="chart-tokens"):
        head = title("Tokens", "Every token of the completion coloured by d = log q − log p in nats, q the trainer's probability of the sampled token and p the engine's: orange, the "
                     "trainer finds it likelier than the engine said; blue, less likely. Marks tell where the weight version changes.")
        if said := _tier(found):
            st.markdown(f":material/lock: {said}")
        token_view.draw(token_words.view(found), key="tokens-view")
        download(head, lambda: token_words.rows(found), "tokens")


def _tier(found: Mapping[str, Any]) -> str:
    """Why there is no text to read, and which key of the config opens it."""
    tier, kind = str(found.get("tier") or "numbers"), found["words"]["kind"]
    storage = (st.session_state.get("tokens_status") or {}).get("storage") or {}
    if kind == tier:
        return MORE.get(tier, "")
    if kind is None and tier in ("hashes", "ids", "text"):
        return (f"Its {tier} {'is' if tier == 'text' else 'are'} not kept: it came before `[store] tokens = \"{tier}\"`, or is older than "
                f"{number(storage.get('tokens_words_ttl_hours'))} hours (`tokens_words_ttl_hours`).")
    if tier == "text":
        why = "; ".join(f"{folder}: {reason}" for folder, reason in list((storage.get("tokenizers") or {}).items())[:2])
        return f"No text: no tokenizer was found when it came{f' ({plain(why)})' if why else ''}, or it came at a lower tier. Name its folder in `[store] tokens_tokenizer`."
    return MORE.get(str(kind or "numbers"), "")


def _along(found: Mapping[str, Any]) -> None:
    with st.container(border=True, key="chart-along"):
        head = title("d along the rollout", "d of each scored token by its place in the completion, in the colours above; dashed lines: the weights changed. Growth with the position points to "
                     "the context, a step at a line to the weights, single spikes to corrupted tokens.")
        rows = token_charts.along_rows(found)
        if rows.empty:
            nothing("No token of this rollout was scored.")
            return
        st.vega_lite_chart(rows, token_charts.along(), width="stretch", key="plot-along", alt="d of each token by its place in the completion, nats")
        download(head, lambda: rows[rows["row"] == "own"].drop(columns="row"), "tokens-d")


_list(frame.header("Tokens", "format_color_text", "Which tokens is it, and what was written there? The rollouts furthest off in each batch, token by token. "
                   "Request ids are kept as keyed hashes."))
_rollout()
