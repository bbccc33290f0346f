"""Blocks of streams as parallel numpy arrays, streams on the last axis: growing, dropping, and JSON that comes back bit for bit."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np


class Arrays:
    """Named arrays [..., K]; a subclass says their names and what a newborn stream holds."""

    def __init__(self) -> None:
        self.size = 0
        for name in self.names():
            setattr(self, name, self.empty(name, 0))

    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        raise NotImplementedError

    def empty(self, name: str, count: int) -> np.ndarray:
        """What `count` newborn streams hold, [..., count]."""
        raise NotImplementedError

    def grow(self, count: int) -> None:
        """Append `count` streams."""
        for name in self.names():
            setattr(self, name, np.concatenate([getattr(self, name), self.empty(name, count)], axis=-1))
        self.size += count

    def clear(self, columns: np.ndarray) -> None:
        """Make the streams `columns` newborn again."""
        for name in self.names():
            getattr(self, name)[..., columns] = self.empty(name, int(np.size(columns)))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(getattr(self, name).nbytes for name in self.names())

    def pack(self) -> dict[str, Any]:
        """JSON-able."""
        return {name: _pack(getattr(self, name)) for name in self.names()} | {"size": self.size}

    def unpack(self, state: Mapping[str, Any]) -> None:
        """The inverse of `pack`, bit for bit."""
        self.size = int(state["size"])
        for name in self.names():
            setattr(self, name, _unpack(state[name]))


def spd_inverse(a: np.ndarray) -> np.ndarray:
    """Inverses of K positive definite matrices [n, n, K], all at once (Gauss–Jordan without pivots)."""
    n = a.shape[0]
    work = a.copy()
    for i in range(n):
        pivot = 1.0 / np.maximum(work[i, i], 1e-12)
        row = work[i] * pivot
        column = work[:, i].copy()
        column[i] = 0.0
        work -= column[:, None] * row[None]
        work[:, i] = -column * pivot
        work[i] = row
        work[i, i] = pivot
    return work


def _pack(array: np.ndarray) -> dict[str, Any]:
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()}


def _unpack(state: Mapping[str, Any]) -> np.ndarray:
    data = base64.b64decode(state["data"])
    return np.frombuffer(data, dtype=state["dtype"]).reshape(state["shape"]).copy()
