"""Writes klaxon.json, the Grafana dashboard: `python deploy/grafana/make.py`. One row a panel; tests compare file and maker.

Every expression asks for the run of the variable at the top; colours are told apart by the colour-blind too (Okabe and Ito).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("klaxon.json")
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"
RUN = 'run=~"$run"'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

ROWS: list[tuple[str, list[tuple[str, str, str, int, str, list[tuple[str, str]]]]]] = [
    ("Now", [
        ("Verdict", "stat", "", 6, "What Klaxon says of the run.", [("klaxon_verdict{%s} == 1", "{{verdict}}")]),
        ("Open incidents", "stat", "none", 4, "Incidents that fire or are acknowledged; `klaxon incidents` lists them.", [("klaxon_incidents_open{%s}", "{{run}}")]),
        ("Heartbeats, age", "bargauge", "s", 8, "How long ago each part was last seen at work. daemon and detectors beat every few seconds, a tap too; the scorer is seen when it scores.",
         [("time() - klaxon_heartbeat_timestamp_seconds{%s}", "{{part}}")]),
        ("Tokens compared", "stat", "percentunit", 6, "Share of the sampled tokens that were compared since the start.", [("klaxon_scorer_coverage_ratio{%s}", "{{run}}")]),
    ]),
    ("Mismatch between engine and trainer", [
        ("Mean |d|", "timeseries", "none", 12, "Mean |log q − log p| of the newest compared batch in nats, beside what this run showed while nothing fired.",
         [("klaxon_mean_abs_d_nats{%s}", "mean |d| (nats)"), ("klaxon_floor_nats{%s}", "floor (nats)")]),
        ("|d|, median and 99th percentile", "timeseries", "none", 12, "Quantiles of |d| over the tokens of the newest compared batch, in nats. A tail that rises alone: a few requests or positions.",
         [("klaxon_abs_d_nats{%s}", "quantile {{quantile}} (nats)")]),
        ("KL(p‖q), k3", "timeseries", "none", 12, "Mean e^d − 1 − d in nats: an estimate of KL from engine to trainer.", [("klaxon_k3_nats{%s}", "k3 (nats)")]),
        ("Clip rate and effective sample size", "timeseries", "percentunit", 12, "Share of the tokens outside the clip range before the trainer has made a step, the trainer's own clip rate, and what is left of the sample.",
         [("klaxon_clip_rate_ratio{%s}", "clip rate"), ('klaxon_trainer_metric{%s,metric="clip_rate"}', "trainer's clip rate"), ("klaxon_ess_ratio{%s}", "effective sample size")]),
    ]),
    ("Evidence and alarms", [
        ("Evidence against its threshold", "timeseries", "none", 12, "Natural log of M; an alarm is raised where it reaches the threshold, which keeps the false-alarm budget.",
         [("klaxon_ln_m{%s}", "ln M"), ("klaxon_ln_a{%s}", "threshold ln A")]),
        ("Leading streams", "timeseries", "none", 12, "The ten streams that contribute most to M, natural logs; one that reaches ln A raises the alarm alone.",
         [("topk(10, klaxon_stream_ln_share{%s})", "{{stream}}")]),
        ("Incidents by cause", "timeseries", "none", 12, "Open incidents by state and cause.", [("klaxon_incidents{%s}", "{{state}}: {{cause}}")]),
        ("Alarms against the budget", "timeseries", "none", 12, "Alarms since the detectors began, and the false ones the budget allows in the same time.",
         [("klaxon_alarms{%s}", "alarms"), ("klaxon_promised_false_alarms{%s}", "false alarms allowed")]),
    ]),
    ("Weights and trainer", [
        ("Weight version lag", "timeseries", "none", 12, "Versions the engine, and the last rollouts on average, are behind the trainer.",
         [("klaxon_weight_lag_versions{%s}", "engine (versions)"), ("klaxon_rollout_lag_versions{%s}", "rollouts, mean (versions)")]),
        ("Trainer: reward, entropy, KL", "timeseries", "none", 12, "The trainer's own metrics, in its own units.",
         [('klaxon_trainer_metric{%s,metric=~"reward|entropy|kl|mismatch_kl"}', "{{metric}}")]),
    ]),
    ("Klaxon itself", [
        ("Scorer speed", "timeseries", "none", 8, "Tokens scored in a second of the scorer's work.", [("klaxon_scorer_tokens_per_second{%s}", "tokens/s")]),
        ("Scorer backlog", "timeseries", "none", 8, "Rollouts waiting for the scorer.", [("klaxon_scorer_backlog_rollouts{%s}", "rollouts")]),
        ("Oldest unscored rollout", "timeseries", "s", 8, "How long the oldest waiting rollout has waited; empty while none waits.", [("klaxon_scorer_oldest_unscored_seconds{%s}", "age")]),
        ("Rollouts not compared, by reason", "timeseries", "none", 12, "Rollouts a minute that were dropped, refused or left out, by reason.",
         [("60 * sum by (reason) (rate(klaxon_rollouts_dropped_total{%s}[$__rate_interval]))", "{{reason}} (1/min)")]),
        ("Tokens left out, by reason", "timeseries", "none", 12, "Tokens a minute that were not compared, by reason.",
         [("60 * sum by (reason) (rate(klaxon_tokens_left_out_total{%s}[$__rate_interval]))", "{{reason}} (1/min)")]),
        ("Taps", "timeseries", "none", 8, "1 while a tap's heartbeat is fresh.", [("klaxon_tap_up{%s}", "{{engine}} ({{source}})")]),
        ("Store", "timeseries", "bytes", 8, "Bytes of the store, and free bytes of its disk.", [("klaxon_store_bytes{%s}", "store"), ("klaxon_store_free_bytes{%s}", "free")]),
        ("Alerts waiting and given up", "timeseries", "none", 8, "Messages in the outbox, and dead letters, by receiver.",
         [("klaxon_alerts_waiting{%s}", "waiting: {{receiver}}"), ("klaxon_alerts_dead_letters{%s}", "given up: {{receiver}}")]),
        ("Exporters behind", "timeseries", "none", 12, "Stored batches W&B or TensorBoard have not taken yet.", [("klaxon_export_behind_batches{%s}", "{{exporter}} (batches)")]),
        ("Faults of the read API", "timeseries", "none", 12, "Requests a minute that failed.", [("60 * rate(klaxon_api_faults_total{%s}[$__rate_interval])", "faults (1/min)")]),
    ]),
]
"""(row, panels); a panel: title, type, unit, width of 24, description, [(expression with %s for the run, legend)]."""

COLOURS = {"floor (nats)": GREY, "threshold ln A": RED, "mean |d| (nats)": BLUE, "ln M": BLUE, "k3 (nats)": BLUE, "clip rate": ORANGE, "trainer's clip rate": GREY,
           "effective sample size": GREEN, "alarms": RED, "false alarms allowed": GREY}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        x, y, height = 0, y + 1, 4 if row[0][1] == "stat" else 8
        for spec in row:
            width = spec[3]
            if x + width > 24:
                x, y = 0, y + height
            panels.append(panel(spec, number=len(panels) + 1, place={"x": x, "y": y, "w": width, "h": height}))
            x += width
        y += height
    return {"uid": "klaxon", "title": "Klaxon", "description": "Do the rollout engine's logprobs still mean what the trainer thinks they mean?", "tags": ["klaxon", "rl"],
            "schemaVersion": 39, "version": 1, "editable": True, "graphTooltip": 1, "refresh": "30s", "time": {"from": "now-6h", "to": "now"}, "timezone": "",
            "templating": {"list": variables()}, "annotations": {"list": []}, "links": [], "panels": panels}


def variables() -> list[dict[str, Any]]:
    """The data source and the run."""
    asked = "label_values(klaxon_heartbeat_timestamp_seconds, run)"
    return [{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}, "hide": 0},
            {"name": "run", "label": "Run", "type": "query", "datasource": SOURCE, "query": {"query": asked, "refId": "run"}, "definition": asked, "refresh": 2, "sort": 1,
             "multi": False, "includeAll": False, "current": {}, "hide": 0}]


def panel(spec: tuple[str, str, str, int, str, list[tuple[str, str]]], *, number: int, place: dict[str, int]) -> dict[str, Any]:
    """One panel."""
    title, kind, unit, _, description, asked = spec
    targets = [{"refId": chr(65 + i), "datasource": SOURCE, "expr": expr.replace("%s", RUN), "legendFormat": legend, "editorMode": "code",
                **({"instant": True} if kind != "timeseries" else {})} for i, (expr, legend) in enumerate(asked)]
    overrides = [{"matcher": {"id": "byName", "options": legend}, "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": COLOURS[legend]}}]}
                 for _, legend in asked if legend in COLOURS]
    defaults: dict[str, Any] = {"unit": unit or "none", "color": {"mode": "palette-classic"}, "custom": {}, "mappings": [], "noValue": "nothing yet"}
    options: dict[str, Any] = {}
    if kind == "timeseries":
        defaults["custom"] = {"lineWidth": 2, "spanNulls": False, "showPoints": "auto", "axisLabel": {"s": "seconds", "percentunit": "share", "bytes": "bytes"}.get(unit, "")}
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    if kind == "stat":
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "name" if title == "Verdict" else "value", "colorMode": "none", "graphMode": "none"}
    if kind == "bargauge":
        defaults |= {"min": 0, "max": 120, "color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": [{"value": None, "color": GREEN}, {"value": 60, "color": RED}]}}
        options = {"orientation": "horizontal", "displayMode": "basic", "reduceOptions": {"calcs": ["lastNotNull"]}}
    return {"id": number, "type": kind, "title": title, "description": description, "datasource": SOURCE, "gridPos": place, "targets": targets,
            "fieldConfig": {"defaults": defaults, "overrides": overrides}, "options": options}


if __name__ == "__main__":
    TARGET.write_text(json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
