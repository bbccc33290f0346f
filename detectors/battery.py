"""The battery: every contrast of every feature as a stream, for a whole fleet at once.

Question.    Did the mismatch change beyond what trend, lag and the policy's certainty explain: everywhere, on one replica,
             in one position bucket, in one cell of both, or between two weight versions in the same batch?
Statistic.   features.py per contrast (contrasts.py), whitened (frontend.py), bet on (bets.py); fleet-wide ESS, entropy and
             reward with low weight, large jumps only.
Guarantee.   Each stream is an e-detector as far as its whitened residual is what bets.py allows for. Unlike self-bets
             and explanations that is an approximation, tested by simulation (docs/detection.md), not a theorem.
Warm-up.     `warmup_batches` learnt from, each `delay_batches` late: no bets before ("learning"). A replica that joins later
             starts with the fleet's noise and bets after a third of that.
When it lies. A fault present from the first batch is the baseline; falls of mean |d| are not looked at.
Cost.        O(1) a stream and batch, vectorised; about 3.5 kB a stream. benchmarks/detection_speed.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detectors.bets import BETS
from detectors.block import FIRST_COHORT, Block
from detectors.config import BatteryConfig, DetectorsConfig
from detectors.contrasts import Grid, Values, grid_values, two_sides
from detectors.features import BENT, FEATURES, GIVEN, MEANING, SLOPES, sums
from detectors.frontend import Settings
from detectors.looks import Cell, Look

SHARES = {"global": 0.32, "replica": 0.22, "position": 0.18, "cell": 0.14, "version": 0.06, "fleet": 0.08}
"""Family → part of the battery's share of the budget."""

CAP = 0.7
"""Of ln A: what the largest gain of a stream's excursion counts at most."""

FLEET = ("ess", "entropy", "reward")
MAX_REPLICAS = 2048
TOKENS_A_SEQUENCE = 64.0  # where a slice does not say how many sequences it holds
NEAR_NATS = 6.0
F = len(FEATURES)


def planned_weight(config: DetectorsConfig) -> float:
    """The weight of one bet of the global stream of log mean |d|, as `klaxon plan` reckons with it."""
    return config.weights.battery * SHARES["global"] * FIRST_COHORT / F / BETS


def leading_column(keys: Sequence[str], worth: np.ndarray) -> int | None:
    """The stream to name: the best of the slice that leads. None before the first evidence.

    Slices within NEAR_NATS of the largest compete by how special they are: a fault of one replica also moves the fleet, but
    a fault of the fleet cancels in every contrast.
    """
    slices: dict[str, list[int]] = {}
    for column in np.flatnonzero(worth > worth.max(initial=-np.inf) - 3 * NEAR_NATS).tolist():
        slices.setdefault(keys[column].split(":", 2)[2], []).append(column)
    if not slices:
        return None
    total = {where: float(np.logaddexp.reduce(worth[columns])) for where, columns in slices.items()}
    near = [where for where, value in total.items() if value >= max(total.values()) - NEAR_NATS]
    best = max(near, key=lambda where: (len(Battery.slice_of(f"::{where}")), where != "fleet", total[where]))
    return max(slices[best], key=lambda column: float(worth[column]))


