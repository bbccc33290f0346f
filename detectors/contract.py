"""The contract: has the run left the mismatch it accepts on purpose?

Question.    [contract] declares a floor (mean |d| ≤ floor_nats) or what the trainer's correction must leave (ESS ≥ min_ess).
             A declared mismatch is normal however large; is it larger than declared?
Statistic.   x = mean |d| of a batch of served tokens. Safe: 1 + λ·(x/floor − 1), λ = .9, x/floor cut at 20. Fast: a bounded bet
             (bounded.py) on u = (x − floor) / max(standard error clustered by rollout, 15 % of the floor).
             ESS of the batch after the correction: (Σw)²/(n·Σw²) with w as it is (none) or cut at [signals] tis_cap (tis); for the
             masks (mask, icepop) the share of tokens kept, which ESS cannot exceed. Safe bet alone, on 1 − ESS against 1 − min_ess.
Units.       x, floor: nats. ESS: fraction of the tokens. Gains: nats of log evidence, one bet a batch.
Guarantee.   Safe: E[e] ≤ 1 exactly while the expected x of each batch, given the past, is at most the declared floor (or the
             expected ESS at least the declared one): no warm-up, nothing learnt, whatever the tails. Cutting x only lowers it.
             Fast: as far as the batch mean is near enough to normal and healthy batches differ by less than 15 %; batches of fewer than MIN_SEQUENCES rollouts do not bet.
When it lies. An ESS of truncated weights hides the upper tail (docs/metrics.md): min_ess with `tis` sees what falls, not what is
             cut. A single bad rollout in a small batch counts for all of x.
Example.     floor .02, x = .05 in every batch: safe +1.3 nats a batch, fast (u = 4, m = 2) +6.
Source.      Waudby-Smith & Ramdas, *Estimating means of bounded random variables by betting*.
"""

from __future__ import annotations

import math

from collector.config import ContractConfig
from collector.records import BatchStats, SliceStats
from collector.signals import metrics, total
from detectors import bounded

FRACTION, LARGEST_RATIO = 0.9, 20.0
LEAST_SE = 0.15  # of the floor: healthy batches differ by more than their rollouts explain
MIN_TOKENS, MIN_SEQUENCES = 50, 6.0


def streams(contract: ContractConfig) -> tuple[str, ...]:
    """Every stream this contract can give birth to."""
    floor = ("contract:floor:safe", *(f"contract:floor:{shift:g}" for shift in bounded.SHIFTS)) if contract.floor_nats else ()
    return (*floor, *(("contract:ess:safe",) if contract.min_ess else ()))


def gains(batch: BatchStats, contract: ContractConfig) -> dict[str, float]:
    """Stream → log gain of this batch, nats; {} without a contract or with too little to look at."""
    if not streams(contract):
        return {}
    whole = total(batch.slices) if batch.slices else None
    if whole is None or whole.n_tokens < MIN_TOKENS:
        return {}
    found = _floor(whole, contract.floor_nats) if contract.floor_nats else {}
    left = effective_share(whole, contract) if contract.min_ess else None
    if left is not None and contract.min_ess:
        found["contract:ess:safe"] = safe((1 - left) / (1 - contract.min_ess))
    return found


def safe(ratio: float) -> float:
    """Log gain of the exact bet on "the mean of this ratio is at most 1"; the ratio is never negative."""
    return math.log1p(FRACTION * (min(max(ratio, 0.0), LARGEST_RATIO) - 1))


def effective_share(whole: SliceStats, contract: ContractConfig) -> float | None:
    """What is left of the tokens after the correction, as a fraction; None where the sums are too old to say."""
    sums = whole.sums
    if contract.correction == "none":
        return _ess(sums["w"], sums["w2"], whole.n_tokens)
    n = sums.get("later_tokens", 0.0)
    if not n:
        return None
    if contract.correction == "tis":
        return _ess(sums["tis"], sums["tis2"], n)
    rule = "icepop" if contract.correction == "icepop" else "mis"
    return 1 - (sums[f"{rule}_low"] + sums[f"{rule}_high"]) / n


def _ess(total_weight: float, squares: float, n: float) -> float | None:
    return min(total_weight**2 / (n * squares), 1.0) if squares > 0 else None


def _floor(whole: SliceStats, floor: float) -> dict[str, float]:
    found = metrics(whole)
    mean, se = found["mean_abs_d"], found["mean_abs_d_se"]
    gained = {"contract:floor:safe": safe(mean / floor)}
    if whole.n_sequences >= MIN_SEQUENCES and math.isfinite(se):
        u = (mean - floor) / max(se, LEAST_SE * floor)
        gained |= {f"contract:floor:{shift:g}": bounded.gain(u, shift) for shift in bounded.SHIFTS}
    return gained
