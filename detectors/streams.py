"""Names, weights and meanings of streams.

A stream's weight is fixed when it is born and never changes; a departed stream's share is dropped, not handed on. Weights
of all streams ever born add up to at most 1, so their average M is an e-detector whatever depends on whatever:
    self-bets      share / number of tilts
    explanations   share / causes / planned variants of the cause / fractions
    battery        share / family / cohort, see detectors/block.py
    trainer_metrics, requests, reference, contract: share · 1/(k(k+1)) for the k-th birth of the kind (these parts add up to 1)
    anything else of a known kind, further variants among them: reserve · 1/(k(k+1)) for the k-th late birth
A small weight costs ln(1/w) of delay and nothing else.
"""

from __future__ import annotations

from typing import Any

from collector.records import CAUSES
from detectors import betting, self_bets
from detectors.config import DetectorsConfig

KINDS = ("self_bet", "explain", "trainer_metrics", "requests", "reference", "contract")
"""Kinds of streams that hand over one gain a batch in BatchStats.gains; the battery keeps its own."""
FACT_CAUSES = {
    "nonfinite_logprobs": "non_finite", "label_moved_weights_same": "stale_weights", "weights_never_move": "stale_weights",
    "length_mismatch": "corrupted_requests", "zero_logprobs": "corrupted_requests",
}


def cause_of(stream: str) -> str:
    """The cause a stream or fact points to while diagnosis is still at work; one of CAUSES.

    Self-bets mean "reports do not match the sampler", of which raw logprobs are the common form.

    >>> cause_of("explain:temperature:0.8:0.3"), cause_of("self_bet:+0.6"), cause_of("battery:mean:global")
    ('temperature', 'raw_logprobs', 'unexplained')
    """
    kind, _, rest = stream.partition(":")
    if kind == "self_bet":
        return "raw_logprobs"
    if kind == "explain":
        cause = rest.partition(":")[0]
        return cause if cause in CAUSES else "unexplained"
    if kind == "requests":
        return "corrupted_requests"
    return FACT_CAUSES.get(stream, "unexplained")


class Weights:
    """The schedule above, with the births so far."""

    def __init__(self, config: DetectorsConfig) -> None:
        share = config.weights
        self._fractions = {f"{fraction:g}" for fraction in config.bet_fractions}
        self._cause_share = share.explanations / len(betting.PLANNED_VARIANTS) / len(self._fractions)
        self._fixed = {self_bets.stream(tilt): share.self_bets / len(config.self_bet_tilts) for tilt in config.self_bet_tilts}
        self._late = {"trainer_metrics": share.trainer_metrics, "requests": share.requests, "reference": share.reference,
                      "contract": share.contract, "reserve": share.reserve}
        self._variants: dict[str, list[str]] = {}
        self._births = dict.fromkeys(self._late, 0)

    def birth(self, stream: str) -> float | None:
        """The weight of a newborn stream; None when the name is of no known kind. Call once a stream."""
        if stream in self._fixed:
            return self._fixed[stream]
        kind, _, rest = stream.partition(":")
        if kind == "explain":
            name, _, fraction = rest.rpartition(":")
            cause = name.partition(":")[0]
            if cause not in CAUSES:
                return None
            if fraction in self._fractions and self._is_planned(cause, name):
                return self._cause_share / betting.PLANNED_VARIANTS[cause]
        if kind not in KINDS or not rest:
            return None
        pool = kind if kind in self._late else "reserve"
        k = self._births[pool] = self._births[pool] + 1
        return self._late[pool] / (k * (k + 1))

    def _is_planned(self, cause: str, name: str) -> bool:
        variants = self._variants.setdefault(cause, [])
        if name not in variants and len(variants) < betting.PLANNED_VARIANTS.get(cause, 0):
            variants.append(name)
        return name in variants

    def to_state(self) -> dict[str, Any]:
        """JSON-able."""
        return {"variants": {cause: list(names) for cause, names in self._variants.items()}, "births": dict(self._births)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the births of `to_state`."""
        self._variants = {cause: list(names) for cause, names in state["variants"].items()}
        self._births = dict(state["births"])
