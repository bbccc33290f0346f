"""The ledger of versions: in which order the trainer published them, and how old the weights behind rollouts are.

Labels are the trainer's own words. Publication order, not the number in a label, is what lag is counted in; the number
is only read to notice that a trainer went back (a resume or a rollback).
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

from collector.records import Rollout

REMEMBERED = 10_000  # labels
RECENT = 1_000  # rollouts the figures are taken over
_NUMBER = re.compile(r"(\d+)\D*$")


class VersionLedger:
    """Every label ever announced or believed, oldest publication first. Thread-safe."""

    def __init__(self) -> None:
        self._digests: OrderedDict[str, str] = OrderedDict()  # label → digest; "" = announced, not (yet) seen
        self._positions: dict[str, int] = {}
        self._count = 0  # publications so far
        self._recent: deque[int | None] = deque(maxlen=RECENT)  # lag of a rollout in versions; None = unknown
        self._lock = threading.Lock()

    def announce(self, label: str) -> tuple[str, str] | None:
        """The trainer names a version. (label before, label) when the number in it went backwards."""
        with self._lock:
            if label == self._newest():
                return None
            return self._publish([(label, self._digests.get(label, ""))])

    def believe(self, versions: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
        """(label, digest) of versions found whole together; an announced one is filled in where it stands.

        Returns (label before, newest label) when even the largest number among the new ones went backwards.
        """
        with self._lock:
            new = []
            for label, digest in versions:
                if self._digests.get(label) == "":
                    self._digests[label] = digest
                elif self._digests.get(label) != digest:
                    new.append((label, digest))
            return self._publish(new)

    def published(self) -> tuple[tuple[str, str], ...]:
        """(label, digest) in order of publication; digest "" = announced only."""
        with self._lock:
            return tuple(self._digests.items())

    def note(self, rollout: Rollout) -> None:
        """Remember how far behind the newest publication the oldest weights of an arriving rollout are."""
        with self._lock:
            places = [self._positions.get(span.version) for span in rollout.weight_versions]
            known = bool(places) and None not in places
            self._recent.append(self._count - min(places) if known else None)  # type: ignore[type-var]

    def figures(self) -> dict[str, float | int | None]:
        """Lag of the last rollouts in published versions (consumed − generated, taken at arrival, so a lower bound), and
        the share of rollouts whose version is unknown or was never published; None without rollouts."""
        with self._lock:
            lags, total = [lag for lag in self._recent if lag is not None], len(self._recent)
        return {"lag_min": min(lags, default=None), "lag_mean": sum(lags) / len(lags) if lags else None,
                "lag_max": max(lags, default=None), "rollouts": total,
                "unknown_share": 1 - len(lags) / total if total else None}

    def _newest(self) -> str | None:
        return next(reversed(self._digests), None)

    def _publish(self, versions: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
        before, numbers = self._newest(), [number(label) for label, _ in versions]
        for label, digest in versions:
            self._digests.pop(label, None)
            self._digests[label] = digest
            self._count += 1
            self._positions[label] = self._count
            while len(self._digests) > REMEMBERED:
                self._positions.pop(self._digests.popitem(last=False)[0], None)
        if not versions or before is None or None in numbers:
            return None
        old, new = number(before), max(numbers)  # type: ignore[type-var]
        return (before, versions[numbers.index(new)][0]) if old is not None and new < old else None


def known_version(label: Any) -> str | None:
    """A version label, or None where it says nothing: engines answer "default" until a trainer sets one.

    >>> known_version("41"), known_version("default"), known_version(" ")
    ('41', None, None)
    """
    text = "" if label is None else str(label).strip()
    return None if text in ("", "default") else text


def number(label: str) -> int | None:
    """The last number in a label; None where there is none.

    >>> number("step_41"), number("v7-final"), number("final")
    (41, 7, None)
    """
    found = _NUMBER.search(label)
    return int(found[1]) if found else None
