"""State as words. Pure: no Streamlit, no clock. Everything from outside is escaped before it meets Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

Tone = Literal["good", "bad", "warn", "info"]

STALE_SECONDS = 60.0  # a daemon that has not completed a round for this long is not trusted
TIERS = {0: "Tier 0 · engine only", 1: "Tier 1 · with trainer logprobs", 2: "Tier 2 · with shadow scorer"}
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_AUTOLINKS = ((r"\:\/\/", "\\:\u2060\\/\\/"), (r"www\.", "www\u2060\\."), (r"\@", "\u2060\\@"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The band at the top: one line to read from across the room, one that says what to do."""

    state: str
    tone: Tone
    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """One heartbeat: who, how long ago, and whether that is fine."""

    name: str
    tone: Tone
    value: str
    note: str
    help: str


def plain(text: object) -> str:
    """Text from outside as Markdown that shows exactly that text: no links, images, colours or formulas come alive.

    An invisible word joiner (U+2060) keeps bare addresses from becoming links.

    >>> print(plain("![x] :red[no] $x$"))
    \\!\\[x\\] \\:red\\[no\\] \\$x\\$
    """
    line = _PUNCTUATION.sub(r"\\\1", " ".join(str(text).split()))
    for found, shown in _AUTOLINKS:
        line = line.replace(found, shown)
    return line


def duration(seconds: float) -> str:
    """A length of time, two units at most.

    >>> duration(42), duration(150), duration(7500), duration(200000)
    ('42 s', '2 min 30 s', '2 h 5 min', '2 d 7 h')
    """
    whole = max(0, round(seconds))
    for size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit} {rest} {part}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def clock(at: float | None, *, now: float) -> str:
    """A UTC time of day, with the date when it is not today's.

    >>> clock(1768953600.25, now=1768953700), clock(1768953600.25, now=1769053700), clock(None, now=0)
    ('00:00:00 UTC', '21 Jan 00:00:00 UTC', 'unknown')
    """
    if at is None:
        return "unknown"
    moment = datetime.fromtimestamp(at, UTC)
    today = moment.date() == datetime.fromtimestamp(now, UTC).date()
    return f"{moment:%H:%M:%S} UTC" if today else f"{moment.day} {moment:%b %H:%M:%S} UTC"


def number(value: float | None, *, digits: int = 3) -> str:
    """A few significant digits; a dash where there is no number.

    >>> number(0.021433), number(0.0000123), number(51234.0), number(None)
    ('0.0214', '1.23e-05', '51,234', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    """A fraction in percent.

    >>> percent(0.1234), percent(0.0004), percent(None)
    ('12.3 %', '0.04 %', '–')
    """
    return "–" if value is None or not math.isfinite(value) else f"{number(100 * value)} %"


def verdict(status: Mapping[str, Any], incidents: list[dict[str, Any]]) -> Verdict:
    """What the daemon says, in plain words; a daemon that stands still is not believed."""
    now = float(status.get("now") or 0)
    if status.get("sealed"):
        return Verdict(state="stored", tone="info", title="Stored run · read only", text=(
            f"The files of a run that Klaxon no longer watches, as they were at {clock(now, now=0)}. Nothing new arrives here and nothing can be changed; "
            "what was found stays readable. To watch the run again: `klaxon run` with its config.toml."))
    behind = now - float(status.get("heartbeat_at") or now)
    if behind > STALE_SECONDS:
        return Verdict(state="stale", tone="warn", title=f"Stale · nothing new for {duration(behind)}",
                       text="The daemon answers but its rounds have stopped: what stands below is old. "
                            "Look at its log, then restart it; nothing recorded is lost.")
    said = plain(status.get("verdict_text") or "")
    state = str(status.get("verdict") or "starting")
    since_batch = now - float(status.get("last_batch_at") or now)
    if state in ("healthy", "learning") and since_batch > max(STALE_SECONDS, 3 * float(status.get("batch_seconds") or 0)):
        return Verdict(state="stale", tone="warn", title=f"Stale · the last batch is {duration(since_batch)} old",
                       text="Rollouts arrive but none has been judged since: charts and evidence below are old. See **Klaxon** for the backlog and the "
                            "scorer, and the daemon's log for what holds it up.")
    if state == "mismatch":
        began = min((since(item) for item in incidents if item.get("state") != "resolved" and since(item)), default=None)
        ago = f" since {clock(began, now=now)} · {duration(now - began)}" if began else ""
        return Verdict(state=state, tone="bad", title=f"Mismatch{ago}", text=said)
    if state == "healthy" and status.get("learning") and status.get("tier"):
        return Verdict(state="learning", tone="info", title="Learning · nothing wrong so far", text=(
            f"{said} Klaxon is still learning what normal looks like for this run: hard facts and bets already page, a slow drift does not yet. "
            "There is nothing to do but let it run; **Klaxon** says which detectors still learn."))
    title, tone, fallback = _STATES.get(state, _STATES["starting"])
    return Verdict(state=state, tone=tone, title=title, text=said or fallback)


_STATES: dict[str, tuple[str, Tone, str]] = {
    "healthy": ("Healthy", "good", "Engine and trainer agree about the probability of the sampled tokens."),
    "learning": ("Learning", "info", "Klaxon is learning what normal looks like for this run; hard facts and bets already count."),
    "blind": ("Blind", "warn", "Klaxon cannot see the engine right now: silence is not health."),
    "starting": ("Starting", "info", "Waiting for the first rollouts: is the tap loaded in the engine, and does it know KLAXON_URL?"),
}


def since(incident: Mapping[str, Any]) -> float | None:
    """When the incident's fault most likely began, UTC seconds: the early end of its interval, else its opening."""
    span = incident.get("since")
    if isinstance(span, (list, tuple)) and span and isinstance(span[0], (int, float)):
        return float(span[0])
    opened = incident.get("opened_at")
    return float(opened) if isinstance(opened, (int, float)) else None


