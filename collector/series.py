"""What charts ask of the store: series cut to a number of points, slices put together, evidence, metrics.

A point is a bucket of neighbouring batches: counts are summed, `name` is the token-weighted mean of the batches'
values, `name_min` and `name_max` their extremes. With few enough batches a point is one batch and the three agree.
Under a slice filter a point's metrics are computed from the bucket's merged sums, and min and max repeat the mean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from collector import signals
from collector.metric_values import Metric
from collector.records import SliceStats
from collector.series_signals import chosen, signal_columns
from collector.store import Store
from collector.store_schema import SERIES, SERIES_COUNTS, finite, newest_version, slice_from

SLICE_KEYS = ("replica", "position", "version", "cached")
MAX_POINTS = 2000
_ENDLESS = 1e18
_POPULATION = "coalesce(s.population, 'served')"  # null in rows of an earlier Klaxon

_BUCKETS = """
WITH kept AS (
    SELECT t, closed_at, ln_m, ln_a, row_number() OVER (ORDER BY t) - 1 AS i, count(*) OVER () AS n
    FROM batches WHERE closed_at >= ? AND closed_at <= ?),
bucketed AS (SELECT *, CASE WHEN n <= ? THEN i ELSE i * ? // n END AS bucket FROM kept)
"""

_POINT = """
    min(b.t) AS t, max(b.closed_at) AS closed_at, count(*) AS batches,
    arg_max(b.ln_m, b.t) AS ln_m, min(b.ln_m) AS ln_m_min, max(b.ln_m) AS ln_m_max, max(b.ln_a) AS ln_a
"""


def read_series(store: Store, *, start: float | None = None, end: float | None = None, max_points: int = 600,
                replica: str | None = None, position: str | None = None, version: str | None = None,
                population: str = "served", names: Sequence[str] = ()) -> pa.Table:
    """One row a point, oldest first; times are UTC seconds, d in nats, rates are fractions. Metrics are null where nothing was scored.

    `names`: any signals of the metric table, from exact sums, with name:min and name:max over the batches of the point; they
    come beside the usual columns, and in the place of one of their name.

    Raises:
        ValueError: no such signal, or too many.
    """
    wanted = chosen(names)
    span = _span(start, end, max_points)
    filters = {key: value for key, value in (("replica", replica), ("position", position), ("version", version))
               if value is not None}
    table = _whole(store, span) if not filters and population == "served" else _filtered(store, span, filters, population)
    return _with_signals(store, table, wanted, span, filters, population) if wanted else table


def _with_signals(store: Store, table: pa.Table, wanted: Sequence[Metric], span: list[Any], filters: dict[str, str],
                  population: str) -> pa.Table:
    plain = not filters and population == "served"
    where = "" if plain else " AND ".join([f"{_POPULATION} = ?", *(f"s.{key} = ?" for key in filters)])
    order = store.query_arrow(f"{_BUCKETS} SELECT DISTINCT bucket FROM bucketed ORDER BY bucket", span)["bucket"].to_pylist()
    added = signal_columns(store, wanted, buckets=_BUCKETS, span=span, order=order, where=where,
                           values=[] if plain else [population, *filters.values()])
    for name in added.column_names:
        place = table.schema.get_field_index(name)
        table = table.append_column(name, added[name]) if place < 0 else table.set_column(place, name, added[name])
    return table


def _whole(store: Store, span: list[Any]) -> pa.Table:
    metrics = ", ".join(
        f"sum(s.{name} * s.n_tokens) / sum(s.n_tokens) FILTER (s.{name} IS NOT NULL) AS {name}, "
        f"min(s.{name}) AS {name}_min, max(s.{name}) AS {name}_max" for name in SERIES)
    counts = ", ".join(f"coalesce(sum(s.{name}), 0)::BIGINT AS {name}" for name in SERIES_COUNTS)
    return store.query_arrow(
        f"{_BUCKETS} SELECT {_POINT}, coalesce(sum(s.n_tokens), 0)::BIGINT AS n_tokens, max(s.version_max) AS version_max, "
        f"{counts}, {metrics} FROM bucketed b LEFT JOIN series s USING (t) GROUP BY bucket ORDER BY bucket", span)


def _filtered(store: Store, span: list[Any], filters: dict[str, str], population: str) -> pa.Table:
    where = " AND ".join([f"{_POPULATION} = ?", *(f"s.{key} = ?" for key in filters)])
    found = store.query_arrow(
        f"{_BUCKETS} SELECT bucket, s.* FROM bucketed b JOIN slices s USING (t) WHERE {where}",
        [*span, population, *filters.values()])
    groups: dict[int, list[SliceStats]] = defaultdict(list)
    for row in found.to_pylist(maps_as_pydicts="strict"):
        groups[row["bucket"]].append(slice_from(row))
    points = store.query_arrow(f"{_BUCKETS} SELECT bucket, {_POINT} FROM bucketed b GROUP BY bucket ORDER BY bucket", span)
    rows = [_point_of(groups.get(bucket, []), population) for bucket in points["bucket"].to_pylist()]
    table = pa.Table.from_pylist(rows, schema=_POINT_SCHEMA)
    for name in points.drop_columns("bucket").column_names:
        table = table.append_column(name, points[name])
    return table


_POINT_SCHEMA = pa.schema([("n_tokens", pa.int64()), ("version_max", pa.int64()),
                           *((name, pa.int64()) for name in SERIES_COUNTS),
                           *((name + suffix, pa.float64()) for name in SERIES for suffix in ("", "_min", "_max"))])


def _point_of(slices: Sequence[SliceStats], population: str) -> dict[str, Any]:
    point: dict[str, Any] = {"n_tokens": 0, **dict.fromkeys(SERIES_COUNTS, 0)}
    if not slices:
        return point
    whole = signals.total(slices, population=population)
    metrics = signals.metrics(whole)
    point |= {"n_tokens": whole.n_tokens, "version_max": newest_version(item.version for item in slices)}
    point |= {name: int(metrics.get(name) or 0) for name in SERIES_COUNTS}
    if whole.n_tokens:
        point |= {name + suffix: finite(metrics.get(name)) for name in SERIES for suffix in ("", "_min", "_max")}
    return point


def read_slices(store: Store, *, start: float | None = None, end: float | None = None,
                by: Sequence[str] = SLICE_KEYS, population: str = "served", names: Sequence[str] = ()) -> pa.Table:
    """Slices of a time range put together by `by`, with their metrics and the signals in `names`; without a start the newest 64 batches.

    Raises:
        ValueError: `by` names something that is no slice key, or `names` no signal.
    """
    wanted = [metric for metric in chosen(names) if metric.name not in (*SERIES, *SERIES_COUNTS, "n_tokens", "n_sequences")]
    if unknown := set(by) - set(SLICE_KEYS):
        raise ValueError(f"by: {', '.join(sorted(unknown))} is none of {', '.join(SLICE_KEYS)}")
    if start is None:
        start = store.query("SELECT coalesce(min(closed_at), 0) FROM (SELECT closed_at FROM batches ORDER BY t DESC LIMIT 64)")[0][0]
    found = store.query_arrow(f"SELECT s.* FROM slices s JOIN batches b USING (t) WHERE closed_at >= ? AND closed_at <= ? "
                              f"AND {_POPULATION} = ?", [start, _ENDLESS if end is None else end, population])
    groups: dict[tuple[Any, ...], list[SliceStats]] = defaultdict(list)
    for row in found.to_pylist(maps_as_pydicts="strict"):
        groups[tuple(row[key] for key in by)].append(slice_from(row))
    rows = [dict(zip(by, key, strict=True)) | {"n_sequences": float(sum(item.n_sequences for item in items))}
            | _point_of(items, population) | _more(items, population, wanted) for key, items in groups.items()]
    types = {"cached": pa.bool_()}
    schema = pa.schema([*((key, types.get(key, pa.string())) for key in by), ("n_sequences", pa.float64()),
                        *(field for field in _POINT_SCHEMA if not field.name.endswith(("_min", "_max"))),
                        *((metric.name, pa.float64()) for metric in wanted)])
    return pa.Table.from_pylist(sorted(rows, key=lambda row: -row["n_tokens"]), schema=schema)


def _more(items: Sequence[SliceStats], population: str, wanted: Sequence[Metric]) -> dict[str, Any]:
    if not wanted:
        return {}
    whole = signals.total(items, population=population)
    return {metric.name: finite(metric.value(whole)) for metric in wanted}


def read_evidence(store: Store, *, start: float | None = None, end: float | None = None, max_points: int = 600,
                  latest: bool = False) -> pa.Table:
    """Per stream: t, closed_at, weight, gain and log_sr (natural logs of e-values), log_share = ln weight + log_sr.

    A point keeps the last batch of its bucket and `log_sr_max` over it. `latest` gives one row a stream.
    """
    picked = ("QUALIFY row_number() OVER (PARTITION BY stream ORDER BY t DESC) = 1" if latest else "")
    return store.query_arrow(
        f"""{_BUCKETS}, points AS (
            SELECT stream, max(b.t) AS t, max(closed_at) AS closed_at, arg_max(weight, b.t) AS weight, sum(gain) AS gain,
                   arg_max(log_sr, b.t) AS log_sr, max(log_sr) AS log_sr_max, arg_max(started_at, b.t) AS started_at
            FROM bucketed b JOIN evidence e USING (t) GROUP BY stream, bucket)
        SELECT *, CASE WHEN weight > 0 THEN ln(weight) END + log_sr AS log_share FROM points {picked} ORDER BY t, stream""",
        _span(start, end, max_points))


def read_metrics(store: Store, *, names: Iterable[str] = (), start: float | None = None, end: float | None = None,
                 max_points: int = 600) -> pa.Table:
    """Trainer metrics by name: step, at (UTC seconds), value with value_min and value_max of the bucket, source."""
    wanted, (low, high, points, _) = list(names), _span(start, end, max_points)
    chosen = "AND list_contains(?, name)" if wanted else ""
    return store.query_arrow(
        f"""WITH kept AS (
            SELECT *, row_number() OVER w - 1 AS i, count(*) OVER (PARTITION BY name, source) AS n
            FROM metrics WHERE "at" >= ? AND "at" <= ? {chosen} WINDOW w AS (PARTITION BY name, source ORDER BY "at", step))
        SELECT name, source, max(step) AS step, max("at") AS "at", avg(value) AS value, min(value) AS value_min,
               max(value) AS value_max
        FROM kept GROUP BY name, source, CASE WHEN n <= ? THEN i ELSE i * ? // n END ORDER BY name, source, step""",
        [low, high, *([wanted] if wanted else []), points, points])


def read_rollouts(store: Store, *, start: float | None = None, end: float | None = None, limit: int = 10_000) -> pa.Table:
    """Statistics of sampled rollouts, newest first."""
    return store.query_arrow(
        "SELECT * EXCLUDE (bin_tokens, bin_abs_d) FROM rollouts WHERE coalesce(finished_at, 0) >= ? AND coalesce(finished_at, 0) <= ? "
        "ORDER BY t DESC, finished_at DESC LIMIT ?", [*_span(start, end, 1)[:2], limit])


def _span(start: float | None, end: float | None, max_points: int) -> list[Any]:
    return [-_ENDLESS if start is None else start, _ENDLESS if end is None else end, max_points, max_points]
