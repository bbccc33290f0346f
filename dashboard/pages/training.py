"""Training: what the trainer logs, step by step, in the band of trusted runs; and what the engines serve, beside how right it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import frame, training_charts
from dashboard.frame import REFRESH_SECONDS, Seen, download, nothing, safely, title
from dashboard.training_charts import NAMES, WATCHED, Watched
from dashboard.words import clock, percent, plain

POINTS = 240
SETUP = ("The trainer has sent no metric in this window. Any of these brings them here: `klaxon_tap.push(step, metrics)` in the trainer, or a "
         "`[[metrics.sources]]` in config.toml with type `jsonl`, `wandb` or `tensorboard` and the path (docs/trainer-metrics.md).")
NO_BAND = "No band: `klaxon reference learn RUN RUN … -o band.json`, then `[reference] band = \"band.json\"` in config.toml (docs/reference-runs.md)."


@st.fragment(run_every=REFRESH_SECONDS)
def _body(window: str) -> None:
    seen = frame.look(window)
    if seen is None:
        return
    table = safely(_metrics, seen)
    band = safely(_band) or {}
    if table is not None:
        safely(_watched, table, band)
    safely(_throughput, seen)
    safely(_comparisons, seen)
    safely(_about_band, band)


def _metrics(seen: Seen) -> pd.DataFrame:
    return frame.table("/v1/metrics", name=NAMES, start=seen.start, max_points=POINTS)


def _band() -> dict[str, Any]:
    return frame.answer("/v1/reference-band")


def _watched(table: pd.DataFrame, band: Mapping[str, Any]) -> None:
    there = [(watched, part) for watched in WATCHED if len(part := training_charts.found(table, watched))]
    if not there:
        with st.container(border=True, key="chart-none"):
            title("The trainer's metrics", "Reward, KL, clip rate, entropy, length and gradient norm as the trainer logs them.")
            st.markdown(f":material/hourglass_empty: {SETUP}")
        return
    for place in range(0, len(there), 2):
        for column, (watched, part) in zip(st.columns(2, gap="medium"), there[place:place + 2], strict=False):
            with column:
                safely(_metric, watched, part, (band.get("metrics") or {}).get(watched.name))
    if missing := [watched.title for watched in WATCHED if watched.name not in {one.name for one, _ in there}]:
        st.caption(f"Not sent by the trainer in this window: {', '.join(missing)}.")


def _metric(watched: Watched, part: pd.DataFrame, band: Mapping[str, Any] | None) -> None:
    with st.container(border=True, key=f"chart-{watched.name}"):
        head = title(watched.title, watched.about)
        st.markdown(plain(training_charts.verdict(part, band)))
        st.vega_lite_chart(training_charts.rows(part, band), training_charts.against_step(watched.unit), width="stretch", key=f"plot-{watched.name}",
                           alt=f"{watched.title} against the trainer's step")
        download(head, lambda: part, watched.name)


def _throughput(seen: Seen) -> None:
    with st.container(border=True, key="chart-throughput"):
        head = title("Throughput beside correctness", "Sampled tokens a second that reached Klaxon from all engines, over mean |d| at the same time: what a fix costs, or buys.")
        table = frame.table("/v1/throughput", start=seen.start, points=60)
        if table.empty or not table["tokens_seen"].sum():
            nothing("No rollout arrived in this window: look further back, or see on Now whether the tap is heard.")
            return
        for column, spec, alt in (("tokens_per_second", training_charts.against_time("tokens/s"), "Throughput over time, sampled tokens a second"),
                                  ("mean_abs_d", training_charts.against_time("mean |d|, nats", orange=True), "Mean |d| over time, nats")):
            rows = pd.DataFrame({"at": 1000 * table["at"], "value": table[column]})
            st.vega_lite_chart(rows, spec, width="stretch", key=f"plot-{column}", alt=alt)
        download(head, lambda: table, "throughput")


def _comparisons(seen: Seen) -> None:
    with st.container(border=True, key="chart-comparison"):
        head = title("Compared runs", "Are two runs, such as V0 and V1, the same within noise? Each mark is the second run against the first, with its interval; inside the shaded "
                     "margin a difference counts as none. The answers hold together at the stated level, for finished runs looked at once.")
        reports = frame.answer("/v1/comparisons")
        if not reports:
            nothing("No comparison in the run's folder. Of two finished runs: klaxon compare RUN_A RUN_B --json > RUN_DIR/compare.json, and it appears here.")
            return
        for report in reports:
            if report.get("problem"):
                st.warning(f"{plain(report.get('file'))} {plain(report['problem'])}", icon=":material/build:")
        if told := [report for report in reports if not report.get("problem")]:
            _comparison(told[0], seen, head)
        if len(told) > 1:
            st.caption(f"{plain(told[0]['file'])} is the newest; older: {', '.join(plain(report['file']) for report in told[1:])}.")


def _comparison(report: Mapping[str, Any], seen: Seen, head: Any) -> None:
    st.markdown(f"**{plain(report['verdict'])}** {plain(', '.join(report['b']))} against {plain(', '.join(report['a']))} · {clock(report.get('at'), now=seen.now)} · "
                f"level {percent(1 - report['alpha'])}")
    rows = training_charts.compared(report)
    drawn = rows.dropna(subset=["value"])
    if len(drawn):
        st.vega_lite_chart(drawn, training_charts.differences(), width="stretch", key="plot-comparison", alt="Differences between two runs, a metric a line, in units of the margin")
    st.markdown("\n".join(f"- **{plain(row.label)}** {plain(row.said)}: {plain(row.words)}" for row in rows.itertuples()))
    for note in report.get("notes") or ():
        st.caption(plain(note))
    download(head, lambda: rows, "comparison")


def _about_band(band: Mapping[str, Any]) -> None:
    with st.container(border=True, key="chart-band"):
        title("Reference runs", "Green: where the level of one more run of the trusted kind lies; dashed: the middle of those runs. Steps they do not share are not judged.")
        if not band:
            st.markdown(f":material/info: {NO_BAND}")
            return
        names = ", ".join(str(one) for one in band.get("runs") or ())
        st.markdown(plain(f"The band is of {len(band.get('runs') or ())} runs ({names}), with a coverage of {100 * float(band.get('coverage') or 0):g} % for each metric."))
        if not band.get("seed_variance_known"):
            st.warning("One run taught the band: how much seeds differ is not known; its width is a tolerance somebody chose.", icon=":material/warning:")
        if left := band.get("left_out"):
            st.markdown("\n".join(f"- {plain(name)} has no band: {plain(why)}" for name, why in left.items()))
        st.caption("The band is of whole runs; two of them are compared above.")


_body(frame.header("Training", "trending_up", "Does this run learn the way trusted runs learnt? All numbers are the trainer's own; Klaxon only draws and judges them."))
