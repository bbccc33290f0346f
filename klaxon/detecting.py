"""The detectors on batch JSONL, line by line: constant memory, one answer a line."""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import Any

from collector.errors import ConfigError, InputError
from detectors import budget
from detectors.audit import Audit
from detectors.battery import CAP, Battery
from detectors.config import BatteryConfig
from detectors.series import SeriesBattery
from klaxon.batch_lines import Line, parse_line

FIRST_SHARE = 0.85  # of the budget for the kind of line a file begins with: slices, or plain series
MAX_SERIES = 2000
NO_EVIDENCE = -745.0
"""The score before the first bet: ln of the smallest positive double, since JSON has no infinity."""


class Detecting:
    """`take` a line, get the line to print. `refused` counts lines by field."""

    def __init__(self, false_alarms: str, *, cadence_seconds: float | None, latch: bool = True, config: BatteryConfig | None = None) -> None:
        """Raises ConfigError when the budget cannot be read, or is too generous for the cadence."""
        self.period_seconds = budget.parse_period_seconds(false_alarms)
        self.cadence_seconds, self.latch = cadence_seconds, latch
        if cadence_seconds is not None:
            budget.ln_a(false_alarms, batch_seconds=cadence_seconds)
        self.refused: Counter[str] = Counter()
        self.used = self.alarms = 0
        self.notices: list[str] = []
        self.first_alarm: dict[str, Any] | None = None
        self._config = config or BatteryConfig()
        self._battery: Battery | None = None
        self._series: SeriesBattery | None = None
        self._audit = Audit()
        self._last: dict[str | None, int] = {}  # stream, None for batches → its last t
        self._clock: deque[tuple[int, float]] = deque(maxlen=64)
        self._names: dict[str, Any] = {}
        self._answer: dict[str, Any] = {"t": None, "score": NO_EVIDENCE, "alarm": False, "slice": None, "feature": None, "started_at": None}

    def take(self, text: str, *, where: str) -> tuple[dict[str, Any], InputError | None]:
        """(answer, why the line was refused or None). A refused line changes nothing: the answer repeats the last with `error`."""
        try:
            line = parse_line(text, where=where)
            self._check(line, where)
        except InputError as error:
            self.refused[(error.field or "line").partition("[")[0]] += 1
            return {**self._answer, "error": str(error)}, error
        self.used += 1
        self._tick(line)
        found = {"t": line.t, "score": _finite(self.ln_m), **self._where(line)}
        over = self.ln_m >= self.ln_a
        if self.first_alarm is not None and self.latch:
            found |= {key: self.first_alarm[key] for key in ("alarm", "slice", "feature", "started_at")}
        else:
            found["alarm"] = over
        if over and self.first_alarm is None:
            self.first_alarm = dict(found)
        self.alarms += found["alarm"]
        self._answer = {key: found[key] for key in self._answer}
        return dict(self._answer), None

    @property
    def ln_a(self) -> float:
        """ln of the number of batches in the period, at the cadence seen so far."""
        return math.log(max(self.period_seconds / (self._cadence() or 60.0), budget.SMALLEST_A))

    @property
    def ln_m(self) -> float:
        """ln of the weighted average of all streams."""
        parts = [self._battery.ln_m] if self._battery is not None else []
        parts += [self._series.ln_m] if self._series is not None else []
        high = max(parts, default=-math.inf)
        return high if high == -math.inf else high + math.log(sum(math.exp(part - high) for part in parts))

    @property
    def learning(self) -> bool:
        """True before the first bet."""
        return (self._battery is None or self._battery.learning) and (self._series is None or self._series.ln_m == -math.inf)

    def _check(self, line: Line, where: str) -> None:
        if line.minute is None and self.cadence_seconds is None:
            raise InputError("is missing; without it name --cadence", field="minute", where=where)
        stream = line.series[0] if line.series else None
        last = self._last.get(stream)
        if last is not None and line.t <= last:
            raise InputError(f"is {line.t}, not above the last, {last}", field="t", where=where)
        if stream is not None and stream not in self._last and len(self._last) > MAX_SERIES:
            raise InputError(f"is one more than {MAX_SERIES} series", field="stream", where=where)
        self._last[stream] = line.t

    def _cadence(self) -> float | None:
        if self.cadence_seconds is not None:
            return self.cadence_seconds
        if len(self._clock) < 2:
            return None
        steps = sorted((b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(self._clock, list(self._clock)[1:], strict=False) if b[0] > a[0])
        middle = steps[len(steps) // 2] * 60.0 if steps else 0.0
        return middle if middle > 0 else None

    def _tick(self, line: Line) -> None:
        if line.minute is not None and (not self._clock or line.t > self._clock[-1][0]):
            self._clock.append((line.t, line.minute))
        cap = self.ln_a / 2
        if line.series is not None:
            name, value, n = line.series
            if self._series is None:
                self._series = SeriesBattery(self._config, share=FIRST_SHARE if self._battery is None else 1 - FIRST_SHARE)
            self._series.update(line.t, {name: (value, n)}, cap=cap)
        elif line.look is not None:
            if self._battery is None:
                self._battery = Battery(self._config, share=FIRST_SHARE if self._series is None else 1 - FIRST_SHARE)
            self._names |= line.names or {}
            self._battery.update(line.look, cap=CAP * self.ln_a)
            self.notices += self._audit.take(self._battery.block, paused=self.ln_m >= self.ln_a)

    def _where(self, line: Line) -> dict[str, Any]:
        nothing = {"alarm": False, "slice": None, "feature": None, "started_at": None}
        series = self._series.ln_m if self._series is not None else -math.inf
        column = self._battery.leading() if self._battery is not None else None
        if self._battery is not None and column is not None and self._battery.ln_m >= series:
            key, block = self._battery.block.keys[column], self._battery.block
            found = self._battery.slice_of(key)
            where = {"replica": self._names.get(found.get("replica", "")), "pos": self._names.get(f"pos {found.get('position', '')}")}
            return nothing | {"slice": where if found else None, "feature": key.split(":", 2)[1], "started_at": block.bets.change(column)[0]}
        leading = self._series.leading if self._series is not None else None
        if leading is not None:
            return nothing | {"feature": leading.name, "started_at": leading.block.bets.change(0)[0]}
        return nothing


def parse_cadence_seconds(text: str) -> float:
    """Seconds between batches: "120", "120 s", "2 min", "1 hour". Raises ConfigError.

    >>> parse_cadence_seconds("2 min"), parse_cadence_seconds("90")
    (120.0, 90.0)
    """
    units = {"": 1.0, "s": 1.0, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0, "day": 86400.0, "d": 86400.0}
    word = text.strip().lower()
    digits = word.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = word[len(digits):].strip()
    unit = unit if unit in units else unit.removesuffix("s")
    try:
        seconds = float(digits) * units[unit]
    except (ValueError, KeyError):
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise ConfigError(f'--cadence "{text}" is not a time between batches; write for example "120 s" or "2 min"')
    return seconds


def _finite(value: float) -> float:
    return max(value, NO_EVIDENCE)
