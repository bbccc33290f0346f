"""How much of what was served has been compared: by replica from exact counts, by stratum from the sampler's own probabilities.

A stratum is what the sampler splits its budget over: replica × weight version × prompt length. What a stratum served is not counted
one by one; it is estimated from the kept rollouts, each standing for 1 / its inclusion probability.
"""

from __future__ import annotations

import pyarrow as pa

from collector.store import Store

MOST_STRATA = 500
_LENGTHS = "CASE WHEN n_prompt < 256 THEN '< 256' WHEN n_prompt < 1024 THEN '256–1k' WHEN n_prompt < 4096 THEN '1k–4k' WHEN n_prompt < 16384 THEN '4k–16k' ELSE '≥ 16k' END"


def read_coverage(store: Store, *, start: float | None = None, end: float | None = None) -> pa.Table:
    """One row a stratum, the least covered first: replica, version, prompt (tokens), kept and scored rollouts, tokens_scored,
    rollouts_estimated and tokens_estimated (what was served, estimated), sample_rate and coverage (fractions)."""
    span = [-1e18 if start is None else start, 1e18 if end is None else end]
    return store.query_arrow(f"""
        WITH strata AS (
            SELECT replica, version, {_LENGTHS} AS prompt, count(*) AS kept, count(*) FILTER (n_scored > 0) AS scored,
                   sum(n_scored)::BIGINT AS tokens_scored, sum(1 / inclusion_probability) AS rollouts_estimated,
                   sum(n_tokens / inclusion_probability) AS tokens_estimated
            FROM rollouts JOIN batches b USING (t) WHERE b.closed_at >= ? AND b.closed_at <= ? AND inclusion_probability > 0 GROUP BY ALL)
        SELECT *, kept / rollouts_estimated AS sample_rate, tokens_scored / nullif(tokens_estimated, 0) AS coverage
        FROM strata ORDER BY coverage, tokens_estimated DESC LIMIT ?""", [*span, MOST_STRATA])
