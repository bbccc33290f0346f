"""The mismatch of a time range taken apart: by replica, position, weight version, lag, cache hit, over time or as a whole.

Everything is added up inside the store; what leaves it is at most MAX_ROWS rows, whatever the range. Sums are exact, so a value is the one
the metric table defines (docs/metrics.md), and its standard error is clustered by rollout. Environment, turn and probability
are not slices of a batch; they come from the sampled rollouts (breakdown_rollouts.py).

A point is a window of equal seconds, not of equal batches: a heat map's cells are as wide as they say. A batch belongs where its middle is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from collector.store import Store
from collector.store_schema import PLAIN_SUMS

SLICED = ("replica", "position", "version", "cached", "lag")
"""Keys of the stored slices; lag = numbered weight versions published after the one that generated the token."""
MAX_POINTS = 120
MAX_KEYS = 64
MAX_ROWS = 6000
"""Of one answer: some 100 bytes a row."""

_POPULATION = "coalesce(s.population, 'served')"  # null in rows of an earlier Klaxon

VALUES = """
    sum(n_tokens)::BIGINT AS n_tokens, sum(n_sequences)::DOUBLE AS n_sequences, sum(d) / sum(n_tokens) AS mean_d,
    sum(abs_d) / sum(n_tokens) AS mean_abs_d,
    sqrt(greatest(0, sum(cluster_a2) - 2 * sum(abs_d) / sum(n_tokens) * sum(cluster_an)
                     + (sum(abs_d) / sum(n_tokens)) ** 2 * sum(cluster_n2))) / sum(n_tokens) AS mean_abs_d_se,
    sum(k3) / sum(n_tokens) AS k3, sum(clip_low + clip_high) / sum(n_tokens) AS clip_rate
