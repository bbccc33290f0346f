"""Which rollouts of a batch keep their tokens: the few furthest off, and a few drawn by chance to compare with.

The worker offers every compared rollout; when the batch is closed what is left is appended to the store. A rollout that came too late
for its batch's closing is kept with the next.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from collector.errors import Unavailable
from collector.records import Rollout, Score
from collector.store import Store
from collector.store_config import StoreConfig
from collector.token_rows import Kept, Words, badness
from collector.token_text import TokenTexts
from klaxon.config import Config

if TYPE_CHECKING:
    from klaxon.shadow import Shadow

log = logging.getLogger("klaxon.worst")
Place = tuple[float, int, Rollout, Score]  # the larger the rather it stays; a number that breaks ties


@dataclass(slots=True)
class _Batch:
    worst: list[Place] = field(default_factory=list)  # heaps: the first is the next to go
    ordinary: list[Place] = field(default_factory=list)


class WorstRollouts:
    """Bounded by [store] tokens_worst and tokens_ordinary a batch. `offer` and `keep` may be called from any thread.

    `folders`: for a rollout the model folders whose tokenizer may know its ids, the likeliest first. `counts`: token_rollouts_kept,
    token_rollouts_lost (the store refused), token_texts_missing (no tokenizer was found).
    """

    def __init__(self, config: StoreConfig, store: Store, *, folders: Callable[[Rollout], Iterable[str]] = lambda rollout: (),
                 clock: Callable[[], float] = time.time) -> None:
        self.config, self.store, self._folders, self._clock = config, store, folders, clock
        self.counts: Counter[str] = Counter()
        self.texts = TokenTexts()
        self._open: dict[int, _Batch] = defaultdict(_Batch)
        self._lock, self._reading, self._offered = threading.Lock(), threading.Lock(), 0

    def offer(self, t: int, pairs: Iterable[tuple[Rollout, Score]]) -> None:
        """Compared rollouts of batch t."""
        if self.config.tokens == "off":
            return
        for rollout, score in pairs:
            if rollout.traffic == "canary" or score.views["expected"].size != rollout.n_tokens:
                continue
            with self._lock:
                self._offered += 1
                batch = self._open[t]
                gone = _push(batch.worst, (badness(rollout, score), self._offered, rollout, score), self.config.tokens_worst)
                if gone is not None and gone[2].base_coin:
                    _push(batch.ordinary, (_chance(gone[2]), *gone[1:]), self.config.tokens_ordinary)

    def keep(self, last: int | None = None) -> None:
        """Append what is left of the batches up to `last` (None = of all). A store that refuses loses them, counted."""
        with self._lock:
            due = {t: self._open.pop(t) for t in sorted(self._open) if last is None or t <= last}
        kept = [Kept(t=t, rollout=rollout, score=score, kind=kind) for t, batch in due.items()
                for kind, places in (("worst", batch.worst), ("ordinary", batch.ordinary)) for _, _, rollout, score in sorted(places, reverse=True)]
        if not kept:
            return
        try:
            self.store.append_tokens([(one, self._text(one.rollout)) for one in kept], now=self._clock(), config=self.config)
            self.counts["token_rollouts_kept"] += len(kept)
        except Unavailable as error:
            self.counts["token_rollouts_lost"] += len(kept)
            log.error("the tokens of %d rollouts are not stored: %s", len(kept), error)

    def _text(self, rollout: Rollout) -> Words | None:
        """The rollout's tokens as text, where the tier allows it and a tokenizer is found."""
        if self.config.tokens != "text":
            return None
        with self._reading:
            for folder in self._folders(rollout):
                completion = self.texts.read(rollout.completion_tokens_T, folder)
                if completion is not None:
                    return self.texts.read(rollout.prompt_tokens_P, folder) or [], completion
        self.counts["token_texts_missing"] += 1
        return None


def tokenizer_folders(config: Config, shadow: Shadow | None) -> Callable[[Rollout], list[str]]:
    """For a rollout, the folders whose tokenizer may know its ids: of the weights that generated it, then what the config names."""
    named = [config.store.tokens_tokenizer, *(source.tokenizer for source in config.sources.tailed)]

    def folders(rollout: Rollout) -> list[str]:
        known = shadow.shelf.know(rollout.weight_versions[-1].version) if shadow is not None and rollout.weight_versions else None
        return [folder for folder in [*((known.base, known.path) if known is not None else ()), *named] if folder]

    return folders


def _push(heap: list[Place], place: Place, most: int) -> Place | None:
    """Returns what had to go: the smallest."""
    if len(heap) < most:
        heapq.heappush(heap, place)
        return None
    return heapq.heappushpop(heap, place)


def _chance(rollout: Rollout) -> float:
    """A number in [0, 1) that has nothing to do with how the rollout went."""
    return int.from_bytes(hashlib.blake2b(rollout.request_id.encode(), digest_size=7).digest()) / 2**56
