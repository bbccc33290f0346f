"""What an explanation says of the tokens of a sheet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diagnosis.heads import Heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One explanation's prediction, out of fold."""

    cause: str  # one of CAUSES
    values_N: np.ndarray  # float64 [N] nats; −inf = impossible under this explanation
    parameters: Mapping[str, Any] = field(default_factory=dict)
    stable: bool = True  # both folds chose the same parameter, or nearly
    evidence: tuple[str, ...] = ()
    pinned: bool = False  # found by its direction (projection), so that noise beside it need not be explained
    second: str = ""  # a pair's other cause; "" = this cause alone
    heads: Heads | None = None  # the pass a pair's prediction was read from
