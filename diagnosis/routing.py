"""routing: is what remains the mark of experts chosen otherwise?

Question.    The model has routed experts, and the tokens are off without an explanation. Are most of them at the floor and single ones far off?
Statistic.   Median |d| against the floor, and the share of all |d| in the worst tenth of tokens; zero mean, in most rollouts, not carried by a few.
When it lies. Any fault that strikes single tokens looks the same; and a token whose experts differ disturbs the tokens after it. Never a
             confident verdict: engines and trainers that replay routes (enable_return_routed_experts) settle it.
Source.      About one router choice in ten differs between engines (R3, arXiv 2510.11370).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diagnosis.bench import Bench
from diagnosis.noise import Noise

EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")
HEAVY_TENTH = 0.5
SHIFT_RATIO, ROLLOUTS_ABOVE, WORST_TENTH_ROLLOUTS = 0.5, 0.5, 0.6
"""Wider than noise.py's: a few large errors move means, and a short rollout may have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Noise of single tokens in a model with experts. Nats."""

    experts: int
    median: float
    worst_tokens: float

    @property
    def text(self) -> str:
        """The numbers in one line."""
        return (f"the model routes tokens to {self.experts} experts a layer (config.json); half of the tokens are within {self.median:.4f} nats, "
                f"and the worst tenth carries {self.worst_tokens:.0%} of all: single choices of experts may differ")


def find_routing(bench: Bench, noise: Noise, *, limit: float) -> Routing | None:
    """None for a dense model, or where the noise is of another shape."""
    experts = experts_of(bench)
    median = float(np.median(np.abs(bench.sheet.engine_N - bench.view("expected"))))
    shape = (abs(noise.mean_d) <= SHIFT_RATIO * noise.mean_abs_d and noise.rollouts_above >= ROLLOUTS_ABOVE
             and noise.worst_rollouts <= WORST_TENTH_ROLLOUTS and noise.worst_tokens >= HEAVY_TENTH and median <= limit)
    return Routing(experts=experts, median=median, worst_tokens=noise.worst_tokens) if experts > 1 and shape else None


def experts_of(bench: Bench) -> int:
    """Routed experts a layer by the newest version's config.json; 0 = dense, or not known."""
    shelf = getattr(bench.scorer, "shelf", None)
    known = shelf.know(bench.versions[-1]) if shelf is not None and bench.versions else None
    if known is None:
        return 0
    try:
        config: dict[str, Any] = json.loads((Path(known.base or known.path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    places = [config, config.get("text_config") or {}]
    return next((int(place[key]) for place in places for key in EXPERT_KEYS if isinstance(place.get(key), int)), 0)
