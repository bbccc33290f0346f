"""What each chart of slices shows and how it is read, and the order of its values. Shared by the page and the post-mortem."""

from __future__ import annotations

POSITIONS = {"0-1k": 0, "1k-4k": 1, "4k-16k": 2, "16k+": 3}
BINS = {name: order for order, name in enumerate(("p < 1 %", "1–10 %", "10–50 %", "50–90 %", "90–99 %", "p ≥ 99 %"))}
DOTS = {
    "cached": ("Prefix cache", "Mean |d| of requests that took a part of their prompt from the prefix cache, and of those that did not: a gap that "
               "opens after a weight update is a stale cache. Dashed: the healthy floor.", None),
    "probability": ("Probability bin", "Mean |d| by the probability p the engine gave the sampled token: numerics show in the middle bins, "
                    "a wrong temperature or a cut tail at the small ones; near 1 a healthy engine hardly differs.", BINS),
    "env": ("Environment", "Mean |d| by the rollouts' label “env”: a fault in one environment only is often its prompt or its chat template. Dashed: the healthy floor.", None),
    "turn": ("Turn", "Mean |d| by the rollouts' label “turn”: growth from turn to turn points to the prompt's reassembly or the cache. Dashed: the healthy floor.", None),
}
"""Key → title, explanation, order of its values."""

ABOUT = {
    "replica": ("Replicas",
               "Mean |log q − log p| of each replica's sampled tokens over time, all on the same axes, the one furthest off first. Shaded: two standard "
               "errors; dashed grey: all shown replicas together. One line that leaves the grey one is one sick replica."),
    "position": ("Position × time",
               "Mean |d| by where the token stands in the sequence (prompt and completion together) and when it was sampled. Growth with the position points"
               " to the context: position encoding, chunked prefill, a cache; a column is a moment, as of a weight update."),
    "lag": ("Weight version × lag",
               "Mean |d| against the version that generated the token, by how many newer versions were out when its batch began. A row is a bad version; a "
               "column that grows with the lag is staleness that was mistaken for mismatch."),
}
"""The other charts: title and explanation."""