def pulses(status: Mapping[str, Any]) -> list[Pulse]:
    """Heartbeats of the daemon, the engine's tap, the engine and the scorer, in the order data flow."""
    now = float(status.get("now") or 0)
    return [_engine_pulse(status, now), _tap_pulse(status, now), _scorer_pulse(status, now), _daemon_pulse(status, now)]


def data_pulse(status: Mapping[str, Any], scored_until: float | None) -> Pulse:
    """How fresh the numbers are: the age of the newest batch in which tokens were compared (its end, UTC seconds), None = none in the window."""
    about = "The newest closed batch in which tokens were compared: no chart can be fresher than this."
    if scored_until is None:
        return Pulse(name="Data", tone="info", value="none yet", note="no batch compared in this window", help=about)
    behind, batch = float(status.get("now") or 0) - scored_until, float(status.get("batch_seconds") or 0)
    return Pulse(name="Data", tone="good" if behind <= max(STALE_SECONDS, 3 * batch) else "warn", value=_ago(behind), note=f"batches of {duration(batch)}", help=about)


def _daemon_pulse(status: Mapping[str, Any], now: float) -> Pulse:
    behind = now - float(status.get("heartbeat_at") or now)
    tone: Tone = "good" if behind <= STALE_SECONDS else "bad"
    up = duration(now - float(status.get("started_at") or now))
    return Pulse(name="Klaxon", tone=tone, value=_ago(behind), note=f"up {up}", help="When the daemon last completed a round of its chores.")


def _tap_pulse(status: Mapping[str, Any], now: float) -> Pulse:
    taps = [tap for tap in status.get("taps") or () if tap.get("source") != "trainer"]
    about = "The part of Klaxon inside the engine's process: it copies finished rollouts and never blocks."
    if not taps:
        return Pulse(name="Tap", tone="warn", value="not heard", note="install klaxon-tap", help=about)
    alive = sum(bool(tap.get("alive")) for tap in taps)
    newest = max(float(tap.get("last_seen") or 0) for tap in taps)
    dropped = sum(int(tap.get("dropped") or 0) for tap in taps)
    note = f"{alive} of {len(taps)} alive" + (f", {dropped:,} dropped" if dropped else "")
    return Pulse(name="Tap", tone="good" if alive == len(taps) else "bad", value=_ago(now - newest), note=note, help=about)


def _engine_pulse(status: Mapping[str, Any], now: float) -> Pulse:
    engine = status.get("engine") or {}
    about = "When the engine last answered a probe, or else when its tap was last heard."
    reached = engine.get("reachable_at")
    if reached is None:
        heard = [float(tap["last_seen"]) for tap in status.get("taps") or () if tap.get("source") != "trainer" and tap.get("last_seen")]
        reached = max(heard, default=None)
    version = engine.get("vllm_version") or engine.get("version")
    note = f"vLLM {version}" if version else "version unknown"
    if reached is None:
        return Pulse(name="Engine", tone="warn", value="not seen", note=note, help=about)
    behind = now - float(reached)
    return Pulse(name="Engine", tone="good" if behind <= STALE_SECONDS else "bad", value=_ago(behind), note=note, help=about)


