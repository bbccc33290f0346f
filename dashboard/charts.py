"""The charts: a constant Vega-Lite specification each, and rows that change. A constant specification is what lets the
page refresh without flicker. One table a chart; the column `row` says which layer a row belongs to.

Rows: row, at (ms since 1970), value, low, high (units of the y axis), series (legend), text (hover),
until (ms since 1970, where a span ends).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pyarrow as pa

from dashboard.client import Snapshot
from dashboard.launch import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION

HEIGHT = 290
COLUMNS = ("row", "at", "value", "low", "high", "series", "text", "until")
_TIME_LABEL = ("utcFormat(datum.value, utcseconds(datum.value) ? '%H:%M:%S' : "
               "utchours(datum.value) || utcminutes(datum.value) ? '%H:%M' : '%d %b')")
_ROWS = pa.schema([(name, pa.string() if name in ("row", "series", "text") else pa.float64()) for name in COLUMNS])
LANE_PIXELS = 13
ROOM_FOR_LABELS = 640  # pixels; a narrower chart names its events on hover alone, for the labels would cover each other
BELOW_MEAN = 30  # the band of a log axis goes no further below the smallest mean: the median of sure tokens is next to nothing, and would squeeze all else
MOST_TICKS = 100
MOST_DOTS = 200  # of a chart's lines together; more of them only make the lines thicker, and the browser slower
_LANES = 4  # heights at which neighbouring event labels stand, so that they do not cover each other
_WHOLE_DECADE = "abs(log(datum.value) / LN10 - round(log(datum.value) / LN10)) < 1e-6"
_SMALLEST = 1e-7  # a log axis has no zero

RULES = {"alarm": "alarm", "engine_down": "engine down", "engine_restart": "restart", "engine_config": "config change",
         "engine_up": "engine up", "acknowledged": "acknowledged", "silence": "silenced", "resolved": "resolved"}
"""Event kinds drawn over the whole height of a chart, with their label, the gravest first; TICKS are drawn at its foot."""
TICKS = ("weights", "weights_announced", "weight_update", "engine_call")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a specification depends on; hashable, so that equal charts share one."""

    y_title: str
    series: tuple[tuple[str, str, bool], ...]  # legend label, colour, dashed
    log: bool = False
    y_format: str = ",.6~g"
    step: bool = False
    zero: bool = False
    span: bool = False  # a stretch of time is shaded
    names: str = ""  # of bars: what the names beside them are


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart, ready to be shown; `empty` says what to do while there is nothing to draw."""

    name: str
    title: str
    help: str
    look: Look
    rows: pd.DataFrame
    empty: str | None = None


def mismatch(shot: Snapshot) -> Chart:
    """Mean |d| with its p50 to p99 band and the floor."""
    series, floor = shot.series, shot.status.get("floor_nats")
    look = Look(y_title="|log q − log p| per token, nats", log=True, series=(
        ("mean", BLUE, False), ("p50–p99", SKY, False), ("floor", GREEN, True)))
    means = [*series["mean_abs_d"][series["mean_abs_d"] > 0], *([floor] if floor else [])]
    rows = [*_frame(shot), *_band(series, "p50_abs_d", "p99_abs_d", "p50–p99", least=min(means, default=0.0) / BELOW_MEAN), *_line(series, "mean_abs_d", "mean", positive=True),
            *_limit(shot, floor, "floor"), *_events(shot)]
    return _chart("mismatch", "Mismatch", "How far the trainer's probability q of the sampled tokens is from the engine's p. "
                  "A healthy engine stays near its floor (dashed); a step upwards is a fault. The band is cut far below the line, where half of the tokens agree.", look, rows, empty=_unscored(shot))


def k3(shot: Snapshot) -> Chart:
    """The k3 estimate of KL(p‖q)."""
    look = Look(y_title="k3 estimate of KL(p‖q), nats", log=True, series=(("mean k3", BLUE, False),))
    rows = [*_frame(shot), *_line(shot.series, "k3", "mean k3", positive=True), *_events(shot)]
    return _chart("k3", "KL between engine and trainer", "The cost of the mismatch in nats a token, from the estimator e^d − 1 − d, which is never negative.",
                  look, rows, empty=_unscored(shot))


def clip(shot: Snapshot) -> Chart:
    """Clip rates: Klaxon's per token and per sequence, the trainer's own, and the reference runs' at the same steps."""
    reference = _reference_band(shot, "clip_rate", "reference runs")
    look = Look(y_title="share of tokens or sequences", y_format=".1~%", zero=True, series=(
        ("tokens", BLUE, False), ("sequences", PURPLE, False), ("trainer", ORANGE, True), *((("reference runs", GREEN, True),) if reference else ())))
    rows = [*_frame(shot), *reference, *_line(shot.series, "clip_rate", "tokens"), *_line(shot.series, "gspo_clip_rate", "sequences"),
            *_metric_line(shot, "clip_rate", "trainer"), *_events(shot)]
    return _chart("clip", "Clip rate", "Share of tokens (PPO) and sequences (GSPO) that mismatch alone pushes out of the trust region, beside the clip rate "
                  "the trainer logs; green, where there are reference runs: the trainer's clip rate in them at the same step.", look, rows, empty=_unscored(shot))


