"""Which tokens of a rollout are new measurements, and which repeat one of the same group.

The engine's logprob of a token is a function of weights, prompt and the tokens before it. When a sure policy answers a
prompt eight times with the same words, that is one measurement with one rounding error, not eight: bets on it would
multiply evidence that is not there.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from collector.records import Rollout

GROUPS = 256  # (prompt, weight version) pairs remembered; groups arrive close together


class Contexts:
    """Remembers the completions of recent groups."""

    def __init__(self, groups: int = GROUPS) -> None:
        self._limit = groups
        self._groups: OrderedDict[tuple, list[np.ndarray]] = OrderedDict()

    def fresh(self, rollout: Rollout) -> np.ndarray:
        """bool [T]: False for the start it has in common with an earlier completion of its group; the rollout is remembered."""
        key = (rollout.prompt_tokens_P.tobytes(), tuple((span.start, span.version) for span in rollout.weight_versions))
        earlier = self._groups.setdefault(key, [])
        self._groups.move_to_end(key)
        tokens_T = rollout.completion_tokens_T
        common = max((_common(tokens_T, other) for other in earlier), default=0)
        if common < tokens_T.size:
            earlier.append(tokens_T)
        while len(self._groups) > self._limit:
            self._groups.popitem(last=False)
        return np.arange(tokens_T.size) >= common


def _common(left: np.ndarray, right: np.ndarray) -> int:
    size = min(left.size, right.size)
    same = left[:size] == right[:size]
    return size if same.all() else int(np.argmin(same))
