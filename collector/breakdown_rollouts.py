"""The mismatch by environment, turn and probability of the token: read off the statistics of the sampled rollouts.

Only rollouts the base coin kept count, so that no hint bends a mean. `traffic` other than the policy's own (canaries, …) is left out.
The bins of `probability` are of p, the engine's probability of the sampled token: healthy |d| is largest in the middle and smallest near 1.
"""

from __future__ import annotations

import pyarrow as pa

from collector.breakdown import Asked, checked, put_together, window
from collector.rollout_bins import BIN_NAMES
from collector.store import Store

LABELLED = ("env", "turn", "probability", "replica", "version")
"""Keys of the sampled rollouts."""

_NO_SUMS = "NULL::DOUBLE AS k3, NULL::DOUBLE AS clip_low, NULL::DOUBLE AS clip_high"
_TRAFFIC = "coalesce(traffic, 'unknown') IN ('train', 'eval', 'unknown')"


def read_rollout_breakdown(store: Store, asked: Asked) -> pa.Table:
    """As `breakdown.read_breakdown`, by keys of LABELLED; k3 and clip_rate are null: a rollout does not keep them.

    Raises:
        ValueError: a key or a filter that rollouts do not have, or `probability` as a filter.
    """
    checked(asked, LABELLED)
    if "probability" in asked.only:
        raise ValueError("filter: probability is a key to break down by, not a filter")
    start, width = window(store, asked)
    where = "".join(f" AND r.{key} = ?" for key in asked.only)
    source = f"""
        WITH kept AS (
            SELECT r.*, (b.opened_at + b.closed_at) / 2 AS middle FROM rollouts r JOIN batches b USING (t)
            WHERE b.closed_at >= ? AND b.closed_at <= ? AND r.base_coin AND r.n_scored > 0 AND {_TRAFFIC}{where}),
        cells AS ({_binned(asked) if "probability" in asked.by else _whole(asked)})"""
    span = [-1e18 if asked.start is None else asked.start, 1e18 if asked.end is None else asked.end]
    return put_together(store, asked, source, [*span, *asked.only.values(), start, width], start, width)


def _whole(asked: Asked) -> str:
    return f"""
        SELECT {", ".join(asked.by)}, floor((middle - ?) / ?) AS bucket, n_scored AS n_tokens, 1.0 AS n_sequences,
               mean_d * n_scored AS d, mean_abs_d * n_scored AS abs_d, {_NO_SUMS},
               n_scored::DOUBLE ** 2 AS cluster_n2, (mean_abs_d * n_scored) ** 2 AS cluster_a2,
               mean_abs_d * n_scored::DOUBLE ** 2 AS cluster_an
        FROM kept"""


def _binned(asked: Asked) -> str:
    """One row a rollout and bin. mean_d is not kept a bin."""
    others = "".join(f"{key}, " for key in asked.by if key != "probability")
    names = ", ".join(f"'{name}'" for name in BIN_NAMES)
    return f"""
        SELECT {others}list_extract([{names}], i) AS probability, floor((middle - ?) / ?) AS bucket, n AS n_tokens, 1.0 AS n_sequences,
               NULL::DOUBLE AS d, a AS abs_d, {_NO_SUMS},
               n::DOUBLE ** 2 AS cluster_n2, a ** 2 AS cluster_a2, a * n AS cluster_an
        FROM (SELECT {others}middle, unnest(range(1, {len(BIN_NAMES) + 1})) AS i, unnest(bin_tokens) AS n, unnest(bin_abs_d) AS a
              FROM kept WHERE bin_tokens IS NOT NULL) WHERE n > 0"""