def evidence(shot: Snapshot) -> Chart:
    """ln M against ln A."""
    budget = shot.status.get("budget") or "the stated budget"
    look = Look(y_title="evidence, natural log", zero=True, series=(("evidence ln M", BLUE, False), ("alarm ln A", VERMILLION, True)))
    rows = [*_frame(shot), *_line(shot.series, "ln_m", "evidence ln M"), *_limit(shot, shot.status.get("ln_a"), "alarm ln A"), *_events(shot)]
    return _chart("evidence", "Evidence", "The alarm rings when the evidence reaches the dashed line; a healthy run gets there "
                  f"no more often than {budget}.", look, rows, empty="No batch is closed yet: evidence starts with the first one.")


def weights(shot: Snapshot) -> Chart:
    """Weight versions: the trainer's newest, and the one the engine generates with."""
    look = Look(y_title="weight version", step=True, series=(("engine", BLUE, False), ("trainer", ORANGE, True)))
    published = pd.DataFrame([{"closed_at": row.get("published_at") or row.get("seen_at"), "version": float(row["version"])}
                              for row in shot.weights if str(row.get("version")).isdecimal() and (row.get("published_at") or row.get("seen_at"))],
                             columns=["closed_at", "version"]).sort_values("closed_at")
    inside = published[published["closed_at"] >= shot.start]
    before = published[published["closed_at"] < shot.start].tail(1).assign(closed_at=shot.start)
    published = pd.concat([part for part in (before, inside) if len(part)]) if len(published) else published
    if len(published):
        published = pd.concat([published, published.tail(1).assign(closed_at=shot.end)])
    rows = [*_frame(shot), *_line(shot.series, "version_max", "engine"), *_line(published, "version", "trainer"), *_events(shot)]
    return _chart("weights", "Weight version", "What the trainer has published and what the engine generates with: a widening gap is lag, a flat engine line is an update that never arrived.",
                  look, rows, empty="No numbered weight version is known yet: point [weights] at the trainer's folder, or announce versions from the trainer.")


def any_signal(shot: Snapshot, signal: Mapping[str, str], table: pd.DataFrame) -> Chart:
    """One signal of the metric table, with the smallest and largest batch of each point."""
    name = signal["name"]
    look = Look(y_title=f"{name}, {signal['unit'] or 'no unit'}", series=((name, BLUE, False),))
    return _chart("signal", name, f"{signal['formula']}. {signal['direction']}, {signal['level']}.", look,
                  [*_frame(shot), *_line(table, name, name), *_events(shot)], empty=_unscored(shot))


def trainer_metric(shot: Snapshot, what: str, title: str, *, y_title: str, help: str) -> Chart:
    """One series the trainer logs."""
    look = Look(y_title=y_title, series=((what, BLUE, False),))
    rows = [*_frame(shot), *_metric_line(shot, what, what), *_events(shot)]
    return _chart(what, title, help, look, rows, empty=f"The trainer has not sent `{what}` in this window: klaxon_tap.push(step, "
                  f"{{\"{what}\": …}}), or a source in [metrics].")


