"""A block: streams with one front end, seven bets each, and weights fixed at their first bet.

Weights. Every family of streams (say replica contrasts) has a share of the block's share. Streams that begin to bet in the
same batch are one cohort: the first cohort of a family gets 3/4 of its share, the one j after it 1/4 · 1/(j(j+1)), split
equally. These parts add up to at most 1, whatever comes later; the share of a stream that leaves is dropped, never handed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detectors.bets import BETS, Bets
from detectors.frontend import FrontEnd, Settings

FIRST_COHORT = 0.75
TOP = 20
"""Streams of a block whose evidence is stored a batch."""


class Block:
    """Streams as columns; owned by a Battery or a SeriesBattery."""

    def __init__(self, settings: Settings, shares: Mapping[str, float]) -> None:
        self.front, self.bets = FrontEnd(settings), Bets()
        self.shares = dict(shares)  # family → share of the whole budget
        self.keys: list[str] = []
        self.families: list[str] = []
        self.log_weight = np.empty(0)  # −inf = has not bet yet
        self.family = np.empty(0, np.int64)
        self.dead_band = np.empty(0)  # in units of x
        self.widen = 1.0  # by the audit
        self.gain: np.ndarray = np.empty((BETS, 0))
        self.told = np.empty(0, bool)
        self._cohorts: dict[str, int] = {}

    @property
    def size(self) -> int:
        """The number of streams."""
        return self.front.size

    def add(self, keys: Sequence[str], *, family: str, kinds: Sequence[str], slopes: Sequence[float], floors: Sequence[float],
            dead_bands: Sequence[float]) -> int:
        """Give birth to streams of one family; returns the first column."""
        first = self.size
        if family not in self.families:
            self.families.append(family)
        self.keys += list(keys)
        self.front.born(len(keys), slope=np.array(slopes), floor=np.array(floors))
        self.bets.born(list(kinds))
        self.log_weight = np.concatenate([self.log_weight, np.full(len(keys), -np.inf)])
        self.family = np.concatenate([self.family, np.full(len(keys), self.families.index(family))])
        self.dead_band = np.concatenate([self.dead_band, np.array(dead_bands, dtype=float)])
        return first

    def step(self, t: int, x: np.ndarray, z1: np.ndarray, z2: np.ndarray, n: np.ndarray, *, cap: float, bet: bool = True,
             least: np.ndarray | float = 0.0) -> None:
        """One batch, all arrays [K]; x NaN = absent. `bet` False only teaches. `least`: see FrontEnd.step."""
        front = self.front
        late = front.ring[front.calls % front.settings.delay]
        self.bets.learn(late[4] / (front.widening() * self.widen), late[5], front.keep)
        dead = self._dead_band()
        u, doubt = front.step(t, x, z1, z2, n, np.broadcast_to(least, x.shape))
        off = doubt + dead
        front.ring[(front.calls - 1) % front.settings.delay][5] = off
        ready = front.ready & bet
        u = np.where(ready, u / self.widen, np.nan)
        self._weigh(np.isfinite(u))
        self.told = np.isfinite(u)
        self.gain = self.bets.step(t, u, off, cap)

    def _dead_band(self) -> np.ndarray:
        one, two = self.front.partials()
        passed = np.maximum(1 - one * (1 - two) - two, 0.0) / np.sqrt(np.maximum((1 - one**2) * (1 - two**2), 1e-6))
        return self.dead_band / self.front.sd() * passed / self.front.widening()

    def _weigh(self, betting: np.ndarray) -> None:
        new = betting & np.isneginf(self.log_weight)
        if not new.any():
            return
        for number, name in enumerate(self.families):
            members = new & (self.family == number)
            count = int(members.sum())
            if count:
                j = self._cohorts[name] = self._cohorts.get(name, 0) + 1
                share = self.shares.get(name, 0.0) * (FIRST_COHORT if j == 1 else (1 - FIRST_COHORT) / (j * (j - 1)))
                with np.errstate(divide="ignore"):
                    self.log_weight[members] = np.log(share / count)

    def contributions(self) -> np.ndarray:
        """log w·SR a stream [K]; −inf before its first bet."""
        return self.log_weight + self.bets.mean_log_sr()

    @property
    def learning(self) -> bool:
        """True while no stream has bet."""
        return not bool(np.isfinite(self.log_weight).any())

    def drop(self, columns: np.ndarray) -> None:
        """Departed streams: their share is gone, their columns are newborn again (and stay without weight until reused)."""
        slope, floor, wary = self.front.slope[columns], self.front.floor[columns], self.front.wary[columns]
        shift, psi = self.bets.shift[:, columns], self.bets.psi[:, columns]
        self.front.clear(columns)
        self.bets.clear(columns)
        self.front.slope[columns], self.front.floor[columns], self.front.wary[columns] = slope, floor, wary
        self.front.beta[3, columns] = slope
        self.bets.shift[:, columns], self.bets.psi[:, columns] = shift, psi
        for i in range(4):
            self.front.inverse[i, i, columns] = 1.0
        self.log_weight[columns] = -np.inf

    def relearn(self) -> None:
        """A planned change: forget baseline, noise and evidence; weights stay as they were at birth."""
        weights = self.log_weight.copy()
        self.drop(np.arange(self.size))
        self.log_weight = weights

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.front.nbytes + self.bets.nbytes + self.log_weight.nbytes + self.family.nbytes + self.dead_band.nbytes

    def to_state(self) -> dict[str, Any]:
        """JSON-able."""
        weights = [w if np.isfinite(w) else None for w in self.log_weight.tolist()]
        return {"front": self.front.to_state(), "bets": self.bets.to_state(), "keys": list(self.keys), "families": list(self.families),
                "family": self.family.tolist(), "log_weight": weights, "dead_band": self.dead_band.tolist(), "widen": self.widen,
                "cohorts": dict(self._cohorts)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `to_state` gave, bit for bit."""
        self.front.restore(state["front"])
        self.bets.restore(state["bets"])
        self.keys, self.families = list(state["keys"]), list(state["families"])
        self.family = np.array(state["family"], dtype=np.int64)
        self.log_weight = np.array([-np.inf if w is None else w for w in state["log_weight"]])
        self.dead_band = np.array(state["dead_band"], dtype=float)
        self.widen = float(state["widen"])
        self._cohorts = dict(state["cohorts"])
