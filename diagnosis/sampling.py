"""How were the tokens sampled? Tells raw logprobs from a hidden temperature when both would report the same numbers.

Question.    Reports look like T' instead of the declared T. Did the engine sample at T and report something else (raw
             logprobs, T' = 1), or did it sample at T' (hidden temperature)?
Statistic.   Log-likelihood ratio of the sampled tokens under the shadow's distribution at T against at T', nats.
Guarantee.   Under either hypothesis P(the ratio points to the other one by more than c nats) ≤ e^−c, as far as the
             shadow's distribution is the engine's; z, clustered by rollout, covers the rest.
When it lies. A very sure policy: both distributions give the sampled tokens the same probability; then nothing is settled.
Source.      Neyman–Pearson; the reports themselves are not used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from diagnosis.heads import Heads
from diagnosis.sheet import clustered_mean

CLEAR_NATS = math.log(1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """`as_declared`: the declared temperature is the likelier one; `clear`: by enough."""

    as_declared: bool
    clear: bool
    text: str


def sampled_at(bench: Heads, *, reported: float) -> Sampled | None:
    """None when the two hypotheses are the same distribution."""
    at_reported = bench.at_temperature(reported)
    if at_reported is None:
        return None
    ratio_N = bench.view("processed") - at_reported
    mean, se, _ = clustered_mean(ratio_N, bench.sheet.rollout_N)
    total = mean * ratio_N.size
    if abs(total) < 1e-6:
        return None
    clear = abs(total) > CLEAR_NATS and abs(mean) > bench.config.confidence_z * se
    side = "the declared temperature" if total > 0 else f"T = {reported:.2f}"
    other = f"T = {reported:.2f}" if total > 0 else "the declared one"
    text = f"tokens were {'' if clear else 'perhaps '}sampled at {side}, not at {other}: log-likelihood ratio {abs(total):.1f} nats over {ratio_N.size} tokens"
    return Sampled(as_declared=total > 0, clear=clear, text=text)
