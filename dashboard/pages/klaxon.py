"""Klaxon: what the watcher sees, how fast, what it lost, and whether it keeps its own promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import frame, klaxon_charts, klaxon_words
from dashboard.frame import REFRESH_SECONDS, Seen, download, nothing, safely, title
from dashboard.words import duration, number, percent, plain

ROWS_SHOWN = 300
STATES = {"alarm": "red", "close to an alarm": "orange", "some evidence": "yellow", "learning": "gray", "quiet": "green", "not in this run": "gray"}
ORDER = ("alarm", "close to an alarm", "some evidence", "quiet", "learning", "not in this run")


@st.fragment(run_every=REFRESH_SECONDS)
def _body(window: str) -> None:
    seen = frame.look(window)
    if seen is None:
        return
    safely(_tiles, seen)
    left, right = st.columns(2, gap="medium")
    with left:
        safely(_shares, seen, *klaxon_charts.SHARES[0])
        safely(_budget, seen)
        safely(_drops, seen)
    with right:
        safely(_shares, seen, *klaxon_charts.SHARES[1])
        safely(_detectors, seen)
        safely(_storage, seen)


def _tiles(seen: Seen) -> None:
    scorer = seen.status.get("scorer") or {}
    on = scorer.get("state") not in (None, "off")
    speed, waits = scorer.get("tokens_per_second"), scorer.get("oldest_unscored_seconds")
    stored = (seen.status.get("storage") or {}).get("bytes")
    none = "the trainer's logprobs are compared" if seen.status.get("tier") == 1 else "no scorer: set [weights]"
    frame.tiles([
        ("Scorer speed", f"{number(speed)} tokens/s" if on and speed else "off" if not on else "nothing yet", str(scorer.get("device") or "") if on else none,
         "Sampled tokens the shadow scorer rescored, a second of its own work."),
        ("Backlog", f"{int(scorer.get('backlog') or 0):,} rollouts", f"oldest waits {duration(waits)}" if waits is not None else "nothing waits",
         "Rollouts that wait to be compared. Klaxon drops samples rather than fall behind; the drops are counted below."),
        ("Coverage", percent(scorer.get("coverage")), "of the served tokens, since the start", "Share of the sampled tokens that arrived that were compared with the trainer."),
        ("Store", _bytes(stored), _left(seen.status.get("storage") or {}), "Bytes of Klaxon's own file on disk."),
    ])


def _bytes(value: Any) -> str:
    if not isinstance(value, (int, float)):
        return "–"
    size, unit = next(((size, unit) for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if value >= size), (1, "B"))
    return f"{number(value / size)} {unit}"


def _left(storage: Mapping[str, Any]) -> str:
    return f"{_bytes(storage['free_bytes'])} free on its disk" if storage.get("free_bytes") is not None else "its disk does not say what is free"


def _shares(seen: Seen, level: str, field: str, name: str, about: str, what: str, x_title: str) -> None:
    with st.container(border=True, key=f"chart-{level}"):
        head = title(name, about)
        table = frame.table("/v1/coverage", start=seen.start)
        rows = klaxon_charts.shares(table, level=level, field=field)
        if rows.empty:
            nothing("Nothing was compared in this window: look further back, or see on Now what Klaxon waits for.")
            return
        known = int((table["level"] == level).sum())
        st.vega_lite_chart(rows, klaxon_charts.bars(what, x_title), width="stretch", key=f"plot-{level}", alt=f"{name}: {about}")
        if known > len(rows):
            st.caption(f"{len(rows)} of {known} shown; the CSV has more.")
        download(head, lambda: table[table["level"] == level], name.lower().replace(" ", "-"))


def _budget(seen: Seen) -> None:
    with st.container(border=True, key="chart-budget"):
        title("False alarms: promised and realised", "Klaxon bets; a healthy run's bets win nothing on average, so an alarm at evidence A rings at most once in the promised time.")
        honesty, status = seen.status.get("honesty") or {}, seen.status
        if not honesty.get("batches"):
            nothing("No batch has been judged yet: the account starts with the first one.")
            return
        st.markdown(plain(klaxon_words.budget(honesty, batch_seconds=float(status.get("batch_seconds") or 0), promise=str(status.get("budget") or "no stated budget"))))
        ln_m, ln_a = status.get("ln_m"), status.get("ln_a")
        if ln_m is not None and ln_a:
            share = max(0.0, min(1.0, ln_m / ln_a))
            st.progress(share, text=f"Evidence ln M {number(ln_m)} of ln A {number(ln_a)}: {'past the alarm threshold' if share >= 1 else percent(share) + ' of the way to an alarm'}")
        means = honesty.get("mean_e") or {}
        lines = [f"- {plain(name)}: mean e-value **{number(one.get('mean_e'))}** ± {number(one.get('standard_error'))} over {one.get('batches', 0):,} batches"
                 + ("" if float(one.get("mean_e") or 0) <= 1 + 3 * float(one.get("standard_error") or 0) else " · **above 1: its bets are widened**") for name, one in means.items()]
        st.markdown("\n".join(["The audit of the battery's own bets (a healthy run keeps each at 1 or below):", "", *lines]) if lines else
                    "The audit of the battery's own bets has seen too few batches to say anything.")
        if float(honesty.get("widened") or 1) > 1:
            st.markdown(f"The battery's bets have been widened × {number(honesty['widened'])}: this run is noisier than they assumed.")


def _drops(seen: Seen) -> None:
    with st.container(border=True, key="chart-drops"):
        head = title("Left out, by reason", "Everything that arrived and was not compared, was refused or looked odd, since the daemon started. Silence is only health where Klaxon looks.")
        counts = seen.status.get("counts") or {}
        found = klaxon_words.drops(counts)
        if not found:
            st.markdown(f":material/check_circle: Nothing was left out of {int(counts.get('seen') or 0):,} rollouts." if counts.get("seen") else
                        ":material/hourglass_empty: No rollout has arrived yet.")
            return
        with st.container(height=320 if len(found) > 9 else "content", border=False):
            st.markdown("\n".join(f"- **{count:,}** {plain(text)}" for _, text, count in found))
        download(head, lambda: pd.DataFrame(found, columns=["name", "in_words", "count"]), "left-out")


def _detectors(seen: Seen) -> None:
    with st.container(border=True, key="chart-detectors"):
        head = title("Detectors", "Every kind of bet, the question it asks, and what its strongest stream says now. A stream's share is ln(weight × its evidence); the alarm is at ln A.")
        table = frame.table("/v1/evidence", latest="true")
        learning, ln_a = bool(seen.status.get("learning")), seen.status.get("ln_a")
        kinds = table["stream"].map(klaxon_words.kind_of).astype(str)
        rows = [_kind(kind, table[kinds == kind], learning=learning and kind == "battery", ln_a=ln_a, now_t=seen.status.get("t")) for kind in klaxon_words.KINDS]
        for state, kind, streams, strongest in sorted(rows, key=lambda row: ORDER.index(row[0])):
            name, question = klaxon_words.KINDS[kind]
            with st.container(gap=None):
                with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                    st.markdown(f"**{name}**", width="content")
                    st.badge(state, color=STATES[state])
                    st.markdown(f"{streams:,} streams" if streams else "", width="content")
                st.caption(question + (f" Strongest: {plain(strongest)}." if strongest else ""))
        if learning:
            st.caption(":material/hourglass_top: The battery is still learning what normal looks like; the other kinds already bet.")
        download(head, lambda: table.sort_values("log_share", ascending=False).head(ROWS_SHOWN), "streams")


def _kind(kind: str, part: pd.DataFrame, *, learning: bool, ln_a: float | None, now_t: Any) -> tuple[str, str, int, str]:
    """(state, kind, streams, the strongest in words)."""
    known = part.dropna(subset=["log_share"])
    if known.empty:
        return ("learning" if learning else "not in this run"), kind, len(part), ""
    top = known.loc[known["log_share"].idxmax()]
    behind = f", last bet in batch {int(top['t'])}" if now_t is not None and now_t - top["t"] > 5 else ""
    said = f"{top['stream']}, ln share {number(float(top['log_share']))} of ln A {number(ln_a)}{behind}"
    return klaxon_words.state(float(top["log_share"]), ln_a=ln_a, learning=learning), kind, len(part), said


def _storage(seen: Seen) -> None:
    with st.container(border=True, key="chart-storage"):
        title("Storage and messages", "Klaxon keeps statistics, never text, unless told to; messages wait in an outbox until they are delivered.")
        status = seen.status
        storage, batches = status.get("storage") or {}, (status.get("honesty") or {}).get("batches") or 0
        each = f", {_bytes(storage['bytes'] / batches)} a batch" if batches and storage.get("bytes") else ""
        lines = [f"- The store takes **{_bytes(storage.get('bytes'))}**{each}; {_left(storage)}."]
        for one in status.get("receivers") or ():
            sound = "delivers" if one.get("breaker") == "closed" else "**left alone because it failed too often**"
            waiting = f", {one['waiting']:,} waiting" if one.get("waiting") else ""
            dead = f", **{one['dead']:,} given up** (klaxon dead-letters)" if one.get("dead") else ""
            lines.append(f"- Receiver {plain(one.get('receiver'))} {sound}{waiting}{dead}.")
        lines.append(f"- {int(status.get('alerts_delivered') or 0):,} messages delivered." if status.get("receivers") else
                     "- **No receiver is configured: nobody hears an alarm.** Set [alerts] in config.toml.")
        st.markdown("\n".join(lines))
        for notice in status.get("notices") or ():
            st.warning(plain(notice), icon=":material/warning:")
        if refusals := status.get("refusals"):
            with st.expander(f"The last {len(refusals)} refusals", icon=":material/block:"):
                st.markdown("\n".join(f"- {plain(one)}" for one in refusals))


_body(frame.header("Klaxon", "hearing", "Does the watcher itself see enough, keep up, and keep its promise?"))
