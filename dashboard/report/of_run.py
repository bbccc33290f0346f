"""The chapters about the run as a whole: the numbers over time, where they sit, what the trainer logged, the engine's settings."""

from __future__ import annotations

import pandas as pd

from dashboard import charts, slice_charts, trainer_names, training_charts
from dashboard.report.gathered import Gathered
from dashboard.report.parts import Cell, Part, Section, Table, Words
from dashboard.report.pictures import Pen
from dashboard.slice_about import ABOUT, DOTS, POSITIONS
from dashboard.words import clock, percent

VERSIONS_SHOWN = 16
REPLICAS_SHOWN = 8
AUDIT_TONES = {"wrong": "bad", "risky": "warn", "unknown": "info", "ok": "good", "failed": "bad", "passed": "good", "measured": "info"}


def numbers(found: Gathered, pen: Pen) -> Section:
    """Mismatch, KL, clip rate, evidence and weights over the whole run."""
    drawn = [pen.chart(chart(found.shot)) for chart in (charts.mismatch, charts.k3, charts.clip, charts.evidence, charts.weights)]
    return Section(anchor="run", title="The whole run", about="Every batch since the start; neighbouring batches are drawn as one point where there are more than fit.", parts=list(drawn))


def slices(found: Gathered, pen: Pen) -> Section:
    """Where the mismatch sits."""
    floor, tables = found.status.get("floor_nats"), found.breakdowns
    parts: list[Part] = [_replicas(found, pen), _positions(found, pen), _lag(found, pen)]
    unknown: list[str] = []
    for key, (title, about, order) in DOTS.items():
        table = tables[key].dropna(subset=[key])
        order = slice_charts.in_turn(table["turn"]) if key == "turn" else order
        if table.empty:
            unknown.append(title.lower())
            continue
        rows = slice_charts.lines(table, key, floor=None if key == "probability" else floor, picked=None, order=order)
        parts.append(pen.figure(f"slice-{key}", title, about, slice_charts.dots(title.lower()), rows, numbers=table))
    if unknown:
        parts.append(Words(lines=[f"Not told by any compared rollout: {', '.join(unknown)}."]))
    return Section(anchor="slices", title="Where it sits", about="Mean |log q − log p| by part of the run: q is the trainer's probability of the sampled token, p the engine's.", parts=parts)


def _replicas(found: Gathered, pen: Pen) -> Part:
    table = found.breakdowns["replica"].dropna(subset=["replica"])
    title, _ = ABOUT["replica"]
    about = "Mean |log q − log p| of each replica's sampled tokens over the whole run, with two standard errors; dashed: the healthy floor."
    if table.empty:
        return pen.figure("slice-replica", title, about, {}, table, empty="No token was compared.")
    whole = table.assign(weighted=table["mean_abs_d"] * table["n_tokens"], squared=(table["mean_abs_d_se"].fillna(0) * table["n_tokens"]) ** 2)
    sums = whole.groupby("replica", as_index=False)[["weighted", "squared", "n_tokens"]].sum()
    whole = pd.DataFrame({"replica": sums["replica"], "n_tokens": sums["n_tokens"], "mean_abs_d": sums["weighted"] / sums["n_tokens"],
                          "mean_abs_d_se": sums["squared"] ** 0.5 / sums["n_tokens"], "at": 0.0}).nlargest(REPLICAS_SHOWN, "mean_abs_d")
    rows = slice_charts.lines(whole, "replica", floor=found.status.get("floor_nats"), picked=None)
    return pen.figure("slice-replica", title, about, slice_charts.dots("replica"), rows, numbers=table)


def _positions(found: Gathered, pen: Pen) -> Part:
    table = found.breakdowns["position"]
    rows = slice_charts.cells(table, "position", order=POSITIONS) if len(table) else table
    return pen.figure("slice-position", *ABOUT["position"], slice_charts.heat_time("position, tokens"), rows, numbers=table, empty="No token was compared.")


def _lag(found: Gathered, pen: Pen) -> Part:
    table, rows = slice_charts.by_lag(found.breakdowns["version,lag"], most=VERSIONS_SHOWN)
    return pen.figure("slice-lag", *ABOUT["lag"], slice_charts.heat_grid("lag, weight versions", "weight version"), rows, numbers=table,
                      empty="No numbered weight version is known of the compared tokens.")


def training(found: Gathered, pen: Pen) -> Section:
    """What the trainer logged, in the band of the reference runs; throughput; compared runs."""
    parts: list[Part] = []
    for watched in training_charts.WATCHED:
        part = training_charts.found(found.metrics, watched)
        if len(part):
            band = (found.band.get("metrics") or {}).get(watched.name)
            parts += [pen.figure(f"trainer-{watched.name}", watched.title, f"{watched.about} {training_charts.verdict(part, band)}",
                                 training_charts.against_step(watched.unit), training_charts.rows(part, band), numbers=part)]
    if not parts:
        names = ", ".join(" or ".join(trainer_names.names(watched.name)) for watched in training_charts.WATCHED)
        parts.append(Words(lines=["The trainer sent no metric of those Klaxon draws.", f"It looked for {names}."]))
    parts += [*_throughput(found, pen), *_comparisons(found, pen)]
    return Section(anchor="training", title="What the trainer logged", parts=parts,
                   about="The trainer's own numbers, step by step; green: the band of the reference runs, where one is given.")


