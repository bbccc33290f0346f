"""Batch JSONL, the public interchange: one line → a Look or a value of a plain series, or an error naming line and field."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from collector.errors import InputError
from collector.metric_values import PUBLIC_EDGES
from detectors.features import log_weight_variation
from detectors.looks import Cell, Look

BINS = PUBLIC_EDGES.size - 1
LARGEST = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One usable line; exactly one of `look` and `series` is set."""

    t: int
    minute: float | None
    look: Look | None = None
    series: tuple[str, float, float] | None = None  # stream, value, n
    names: dict[str, tuple[Any, Any]] | None = None  # replica and position as the file writes them, by the battery's names


def parse_line(text: str, *, where: str) -> Line:
    """Raises InputError naming `where` (file and line) and the field."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON ({error.msg} at column {error.colno})", field="line", where=where) from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"cannot be read ({type(error).__name__})", field="line", where=where) from None
    if not isinstance(found, dict):
        raise InputError("is not a JSON object", field="line", where=where)
    t = _count(found.get("t"), "t", where, least=-LARGEST)
    minute = _number(found.get("minute"), "minute", where)
    if "stream" in found:
        return Line(t=t, minute=minute, series=_series(found, where))
    if not isinstance(found.get("slices"), list):
        raise InputError("is missing or not a list (a plain series has `stream` and `value` instead)", field="slices", where=where)
    cells = tuple(_cell(item, f"slices[{i}]", where) for i, item in enumerate(found["slices"]))
    entropy, reward = (_number(found.get(name), name, where) for name in ("entropy", "reward"))
    fleet = {} if reward is None else {"reward": reward}
    if cells and (variation := log_weight_variation(sum(cell.counts for cell in cells))) is not None:
        fleet["ess"] = variation
    unsure = math.nan if entropy is None or entropy <= 0 else math.log(entropy)
    if math.isfinite(unsure):
        fleet["entropy"] = unsure
    names = {cell.replica: item.get("replica") for cell, item in zip(cells, found["slices"], strict=True)}
    names |= {f"pos {cell.position}": item.get("pos") for cell, item in zip(cells, found["slices"], strict=True)}
    return Line(t=t, minute=minute, look=Look(t=t, cells=tuple(cell for cell in cells if cell.counts.any()), unsure=unsure, fleet=fleet), names=names)


def _series(found: dict[str, Any], where: str) -> tuple[str, float, float]:
    if not isinstance(found["stream"], str) or not found["stream"]:
        raise InputError("is not a name", field="stream", where=where)
    value = _number(found.get("value"), "value", where)
    if value is None:
        raise InputError("is missing", field="value", where=where)
    n = _number(found.get("n"), "n", where, least=0.0)
    return found["stream"], value, 1.0 if n is None else n


def _cell(item: Any, at: str, where: str) -> Cell:
    if not isinstance(item, dict):
        raise InputError("is not an object", field=at, where=where)
    for name in ("replica", "pos"):
        if isinstance(item.get(name), (dict, list)):
            raise InputError("is not a number or a name", field=f"{at}.{name}", where=where)
    if item.get("n_tok") is not None:
        _count(item["n_tok"], f"{at}.n_tok", where)
    counts = [_histogram(item.get(name), f"{at}.{name}", where) for name in ("hist_pos", "hist_neg")]
    return Cell(
        replica=json.dumps(item.get("replica")), position=json.dumps(item.get("pos")), counts=np.concatenate(counts),
        n_sequences=_number(item.get("n_seq"), f"{at}.n_seq", where, least=0.0) or 0.0, lag=_number(item.get("lag"), f"{at}.lag", where),
    )


def _histogram(found: Any, at: str, where: str) -> np.ndarray:
    if not isinstance(found, list) or len(found) != BINS:
        raise InputError(f"is not a list of {BINS} counts", field=at, where=where)
    if set(map(type, found)) == {int} and 0 <= min(found) and max(found) <= LARGEST:
        return np.array(found, dtype=np.int64)
    return np.array([_count(value, f"{at}[{i}]", where) for i, value in enumerate(found)], dtype=np.int64)


def _count(value: Any, at: str, where: str, least: int = 0) -> int:
    number = _number(value, at, where)
    if number is None:
        raise InputError("is missing", field=at, where=where)
    if number != math.floor(number) or not least <= number <= LARGEST:
        raise InputError(f"is {value!r}, not a {'whole' if least < 0 else 'non-negative whole'} number", field=at, where=where)
    return int(number)


def _number(value: Any, at: str, where: str, least: float = -math.inf) -> float | None:
    if value is None:
        return None
    try:
        good = not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value) and value >= least
    except OverflowError:
        good = False
    if not good:
        raise InputError(f"is {value!r:.40}, not a finite number{' of 0 or more' if least == 0 else ''}", field=at, where=where)
    return float(value)
