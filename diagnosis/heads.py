"""What the head says of one forward pass: every sampler setting, without another one. N = tokens of a sheet.

A pass is the labelled weights on the recorded prompts, or a variant (older weights, another prompt, …); explanations of the sampler can
be asked of any of them. Two views do: what is expected, and the wide one that holds what any setting needs (settings.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from collector.records import Score
from collector.shadow.candidates import candidates
from collector.shadow.views import expected
from diagnosis.config import DiagnosisConfig
from diagnosis.settings import Candidates, Rules
from diagnosis.sheet import Sheet

TEMPERATURE_NODES = 17
FINE_TEMPERATURES = 241


def head_views(config: DiagnosisConfig) -> dict[str, Any]:
    """The views of a forward whose sampler explanations are wanted, by name."""
    return {"expected": expected, "candidates": candidates}


class Heads:
    """See the module. `scores` hold `head_views`, in the order of the sheet's rollouts; a scorer without the wide view answers no setting."""

    def __init__(self, sheet: Sheet, scores: Sequence[Score], *, config: DiagnosisConfig) -> None:
        self.sheet, self.config = sheet, config
        self._scores = list(scores)
        self.temperatures_F = np.geomspace(config.temperature_min, config.temperature_max, FINE_TEMPERATURES)

    @cached_property
    def candidates(self) -> Candidates | None:
        """The wide view of every token of the sheet."""
        rows = [score.views["candidates"] for score in self._scores]
        if not rows or not all(Candidates.fits(row) for row in rows):
            return None
        return Candidates(self.sheet.wide(rows), Rules.of(self.sheet.rollouts, self.sheet.rollout_N))

    def within(self, mask_N: np.ndarray) -> Heads:
        """The same of some tokens; the mask takes whole rollouts."""
        return self.part(sorted({int(i) for i in self.sheet.rollout_N[mask_N]}))

    def some(self, tokens: int) -> Heads:
        """Evenly spread rollouts of about so many tokens."""
        step = max(1, round(self.sheet.tokens / tokens))
        return self.part(range(0, len(self.sheet.rollouts), step))

    def part(self, rollouts: Sequence[int]) -> Heads:
        """The same of some rollouts, by their indices on the sheet."""
        return Heads(self.sheet.part(rollouts), [self._scores[i] for i in rollouts], config=self.config)

    def view(self, name: str) -> np.ndarray:
        """A head view, float64 [N] nats; "raw" and "processed" are read from the wide one."""
        if name == "processed" and all(rollout.expected_logprobs_mode == "processed_logprobs" for rollout in self.sheet.rollouts):
            name = "expected"
        if name in ("raw", "processed") and self.candidates is not None:
            return self.candidates.raw() if name == "raw" else self.candidates.under({}).logprobs
        return self.sheet.flat([score.views[name] for score in self._scores])

    def setting(self, settings: Mapping[str, float]) -> np.ndarray | None:
        """Processed logprobs with these settings in place of the trainer's, float64 [N]; −inf outside the kept set, NaN where roundings decide
        what is kept (scored apart). None without the wide view.
        """
        if self.candidates is None:
            return None
        kept = self.candidates.under(settings)
        return np.where(kept.edge, np.nan, kept.logprobs)

    def at_temperature(self, temperature: float) -> np.ndarray | None:
        """Processed logprobs at any temperature in range, float64 [N], interpolated in ln T; None under truncation."""
        return None if self._spline is None else self._spline(np.log(temperature))

    @cached_property
    def _spline(self) -> CubicSpline | None:
        if self.candidates is None:
            return None
        nodes = np.geomspace(self.config.temperature_min, self.config.temperature_max, TEMPERATURE_NODES)
        nodes_KN = np.stack([self.candidates.under({"temperature": float(t)}).logprobs for t in nodes])
        return CubicSpline(np.log(nodes), nodes_KN, axis=0) if np.isfinite(nodes_KN).all() else None


def name_of(settings: Mapping[str, float]) -> str:
    """Settings in one line.

    >>> name_of({"top_p": 0.9})
    'top_p:0.9'
    """
    return ",".join(f"{name}:{value:g}" for name, value in settings.items())
