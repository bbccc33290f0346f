"""Any signals of the metric table as a series: per point from the exact sums of its batches, never from means of means.

The store keeps the sums and the |d| histogram of every batch in its `series` row, three columns whatever the number of
signals; a signal's value is a function of them. Rows of an earlier Klaxon lack them: their sums are taken from the slices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from collector.metric_table import METRICS
from collector.metric_values import EDGES, Metric
from collector.records import SliceStats
from collector.signals import total
from collector.store import Store
from collector.store_schema import finite

MAX_SIGNALS = 24
"""Most signals of one request, so that an answer has a bounded number of columns."""

_ALWAYS = ("later_tokens", "later_sequences")  # merging asks which records stand behind a sum
_NO_HIST = np.zeros(EDGES.size - 1, dtype=np.int64)
_SERVED = """
    SELECT t, n_tokens, n_sequences, hist_pos, hist_neg, sums FROM series WHERE sums IS NOT NULL
    UNION ALL
    SELECT s.t, s.n_tokens, s.n_sequences, s.hist_pos, s.hist_neg, s.sums FROM slices s JOIN series USING (t)
    WHERE series.sums IS NULL AND coalesce(s.population, 'served') = 'served'"""


def chosen(names: Sequence[str]) -> tuple[Metric, ...]:
    """The signals of these names, each once.

    Raises:
        ValueError: one is not in the table, or there are too many.
    """
    known = {metric.name: metric for metric in METRICS}
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"signal: {', '.join(unknown)} is not in the metric table (docs/metrics.md)")
    if len(set(names)) > MAX_SIGNALS:
        raise ValueError(f"signal: {len(set(names))} were asked for, at most {MAX_SIGNALS} are answered at once")
    return tuple(known[name] for name in dict.fromkeys(names))


def signal_columns(store: Store, metrics: Sequence[Metric], *, buckets: str, span: Sequence[Any], order: Sequence[int],
                   where: str = "", values: Sequence[Any] = ()) -> pa.Table:
    """name, name:min and name:max of every signal (some signals end in _max), one row a bucket in `order`; null where nothing was scored.

    `buckets` is the WITH clause that defines `bucketed` (t, bucket) over `span`; `where` a condition on slices `s`, else
    what was served is read. min and max are over the bucket's batches, the value itself is from its merged sums.
    """
    found = store.query_arrow(f"{buckets} {_select(metrics, where)}", [*span, *values])
    batches: dict[int, dict[int, list[SliceStats]]] = defaultdict(lambda: defaultdict(list))
    for row in found.to_pylist():
        batches[row["bucket"]][row["t"]].append(_stats(row))
    points = [_point(metrics, batches.get(bucket, {})) for bucket in order]
    schema = pa.schema([(metric.name + suffix, pa.float64()) for metric in metrics for suffix in ("", ":min", ":max")])
    return pa.Table.from_pylist(points, schema=schema)


def _select(metrics: Sequence[Metric], where: str) -> str:
    """Only the sums these signals are made of leave the store."""
    wanted = dict.fromkeys([*_ALWAYS, *(name for metric in metrics for name in metric.sums if name != "hist")])
    columns = [f"""list_extract(map_extract(s.sums, '{name}'), 1) AS "sum_{name}" """ for name in wanted]
    if any("hist" in metric.sums for metric in metrics):
        columns += ["s.hist_pos", "s.hist_neg"]
    source = f"(SELECT * FROM slices s WHERE {where})" if where else f"({_SERVED})"
    return f"SELECT bucket, b.t, s.n_tokens, s.n_sequences, {', '.join(columns)} FROM bucketed b JOIN {source} s USING (t)"


def _stats(row: Mapping[str, Any]) -> SliceStats:
    sums = {name.removeprefix("sum_"): value for name, value in row.items() if name.startswith("sum_") and value is not None}
    hist = [np.array(row[name], dtype=np.int64) if row.get(name) is not None else _NO_HIST for name in ("hist_pos", "hist_neg")]
    return SliceStats(replica="*", position="*", version=None, cached=None, n_tokens=row["n_tokens"], n_sequences=row["n_sequences"],
                      hist_pos=hist[0], hist_neg=hist[1], sums=sums)


def _point(metrics: Sequence[Metric], batches: Mapping[int, Sequence[SliceStats]]) -> dict[str, float | None]:
    each = [one for one in (total(items) if len(items) > 1 else items[0] for items in batches.values()) if one.n_tokens]
    if not each:
        return {}
    whole = total(each) if len(each) > 1 else each[0]
    point: dict[str, float | None] = {}
    for metric in metrics:
        values = [value for one in each if (value := finite(metric.value(one))) is not None]
        point |= {metric.name: finite(metric.value(whole)), f"{metric.name}:min": min(values, default=None),
                  f"{metric.name}:max": max(values, default=None)}
    return point
