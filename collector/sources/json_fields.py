"""Fields of a JSON object, read strictly: a wrong type, length or range names the field and refuses; nothing is repaired."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from collector.errors import InputError

MAX_LOGPROB = 1e-6  # above this a "logprob" cannot be one: the engine reports logits


def ids(obj: Mapping[str, Any], field: str) -> np.ndarray:
    values = obj[field]
    if not isinstance(values, list):
        raise InputError(f"a list of token ids is expected, not {type(values).__name__}", field=field)
    for index, value in enumerate(values):
        if type(value) is not int or not 0 <= value < 2**31:
            raise InputError(f"entry {index} is {value!r}, not a token id (an integer from 0)", field=field)
    return np.array(values, dtype=np.int32)


def logprobs(values: Any, field: str, n_tokens: int) -> np.ndarray:
    if not isinstance(values, list):
        raise InputError(f"a list of numbers is expected, not {type(values).__name__}", field=field)
    if len(values) != n_tokens:
        raise InputError(f"length mismatch: {len(values)} logprobs for {n_tokens} token_ids", field=field)
    return np.array([logprob(value, field, index) for index, value in enumerate(values)], dtype=np.float32)


def logprob(value: Any, field: str, index: int) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"entry {index} is {value!r}, not a number", field=field)
    if not math.isfinite(value):
        return math.nan
    if value > MAX_LOGPROB:
        raise InputError(f"entry {index} is {value:.6g}, above 0: is the engine in a logits mode? "
                         "(start it with --logprobs-mode processed_logprobs)", field=field)
    return float(value)


def mask(obj: Mapping[str, Any], field: str, n_tokens: int) -> np.ndarray | None:
    values = obj.get(field)
    if values is None:
        return None
    if not isinstance(values, list) or any(value not in (0, 1) for value in values):
        raise InputError("a list of 0 and 1 is expected", field=field)
    if len(values) != n_tokens:
        raise InputError(f"length mismatch: {len(values)} entries for {n_tokens} token_ids", field=field)
    return np.array(values, dtype=bool)


def flag(obj: Mapping[str, Any], field: str) -> bool | None:
    value = obj.get(field)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{value!r} is neither true nor false", field=field)
    return value


def number(obj: Mapping[str, Any], field: str, *, parent: str = "") -> float | None:
    value = obj.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{value!r} is not a finite number", field=f"{parent}.{field}" if parent else field)
    return float(value)


def integer(obj: Mapping[str, Any], field: str) -> int | None:
    value = number(obj, field)
    if value is None:
        return None
    if value != int(value) or value < 0:
        raise InputError(f"{value!r} is not a whole number from 0", field=field)
    return int(value)


def text(obj: Mapping[str, Any], field: str) -> str | None:
    value = obj.get(field)
    return None if value is None else str(value)


def choice(obj: Mapping[str, Any], field: str, allowed: Any, default: str) -> Any:
    value = obj.get(field, default)
    if value not in get_args(allowed):
        raise InputError(f"{value!r} is none of {', '.join(get_args(allowed))}", field=field)
    return value


def labels(obj: Mapping[str, Any]) -> dict[str, str]:
    values = obj.get("labels") or {}
    if not isinstance(values, Mapping):
        raise InputError("an object is expected", field="labels")
    return {str(key): str(value) for key, value in values.items()}