@cache
def specification(look: Look) -> dict[str, Any]:
    """The Vega-Lite specification of a look, without data."""
    labels, colours, dashes = zip(*[(label, colour, [6, 4] if dashed else [1, 0]) for label, colour, dashed in look.series], strict=True)
    legend = alt.Legend(orient="top", title=None, direction="horizontal", symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1,
                        labelLimit=220, columnPadding=8) if len(labels) > 1 else None
    colour = alt.Color("series:N", scale=alt.Scale(domain=list(labels), range=list(colours)), legend=legend)
    dash = alt.StrokeDash("series:N", scale=alt.Scale(domain=list(labels), range=list(dashes)), legend=legend)
    scale = alt.Scale(type="log", nice=True, clamp=True) if look.log else alt.Scale(zero=look.zero, nice=True)
    axis = alt.Axis(format=look.y_format, titlePadding=8, tickCount=5,
                    **({"gridOpacity": alt.condition(_WHOLE_DECADE, alt.value(1), alt.value(0))} if look.log else {}))
    x = alt.X("at:T", title="time, UTC", scale=alt.Scale(type="utc"),
              axis=alt.Axis(tickCount=6, labelOverlap=True, grid=False, labelExpr=_TIME_LABEL))
    y = alt.Y("value:Q", title=look.y_title, scale=scale, axis=axis)
    hover = [alt.Tooltip("utcyearmonthdatehoursminutesseconds(at):T", title="UTC"), alt.Tooltip("series:N", title="line"),
             alt.Tooltip("value:Q", format=".4~g"), alt.Tooltip("text:N", title="note")]

    def layer(row: str) -> alt.Chart:
        return alt.Chart(alt.NamedData("rows")).transform_filter(f"datum.row === '{row}'")

    line = {"interpolate": "step-after"} if look.step else {}
    layers = [
        layer("frame").mark_point(opacity=0, tooltip=None).encode(x=x),
        layer("span").mark_rect(opacity=0.25, color=ORANGE).encode(
            x=x, x2="until:T", y=alt.value(0), y2=alt.value("height"), tooltip=alt.Tooltip("text:N", title="change")) if look.span else None,
        layer("limit").mark_rect(opacity=0.08, color=GREEN).encode(y=y, y2=alt.value("height")) if look.log else None,
        layer("band").mark_area(opacity=0.22, **line).encode(x=x, y=alt.Y("low:Q", title=look.y_title, scale=scale, axis=axis), y2="high:Q", color=colour),
        layer("limit").mark_rule(strokeWidth=1.6).encode(y=y, color=colour, strokeDash=dash, tooltip=hover[1:3]),
        *_event_layers(layer, x),
        layer("line").mark_line(strokeWidth=2, **line).encode(x=x, y=y, color=colour, strokeDash=dash),
        layer("line").transform_joinaggregate(points="count()").transform_filter(f"datum.points <= {MOST_DOTS}")
        .mark_point(filled=True, size=14, opacity=1).encode(x=x, y=y, color=colour),
        layer("line").mark_point(size=260, opacity=0, filled=True).encode(x=x, y=y, tooltip=hover),
    ]
    spec = alt.layer(*[item for item in layers if item is not None]).properties(height=HEIGHT).to_dict(validate=False)
    return _without_data(spec)


def _event_layers(layer: Any, x: alt.X) -> list[alt.Chart]:
    hover = [alt.Tooltip("utcyearmonthdatehoursminutesseconds(at):T", title="UTC"), alt.Tooltip("text:N", title="event")]
    colour = (alt.when("test(/^(alarm|engine down)/, datum.series)").then(alt.value(VERMILLION))
              .when("test(/^(resolved|engine up)/, datum.series)").then(alt.value(GREEN)).otherwise(alt.value(PURPLE)))
    return [
        layer("tick").mark_rule(color=GREY, strokeWidth=1.5).encode(x=x, y=alt.value(alt.expr("height - 9")), y2=alt.value("height"), tooltip=hover),
        layer("rule").mark_rule(strokeWidth=1.5, strokeDash=[2, 3]).encode(x=x, color=colour, tooltip=hover),
        layer("rule").mark_text(align=alt.expr("datum.value ? 'right' : 'left'"), dx=alt.expr("datum.value ? -4 : 4"), dy=alt.expr(f"{LANE_PIXELS} * datum.low"),
                                fontSize=11, fontWeight=600, opacity=alt.expr(f"width > {ROOM_FOR_LABELS} ? 1 : 0")).encode(x=x, y=alt.value(8), text="series:N", color=colour),
    ]


def _without_data(spec: dict[str, Any]) -> dict[str, Any]:
    for part in (spec, *spec.get("layer", ())):
        part.pop("data", None)
    spec.pop("datasets", None)
    return spec


def _chart(name: str, title: str, help: str, look: Look, rows: Iterable[dict[str, Any]], *, empty: str) -> Chart:
    table = pa.Table.from_pylist(list(rows), schema=_ROWS).to_pandas()  # much faster than a DataFrame out of as many dictionaries
    drawn = table[table["row"].isin(["line", "band"])][["value", "low"]].notna().to_numpy().any()
    return Chart(name=name, title=title, help=help, look=look, rows=table, empty=None if drawn else empty)


def _frame(shot: Snapshot) -> list[dict[str, Any]]:
    """Both ends of the window, so that all charts share their time axis."""
    return [{"row": "frame", "at": 1000 * at} for at in (shot.start, shot.end)]


def _line(table: pd.DataFrame, column: str, label: str, *, positive: bool = False) -> list[dict[str, Any]]:
    values = table[column].astype(float)
    if positive:
        values = values.clip(lower=_SMALLEST)
    return [{"row": "line", "at": 1000 * at, "value": value, "series": label} for at, value in zip(table["closed_at"], values, strict=True)]


def _band(table: pd.DataFrame, low: str, high: str, label: str, *, least: float) -> list[dict[str, Any]]:
    least = max(least, _SMALLEST)
    return [{"row": "band", "at": 1000 * at, "low": max(bottom, least), "high": max(top, least), "series": label}
            for at, bottom, top in zip(table["closed_at"], table[low], table[high], strict=True) if bottom == bottom and top == top]


