"""Engine: every setting that matters to RL as a checklist, how it changed, and what the preflight found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import frame
from dashboard.frame import REFRESH_SECONDS, Seen, download, nothing, safely, title
from dashboard.words import clock, plain

HISTORY_SHOWN = 60
STATES = {
    "wrong": ("red", ":material/cancel:", "contradicts what the trainer declares, or is known to spoil logprobs"),
    "risky": ("yellow", ":material/warning:", "harmful under conditions that cannot be seen from here; the line says which"),
    "unknown": ("gray", ":material/help:", "nobody told, or the trainer's side is not declared; never guessed"),
    "ok": ("green", ":material/check_circle:", "told, and harmless against what is declared"),
}
FLIGHT = {"failed": ("red", ":material/cancel:"), "unknown": ("gray", ":material/help:"), "measured": ("blue", ":material/straighten:"),
          "passed": ("green", ":material/check_circle:")}
ICONS = {"engine_config": ":material/tune:", "engine_restart": ":material/restart_alt:", "engine_down": ":material/cloud_off:",
         "engine_up": ":material/cloud_done:", "tap": ":material/hearing:"}
UNHEARD = ("No engine has told anything yet: load the tap in the engine (`klaxon-tap` beside vLLM, KLAXON_URL set to this daemon), or set `[engine] url` in "
           "config.toml so that Klaxon asks it. `klaxon audit ENGINE_URL` asks at once and needs no daemon.")


@st.fragment(run_every=REFRESH_SECONDS)
def _body(window: str) -> None:
    seen = frame.look(window)
    if seen is None:
        return
    found = safely(_audit)
    if not isinstance(found, Mapping):
        return
    safely(_checklist, found)
    left, right = st.columns(2, gap="medium")
    with left:
        safely(_history, found, seen)
    with right:
        safely(_preflights, found, seen)


def _audit() -> dict[str, Any]:
    return frame.answer("/v1/audit")


def _checklist(found: Mapping[str, Any]) -> None:
    with st.container(border=True, key="chart-checklist"):
        head = title("Audit checklist", "What the engine's tap and Klaxon's probe were told of its settings, judged against what the trainer declares. "
                     "Settings are evidence, not proof: the diagnosis lets the numbers decide.")
        checks: Sequence[Mapping[str, Any]] = found.get("checks") or ()
        if not checks:
            st.markdown(f":material/hourglass_empty: {UNHEARD}")
            return
        engine = found.get("engine") or "an engine without a name"
        version = f"vLLM {found['vllm_version']}" if found.get("vllm_version") else "vLLM of unknown version"
        others = len(found.get("engines") or ()) - 1
        st.markdown(plain(f"{version} at {engine}") + (f", the newest of {others + 1} engines heard" if others > 0 else ""))
        with st.container(horizontal=True, gap="small"):
            for state, (colour, icon, about) in STATES.items():
                st.badge(f"{sum(check.get('state') == state for check in checks)} {state}", icon=icon, color=colour, help=about)
        first = int(found.get("migration") or 0)
        for heading, part in (("From V0 to V1", checks[:first]), ("Everything else", checks[first:])):
            st.markdown(f"**{heading}**")
            for check in sorted(part, key=lambda one: list(STATES).index(one.get("state")) if one.get("state") in STATES else 9):
                _check(check)
        download(head, lambda: pd.DataFrame(checks), "audit")
        st.caption("Not asked here: generation_config.json, the environment, prefix-cache hits. `klaxon audit ENGINE_URL --klaxon DAEMON_URL` asks for them too.")


def _check(check: Mapping[str, Any]) -> None:
    state = str(check.get("state"))
    colour, icon, _ = STATES.get(state, STATES["unknown"])
    with st.container(gap=None):
        st.markdown(f":{colour}-badge[{icon} {plain(state)}] **{plain(check.get('name'))}** {plain(check.get('seen'))}")
        if state != "ok":
            st.caption(plain(check.get("why")))
            if check.get("do") and state != "unknown":
                st.code(str(check["do"]), language="bash", wrap_lines=True)


def _history(found: Mapping[str, Any], seen: Seen) -> None:
    with st.container(border=True, key="chart-history"):
        head = title("What changed", "Restarts and changed settings as the tap and the probe saw them, newest first: a fault that begins at one of these began with it.")
        rows = found.get("history") or []
        if not rows:
            nothing("Nothing has changed since Klaxon began to listen.")
            return
        with st.container(height=460 if len(rows) > 9 else "content", border=False):
            st.markdown("\n".join(_line(row, seen) for row in rows[:HISTORY_SHOWN]))
        download(head, lambda: pd.DataFrame(rows), "engine-history")


def _line(row: Mapping[str, Any], seen: Seen) -> str:
    at = clock(row.get("at"), now=seen.now).removesuffix(" UTC")
    start = f"- {ICONS.get(str(row.get('kind')), ':material/circle:')} `{at}` "
    if row.get("key"):
        before = plain(row.get("text")).split(plain(f": {row['key']} changed"))[0]
        return f"{start}{before}: **{plain(row['key'])}** ~~{plain(row.get('before'))}~~ → **{plain(row.get('after'))}**"
    return start + plain(row.get("text"))


def _preflights(found: Mapping[str, Any], seen: Seen) -> None:
    with st.container(border=True, key="chart-preflight"):
        title("Preflight", "What “klaxon preflight” measured on the engine before the run: canaries scored under the trainer's weights, the prefix cache, a batch, an update.")
        reports = found.get("preflights") or []
        if not reports:
            st.markdown(":material/hourglass_empty: No report in the run's folder. Before the next start: `klaxon preflight --engine ENGINE_URL --model MODEL_DIR --json > "
                        + str(found.get("preflight_folder") or "RUN_DIR").replace("`", "") + "/preflight.json`")
            return
        newest = next((report for report in reports if not report.get("problem")), None)
        for report in reports:
            _report(report, seen, expanded=report is newest)


def _report(report: Mapping[str, Any], seen: Seen, *, expanded: bool) -> None:
    if report.get("problem"):
        st.warning(f"{plain(report.get('file'))} {plain(report['problem'])}", icon=":material/build:")
        return
    word = "passed" if report.get("passed") else "FAILED"
    icon = ":material/check_circle:" if report.get("passed") else ":material/cancel:"
    with st.expander(f"{word} · {plain(report.get('file'))} · {clock(report.get('at'), now=seen.now)}", icon=icon, expanded=expanded):
        for row in report.get("rows") or ():
            colour, mark = FLIGHT.get(str(row.get("state")), FLIGHT["unknown"])
            with st.container(horizontal=True, gap="small"):
                with st.container(width=108):
                    st.badge(plain(row.get("state")), icon=mark, color=colour)
                with st.container(width="stretch", gap=None):
                    st.markdown(f"**{plain(row.get('name'))}** {plain(row.get('seen'))}")
                    if row.get("do") and row.get("state") == "failed":
                        st.code(str(row["do"]), language="bash", wrap_lines=True)


_body(frame.header("Engine", "memory", "Do the engine's settings fit what the trainer assumes, and what changed when?", windows=False))
