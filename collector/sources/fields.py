"""Fields of a rollout as other people wrote them: each checked once, refused by its own name, never repaired."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from collector.errors import InputError

LARGEST = 3e38  # beyond float32: as good as infinite
MAX_LOGPROB = 1e-6  # above this a "logprob" cannot be one: the engine reports logits


def token_ids(values: Any, field: str) -> np.ndarray:
    """int32 [n] token ids.

    >>> token_ids([520, 9531], "token_ids").tolist()
    [520, 9531]
    """
    if not isinstance(values, list):
        raise InputError(f"a list of token ids is expected, not {type(values).__name__}", field=field)
    if set(map(type, values)) - {int} or (values and not 0 <= min(values) <= max(values) < 2**31):
        index, value = next((n, one) for n, one in enumerate(values) if type(one) is not int or not 0 <= one < 2**31)
        raise InputError(f"entry {index} is {shown(value)}, not a token id (an integer from 0)", field=field)
    return np.array(values, dtype=np.int32)


def logprobs(values: Any, field: str, n_tokens: int) -> np.ndarray:
    """float32 [n_tokens] nats; null and non-finite values become NaN, a value above 0 is refused."""
    if not isinstance(values, list):
        raise InputError(f"a list of numbers is expected, not {type(values).__name__}", field=field)
    if len(values) != n_tokens:
        raise InputError(f"length mismatch: {len(values)} logprobs for {n_tokens} token_ids", field=field)
    return nats(values, field)


def nats(values: list[Any], field: str, *, first: int = 0) -> np.ndarray:
    """float32 nats of a list, entry by entry; `first` is the number of its first entry, for the error.

    >>> nats([-0.5, None], "logprobs").tolist()
    [-0.5, nan]
    """
    if set(map(type, values)) - {float, int, type(None)}:
        index, value = next((n, one) for n, one in enumerate(values) if type(one) not in (float, int, type(None)))
        raise InputError(f"entry {first + index} is {shown(value)}, not a number", field=field)
    try:
        out = np.array(values, dtype=np.float64)
    except OverflowError:  # an integer of hundreds of digits
        out = np.array([math.nan if isinstance(value, int) and abs(value) > LARGEST else value for value in values], dtype=np.float64)
    out[~(np.abs(out) < LARGEST)] = math.nan
    above = np.flatnonzero(out > MAX_LOGPROB)
    if above.size:
        raise InputError(f"entry {first + int(above[0])} is {out[above[0]]:.6g}, above 0: is the engine in a logits mode? "
                         "(start it with --logprobs-mode processed_logprobs)", field=field)
    return out.astype(np.float32)


def shown(value: Any) -> str:
    """A value in an error, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


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
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST:
        raise InputError(f"{shown(value)} is not a finite number", field=f"{parent}.{field}" if parent else field)
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


def flag(obj: Mapping[str, Any], field: str) -> bool | None:
    """True or false, None when absent."""
    value = obj.get(field)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{shown(value)} is neither true nor false", field=field)
    return value


def choice(obj: Mapping[str, Any], field: str, allowed: Any, default: str) -> Any:
    """One of the values of a Literal."""
    value = obj.get(field, default)
    if value not in get_args(allowed):
        raise InputError(f"{value!r} is none of {', '.join(get_args(allowed))}", field=field)
    return value
