"""What the engines serve, beside how right it is: sampled tokens a second and mean |d|, over time."""

from __future__ import annotations

import pyarrow as pa

from collector.breakdown import MAX_POINTS, Asked, window
from collector.store import Store


def read_throughput(store: Store, *, start: float | None = None, end: float | None = None, points: int = 60) -> pa.Table:
    """One row a window, oldest first: at (its end, UTC seconds), tokens_seen, tokens_per_second (sampled tokens that reached Klaxon, over the
    windows' own length), n_tokens (compared) and mean_abs_d (nats, null where nothing was compared)."""
    asked = Asked(by=("replica",), start=start, end=end, points=min(points, MAX_POINTS))
    left, width = window(store, asked)
    return store.query_arrow("""
        SELECT ? + (floor(((b.opened_at + b.closed_at) / 2 - ?) / ?) + 1) * ? AS "at", sum(coalesce((b.counts ->> '$.tokens_seen')::BIGINT, 0))::BIGINT AS tokens_seen,
               sum(coalesce((b.counts ->> '$.tokens_seen')::BIGINT, 0)) / sum(b.closed_at - b.opened_at) AS tokens_per_second,
               coalesce(sum(s.n_tokens), 0)::BIGINT AS n_tokens, sum(s.mean_abs_d * s.n_tokens) / sum(s.n_tokens) FILTER (s.mean_abs_d IS NOT NULL) AS mean_abs_d
        FROM batches b LEFT JOIN series s USING (t) WHERE b.closed_at >= ? AND b.closed_at <= ? GROUP BY 1 ORDER BY 1""",
        [left, left, width, width, -1e18 if start is None else start, 1e18 if end is None else end])
