"""The shelf of weight versions: every believed version by name, at most k of them loaded."""

from __future__ import annotations

import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from collector.errors import KlaxonError, Unavailable
from collector.records import WeightVersion

Loaded = TypeVar("Loaded")

REMEMBERED = 10_000


class WeightShelf(Generic[Loaded]):
    """Knows every version that was added and keeps the `versions_held` most recently used loaded. Thread-safe.

    `load(version, evicted)` turns a WeightVersion into what the user wants to hold (a ShadowModel). `evicted` is what
    had to leave for it, to be refilled, or None; it is offered only when nobody else holds it. It may raise KlaxonError
    or OSError. Two names with the same digest share one loaded object.
    `counts` has loads, hits, evictions, unavailable and replaced (a name that came back with other weights).
    """

    def __init__(self, load: Callable[[WeightVersion, Loaded | None], Loaded], *, versions_held: int,
                 known: Iterable[WeightVersion] = ()) -> None:
        self._load, self._held = load, versions_held
        self._known: OrderedDict[str, WeightVersion] = OrderedDict()
        self._loaded: OrderedDict[str, tuple[str, Loaded]] = OrderedDict()  # version → (digest, loaded)
        self._index_lock, self._load_lock = threading.Lock(), threading.RLock()
        self.counts: Counter[str] = Counter()
        for version in known:
            self.add(version)

    def add(self, version: WeightVersion) -> None:
        """Put a believed version on the shelf. The same name with another digest replaces the old weights and is the
        newest again; with the same digest it keeps its place."""
        with self._index_lock:
            old = self._known.get(version.version)
            if old is not None and old.digest != version.digest:
                self.counts["replaced"] += 1
                del self._known[version.version]
            self._known[version.version] = version
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)

    def get(self, version: str) -> Loaded:
        """The loaded weights of a version, from memory or from disk.

        Raises:
            Unavailable: never published, deleted meanwhile, or it cannot be loaded; the text says which.
        """
        with self._load_lock:
            known = self.know(version)
            held = self._loaded.get(version)
            if held is not None and (known is None or known.digest == held[0]):
                self._loaded.move_to_end(version)
                self.counts["hits"] += 1
                return held[1]
            if known is None:
                raise self._missing(f"weight version {version!r} was never published to Klaxon")
            self._loaded.pop(version, None)
            loaded = self._same_weights(known.digest) or self._load_new(known)
            self._loaded[version] = (known.digest, loaded)
            return loaded

    def know(self, version: str) -> WeightVersion | None:
        """The record of a version, loaded or not; None when it was never added."""
        with self._index_lock:
            return self._known.get(version)

    @property
    def capacity(self) -> int:
        """How many versions it keeps loaded."""
        return self._held

    def versions(self) -> list[str]:
        """Version names, in the order they were added (the oldest first)."""
        with self._index_lock:
            return list(self._known)

    def held(self) -> list[str]:
        """Version names in memory, least recently used first."""
        with self._load_lock:
            return list(self._loaded)

    def latest(self) -> WeightVersion | None:
        """The version added last; None on an empty shelf."""
        with self._index_lock:
            return next(reversed(self._known.values()), None)

    def previous(self, version: str) -> WeightVersion | None:
        """The version added just before this one; None for the first or an unknown one."""
        with self._index_lock:
            names = list(self._known)
            index = names.index(version) if version in self._known else 0
            return self._known[names[index - 1]] if index > 0 else None

    def _same_weights(self, digest: str) -> Loaded | None:
        return next((loaded for other, loaded in self._loaded.values() if other == digest), None)

    def _load_new(self, known: WeightVersion) -> Loaded:
        evicted = None
        while len(self._loaded) >= self._held:
            _, (_, evicted) = self._loaded.popitem(last=False)
            self.counts["evictions"] += 1
        if sys.getrefcount(evicted) > 2:  # someone is still computing with it
            evicted = None
        try:
            loaded = self._load(known, evicted)
        except (KlaxonError, OSError) as error:
            raise self._missing(f"weight version {known.version!r} cannot be loaded from {known.path}: {error}") from error
        self.counts["loads"] += 1
        return loaded

    def _missing(self, text: str) -> Unavailable:
        self.counts["unavailable"] += 1
        return Unavailable(text)
