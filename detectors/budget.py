"""The false-alarm budget in operator words → the threshold A in batches.

"1 per 30 days" at one batch every 120 s gives A = 30 · 86400 / 120 = 21,600. A weighted average of e-Shiryaev–Roberts
processes has average run length ≥ A under the null (Shin, Ramdas, Rinaldo, *E-detectors*), so an alarm at M ≥ A keeps
the promise. Empty windows count as batches of the period but add no evidence, so a run that idles pages less, never more.
"""

from __future__ import annotations

import math
import re

from collector.errors import ConfigError

UNIT_SECONDS = {
    "minute": 60.0, "hour": 3600.0, "day": 86400.0, "week": 7 * 86400.0, "month": 30 * 86400.0, "year": 365 * 86400.0,
}
SMALLEST_A = 20.0
EXAMPLES = 'for example "1 per 30 days", "2 per week" or "1 per 12 hours"'
_WORDS = re.compile(r"(?P<count>\d+(?:\.\d+)?)\s+(?:per|every|in|a)\s+(?:(?P<many>\d+(?:\.\d+)?)\s+)?(?P<unit>[a-z]+?)s?")


def parse_period_seconds(text: str) -> float:
    """Seconds per accepted false alarm. Raises ConfigError with examples.

    >>> parse_period_seconds("2 per week")
    302400.0
    """
    found = _WORDS.fullmatch(text.strip().lower())
    if found is None or found["unit"] not in UNIT_SECONDS:
        raise ConfigError(f'detectors.false_alarms = "{text}" is not a budget; write {EXAMPLES}')
    count, many = float(found["count"]), float(found["many"] or 1)
    if count <= 0 or many <= 0:
        raise ConfigError(
            f'detectors.false_alarms = "{text}": no detector that can fire promises zero false alarms; write {EXAMPLES}'
        )
    return many * UNIT_SECONDS[found["unit"]] / count


def batches(text: str, *, batch_seconds: float) -> float:
    """A: the number of batches in the period of one accepted false alarm. Raises ConfigError when too few."""
    if not batch_seconds > 0:
        raise ConfigError(f"batch_seconds = {batch_seconds:g} must be above 0")
    a = parse_period_seconds(text) / batch_seconds
    if a < SMALLEST_A:
        raise ConfigError(
            f'detectors.false_alarms = "{text}" is only {a:.1f} batches of {batch_seconds:g} s; allow fewer false alarms '
            f"(at least {SMALLEST_A:g} batches apart) or shorten the batches"
        )
    return a


def ln_a(text: str, *, batch_seconds: float) -> float:
    """ln A, the threshold for ln M, in nats of evidence."""
    return math.log(batches(text, batch_seconds=batch_seconds))
