"""Where a policy ratio counts as clipped, truncated or masked: the trainer's own thresholds, for the rates Klaxon reports.

Klaxon corrects nothing. It says what a trainer with these thresholds would do to the tokens it sees. Every default is
the one the framework that made the filter known ships with. w = q/p = e^d, p = rollout engine, q = trainer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Algorithm = Literal["ppo", "grpo", "dapo", "gspo", "cispo", "reinforce", "dpo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Thresholds on w and on what is made of it; a pair is (low, high), and outside it is masked.

    >>> Limits().eps_high, PRESETS["gspo"].level
    (0.2, 'sequence')
    """

    eps_low: float | None = 0.2  # w < 1 − eps_low is clipped; None = this side is not clipped
    eps_high: float | None = 0.2  # w > 1 + eps_high is clipped; None = this side is not clipped
    level: Literal["token", "sequence"] = "token"  # sequence: one ratio exp(mean d) for all tokens of a rollout
    tis_cap: float = 2.0  # truncated importance sampling, token
    icepop: tuple[float, float] = (0.5, 5.0)  # token mask
    mis: tuple[float, float] = (0.5, 2.0)  # token mask
    dppo: float = 0.2  # token mask on |e^q − e^p|
    veto: float = 1e-4  # w below this is catastrophic
    outlier_high: float = 100.0  # a sequence with any w below veto or above this is an outlier
    geometric: tuple[float, float] = (0.99, 1.01)  # sequence mask on exp(mean d)
    product: tuple[float, float] = (0.5, 2.0)  # sequence mask on exp(sum d)
    sequence_tis_cap: float = 2.0  # truncated importance sampling on exp(sum d)
    sequence_mask_cap: float = 3.0  # sequence mask above this on exp(sum d)
    sequence_k3: float = 0.01  # sequence mask on mean k3, nats
    sequence_tme: float = 2.0  # sequence mask on mean e^|d|


PRESETS: dict[Algorithm, Limits] = {
    "ppo": Limits(),
    "grpo": Limits(),
    "dapo": Limits(eps_high=0.28),  # "clip higher"
    "gspo": Limits(eps_low=3e-4, eps_high=4e-4, level="sequence"),
    "cispo": Limits(eps_low=None, eps_high=4.0),  # the weight is cut at 5, and only from above
    "reinforce": Limits(eps_low=None, eps_high=1.0),  # truncated at 2, and only from above
    "dpo": Limits(eps_low=None, eps_high=None),  # no policy ratio is clipped: the mismatch is all there is to see
}
"""What each algorithm clips. PPO's clip acts on one side a token (that of the advantage's sign); the rate counts both."""
