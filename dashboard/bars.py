"""Horizontal bars that compare named things: explanations, streams of evidence, slices. A constant specification and rows, as in charts.py.

Rows: row (bar, tick or limit), name (y), value (x axis's unit), series (legend), text (hover), order (0 on top).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import altair as alt
import pandas as pd

from dashboard.charts import Chart, Look
from dashboard.client_incident import Dossier
from dashboard.launch import ABOVE_NAMES, BLUE, GREEN, GREY, ORANGE, VERMILLION
from dashboard.slice_words import KEYS
from dashboard.story import stream_meaning
from dashboard.words import number

COLUMNS = ("row", "name", "value", "series", "text", "order", "label")
MOST = 12  # bars; what matters less is left out
LONGEST_NAME = 34
READABLE = "#757B85"  # on white and on black


def explanations(found: Dossier) -> Chart:
    """What each explanation leaves unexplained."""
    diagnosis = found.incident.get("diagnosis") or {}
    ranked = sorted((cause for cause in diagnosis.get("causes") or () if _real(cause.get("residual_nats"))), key=lambda cause: cause["residual_nats"])
    look = Look(names="explanation", y_title="nats a token left unexplained", series=(("leading", BLUE, False), ("others", GREY, False), ("floor", GREEN, True)))
    rows = [_bar(i, str(cause.get("cause")), cause["residual_nats"], "leading" if cause.get("cause") == diagnosis.get("verdict") else "others",
                 f"{number(cause['residual_nats'])} nats a token over {cause.get('tokens') or 0:,} tokens") for i, cause in enumerate(ranked[:MOST])]
    empty = "No rollout of this incident was scored again with the trainer's weights, so no explanation could be measured: that needs [weights] and a scorer (tier 2)."
    return _chart("explanations", "Competing explanations", "Every explanation predicts the logprobs the engine would report if it were true; "
                  "the shortest bar fits best, and the right one comes down to the floor of a healthy pair (dashed).", look,
                  rows + _limit(diagnosis.get("floor_nats"), "floor"), empty=empty)


def streams(found: Dossier) -> Chart:
    """How much each stream of evidence had gathered at the alarm."""
    table = found.evidence[found.evidence["log_share"].notna()] if "log_share" in found.evidence else found.evidence
    leading = {str(drift.get("stream")) for drift in found.incident.get("drifts") or ()}
    ranked = table.sort_values("log_share", ascending=False).head(MOST) if len(table) else table
    look = Look(names="stream of evidence", y_title="evidence, natural log", series=(("alarm's", VERMILLION, False), ("others", GREY, False), ("ln A", ORANGE, True)))
    rows = [_bar(i, str(row.stream).removeprefix("explain:"), row.log_share, "alarm's" if str(row.stream) in leading else "others", stream_meaning(str(row.stream)))
            for i, row in enumerate(ranked.itertuples(index=False))]
    return _chart("streams", "Evidence per stream", "What each test had gathered against the run when the alarm rang: ln (weight × e-value). One stream at the dashed line, ln A, is enough to ring.",
                  look, rows + _limit(found.shot.status.get("ln_a"), "ln A"), empty="No stream of evidence was stored around this incident: hard facts need none.")


def slices(found: Dossier, key: str, title: str) -> Chart:
    """Mean |d| of the values of one slice key, before the change and since."""
    table = found.slices[key]
    look = Look(names=KEYS.get(key, key), y_title="mean |log q − log p| per token, nats", series=(("since", BLUE, False), ("before", ORANGE, False), ("floor", GREEN, True)))
    numbers = {period: dict(zip(map(_value, part[key]), part["mean_abs_d"], strict=True)) for period, part in table.groupby("period")} if len(table) else {}
    after, before = numbers.get("since", {}), numbers.get("before", {})
    ranked = sorted((name for name in after if _real(after[name])), key=lambda name: -after[name])[:MOST]
    rows = [_bar(i, name, after[name], "since", f"before {number(before.get(name))} nats") for i, name in enumerate(ranked)]
    ticks = [{**_bar(i, name, before[name], "before", "before the change"), "row": "tick"} for i, name in enumerate(ranked) if _real(before.get(name))]
    return _chart(f"slices-{key}", title, "The mean mismatch since the change (bar) beside what it was before (mark): where only some bars grew, the fault is there.",
                  look, rows + ticks + _limit((found.incident.get("diagnosis") or {}).get("floor_nats"), "floor"), empty="No token was scored since the change.")


@cache
def specification(look: Look) -> dict[str, Any]:
    """The Vega-Lite specification of a look, without data."""
    labels, colours = zip(*[(label, colour) for label, colour, _ in look.series], strict=True)
    legend = alt.Legend(orient="top", title=None, direction="horizontal", labelLimit=220, columnPadding=6, symbolType="square")
    colour = alt.Color("series:N", scale=alt.Scale(domain=list(labels), range=list(colours)), legend=legend)
    x = alt.X("value:Q", title=look.y_title, scale=alt.Scale(zero=True, nice=True), axis=alt.Axis(format=look.y_format, tickCount=5))
    y = alt.Y("name:N", title=look.names, sort=alt.EncodingSortField("order", op="min"), axis=alt.Axis(labelLimit=120, minExtent=40, **ABOVE_NAMES))
    hover = [alt.Tooltip("name:N"), alt.Tooltip("value:Q", format=".4~g"), alt.Tooltip("text:N", title="note")]

    def layer(row: str) -> alt.Chart:
        return alt.Chart(alt.NamedData("rows")).transform_filter(f"datum.row === '{row}'")

    layers = [
        layer("bar").mark_bar(cornerRadiusEnd=3, size=15).encode(x=x, y=y, color=colour, tooltip=hover),
        layer("bar").mark_text(align="left", dx=4, fontSize=11, color=READABLE).encode(x=x, y=y, text="label:N"),
        layer("tick").mark_tick(thickness=3, size=20).encode(x=x, y=y, color=colour, tooltip=hover),
        layer("limit").mark_rule(strokeWidth=1.8, strokeDash=[6, 4]).encode(x=x, color=colour, tooltip=hover[1:2]),
    ]
    spec = alt.layer(*layers).properties(height=alt.Step(27)).to_dict(validate=False)
    for part in (spec, *spec["layer"]):
        part.pop("data", None)
    spec.pop("datasets", None)
    return spec


def _bar(order: int, name: str, value: float, series: str, text: str) -> dict[str, Any]:
    short = name if len(name) <= LONGEST_NAME else f"{name[:12]}…{name[-LONGEST_NAME + 13:]}"
    return {"row": "bar", "name": short, "value": value, "series": series, "text": f"{name}: {text}" if short != name else text, "order": order,
            "label": number(value) if value >= 0 else ""}


def _limit(value: Any, label: str) -> list[dict[str, Any]]:
    return [{"row": "limit", "value": value, "series": label, "order": math.nan}] if _real(value) else []


def _value(value: Any) -> str:
    return "unknown" if value is None or value != value else str(value)


def _real(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _chart(name: str, title: str, help: str, look: Look, rows: Sequence[Mapping[str, Any]], *, empty: str) -> Chart:
    table = pd.DataFrame(list(rows), columns=list(COLUMNS)).astype({"value": float, "order": float})
    return Chart(name=name, title=title, help=help, look=look, rows=table, empty=None if (table["row"] == "bar").any() else empty)
