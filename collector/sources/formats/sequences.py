"""From a trainer's flat sequence (prompt and completion in one list) to a rollout.

Trainers keep one list of token ids and columns of the same length; entry t of a column belongs to token t. The completion
begins at the first token of the loss mask, as everything before it is prompt; a token after it that the mask leaves out was
not sampled by the policy (a tool's answer, a template), or the framework says no more about it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from collector.errors import InputError
from collector.sources.fields import mask, nats, token_ids


def completion_start(mask_S: np.ndarray, field: str) -> int:
    """Index of the first completion token.

    >>> completion_start(np.array([False, False, True]), "loss_mask")
    2
    """
    if not mask_S.any():
        raise InputError("marks no token: nothing was sampled", field=field)
    return int(mask_S.argmax())


def split(ids: Any, ids_field: str, marks: Any, mask_field: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(prompt int32 [P], completion int32 [T], sampled bool [T]) of one flat sequence."""
    ids_S = token_ids(ids, ids_field)
    if marks is None:
        raise InputError("is required and missing", field=mask_field)
    mask_S = mask(marks, mask_field, ids_S.size)
    start = completion_start(mask_S, mask_field)
    return ids_S[:start], ids_S[start:], mask_S[start:]


def column(values: Any, field: str, sampled_T: np.ndarray, n_prompt: int) -> np.ndarray:
    """float32 [T] nats from a column over prompt and completion; NaN where nothing was sampled (fillers are no logprobs)."""
    if not isinstance(values, list):
        raise InputError(f"a list of numbers is expected, not {type(values).__name__}", field=field)
    if len(values) != n_prompt + sampled_T.size:
        raise InputError(f"length mismatch: {len(values)} logprobs for {n_prompt + sampled_T.size} tokens", field=field)
    return masked(values[n_prompt:], field, sampled_T, offset=n_prompt)


def masked(values: list[Any], field: str, sampled_T: np.ndarray, *, offset: int = 0) -> np.ndarray:
    """float32 [T] nats from a column over the completion alone; NaN where nothing was sampled."""
    if not isinstance(values, list):
        raise InputError(f"a list of numbers is expected, not {type(values).__name__}", field=field)
    if len(values) != sampled_T.size:
        raise InputError(f"length mismatch: {len(values)} logprobs for {sampled_T.size} completion tokens", field=field)
    where_T = np.flatnonzero(sampled_T)
    out_T = np.full(sampled_T.size, np.nan, dtype=np.float32)
    try:
        out_T[where_T] = nats([values[index] for index in where_T.tolist()], field)
    except InputError:  # again, one by one, to name the entry as the file counts it
        for index in where_T.tolist():
            nats([values[index]], field, first=offset + index)
        raise
    return out_T


def optional(values: Any, field: str, sampled_T: np.ndarray, n_prompt: int) -> np.ndarray | None:
    """`column`, None where the framework wrote none or only nulls."""
    if values is None or (isinstance(values, list) and all(value is None for value in values)):
        return None
    return column(values, field, sampled_T, n_prompt)


def one_temperature(values: Any, field: str, sampled_T: np.ndarray, n_prompt: int) -> float | None:
    """The temperature of the sampled tokens when they all have the same, otherwise None (unknown)."""
    if not isinstance(values, list) or len(values) != n_prompt + sampled_T.size:
        return None
    given = [value for value, sampled in zip(values[n_prompt:], sampled_T.tolist(), strict=True) if sampled]
    for value in given:
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e6):
            raise InputError(f"{value!r} is no temperature", field=field)
    return float(given[0]) if given[0] is not None and len(set(given)) == 1 else None
