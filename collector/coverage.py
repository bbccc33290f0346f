"""How much of what was served has been compared, by replica and by the sampler's strata.

A stratum here is replica × prompt length, over all weight versions of the range (the sampler splits its budget by version too). What a
replica served is counted; what a stratum served is estimated from its compared rollouts, each standing for 1 / its inclusion probability: a rollout that was
kept and could not be scored lowers the replica's coverage, and is not seen by the stratum's sample rate.
"""

from __future__ import annotations

import pyarrow as pa

from collector.store import Store

MOST_STRATA = 400
MOST_REPLICAS = 200
SEEN = "tokens_seen@"
"""A batch's count of sampled tokens, + the replica that served them."""
_LENGTHS = ("CASE WHEN n_prompt < 256 THEN '< 256' WHEN n_prompt < 1024 THEN '256–1k' WHEN n_prompt < 4096 THEN '1k–4k' "
            "WHEN n_prompt < 16384 THEN '4k–16k' ELSE '≥ 16k' END")


def read_coverage(store: Store, *, start: float | None = None, end: float | None = None) -> pa.Table:
    """One row a replica and one a stratum (`level`), the least covered first, over the batches of the range (UTC seconds).

    replica, prompt (tokens; null of a replica), compared (rollouts), tokens_scored, tokens_seen (counted of a replica, estimated
    of a stratum), sample_rate (mean inclusion probability, null of a replica) and coverage (tokens_scored / tokens_seen), fractions.
    """
    return store.query_arrow(f"""
        WITH spans AS MATERIALIZED (SELECT t, counts FROM batches WHERE closed_at >= ? AND closed_at <= ?),
        kept AS (SELECT r.* FROM rollouts r JOIN spans USING (t) WHERE inclusion_probability > 0),
        served AS (
            SELECT substr(each.key, {len(SEEN) + 1}) AS replica, sum(each.value::BIGINT) AS seen
            FROM spans, json_each(spans.counts) AS each WHERE starts_with(each.key, '{SEEN}') GROUP BY ALL),
        scored AS (SELECT replica, count(*) AS compared, sum(n_scored)::BIGINT AS tokens_scored FROM kept GROUP BY ALL),
        replicas AS (
            SELECT 'replica' AS level, replica, NULL::VARCHAR AS prompt, coalesce(compared, 0) AS compared,
                   coalesce(tokens_scored, 0) AS tokens_scored, seen::DOUBLE AS tokens_seen, NULL::DOUBLE AS sample_rate
            FROM served LEFT JOIN scored USING (replica) ORDER BY tokens_scored / greatest(seen, 1) LIMIT {MOST_REPLICAS}),
        strata AS (
            SELECT 'stratum' AS level, replica, {_LENGTHS} AS prompt, count(*) AS compared, sum(n_scored)::BIGINT AS tokens_scored,
                   sum(n_tokens / inclusion_probability) AS tokens_seen, count(*) / sum(1 / inclusion_probability) AS sample_rate
            FROM kept GROUP BY ALL ORDER BY sample_rate, tokens_seen DESC LIMIT {MOST_STRATA})
        SELECT *, tokens_scored / nullif(tokens_seen, 0) AS coverage FROM (FROM replicas UNION ALL FROM strata)
        ORDER BY level, coverage, tokens_seen DESC""",
        [-1e18 if start is None else start, 1e18 if end is None else end])
