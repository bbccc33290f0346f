"""The log gains of one rollout: what every stream that bets on rollouts earns from it.

Only base-coin rollouts bet, unweighted. The hint coin looks at the engine's own logprobs; a null that holds for every
rollout need not hold for those chosen by what they reported. The daemon sums these gains over a batch into
BatchStats.gains: a sum of logs is a product of e-values, so a batch is one tick with one e-value a stream.
"""

from __future__ import annotations

import numpy as np

from collector.records import Rollout, Score
from detectors import betting, self_bets
from detectors.config import DetectorsConfig


def rollout_gains(rollout: Rollout, score: Score | None, config: DetectorsConfig, *,
                  fresh_T: np.ndarray | None = None) -> dict[str, float]:
    """Stream → log gain, nats, of one rollout; {} for a hint-coin rollout. `score` None = tier 0: self-bets only.

    `fresh_T`: tokens that repeat no measurement of an earlier rollout; None = all. Sampling is random anew each time, so
    self-bets use every token.
    """
    if not rollout.base_coin:
        return {}
    found = self_bets.gains(rollout, config.self_bet_tilts)
    if score is not None:
        found |= betting.gains(
            rollout, score,
            fractions=config.bet_fractions, dead_band=config.dead_band_nats, scale=config.bet_scale_nats, fresh_T=fresh_T,
        )
    return found
