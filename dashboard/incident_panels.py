"""The parts of the incident's page. Each takes a dossier and writes; none asks anybody anything. Text from outside goes through `plain`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import bars, place, story
from dashboard.client_incident import Dossier
from dashboard.drawing import download, nothing, plot, title
from dashboard.panels import BANDS, EVENTS_SHOWN, happenings
from dashboard.timeline import deeds, timeline
from dashboard.words import clock, plain, verdict

TONES = {"firing": "bad", "acknowledged": "warn", "resolved": "good"}
ICONS = {"firing": ":material/notifications_active:", "acknowledged": ":material/person_check:", "resolved": ":material/check_circle:"}


def headline(found: Dossier) -> None:
    """What, where, since when, and who has it: the band at the top."""
    incident, now = found.incident, found.now
    state = str(incident.get("state") or "firing")
    box, _ = BANDS[TONES.get(state, "bad")]
    with st.container(key=f"state-{state}"):
        box(f"## {plain(incident.get('title', 'Incident'))}\n\n**{plain(story.where(incident))}** · {story.when(incident, now=now)}\n\n"
            f"{plain(story.state(incident, now=now))}", icon=ICONS.get(state, ":material/notifications_active:"))
    diagnosis = incident.get("diagnosis") or {}
    with st.container(horizontal=True, gap="small"):
        st.badge(state, icon=ICONS.get(state), color={"firing": "red", "resolved": "green"}.get(state, "yellow"))
        if owner := story.owner(incident):
            st.badge(f"owner {plain(owner)}", icon=":material/person:", color="yellow")
        if diagnosis:
            st.badge(f"{plain(diagnosis.get('verdict'))} · {'confident' if diagnosis.get('confident') else 'not sure yet'}", icon=":material/troubleshoot:", color="blue")
        else:
            st.badge("no diagnosis", icon=":material/troubleshoot:", color="gray")
        for one in _in_force(found):
            st.badge(f"silenced until {clock(one.get('ends_at'), now=now)}", icon=":material/notifications_off:", color="gray")
    said = verdict(found.shot.status, [])
    if said.state in ("stale", "stored"):
        box, icon = BANDS[said.tone]
        box(f"**{said.title}** {said.text}", icon=icon)
    st.caption(f"Run **{plain(incident.get('run', 'unknown'))}** · `{_code(incident.get('id'))}` · alarm in batch {plain(incident.get('alarm_t'))} · as of {clock(now, now=now)}")


def chart(found: Dossier) -> None:
    """The timeline."""
    plot(timeline(found))


def next_step(found: Dossier) -> None:
    """The command to run, the fix, and what the runbook says."""
    diagnosis = found.incident.get("diagnosis") or {}
    with st.container(border=True, key="next"):
        st.markdown("**Do next**")
        st.code(str(diagnosis.get("next") or f"klaxon explain {found.incident.get('id')}"), language="bash", wrap_lines=True)
        if diagnosis.get("fix"):
            st.markdown(f"**Fix** {plain(diagnosis['fix'])}")
        if found.runbook:
            with st.expander(f"Runbook: {plain(found.runbook['name'])}", icon=":material/menu_book:"):
                st.markdown(str(found.runbook["text"]).replace("\n## ", "\n##### ").replace("# ", "##### ", 1))  # the product's own text
        else:
            st.caption("No runbook opens here: the cause is not known yet, or none is written. `klaxon runbook` lists what there is.")


def why(found: Dossier) -> None:
    """Competing explanations, with what speaks for the leading one and what the engine says about itself."""
    plot(bars.explanations(found), bars.specification)
    diagnosis = found.incident.get("diagnosis") or {}
    with st.container(border=True, key="evidence"):
        st.markdown("**What speaks for it**")
        lines = [f"- {plain(line)}" for line in story.evidence(found.incident)] or [f"- {plain(drift.get('text') or drift.get('stream'))}" for drift in found.incident.get("drifts") or ()]
        if size := story.size(found.incident):
            lines.insert(0, f"- Size: **{plain(size)}**")
        st.markdown("\n".join(lines) or "Nothing is known yet: the diagnosis runs after the alarm.")
        if diagnosis and not diagnosis.get("confident"):
            st.caption("Not sure yet: no explanation has come clearly closer to the floor than the others.")
        if facts := story.audit(found.shot.status.get("engine") or {}):
            st.markdown("**The engine about itself, now** " + " · ".join(f"{plain(label)} **{plain(value)}**" for label, value in facts))


def impact(found: Dossier) -> None:
    """What the fault costs, each number with its definition."""
    cells = story.impact((found.incident.get("diagnosis") or {}).get("impact") or {})
    with st.container(border=True, key="impact"):
        st.markdown("**Impact**")
        if not cells:
            st.caption("Not known yet: it is worked out with the diagnosis, from scored rollouts before and since the change.")
            return
        with st.container(horizontal=True, gap="medium"):
            for label, value, meaning in cells:
                with st.container(width=170, gap=None):
                    st.caption(label, help=plain(meaning))
                    st.markdown(f"**{plain(value)}**")


def where(found: Dossier) -> None:
    """Evidence per stream and the slices concerned."""
    left, right = st.columns(2, gap="medium")
    with left:
        plot(bars.streams(found), bars.specification)
    with right:
        plot(bars.slices(found, "replica", "Replicas"), bars.specification)
    left, right = st.columns(2, gap="medium")
    with left:
        plot(bars.slices(found, "position", "Positions in the rollout, tokens"), bars.specification)
    with right:
        plot(bars.slices(found, "version", "Weight versions"), bars.specification)
    with st.container(horizontal=True, gap="medium"):
        if place.exists("slices"):
            place.link("slices", "All slices", icon=":material/grid_view:")
        if place.exists("tokens"):
            place.link("tokens", "Worst rollouts since the change, token by token", icon=":material/format_color_text:", incident=found.incident.get("id"),
                       slice=None, rollout=None)


def messages(found: Dossier) -> None:
    """Every decision: who was told or not, and why."""
    with st.container(border=True, key="messages"):
        st.markdown("**Who was told, and why**")
        st.caption("Every decision about this incident, the newest first, whether or not a message left.")
        lines = [_decision(one, found.now) for one in reversed(found.incident.get("decisions") or ())]
        with st.container(height=320 if len(lines) > 8 else "content", border=False):
            st.markdown("\n".join(lines) if lines else "No decision yet: the pipeline looks with every batch.")


def events(found: Dossier) -> None:
    """What happened to the run around the incident, and what people did about it."""
    rows = sorted([*found.shot.events, *deeds(found)], key=lambda one: -one["at"])
    with st.container(border=True, key="events"):
        head = title("Events around it", "Weight updates, restarts, config changes, silences and alarms from shortly before the change on, newest first: a fault that begins at one of these began with it.")
        if not rows:
            nothing("Nothing is recorded around this incident.")
            return
        lines = happenings(rows[:EVENTS_SHOWN], now=found.now)
        with st.container(height=320 if len(lines) > 8 else "content", border=False):
            st.markdown("\n".join(lines))
        if len(rows) > EVENTS_SHOWN:
            st.caption(f"{EVENTS_SHOWN} of {len(rows):,} shown; the CSV has them all.")
        download(head, lambda: pd.DataFrame(rows), "events")


def history(found: Dossier) -> None:
    """What happened to the incident, and the silences over it."""
    with st.container(border=True, key="history"):
        st.markdown("**What happened to it**")
        steps = [f"- `{clock(step.get('at'), now=found.now).removesuffix(' UTC')}` {plain(step.get('from_state') or 'new')} → **{plain(step.get('to_state'))}**: {plain(step.get('why'))}"
                 for step in reversed(found.incident.get("history") or ())]
        st.markdown("\n".join(steps) or "Nothing is recorded.")
        for one in found.silences:
            st.markdown(f":material/notifications_off: **{plain(one.get('state'))}** silence by {plain(one.get('author'))} until "
                        f"{clock(one.get('ends_at'), now=found.now)}: {plain(one.get('reason'))}")


def _decision(one: Mapping[str, Any], now: float) -> str:
    message = one.get("message") or {}
    told = "told" if one.get("sends") else "not told"
    times = f" ({one['times']:,} times, last {clock(one.get('last_at'), now=now)})" if (one.get("times") or 1) > 1 else ""
    fate = f" · {plain(message.get('state'))}" + (f" {clock(message['sent_at'], now=now)}" if message.get("sent_at") else "") if message else ""
    error = f" · {plain(message['error'])}" if message.get("error") else ""
    return (f"- `{clock(one.get('at'), now=now).removesuffix(' UTC')}` **{plain(one.get('receiver'))}** {told}, **{plain(one.get('reason'))}**: "
            f"{plain(one.get('detail') or one.get('meaning'))}{times}{fate}{error}")


def _in_force(found: Dossier) -> list[dict[str, Any]]:
    return [one for one in found.silences if one.get("state") == "active"]


def _code(text: object) -> str:
    return "".join(sign for sign in str(text) if sign.isalnum() or sign in "_-.")