def _limit(shot: Snapshot, value: Any, label: str) -> list[dict[str, Any]]:
    return [] if value is None else [{"row": "limit", "at": 1000 * shot.end, "value": value, "series": label}]


def _metric_line(shot: Snapshot, what: str, label: str) -> list[dict[str, Any]]:
    table = shot.metrics.get(what)
    if table is None:
        return []
    return [{"row": "line", "at": 1000 * row.at, "value": row.value, "series": label, "text": f"step {row.step}, {row.name}"}
            for row in table.itertuples(index=False)]


def _reference_band(shot: Snapshot, what: str, label: str) -> list[dict[str, Any]]:
    """The band of the reference runs when the trainer was at their steps; [] where it has logged no step within them."""
    band, table = (shot.band.get("metrics") or {}).get(what), shot.metrics.get(what)
    if not band or not band.get("steps") or table is None:
        return []
    inside = table[(table["step"] >= band["steps"][0]) & (table["step"] <= band["steps"][-1])]
    edges = {edge: np.interp(inside["step"].astype(float), band["steps"], band[edge]) for edge in ("low", "center", "high")}
    area = [{"row": "band", "at": 1000 * at, "low": low, "high": high, "series": label}
            for at, low, high in zip(inside["at"], edges["low"], edges["high"], strict=True)]
    middle = [{"row": "line", "at": 1000 * at, "value": value, "series": label, "text": f"step {step}"}
              for at, value, step in zip(inside["at"], edges["center"], inside["step"], strict=True)]
    return area + middle


def numbers(chart: Chart) -> pd.DataFrame:
    """What a chart draws, as a table for people: without the axes' frame and without empty columns; times as UTC text."""
    table = chart.rows[chart.rows["row"] != "frame"].copy()
    places = table["row"].isin(["rule", "tick"])  # of these, value and low say where a label stands
    table.loc[places, [name for name in ("value", "low") if name in table]] = None
    table = table.dropna(axis="columns", how="all").drop(columns=["order", "label"], errors="ignore")
    for column in ("at", "until"):
        if column in table:
            table = table.assign(**{column: pd.to_datetime(table[column], unit="ms", utc=True).dt.strftime("%Y-%m-%dT%H:%M:%S.%fZ")})
    return table


def _events(shot: Snapshot) -> list[dict[str, Any]]:
    inside = [event for event in shot.events if event["at"] >= shot.start]
    return _rules([event for event in inside if event["kind"] in RULES], shot.start, shot.end) + _ticks(inside, shot.start, shot.end)


def _ticks(events: Sequence[dict[str, Any]], start: float, end: float) -> list[dict[str, Any]]:
    """At most MOST_TICKS marks at the foot of a chart, so that a month's weight updates stay marks; one that stands for several says so."""
    width = max(end - start, 1e-3) / MOST_TICKS
    places: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        if event["kind"] in TICKS:
            places.setdefault(min(int((event["at"] - start) / width), MOST_TICKS - 1), []).append(event)
    return [{"row": "tick", "at": 1000 * group[0]["at"], "series": group[0]["kind"],
             "text": group[0]["text"] + (f" · and {len(group) - 1} more" if len(group) > 1 else "")} for group in places.values()]


def _rules(events: Sequence[dict[str, Any]], start: float, end: float) -> list[dict[str, Any]]:
    """One rule for events that would stand on top of each other, named after the gravest.

    `value` 1 = its label stands to its left, `low` = the label's lane.
    """
    groups: list[list[dict[str, Any]]] = []
    for event in sorted(events, key=lambda item: item["at"]):
        if groups and event["at"] - groups[-1][0]["at"] < (end - start) / 100:
            groups[-1].append(event)
        else:
            groups.append([event])
    rows: list[dict[str, Any]] = []
    for group in groups:
        first = min(group, key=lambda item: list(RULES).index(item["kind"]))
        more = len({item["kind"] for item in group}) - 1
        close = rows and first["at"] - rows[-1]["at"] / 1000 < (end - start) / 3
        rows.append({"row": "rule", "at": 1000 * first["at"], "low": (rows[-1]["low"] + 1) % _LANES if close else 0.0, "series": RULES[first["kind"]] + (f" +{more}" if more else ""),
                     "value": float(first["at"] > start + 0.8 * (end - start)), "text": " · ".join(item["text"][:160] for item in group[:4])})
    return rows


def _unscored(shot: Snapshot) -> str:
    if shot.status.get("tier") == 0:
        return "Tier 0 has no trainer logprobs to compare with: set [weights] for the shadow scorer, or let the trainer push its logprobs."
    return "No token was scored in this window yet."
