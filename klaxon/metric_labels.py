"""Label values that come from outside (engines, streams, reasons) are bounded: a time series database pays for each one for ever."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klaxon.metric_rows import Exported, Sample

MOST = {"engine": 512, "stream": 512, "reason": 128, "what": 256, "cause": 64, "receiver": 64, "source": 16}
"""Label → how many values of it one daemon ever exports; the later ones are one, `other`. Labels not named here have a closed list."""
OTHER = "other"
MOST_CHARACTERS = 200


class Labels:
    """Remembers the values a daemon has exported."""

    def __init__(self) -> None:
        self._seen: dict[str, set[str]] = defaultdict(set)

    def bounded(self, exported: Exported, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples, those beyond the bound put together: counters add up, of gauges the largest stands."""
        together: dict[tuple[str, ...], float] = {}
        for values, number in samples:
            key = tuple(self._known(label, value) for label, value in zip(exported.labels, values, strict=True))
            if key not in together:
                together[key] = number
            else:
                together[key] = together[key] + number if exported.kind == "counter" else max(together[key], number)
        yield from together.items()

    def _known(self, label: str, value: str) -> str:
        value, seen = value[:MOST_CHARACTERS], self._seen[label]
        if label not in MOST or value in seen:
            return value
        if len(seen) >= MOST[label]:
            return OTHER
        seen.add(value)
        return value