def _scorer_pulse(status: Mapping[str, Any], now: float) -> Pulse:
    scorer = status.get("scorer") or {}
    about = "The shadow scorer recomputes the sampled tokens' logprobs with the trainer's own weights."
    if scorer.get("state") in (None, "off"):
        return Pulse(name="Scorer", tone="info", value="off", help=about,
                     note="trainer's own logprobs instead" if status.get("tier") == 1 else "no weights configured")
    speed = scorer.get("tokens_per_second")
    note = f"{number(speed)} tokens/s" if speed else str(scorer.get("device") or "")
    if backlog := int(scorer.get("backlog") or 0):
        note += f", {backlog:,} waiting"
    last = scorer.get("last_scored_at")
    if last is None:
        return Pulse(name="Scorer", tone="info", value="nothing yet", note=note, help=about)
    behind = now - float(last)
    patience = max(STALE_SECONDS, 3 * float(status.get("batch_seconds") or 0))
    return Pulse(name="Scorer", tone="good" if behind <= patience else "warn", value=_ago(behind), note=note, help=about)


def _ago(seconds: float) -> str:
    return "now" if seconds < 1.5 else f"{duration(seconds)} ago"


TOGETHER_SECONDS = 5.0  # calls to the engine within this of each other belong to one weight update

LOSSES = {
    "refused": "rollouts or lines refused as bad data", "length_mismatch": "of those, with fewer or more logprobs than tokens",
    "unauthorised": "pushes without the right token", "deferred_bodies": "pushes told to wait (inbox full)",
    "dropped_inbox_full": "rollouts dropped, inbox full", "dropped_by_taps": "rollouts dropped inside the engine's tap",
    "unscored": "rollouts sampled but not scored", "tokens_unscored": "tokens of sampled rollouts left out of the score",
    "aborted": "requests aborted before their first token", "late": "rollouts that came after their batch was closed: counted in the next",
    "nonfinite": "logprobs that were NaN or infinite", "metrics_refused": "trainer metric lines refused",
    "scorer_errors": "scoring rounds that failed", "worker_errors": "rounds of the worker that failed",
    "tick_errors": "batches that could not be judged or stored", "chore_errors": "chores that failed",
}
"""Counts that mean something was not seen, in words."""


def together(events: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Events, newest first, in groups: neighbouring calls to the engine within TOGETHER_SECONDS of each other are one group, everything else is alone."""
    groups: list[list[Mapping[str, Any]]] = []
    for event in events:
        last = groups[-1][-1] if groups else None
        if last is not None and event["kind"] == last["kind"] == "engine_call" and 0 <= last["at"] - event["at"] <= TOGETHER_SECONDS:
            groups[-1].append(event)
        else:
            groups.append([event])
    return groups


def said_together(group: Sequence[Mapping[str, Any]]) -> str:
    """A group's texts as one, the oldest first; what they all begin with is said once.

    >>> said_together([{"text": "weight_update_call /resume"}, {"text": "weight_update_call /pause"}])
    'weight_update_call /pause, /resume'
    """
    first = str(group[-1]["text"])
    start = first.partition(" ")[0] + " "
    return ", ".join([first, *(str(event["text"]).removeprefix(start) for event in reversed(group[:-1]))])


def losses(counts: Mapping[str, Any]) -> list[tuple[str, int]]:
    """What was not seen: (in words, how many), the known ones always, others that look like a loss when not zero."""
    shown = [(text, int(counts[name])) for name, text in LOSSES.items() if name in counts]
    for name, value in counts.items():
        if name not in (*LOSSES, "dropped_by_trainer") and name.startswith(("dropped", "refused", "unscored", "skipped", "error")) and value:
            shown.append((name.replace("_", " "), int(value)))
    return sorted(shown, key=lambda item: -item[1])


COMPARED = {
    "served": "what the engine samples, against the weights that generated it", "trained": "only what the trainer learns from",
    "hinted": "rollouts kept for looking odd", "lagged": "against a trainer that had moved on: staleness included",
    "dropped": "rollouts the trainer dropped",
    "stale": "staleness alone: newest weights against the generating ones", "trainer_check": "the trainer's own logprobs against the shadow's",
    "estimate": "everything served, estimated from what was scored",
}
"""Population → what its numbers compare."""


def compared(populations: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str]]:
    """(what is compared, its numbers) of every population with tokens, in a fixed order."""
    return [(text, f"mean |d| {number(populations[name].get('mean_abs_d'))} nats, clip rate {percent(populations[name].get('clip_rate'))}, "
                   f"{populations[name].get('n_tokens', 0):,.0f} tokens")
            for name, text in COMPARED.items() if name in populations]