def _throughput(found: Gathered, pen: Pen) -> list[Part]:
    table = found.throughput
    if table.empty or not table["tokens_seen"].sum():
        return []
    drawn: list[Part] = []
    for column, title, about, spec in (
            ("tokens_per_second", "Throughput", "Sampled tokens a second that reached Klaxon from all engines: what a fix costs, or buys.", training_charts.against_time("tokens/s")),
            ("mean_abs_d", "Mismatch at the same time", "Mean |log q − log p| a token, for comparison with the throughput above.",
             training_charts.against_time("mean |d|, nats", orange=True))):
        drawn.append(pen.figure(f"throughput-{column}", title, about, spec, pd.DataFrame({"at": 1000 * table["at"], "value": table[column]}), numbers=table))
    return drawn


def _comparisons(found: Gathered, pen: Pen) -> list[Part]:
    parts: list[Part] = []
    for number, report in enumerate(one for one in found.comparisons if not one.get("problem")):
        rows = training_charts.compared(report)
        title = f"{', '.join(report['b'])} against {', '.join(report['a'])}"
        about = (f"{report['verdict']} Difference of two finished runs in units of the margin: inside the shade it counts as none. "
                 f"Level {percent(1 - report['alpha'])}, {report['file']}.")
        parts.append(pen.figure(f"comparison-{number}", title, about, training_charts.differences(), rows.dropna(subset=["value"]), numbers=rows,
                                empty="No metric has enough steps in common."))
        parts.append(Table(title="The answers", about="Per metric: the second run against the first, with its interval.", columns=("metric", "second against first", "answer"),
                           rows=[[row.label, row.said, row.words] for row in rows.itertuples()]))
    return parts


def engine(found: Gathered) -> Section:
    """The audit, what changed, and the preflight's reports."""
    audit = found.audit
    checks: list[list[Cell]] = [[str(check.get("name")), (str(check.get("state")), AUDIT_TONES.get(str(check.get("state")), "info")), str(check.get("seen")),
                                 "" if check.get("state") == "ok" else f"{check.get('why') or ''} {check.get('do') or ''}".strip()] for check in audit.get("checks") or ()]
    changed: list[list[Cell]] = [[clock(row.get("at"), now=0).removesuffix(" UTC"), str(row.get("text")), str(row.get("key") or ""), str(row.get("before") or ""), str(row.get("after") or "")]
                                 for row in audit.get("history") or ()]
    parts: list[Part] = [
        Table(title="Audit checklist", about="What the engine's tap and Klaxon's probe were told of its settings, against what the trainer declares. Settings are evidence, not proof.",
              columns=("setting", "state", "seen", "why, and what to do"), rows=checks, empty="No engine has told anything of its settings."),
        Table(title="What changed", about="Restarts and changed settings, newest first: a fault that begins at one of these began with it.",
              columns=("UTC", "what", "setting", "before", "after"), rows=changed, empty="Nothing has changed since Klaxon began to listen.")]
    for report in audit.get("preflights") or ():
        rows: list[list[Cell]] = [[str(row.get("name")), (str(row.get("state")), AUDIT_TONES.get(str(row.get("state")), "info")), str(row.get("seen"))] for row in report.get("rows") or ()]
        parts.append(Table(title=f"Preflight {report.get('file')}: {'passed' if report.get('passed') else report.get('problem') or 'FAILED'}", columns=("check", "state", "seen"), rows=rows,
                           about="What `klaxon preflight` measured on the engine before the run.", empty="It could not be read."))
    version = f"vLLM {audit['vllm_version']}" if audit.get("vllm_version") else "vLLM of unknown version"
    return Section(anchor="engine", title="The engine's settings", about=f"{version} at {audit.get('engine')}." if audit.get("engine") else "", parts=parts)


def definitions(found: Gathered, shown: set[str]) -> Section:
    """Formula, direction, level and unit of every signal in the report, and the words."""
    rows: list[list[Cell]] = [[one["name"], one["formula"], one["direction"], one["level"], one["unit"]] for one in found.signals if one["name"] in shown]
    words: list[list[Cell]] = [["floor", "median mean |d| of the batches closed while nothing fired: what a healthy pair still has"], ["batch", "a wall-clock window; its statistics are judged together"],
                               ["evidence ln M, ln A", "weighted average of sequential evidence over all streams, and the threshold it rings at; natural logs"]]
    words += [["change", "the interval in which the fault began, as exactly as the evidence tells"], ["tainted", "compared rollouts of the slices concerned since the change"],
              ["lag", "published weight versions the engine was behind the trainer"]]
    return Section(anchor="definitions", title="Definitions", about="p = rollout engine, q = trainer, on the same sampled tokens at the same weight version; d = log q − log p in nats; w = e^d; samples come from p.",
                   parts=[Table(title="Signals", about="docs/metrics.md has all of them, and what each framework calls them.", columns=("signal", "formula", "direction", "level", "unit"), rows=rows),
                          Table(title="Words", about="What else is named above.", columns=("word", "meaning"), rows=words)])