"""
"""From a relation with n_tokens, n_sequences and the columns of PLAIN_SUMS."""

_KEYED = "t, replica, position, version, cached, population, n_tokens, n_sequences"
_MAPPED = ", ".join(f"list_extract(map_extract(sums, '{name}'), 1) AS {name}" for name in PLAIN_SUMS)
_SLICES = f"""(SELECT {_KEYED}, {", ".join(PLAIN_SUMS)} FROM slices WHERE abs_d IS NOT NULL
               UNION ALL SELECT {_KEYED}, {_MAPPED} FROM slices WHERE abs_d IS NULL)"""
"""Rows of an earlier Klaxon have their sums in the map alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question. Times are UTC seconds; `points` 0 = the range as a whole; `only` = the slices looked at, by key."""

    by: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    points: int = 0
    only: Mapping[str, str] = field(default_factory=dict)
    population: str = "served"
    most: int = MAX_KEYS


def read_breakdown(store: Store, asked: Asked) -> pa.Table:
    """One row a key and window: the keys as text (null = unknown), at (end of the window, UTC seconds; null as a whole), n_tokens,
    n_sequences, mean_d, mean_abs_d with mean_abs_d_se, k3 (nats), clip_rate (a fraction), of (how many keys there are).

    Of more than `most` keys the ones furthest off are kept (largest mean |d|). Empty windows have no row.

    Raises:
        ValueError: a key or a filter that slices do not have.
    """
    checked(asked, SLICED)
    start, width = window(store, asked)
    source = f"""
        WITH spans AS MATERIALIZED (SELECT t, opened_at, closed_at FROM batches WHERE closed_at >= ? AND closed_at <= ?),
        {_lag_tables(asked)}
        cells AS (
            SELECT {", ".join(f"{_column(key)} AS {key}" for key in asked.by)},
                   floor(((b.opened_at + b.closed_at) / 2 - ?) / ?) AS bucket, s.n_tokens, s.n_sequences,
                   {", ".join(f"s.{name}" for name in PLAIN_SUMS)}
            FROM {_SLICES} s JOIN spans b USING (t) {_lag_joins(asked)}
            WHERE s.n_tokens > 0 AND {_POPULATION} = ? {"".join(f" AND {_column(key)} = ?" for key in asked.only)})"""
    return put_together(store, asked, source, [*_range(asked), start, width, asked.population, *asked.only.values()], start, width)


def put_together(store: Store, asked: Asked, source: str, params: Sequence[object], start: float, width: float) -> pa.Table:
    """The answer from `source`: a WITH clause that ends in `cells` (keys, bucket, n_tokens, n_sequences, PLAIN_SUMS)."""
    keys = ", ".join(asked.by)
    first = asked.by[0]
    bucket = "bucket" if asked.points else "NULL::DOUBLE"
    found = f"""{source},
        ranked AS (SELECT {first}, row_number() OVER (ORDER BY sum(abs_d) / sum(n_tokens) DESC) AS place, count(*) OVER () AS "of"
                   FROM cells GROUP BY {first})
        SELECT {keys}, ? + (bucket + 1) * ? AS "at", * EXCLUDE ({keys}, bucket) FROM (
            SELECT {", ".join(f"c.{key}" for key in asked.by)}, {bucket} AS bucket, any_value("of")::BIGINT AS "of", {VALUES}
            FROM cells c JOIN ranked r ON c.{first} IS NOT DISTINCT FROM r.{first} WHERE place <= ? GROUP BY ALL)
        ORDER BY n_tokens DESC LIMIT ?"""
    table = store.query_arrow(found, [*params, start, width, min(asked.most, MAX_KEYS), MAX_ROWS])
    return table.sort_by([(key, "ascending") for key in (*asked.by, "at")])


def window(store: Store, asked: Asked) -> tuple[float, float]:
    """(left edge, seconds of one point): from the first to the last batch inside the range, never narrower than a batch."""
    first, last, batches = store.query("SELECT min(opened_at), max(closed_at), count(*) FROM batches WHERE closed_at >= ? AND closed_at <= ?",
                                       _range(asked))[0]
    if first is None:
        return 0.0, 1.0
    seconds = max(last - first, 1e-3)
    return float(first), max(seconds / max(min(asked.points, MAX_POINTS), 1), seconds / batches)


def checked(asked: Asked, known: Sequence[str]) -> None:
    """Raises ValueError for keys, filters or points that cannot be asked for."""
    for name, keys in (("by", asked.by), ("filter", tuple(asked.only))):
        if unknown := [key for key in keys if key not in known]:
            raise ValueError(f"{name}: {', '.join(unknown)} is none of {', '.join(known)}")
    if not 1 <= len(set(asked.by)) == len(asked.by) <= 2:
        raise ValueError("by: one or two different keys are expected")
    if asked.points > MAX_POINTS:
        raise ValueError(f"points: {asked.points} were asked for, at most {MAX_POINTS} are answered")


def _range(asked: Asked) -> list[float]:
    return [-1e18 if asked.start is None else asked.start, 1e18 if asked.end is None else asked.end]


def _column(key: str) -> str:
    """Text of a key."""
    return {"cached": "CASE WHEN s.cached THEN 'hit' WHEN NOT s.cached THEN 'none' END",
            "lag": "(CASE WHEN v.ord IS NOT NULL THEN greatest(0, n.newest - v.ord) END)::VARCHAR"}.get(key, f"s.{key}")


def _lag_tables(asked: Asked) -> str:
    """Numbered versions in their order, and the newest one at the end of each batch: published, or at least generated with."""
    if "lag" not in {*asked.by, *asked.only}:
        return ""
    return """
        sightings AS (
            SELECT version, coalesce(published_at, seen_at, engine_at) AS since FROM weights
            UNION ALL SELECT s.version, b.opened_at FROM slices s JOIN spans b USING (t)),
        versions AS (SELECT version, min(since) AS since, dense_rank() OVER (ORDER BY try_cast(version AS BIGINT)) AS ord
                     FROM sightings WHERE try_cast(version AS BIGINT) IS NOT NULL GROUP BY version),
        risen AS (SELECT since, max(max(ord)) OVER (ORDER BY since) AS newest FROM versions GROUP BY since),
        newest AS (SELECT b.t, r.newest FROM spans b ASOF JOIN risen r ON b.opened_at >= r.since),"""


def _lag_joins(asked: Asked) -> str:
    wanted = "lag" in {*asked.by, *asked.only}
    return "LEFT JOIN versions v ON v.version = s.version LEFT JOIN newest n ON n.t = s.t" if wanted else ""
