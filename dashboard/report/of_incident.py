"""The chapter about one incident: what, where, since when, why, what it costs, what to do, who was told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dashboard import bars, story
from dashboard.client_incident import Dossier
from dashboard.report.parts import Cell, Command, Facts, Part, Section, Table, Words
from dashboard.report.pictures import Pen
from dashboard.timeline import deeds, timeline
from dashboard.words import clock

TONES = {"firing": "bad", "acknowledged": "warn", "resolved": "good"}
MOST_ROWS = 200  # of one table


def chapter(found: Dossier, pen: Pen) -> Section:
    """Everything about one incident."""
    incident = found.incident
    parts: list[Part] = [_headline(found), _do_next(found), pen.chart(timeline(found)), pen.chart(bars.explanations(found), bars.specification), _evidence(found),
                         Facts(title="Impact", rows=story.impact((incident.get("diagnosis") or {}).get("impact") or {}),
                               empty="Not known: it is worked out with the diagnosis, from scored rollouts before and since the change."),
                         pen.chart(bars.streams(found), bars.specification)]
    parts += [pen.chart(bars.slices(found, key, title), bars.specification)
              for key, title in (("replica", "Replicas"), ("position", "Positions in the rollout, tokens"), ("version", "Weight versions"))]
    parts += [_events(found), _told(found), _history(found)]
    return Section(anchor=f"incident-{_word(incident.get('id'))}", title=str(incident.get("title") or "Incident"),
                   about=f"Incident {incident.get('id')}, alarm in batch {incident.get('alarm_t')}.", parts=parts)


def line(incident: Mapping[str, Any], *, now: float) -> list[Cell]:
    """An incident as a row: title, state, when, where, cause."""
    state, diagnosis = str(incident.get("state") or "firing"), incident.get("diagnosis") or {}
    cause = f"{diagnosis.get('verdict')} ({'confident' if diagnosis.get('confident') else 'not sure'})" if diagnosis else "no diagnosis"
    return [str(incident.get("title") or "Incident"), (state, TONES.get(state, "bad")), story.when(incident, now=now), story.where(incident), cause]


def _headline(found: Dossier) -> Words:
    incident, diagnosis = found.incident, found.incident.get("diagnosis") or {}
    cause = (f"Cause: {diagnosis.get('verdict')}, {'confident' if diagnosis.get('confident') else 'not sure yet'}." if diagnosis else "No diagnosis was made.")
    size = f" Size: {size}." if (size := story.size(incident)) else ""
    return Words(tone=TONES.get(str(incident.get("state")), "bad"), title=f"Where: {story.where(incident)}", lines=[
        f"{_first_up(story.when(incident, now=found.now))}.", story.state(incident, now=found.now), cause + size])


def _do_next(found: Dossier) -> Command:
    diagnosis = found.incident.get("diagnosis") or {}
    more = (f"Runbook: {found.runbook['name']}", str(found.runbook["text"])) if found.runbook else None
    return Command(text=str(diagnosis.get("next") or f"klaxon explain {found.incident.get('id')}"), fix=str(diagnosis.get("fix") or ""), more=more)


def _evidence(found: Dossier) -> Table:
    said = story.evidence(found.incident) or [str(drift.get("text") or drift.get("stream")) for drift in found.incident.get("drifts") or ()]
    facts = [f"The engine about itself: {label} {value}" for label, value in story.audit(found.shot.status.get("engine") or {})]
    return Table(title="What speaks for it", about="The numbers, shapes and settings the diagnosis names for the leading cause, and what the engine says about itself.",
                 columns=("evidence",), rows=[[one] for one in (*said, *facts)], empty="Nothing is known: the diagnosis runs after the alarm.")


def _events(found: Dossier) -> Table:
    rows = sorted([*found.shot.events, *deeds(found)], key=lambda one: -one["at"])
    return Table(title="Events around it", about="Weight updates, restarts, config changes, silences and alarms, newest first: a fault that begins at one of these began with it."
                 + _cut(rows), columns=("UTC", "kind", "what"), rows=[[_at(one["at"]), str(one["kind"]), str(one["text"])] for one in rows[:MOST_ROWS]])


def _told(found: Dossier) -> Table:
    rows = list(reversed(found.incident.get("decisions") or ()))
    return Table(title="Who was told, and why", about="Every decision about this incident, newest first, whether or not a message left." + _cut(rows),
                 columns=("UTC", "receiver", "told", "why", "message"), rows=[_decision(one) for one in rows[:MOST_ROWS]])


def _decision(one: Mapping[str, Any]) -> list[Cell]:
    message = one.get("message") or {}
    times = f" ({one['times']:,} times, last {clock(one.get('last_at'), now=0)})" if (one.get("times") or 1) > 1 else ""
    return [_at(one.get("at")), str(one.get("receiver")), "told" if one.get("sends") else "not told",
            f"{one.get('reason')}: {one.get('detail') or one.get('meaning')}{times}", " ".join(str(message[key]) for key in ("state", "error") if message.get(key))]


def _history(found: Dossier) -> Table:
    steps: list[list[Cell]] = [[_at(step.get("at")), f"{step.get('from_state') or 'new'} → {step.get('to_state')}", str(step.get("why"))]
                               for step in reversed(found.incident.get("history") or ())]
    steps += [[_at(one.get("starts_at")), f"silence, {one.get('state')}", f"by {one.get('author')} until {clock(one.get('ends_at'), now=0)}: {one.get('reason')}"]
              for one in found.silences]
    return Table(title="What happened to it", about="States of the incident, newest first, and the silences over it.", columns=("UTC", "state", "why"), rows=steps)


def _at(at: float | None) -> str:
    return clock(at, now=0).removesuffix(" UTC")


def _cut(rows: list[Any]) -> str:
    return f" The newest {MOST_ROWS} of {len(rows):,} are shown." if len(rows) > MOST_ROWS else ""


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]


def _word(text: object) -> str:
    return "".join(sign for sign in str(text) if sign.isalnum() or sign in "_-")
