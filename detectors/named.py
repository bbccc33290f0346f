"""Streams that come with a name and one gain a batch: self-bets, explanations, and kinds others add."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from collector.records import Evidence
from detectors.config import DetectorsConfig
from detectors.esr import ShiryaevRoberts
from detectors.streams import Weights


class Named:
    """e-Shiryaev–Roberts processes by name; weights fixed at birth (streams.py)."""

    def __init__(self, config: DetectorsConfig) -> None:
        self.names: list[str] = []
        self.index: dict[str, int] = {}
        self.sr = ShiryaevRoberts()
        self._weights = Weights(config)
        self._log_weights: list[float] = []

    def contributions(self) -> np.ndarray:
        """log w·SR of every stream [K]."""
        return np.array(self._log_weights) + self.sr.log_sr

    @property
    def ln_m(self) -> float:
        """ln of the weighted average; −inf before the first evidence."""
        return float(np.logaddexp.reduce(self.contributions())) if self.names else -np.inf

    def tick(self, t: int, gains: Mapping[str, float], *, ln_a: float, ignore: Callable[[str], None]) -> tuple[Evidence, ...]:
        """Tick the streams that have a gain in batch t; `ignore` hears why one was left out.

        A gain counts at most half of what its stream needs to page alone, (ln A − ln w)/2: two great batches page, one never.
        """
        ticking = [name for name in sorted(gains) if self._admit(name, gains[name], ignore)]
        if not ticking:
            return ()
        index_K = np.array([self.index[name] for name in ticking])
        log_weight_K = np.array(self._log_weights)[index_K]
        gain_K = np.minimum([gains[name] for name in ticking], (ln_a - log_weight_K) / 2)
        self.sr.update(t, index_K, gain_K)
        return tuple(
            Evidence(
                t=t, stream=name, weight=float(np.exp(self._log_weights[i])), gain=float(gain),
                log_sr=float(self.sr.log_sr[i]), started_at=int(self.sr.start[i]),
            )
            for name, i, gain in zip(ticking, index_K.tolist(), gain_K, strict=True)
        )

    def _admit(self, name: str, gain: float, ignore: Callable[[str], None]) -> bool:
        if not np.isfinite(gain):
            ignore("nonfinite_gain")
            return False
        if name in self.index:
            return True
        weight = self._weights.birth(name)
        if not weight:
            ignore("unknown_stream" if weight is None else "zero_weight")
            return False
        self.index[name] = len(self.names)
        self.names.append(name)
        self._log_weights.append(float(np.log(weight)))
        self.sr.add()
        return True

    def to_state(self) -> dict[str, Any]:
        """JSON-able."""
        return {"names": list(self.names), "log_weights": list(self._log_weights), "weights": self._weights.to_state(), "sr": self.sr.to_state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `to_state` gave, bit for bit."""
        self.names, self._log_weights = list(state["names"]), list(state["log_weights"])
        self.index = {name: i for i, name in enumerate(self.names)}
        self._weights.restore(state["weights"])
        self.sr = ShiryaevRoberts.from_state(state["sr"])
