"""What the head says of one forward pass: every view that needs no other hidden states. N = tokens of a sheet.

A pass is the labelled weights on the recorded prompts, or a variant (older weights, another prompt, …); explanations of the sampler can
be asked of any of them. The views every diagnosis needs share one forward; truncation and penalties (dear views) share a second one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from collector.records import Score
from collector.shadow.views import expected, processed, raw
from diagnosis.config import DiagnosisConfig
from diagnosis.sheet import Sheet

TRUNCATIONS: tuple[dict[str, float], ...] = ({"top_p": 0.8}, {"top_p": 0.9}, {"top_p": 0.95}, {"top_k": 20}, {"top_k": 50}, {"min_p": 0.05}, {"min_p": 0.1})
PENALTIES: tuple[dict[str, float], ...] = tuple({"repetition_penalty": value} for value in (1.05, 1.1, 1.2))
TEMPERATURE_NODES = 9
FINE_TEMPERATURES = 241

More = Callable[[Mapping[str, Any]], list[Score]]
"""Further views of the same pass, one Score a rollout of the sheet."""


def head_views(config: DiagnosisConfig) -> dict[str, Any]:
    """The views of a first forward, by name."""
    views: dict[str, Any] = {"expected": expected, "raw": raw, "processed": processed()}
    return views | {f"temperature:{i}": processed(temperature=float(t)) for i, t in enumerate(_nodes(config))}


class Heads:
    """See the module. `scores` hold `head_views`, in the order of the sheet's rollouts."""

    def __init__(self, sheet: Sheet, scores: Sequence[Score], more: More, *, config: DiagnosisConfig) -> None:
        self.sheet, self.config = sheet, config
        self._scores, self._more = list(scores), more
        self.temperatures_F = np.geomspace(config.temperature_min, config.temperature_max, FINE_TEMPERATURES)
        nodes = _nodes(config)
        nodes_KN = np.stack([self.view(f"temperature:{i}") for i in range(nodes.size)])
        self._spline = CubicSpline(np.log(nodes), nodes_KN, axis=0) if np.isfinite(nodes_KN).all() else None
        self._settings: dict[str, np.ndarray] | None = None

    def view(self, name: str) -> np.ndarray:
        """A head view, float64 [N] nats."""
        return self.sheet.flat([score.views[name] for score in self._scores])

    def setting(self, settings: Mapping[str, float]) -> np.ndarray:
        """Processed logprobs with one of TRUNCATIONS or PENALTIES in place of the trainer's, float64 [N]."""
        if self._settings is None:
            views = {name_of(one): processed(**one) for one in (*TRUNCATIONS, *PENALTIES)}
            scores = self._more(views)
            self._settings = {name: self.sheet.flat([score.views[name] for score in scores]) for name in views}
        return self._settings[name_of(settings)]

    def at_temperature(self, temperature: float) -> np.ndarray | None:
        """Processed logprobs at any temperature in range, float64 [N], interpolated in ln T; None under truncation."""
        return None if self._spline is None else self._spline(np.log(temperature))


def name_of(settings: Mapping[str, float]) -> str:
    """The view name of overridden settings.

    >>> name_of({"top_p": 0.9})
    'top_p:0.9'
    """
    return ",".join(f"{name}:{value:g}" for name, value in settings.items())


def _nodes(config: DiagnosisConfig) -> np.ndarray:
    return np.geomspace(config.temperature_min, config.temperature_max, TEMPERATURE_NODES)
