"""How many batches until a fault is found: the detectors' own sums on typical effect sizes.

A stream of weight w alarms when ln w + (sum of its batch gains) reaches ln A; one batch counts for ln(A)/2 at most. So
    batches = ceil((ln A + ln 1/w) / min(gain a batch, ln(A)/2)),
and never, when the expected gain is not positive. Gains are expectations for a fault that is present from one batch to
the next in every rollout it touches; chance moves the real number by a batch or two, more where few rollouts are scored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


from detectors import battery, bets, betting, budget, self_bets
from detectors.config import DetectorsConfig
from detectors.streams import Weights

FLOOR_NATS = 0.029  # mean |d| of a healthy bf16 dense pair
SPREAD = 0.1  # of log mean |d| from batch to batch, once the policy's certainty is taken out
ROLLOUT_SPREAD = 0.5  # of log mean |d| from rollout to rollout: what few scored rollouts add
REPORTED_TOP, SAMPLED_TOP = 0.5, 0.62  # raw logprobs at T = .7: the top token is reported at .5 and drawn at .62


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault and its size. before/after: mean |engine − prediction| under health and under the right explanation, nats."""

    name: str
    size: str
    before: float
    after: float | None = None  # None = no standing explanation bets on it
    stream: str = ""  # the explanation's, without its fraction
    top: tuple[float, float] | None = None  # (reported, sampled) probability of the top token; None = self-consistent
    share: float = 1.0  # of the rollouts it touches
    fact: str = ""  # the hard fact that says it at once


def typical(replicas: int, *, versions_held: int = 3) -> list[Fault]:
    """The fault classes with the sizes measured on a real engine (docs/planning.md has the sources). Without a second version
    in memory nothing bets on older weights."""
    raw = dict(before=0.239, after=0.0225, stream="raw_logprobs", top=(REPORTED_TOP, SAMPLED_TOP))
    faults = [
        Fault(name="raw logprobs", size="T = .7 reported as if 1", **raw),
        Fault(name="hidden temperature", size=".8 for .7, 0.09 nats", before=0.094, after=FLOOR_NATS, stream="temperature:0.8"),
        Fault(name="truncation", size="top-p .9 not renormalised", before=0.078, after=FLOOR_NATS, stream="truncation:top_p=0.9"),
        Fault(name="stale weights", size="3 updates at lr 1e-4", before=0.204, after=0.038, stream="stale_weights"),
        Fault(name="stale weights, small", size="4 updates at lr 1e-5", before=0.0329, after=0.0305, stream="stale_weights"),
        Fault(name="stale prefix cache", size="KV one update old, all prompts cached", before=0.067, after=0.037, stream="stale_prefix_cache"),
        Fault(name="engine numerics", size="bf16 noise of V0, floor × 3.7", before=0.107),
        Fault(name="numeric drift", size="mean |d| × 1.5", before=1.5 * FLOOR_NATS),
        Fault(name="non-finite or missing logprobs", size="any token", before=math.inf, fact="nonfinite_logprobs"),
        Fault(name="weights never arrive", size="label stands still", before=math.inf, fact="weights_never_move"),
    ]
    if versions_held < 2:
        faults = [replace(fault, after=None) if fault.stream.startswith("stale") else fault for fault in faults]
    if replicas > 1:
        faults.insert(1, Fault(name=f"raw logprobs, 1 of {replicas} replicas", size="the others are healthy", share=1 / replicas, **raw))
    return faults


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """Expected batches of one fault by its fastest stream; None = not found by statistics."""

    fault: Fault
    batches: int | None
    stream: str
    nats_a_batch: float


def delay(fault: Fault, *, scored: float, seen: float, tokens: float, batch_seconds: float, update_seconds: float, config: DetectorsConfig) -> Delay:
    """The fastest way to `fault`. scored, seen: rollouts a batch; tokens: sampled tokens of one rollout."""
    if fault.fact == "weights_never_move":
        wait = config.facts.weights_still_versions * update_seconds / batch_seconds
        return Delay(fault=fault, batches=max(1, math.ceil(wait)), stream="hard fact", nats_a_batch=0.0)
    if fault.fact:
        return Delay(fault=fault, batches=1, stream="hard fact", nats_a_batch=0.0)
    ln_a, weights = budget.ln_a(config.false_alarms, batch_seconds=batch_seconds), Weights(config)
    found = []
    for stream, gain in {**_self_bets(fault, seen, tokens, config), **_bets(fault, scored, tokens, config), **_battery(fault, scored, config)}.items():
        weight = battery.planned_weight(config) if stream.startswith("battery") else weights.birth(stream)
        if weight and gain > 0:
            found.append(Delay(fault=fault, batches=batches(gain, weight=weight, ln_a=ln_a), stream=stream, nats_a_batch=gain))
    return min(found, key=lambda one: (one.batches, -one.nats_a_batch), default=Delay(fault=fault, batches=None, stream="", nats_a_batch=0.0))


def batches(gain: float, *, weight: float, ln_a: float) -> int:
    """Expected batches to the alarm of a stream with this expected gain a batch, nats.

    >>> batches(100.0, weight=0.05, ln_a=10.0)
    2
    """
    need = ln_a - math.log(weight)
    return max(2, math.ceil(need / gain))


def _self_bets(fault: Fault, seen: float, tokens: float, config: DetectorsConfig) -> dict[str, float]:
    """Every rollout bets, scored or not: the log likelihood ratio of the tilted top-token probability."""
    if fault.top is None:
        return {}
    p, q = fault.top

    def a_token(tilt: float, truth: float) -> float:
        return tilt * truth - math.log1p(p * math.expm1(tilt))

    return {self_bets.stream(tilt): seen * tokens * (fault.share * a_token(tilt, q) + (1 - fault.share) * a_token(tilt, p))
            for tilt in config.self_bet_tilts}


def _bets(fault: Fault, scored: float, tokens: float, config: DetectorsConfig) -> dict[str, float]:
    """Expected log(1 + λg) of the blocks of a scored rollout; g is the bet on one of these mean deviations."""
    if fault.after is None:
        return {}
    apart = math.sqrt(max(fault.before**2 - fault.after**2, 0.0))  # |h − f|: the fault's own part of the deviation
    if apart < betting.LEAST_DIFFERENCE * config.dead_band_nats:
        return {}

    def g(under_h: float, under_f: float) -> float:
        return tokens * (under_h - under_f - config.dead_band_nats) / max(tokens * apart, config.bet_scale_nats)

    ill, well = g(fault.before, fault.after), g(fault.after, fault.before)
    blocks = max(1, int(tokens * apart / betting.BLOCK_NATS))
    worst = -(1 + 1 / betting.LEAST_DIFFERENCE)
    return {betting.stream(fault.stream, fraction): scored * blocks * (fault.share * math.log1p(fraction * min(1.0, ill))
                                                              + (1 - fault.share) * math.log1p(fraction * max(worst, well)))
            for fraction in config.bet_fractions}


def _battery(fault: Fault, scored: float, config: DetectorsConfig) -> dict[str, float]:
    """A lasting shift of log mean |d|, in its own standard deviations, after the warm-up."""
    if scored <= 0:
        return {}
    level = fault.share * fault.before + (1 - fault.share) * FLOOR_NATS
    sd = math.sqrt(SPREAD**2 + ROLLOUT_SPREAD**2 / scored)
    u = min(bets.CLIP, (math.log(level / FLOOR_NATS) - math.log(config.battery.dead_band_ratio)) / sd)
    return {f"battery:mean:global:{size:g}": size * u - bets.log_normaliser(size) for size in bets.SHAPES["up"]}
