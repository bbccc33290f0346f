"""Fields of a rollout as other people wrote them: each checked once, refused by its own name, never repaired."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from collector.errors import InputError

MAX_LOGPROB = 1e-6  # above this a "logprob" cannot be one: the engine reports logits


def token_ids(values: Any, field: str) -> np.ndarray:
    """int32 [n] token ids.

    >>> token_ids([520, 9531], "token_ids").tolist()
    [520, 9531]
    """
    if not isinstance(values, list):
        raise InputError(f"a list of token ids is expected, not {type(values).__name__}", field=field)
    for index, value in enumerate(values):
        if type(value) is not int or not 0 <= value < 2**31:
            raise InputError(f"entry {index} is {value!r}, not a token id (an integer from 0)", field=field)
    return np.array(values, dtype=np.int32)


def logprobs(values: Any, field: str, n_tokens: int) -> np.ndarray:
    """float32 [n_tokens] nats; null and non-finite values become NaN, a value above 0 is refused."""
    if not isinstance(values, list):
        raise InputError(f"a list of numbers is expected, not {type(values).__name__}", field=field)
    if len(values) != n_tokens:
        raise InputError(f"length mismatch: {len(values)} logprobs for {n_tokens} token_ids", field=field)
    return np.array([logprob(value, field, index) for index, value in enumerate(values)], dtype=np.float32)


def logprob(value: Any, field: str, index: int) -> float:
    """One logprob in nats, NaN where it is null or not finite."""
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


def mask(values: Any, field: str, n_tokens: int) -> np.ndarray:
    """bool [n_tokens]; all True when absent."""
    if values is None:
        return np.ones(n_tokens, dtype=bool)
    if not isinstance(values, list) or any(value not in (0, 1) for value in values):
        raise InputError("a list of 0 and 1 is expected", field=field)
    if len(values) != n_tokens:
        raise InputError(f"length mismatch: {len(values)} entries for {n_tokens} token_ids", field=field)
    return np.array(values, dtype=bool)


def number(obj: Mapping[str, Any], field: str, *, parent: str = "") -> float | None:
    """A finite number, None when absent."""
    value = obj.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{value!r} is not a finite number", field=f"{parent}.{field}" if parent else field)
    return float(value)


def integer(obj: Mapping[str, Any], field: str) -> int | None:
    """A whole number from 0, None when absent."""
    value = number(obj, field)
    if value is None:
        return None
    if value != int(value) or value < 0:
        raise InputError(f"{value!r} is not a whole number from 0", field=field)
    return int(value)


def text(obj: Mapping[str, Any], field: str) -> str | None:
    """A string, None when absent."""
    value = obj.get(field)
    return None if value is None else str(value)
