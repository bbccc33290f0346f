"""The parts of the page that are not charts. Each takes a snapshot and writes; none asks anybody anything."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboard import now_numbers, place, story, trouble, words
from dashboard.client import Snapshot
from dashboard.words import clock, duration, number, percent, plain

BANDS = {"good": (st.success, ":material/check_circle:"), "bad": (st.error, ":material/notifications_active:"),
         "warn": (st.warning, ":material/visibility_off:"), "info": (st.info, ":material/hourglass_top:")}
BADGES = {"good": ("green", ":material/favorite:"), "bad": ("red", ":material/heart_broken:"),
          "warn": ("yellow", ":material/help:"), "info": ("gray", ":material/do_not_disturb_on:")}
EVENT_ICONS = {"alarm": ":material/notifications_active:", "resolved": ":material/check_circle:", "diagnosis": ":material/troubleshoot:",
               "engine_restart": ":material/restart_alt:", "engine_down": ":material/cloud_off:", "engine_up": ":material/cloud_done:",
               "engine_config": ":material/tune:", "engine_call": ":material/sync:", "weights": ":material/upload:",
               "weights_announced": ":material/upload:", "tap": ":material/hearing:", "daemon": ":material/power:"}
EVENTS_SHOWN = 40


def band(shot: Snapshot | None, problem: str, api: str) -> None:
    """The verdict in one coloured band: word, icon and colour say the same."""
    if problem:
        verdict = disconnected(shot, problem, api)
    else:
        verdict = words.verdict(shot.status, shot.incidents)
    box, icon = BANDS[verdict.tone]
    with st.container(key=f"verdict-{verdict.state}"):
        box(f"## {verdict.title}\n\n{verdict.text}", icon=icon)
    if shot is not None:
        status = shot.status
        now = float(status.get("now") or 0)
        st.caption(" · ".join([
            f"Run **{plain(status.get('run', 'unknown'))}**", words.TIERS.get(status.get("tier"), "Tier unknown"),
            f"coverage {percent((status.get('scorer') or {}).get('coverage'))}",
            f"false alarms within {plain(status.get('budget', 'no stated budget'))}", f"as of {clock(now, now=now)}"]))


def disconnected(shot: Snapshot | None, problem: str, api: str) -> words.Verdict:
    """What to do while the daemon does not answer, or not as it should."""
    return away(None if shot is None else shot.status, problem, api)


def away(status: Mapping[str, Any] | None, problem: str, api: str) -> words.Verdict:
    """The same over what the last status said, and how long ago it came."""
    if status is None:
        return trouble.band(problem, api=api)
    now, seen_at = float(status.get("now") or 0), st.session_state.get("seen_at")
    return trouble.band(problem, api=api, as_of=clock(now, now=now), age_seconds=None if seen_at is None else max(0.0, time.time() - seen_at))


def incidents(shot: Snapshot) -> None:
    """Open incidents as cards, the resolved ones folded away."""
    now = float(shot.status.get("now") or 0)
    still_open = [item for item in shot.incidents if item.get("state") != "resolved"]
    resolved = [item for item in shot.incidents if item.get("state") == "resolved"]
    for item in still_open:
        with st.container(border=True, key=f"incident-{item.get('id')}"):
            _card(item, now)
            _quiet([one for one in shot.silences if (one.get("match") or {}).get("fingerprint") == item.get("fingerprint")], now)
            place.link("incident", "Open this incident", icon=":material/open_in_full:", incident=str(item.get("id")))
    others = [one for one in shot.silences if (one.get("match") or {}).get("fingerprint") not in {item.get("fingerprint") for item in still_open}]
    if others:
        with st.container(border=True, key="silences"):
            st.markdown("**Silences in force, and planned**")
            _quiet(others, now)
    if resolved:
        with st.expander(f"{len(resolved)} resolved incident{'s' if len(resolved) > 1 else ''}", icon=":material/history:"):
            for item in resolved[:20]:
                verdict = (item.get("diagnosis") or {}).get("verdict")
                place.link("incident", f"**{plain(item.get('title', 'Incident'))}** · {clock(item.get('opened_at'), now=now)}, resolved "
                            f"{clock(item.get('resolved_at'), now=now)}" + (f" · {plain(verdict)}" if verdict else ""), incident=str(item.get("id")))


def _quiet(silences: Sequence[Mapping[str, Any]], now: float) -> None:
    for one in silences:
        match = one.get("match") or {}
        covers = "" if set(match) == {"fingerprint"} else "".join(f" · {plain(key)} {plain(value)}" for key, value in match.items())
        st.caption(f":material/notifications_off: Silence {plain(one.get('state'))}, until {clock(one.get('ends_at'), now=now)}, by "
                   f"**{plain(one.get('author'))}**: {plain(one.get('reason'))}{covers}")


def _card(item: Mapping[str, Any], now: float) -> None:
    diagnosis = item.get("diagnosis") or {}
    st.markdown(f"#### {plain(item.get('title', 'Incident'))}", anchors=False)
    with st.container(horizontal=True, gap="small"):
        st.badge(str(item.get("state", "firing")), icon=":material/notifications_active:", color="red" if item.get("state") == "firing" else "yellow")
        if taken_by := story.owner(item):
            st.badge(f"owner {plain(taken_by)}", icon=":material/person:", color="yellow")
        if diagnosis:
            sure = "confident" if diagnosis.get("confident") else "not sure yet"
            st.badge(f"{plain(diagnosis.get('verdict'))} · {sure}", icon=":material/troubleshoot:", color="blue")
        else:
            st.badge("diagnosing", icon=":material/troubleshoot:", color="gray")
        if item.get("severity") == "page":
            st.badge("pages on-call", icon=":material/phone_in_talk:", color="gray")
    left, right = st.columns([3, 2], gap="medium")
    with left:
        for line in _card_lines(item, diagnosis, now):
            st.markdown(line)
    with right:
        _next_step(diagnosis)
        _messages(item, now)


def _card_lines(item: Mapping[str, Any], diagnosis: Mapping[str, Any], now: float) -> list[str]:
    began, opened = words.since(item), item.get("opened_at")
    lines = []
    if began is not None:
        lines.append(f"**Since** {clock(began, now=now)} ({duration(now - began)}), alarm {clock(opened, now=now)}")
    drifts = (item.get("drifts") or ())[:3]
    told = {drift.get("text") for drift in drifts}
    for drift in drifts:
        where = ", ".join(f"{plain(key)} {plain(value)}" for key, value in (drift.get("slice") or {}).items())
        lines.append(f"**Alarm** {plain(drift.get('text') or drift.get('stream'))}" + (f" **Where** {where}" if where else ""))
    if (effect := _effect(drifts)) is not None:
        lines.append(f"**Size** {effect}")
    ranked = sorted(diagnosis.get("causes") or (), key=lambda cause: cause.get("cause") != diagnosis.get("verdict"))
    for cause in ranked[:1]:
        fresh = [line for line in cause.get("evidence") or () if line not in told]
        said = "; ".join(plain(line) for line in fresh[:4])
        residual, floor = cause.get("residual_nats"), diagnosis.get("floor_nats")
        left = f"leaves {number(residual)} nats a token unexplained" if residual is not None else ""
        left += f" (floor {number(floor)})" if left and floor is not None else ""
        if why := ". ".join(part for part in (left, said) if part):
            lines.append(f"**Why** {why}")
    if others := [cause for cause in ranked[1:4] if cause.get("residual_nats") is not None]:
        lines.append("**Instead of** " + ", ".join(f"{plain(cause['cause'])} ({number(cause['residual_nats'])} nats)" for cause in others))
    if impact := _impact(diagnosis.get("impact") or {}):
        lines.append(f"**Impact** {impact}")
    return lines


def _effect(drifts: Sequence[Mapping[str, Any]]) -> str | None:
    sized = next((drift for drift in drifts if isinstance(drift.get("effect"), (int, float))), None)
    if sized is None:
        return None
    unit = sized.get("effect_unit", "nats")
    return percent(sized["effect"]) if unit == "fraction" else f"{number(sized['effect'])} {plain(unit)} a token"


def _impact(impact: Mapping[str, Any]) -> str:
    said = []
    if impact.get("last_clean_version") is not None:
        said.append(f"last clean weight version {plain(impact['last_clean_version'])}")
    tainted = impact.get("tainted_requests")
    count = len(tainted) if isinstance(tainted, (list, tuple)) else tainted
    if isinstance(count, (int, float)):
        said.append(f"{count:,} tainted rollouts")
    if isinstance(impact.get("token_share"), (int, float)):
        said.append(f"{percent(impact['token_share'])} of the tokens since the change")
    return ", ".join(said)


def _next_step(diagnosis: Mapping[str, Any]) -> None:
    st.markdown("**Do next**")
    st.code(str(diagnosis.get("next") or "klaxon status"), language="bash", wrap_lines=True)
    if diagnosis.get("fix"):
        st.markdown(f"**Fix** {plain(diagnosis['fix'])}")


def _messages(item: Mapping[str, Any], now: float) -> None:
    messages = [message for message in item.get("notifications") or () if message.get("reason") != "duplicate"]
    if not messages:
        st.caption(":material/outgoing_mail: No message has left yet.")
    for message in messages[-4:]:
        said = ", ".join(plain(part) for part in (message.get("receiver"), message.get("reason"), message.get("state")) if part)
        st.caption(f":material/outgoing_mail: {said} · {clock(message.get('at'), now=now)}",
                   help=plain(message["detail"]) if message.get("detail") else None)


def pulses(shot: Snapshot) -> None:
    """Heartbeats, in the order data flow."""
    with st.container(horizontal=True, gap="small", key="pulses"):
        for pulse in (*words.pulses(shot.status), words.data_pulse(shot.status, _scored_until(shot))):
            colour, icon = BADGES[pulse.tone]
            with st.container(border=True, width="stretch", gap=None, key=f"pulse-{pulse.name.lower()}"):
                st.badge(pulse.name, icon=icon, color=colour, help=pulse.help)
                st.markdown(f"**{plain(pulse.value)}**")
                st.caption(plain(pulse.note))


def _scored_until(shot: Snapshot) -> float | None:
    scored = shot.series[shot.series["n_tokens"] > 0]
    return float(scored["closed_at"].iloc[-1]) if len(scored) else None


def tiles(shot: Snapshot) -> None:
    """The few numbers worth reading out on the phone, each with its definition on hover."""
    with st.container(horizontal=True, gap="small", key="tiles"):
        for label, value, note, about in now_numbers.cells(shot):
            with st.container(border=True, width="stretch", gap=None):
                st.caption(label, help=about)
                st.markdown(f"### {plain(value)}", anchors=False)
                st.caption(plain(note))


def compared(shot: Snapshot) -> None:
    """The same numbers for each thing that is compared: mismatch is not staleness, served is not trained on."""
    rows = words.compared(shot.status.get("populations") or {})
    if not rows:
        return
    with st.container(border=True, key="compared"):
        st.markdown("**What is compared**")
        st.caption("Over the last batches. Alarms look at the first line alone.")
        st.markdown("\n".join(f"- {plain(what)}: **{plain(numbers)}**" for what, numbers in rows))


def events(shot: Snapshot) -> None:
    """The newest events, newest first."""
    with st.container(border=True, key="events"):
        st.markdown("**Timeline**")
        st.caption("What happened in this window, newest first: weight updates, restarts, config changes, alarms, messages.")
        now = float(shot.status.get("now") or 0)
        lines = happenings(shot.events[:EVENTS_SHOWN], now=now)
        with st.container(height=400 if len(lines) > 10 else "content", border=False):
            st.markdown("\n".join(lines) if lines else "Nothing has happened in this window.")


def happenings(events: Sequence[Mapping[str, Any]], *, now: float) -> list[str]:
    """A line an event, newest first as they come; the calls of one weight update, which follow each other at once, share a line."""
    lines: list[str] = []
    for group in words.together(events):
        newest = group[0]
        lines.append(f"- {EVENT_ICONS.get(str(newest['kind']), ':material/circle:')} `{clock(newest['at'], now=now).removesuffix(' UTC')}` {plain(words.said_together(group))}")
    return lines


def unseen(shot: Snapshot) -> None:
    """What Klaxon did not see, and what it cannot see."""
    with st.container(border=True, key="unseen"):
        st.markdown("**What Klaxon does not see**")
        st.caption("Silence is only health where Klaxon looks. Everything that was left out is counted here.")
        counts = shot.status.get("counts") or {}
        _funnel(counts)
        lost = words.losses(counts)
        st.markdown("\n".join(f"- {'**' if count else ''}{count:,}{'**' if count else ''} {plain(text)}" for text, count in lost)
                    or "No losses are reported.")
        spots = shot.status.get("blind_spots") or ()
        st.markdown("**Blind spots**" if spots else "**Blind spots** none known at this tier")
        if spots:
            st.markdown("\n".join(f"- {plain(spot)}" for spot in spots))
        for notice in shot.status.get("notices") or ():
            st.warning(plain(notice), icon=":material/warning:")


def _funnel(counts: Mapping[str, Any]) -> None:
    seen = int(counts.get("seen") or 0)
    for name, text in (("sampled", "rollouts kept by the sampler"), ("scored", "rollouts scored")):
        if seen and name in counts:
            part = min(int(counts[name]), seen)
            st.progress(part / seen, text=f"{part:,} of {seen:,} {text}")
