"""One page for one fact: a fact that goes on holding does not page again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from collector.records import Drift, Fact


class FactLatch:
    """A fact pages once per name and slice until it has been absent for `forget_after` batches."""

    def __init__(self, forget_after: int) -> None:
        self._forget_after = forget_after
        self._absent: dict[str, int] = {}
        self._seen: set[str] = set()

    def note(self, facts: Iterable[Fact], *, t: int) -> tuple[Drift, ...]:
        """The drifts of facts that were not latched."""
        drifts = []
        for fact in facts:
            key = json.dumps([fact.name, sorted(fact.slice.items())])
            self._seen.add(key)
            if key not in self._absent:
                drifts.append(
                    Drift(
                        kind="fact", stream=fact.name, statistic=1.0, threshold=1.0, alarm_t=t, change_t=(t, t),
                        slice=dict(fact.slice), text=fact.text,
                    )
                )
                self._absent[key] = 0
        return tuple(drifts)

    def end_batch(self) -> None:
        """Age the latched facts that did not hold during this batch."""
        aged = {key: 0 if key in self._seen else absent + 1 for key, absent in self._absent.items()}
        self._absent = {key: absent for key, absent in aged.items() if absent < self._forget_after}
        self._seen = set()

    def to_state(self) -> dict[str, Any]:
        """JSON-able."""
        return {"absent": dict(self._absent), "seen": sorted(self._seen)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `to_state` gave."""
        self._absent, self._seen = dict(state["absent"]), set(state["seen"])