class Battery:
    """One block of streams and the names of its columns; `update` once a batch."""

    def __init__(self, config: BatteryConfig, *, share: float) -> None:
        self.config = config
        settings = Settings(warmup=config.warmup_batches, delay=config.delay_batches, memory=config.memory_batches)
        self.block = Block(settings, {name: share * part for name, part in SHARES.items()})
        self.replicas: list[str] = []
        self.positions: list[str] = []
        self.seen_at: list[int] = []  # replica → last batch it was in
        self.crowded = 0  # slices left out because there are too many replicas
        self._last_fleet: dict[str, float] = {}
        self._slots: dict[str, int] = {}
        self._buckets: dict[str, int] = {}
        self._first: dict[str, int] = {}  # contrast → first of its F columns
        self._order = np.empty(0, np.int64)

    @property
    def learning(self) -> bool:
        """True until the first bet."""
        return self.block.learning

    def update(self, look: Look, *, cap: float, bet: bool = True) -> None:
        """Take one batch; a batch with nothing to compare changes nothing."""
        cells = [cell for cell in look.cells if self._place(cell, look.t)]
        if not cells and not look.fleet:
            self.block.told[:] = False
            return
        x, z1, z2, least = (np.full(self.block.size, fill) for fill in (np.nan, 0.0, 0.0, 0.0))
        n = np.ones(self.block.size)
        if cells:
            self._fill((x, z1, z2, n, least), self._values(cells, look.unsure))
            self._versions(cells, x, n)
        self._fleet(look, x, z2)
        self.block.step(look.t, x, z1, z2, n, cap=cap, bet=bet, least=least)

    @property
    def ln_m(self) -> float:
        """ln of the weighted average of the battery's streams; −inf before the first evidence."""
        worth = self.block.contributions()
        return float(np.logaddexp.reduce(worth)) if worth.size else -math.inf

    def far(self, limit: float) -> int:
        """How many streams lay more than `limit` standard deviations off in the last batch."""
        if not self.block.told.any():
            return 0
        front = self.block.front
        return int((np.abs(front.ring[(front.calls - 1) % front.settings.delay][4])[self.block.told] > limit).sum())

    def leading(self) -> int | None:
        """The leading column (`leading_column`); None before the first evidence."""
        return leading_column(self.block.keys, self.block.contributions())

    def affected(self, batches: int, *, rate: float) -> list[dict[str, str]]:
        """Slices whose streams have evidence of their own, by e-BH at this false discovery rate; largest first.

        The e-value of a slice is its mean SR over `batches`, those seen so far: E[SR] after n batches is at most n.
        """
        worth: dict[str, list[float]] = {}
        log_sr = self.block.bets.mean_log_sr()
        for i in np.flatnonzero(np.isfinite(log_sr)).tolist():
            worth.setdefault(self.block.keys[i].split(":", 2)[2], []).append(float(log_sr[i]))
        age = math.log(max(batches, 1))
        e = sorted(((float(np.logaddexp.reduce(found)) - math.log(len(found)) - age, where) for where, found in worth.items()), reverse=True)
        kept = max((k for k, (value, _) in enumerate(e, start=1) if value >= math.log(len(e) / (rate * k))), default=0)
        return [found for _, where in e[:kept] if (found := self.slice_of(f"::{where}"))]

    def describe(self, key: str) -> str:
        """A stream's key in words.

        >>> Battery(BatteryConfig(), share=0.3).describe("battery:clip:replica=e0")
        'the share of tokens with |d| >= 0.2 of replica=e0'
        """
        _, feature, where = key.split(":", 2)
        return f"{MEANING.get(feature, feature)} of {'the fleet' if where in ('global', 'fleet') else where}"

    @staticmethod
    def slice_of(key: str) -> dict[str, str]:
        """{"replica": …, "position": …} of a stream; {} for the whole fleet."""
        _, _, where = key.split(":", 2)
        if where.startswith("replica="):
            replica, found, position = where.removeprefix("replica=").partition(",position=")
            return {"replica": replica} | ({"position": position} if found else {})
        return {"position": where.removeprefix("position=")} if where.startswith("position=") else {}

    def _place(self, cell: Cell, t: int) -> bool:
        """Make room for the cell's replica and position; False where there is none."""
        grown = not self._first
        if cell.replica not in self._slots:
            gone = [i for i, at in enumerate(self.seen_at) if t - at > self.config.memory_batches]
            if len(self.replicas) >= MAX_REPLICAS and not gone:
                self.crowded += 1
                return False
            if gone:
                self._reuse(gone[0], cell.replica, t)
            else:
                self.replicas.append(cell.replica)
                self.seen_at.append(t)
                self._slots[cell.replica] = len(self.replicas) - 1
            grown = True
        if cell.position not in self._buckets:
            self._buckets[cell.position] = len(self.positions)
            self.positions.append(cell.position)
            grown = True
        self.seen_at[self._slots[cell.replica]] = t
        if grown:
            self._lay_out()
        return True

    def _reuse(self, slot: int, replica: str, t: int) -> None:
        """A departed replica's columns become a new one's; its share of the budget is gone."""
        old, self.replicas[slot], self.seen_at[slot] = self.replicas[slot], replica, t
        self._slots[replica] = self._slots.pop(old)
        for where in [where for where in self._first if self.slice_of(f"::{where}").get("replica") == old]:
            first = self._first.pop(where)
            self._first[where.replace(f"replica={old}", f"replica={replica}", 1)] = first
            columns = np.arange(first, first + F)
            for column in columns.tolist():
                self.block.keys[column] = self.block.keys[column].replace(f"replica={old}", f"replica={replica}", 1)
            self.block.drop(columns)
            self._inherit(int(self.block.family[first]), columns)

    def _lay_out(self) -> None:
        """Give birth to what is missing, and note the order of the grid's contrasts."""
        wanted = [("global", "global")] + [("replica", f"replica={r}") for r in self.replicas]
        wanted += [("position", f"position={p}") for p in self.positions]
        wanted += [("cell", f"replica={r},position={p}") for r in self.replicas for p in self.positions]
        for family, where in wanted:
            if where not in self._first:
                self._first[where] = self._born(family, where)
        if "version" not in self._first:
            self._first["version"] = self._born("version", "version")
            self._first["fleet"] = self.block.add(
                [f"battery:{name}:fleet" for name in FLEET], family="fleet", kinds=["jump"] * 3, slopes=[2.0, 0.0, 0.0],
                floors=[0.02] * 3, dead_bands=[0.02] * 3)
        starts = np.array([self._first[where] for _, where in wanted])
        self._order = (starts[:, None] + np.arange(F)).ravel()

    def _born(self, family: str, where: str) -> int:
        band = math.log(self.config.dead_band_ratio)
        bands = {"k3": 2 * band, "sign": band / 3}
        two = family == "version"
        first = self.block.add(
            [f"battery:{name}:{where}" for name in FEATURES], family=family,
            kinds=["both" if two or name == "sign" else "up" for name in FEATURES],
            slopes=[0.0 if name in BENT and family != "global" else SLOPES.get(name, 0.0) for name in FEATURES], floors=[0.003 if name == "sign" else 0.01 for name in FEATURES],
            dead_bands=[bands.get(name, band) for name in FEATURES])
        self.block.front.wary[first:first + F] = [name in GIVEN for name in FEATURES]
        self._inherit(self.block.families.index(family), np.arange(first, first + F))
        return first

    def _inherit(self, family: int, columns: np.ndarray) -> None:
        """A newcomer starts with the noise its grown siblings have."""
        block = self.block
        grown = block.front.ready & (block.family == family)
        grown[columns] = False
        siblings = np.flatnonzero(grown)
        of_feature = (siblings - siblings.min() if siblings.size else siblings) % F
        likes = [siblings[of_feature == i] for i in range(F)]
        count = min((like.size for like in likes), default=0)
        if count >= 2:
            block.front.inherit(columns, np.stack([like[:count] for like in likes]))

    def _values(self, cells: Sequence[Cell], unsure: float) -> Values:
        shape = (len(self.replicas), len(self.positions))
        at = np.array([self._slots[cell.replica] * shape[1] + self._buckets[cell.position] for cell in cells])
        sums_N = sums(np.stack([cell.counts for cell in cells]).astype(float))
        tokens_N = sums_N[:, 0]
        lag_N = np.array([np.nan if cell.lag is None else cell.lag for cell in cells])
        sequences_N = np.array([cell.n_sequences for cell in cells])
        sequences_N = np.where(sequences_N > 0, sequences_N, tokens_N / TOKENS_A_SEQUENCE)
        known_N = np.where(np.isfinite(lag_N), tokens_N, 0.0)
        rows = np.concatenate([sums_N, np.stack([sequences_N, np.nan_to_num(lag_N) * tokens_N, known_N], axis=1),
                               np.array([cell.surprise for cell in cells])], axis=1)
        total = np.zeros((shape[0] * shape[1], rows.shape[1]))
        np.add.at(total, at, rows)
        total = total.reshape(*shape, -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            lag = total[..., 9] / total[..., 10]
        grid = Grid(sums=total[..., :8], n_sequences=total[..., 8], lag=lag, surprise=total[..., 11:13])
        return grid_values(grid, unsure=unsure, min_tokens=self.config.min_tokens)

    def _fill(self, columns: tuple[np.ndarray, ...], values: Values) -> None:
        for column, value in zip(columns, (values.x, values.z1, values.z2, values.n, values.least), strict=True):
            column[self._order] = value.ravel()

    def _versions(self, cells: Sequence[Cell], x: np.ndarray, n: np.ndarray) -> None:
        """Newest weights of the batch against all older ones of the batch."""
        lags = np.array([np.nan if cell.lag is None else cell.lag for cell in cells])
        if np.unique(lags[np.isfinite(lags)]).size < 2:
            return
        counts = np.stack([cell.counts for cell in cells])
        newer, older = (sums(counts[side].sum(axis=0).astype(float)) for side in (lags == np.nanmin(lags), lags > np.nanmin(lags)))
        first = self._first["version"]
        x[first:first + F] = two_sides(newer, older, min_tokens=4 * self.config.min_tokens)
        n[first:first + F] = min(newer[0], older[0])

    def _fleet(self, look: Look, x: np.ndarray, z2: np.ndarray) -> None:
        """ESS follows the policy's certainty; entropy and reward drift by design, so only their steps are looked at."""
        if "fleet" not in self._first:
            return
        first, known = self._first["fleet"], look.fleet
        x[first + FLEET.index("ess")] = known.get("ess", np.nan)
        z2[first + FLEET.index("ess")] = z2[self._first["global"]]
        for name in ("entropy", "reward"):
            if name in known:
                x[first + FLEET.index(name)] = known[name] - self._last_fleet.get(name, np.nan)
                self._last_fleet[name] = known[name]

    def to_state(self) -> dict[str, Any]:
        """JSON-able."""
        return {"block": self.block.to_state(), "replicas": list(self.replicas), "positions": list(self.positions),
                "seen_at": list(self.seen_at), "crowded": self.crowded, "first": dict(self._first), "last_fleet": dict(self._last_fleet), "order": self._order.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `to_state` gave, bit for bit."""
        self.block.restore(state["block"])
        self.replicas, self.positions = list(state["replicas"]), list(state["positions"])
        self._last_fleet = dict(state["last_fleet"])
        self._slots = {name: i for i, name in enumerate(self.replicas)}
        self._buckets = {name: i for i, name in enumerate(self.positions)}
        self.seen_at, self.crowded = list(state["seen_at"]), state["crowded"]
        self._first, self._order = dict(state["first"]), np.array(state["order"], dtype=np.int64)
