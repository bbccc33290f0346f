"""What files do to rollouts: writers that restart write twice, clocks differ, merged shards are out of order. Counted, not guessed."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict

from collector.errors import InputError
from collector.records import Rollout
from collector.sources.formats.base import Items

SKEW_SECONDS = 60.0  # a finish time further in the future than this is a wrong clock
REMEMBERED = 200_000  # rollouts whose repetition is noticed; 16 bytes each and their name


class Hygiene:
    """Drops duplicates and counts `duplicates`, `out_of_order`, `clock_skew` into the given counter."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._newest: float | None = None

    def sift(self, items: Items, *, now: float | None) -> Items:
        """The items without repeated rollouts; `now` in UTC seconds, None = clocks are not looked at."""
        for item in items:
            if isinstance(item, InputError) or self.keep(item, now=now):
                yield item

    def keep(self, rollout: Rollout, *, now: float | None) -> bool:
        """Is it new. Times are only counted: out-of-order ones are normal where files are merged."""
        if self._repeated(rollout):
            self.counts["duplicates"] += 1
            return False
        at = rollout.finished_at
        if at is not None:
            self.counts["clock_skew"] += int(now is not None and at > now + SKEW_SECONDS)
            self.counts["out_of_order"] += int(self._newest is not None and at < self._newest)
            self._newest = at if self._newest is None else max(at, self._newest)
        return True

    def _repeated(self, rollout: Rollout) -> bool:
        if rollout.request_id == "unknown":
            return False
        key = hashlib.blake2b(rollout.completion_tokens_T.tobytes(), digest_size=16, key=rollout.request_id.encode()[-64:])
        key.update(rollout.prompt_tokens_P.tobytes() + rollout.engine.encode())
        digest = key.digest()
        if digest in self._seen:
            return True
        self._seen[digest] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return False
