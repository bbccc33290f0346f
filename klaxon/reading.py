"""The files of [sources] as the worker reads them: rollouts and the trainer's words, from where an earlier daemon left them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from collector.errors import InputError
from collector.records import Rollout
from collector.sources.config import FileSource, SourcesConfig
from collector.sources.formats import ReadOptions
from collector.sources.formats.redis_stream import SCHEME, RedisTail
from collector.sources.formats.tail import SourceTail
from collector.sources.progress import Mark, Progress
from collector.sources.trainer_logprobs import TrainerTail, TrainerWord

States = Mapping[str, list[dict[str, Any]]]


class Reading:
    """All of one run's files. `kept`: file → state, as `read_so_far` gave it in an earlier life; `refuse` hears of what is wrong."""

    def __init__(self, config: SourcesConfig, *, refuse: Callable[[InputError], None], kept: States | None = None) -> None:
        kept = kept or {}
        self.tails = [_tail(source, kept) for source in config.tailed]
        self.trainer_tails = [TrainerTail(path, kept.get(_trainer_key(path), ())) for path in config.trainer_files]
        self._refuse = refuse

    def rollouts(self, now: float, counts: Counter[str]) -> Iterator[Rollout]:
        """What is new; what was dropped or noticed on the way goes into `counts` under file_…"""
        for tail in self.tails:
            before = Counter(tail.counts)
            items = tail.poll(now)
            counts.update({f"file_{name}": count for name, count in (tail.counts - before).items()})
            yield from self._good(items)

    def words(self) -> Iterator[TrainerWord]:
        """What the trainer said since."""
        for tail in self.trainer_tails:
            yield from self._good(tail.poll())

    def read_so_far(self, unspoken: Iterable[Mark]) -> dict[str, list[dict[str, Any]]]:
        """File → how far it is read and stored. `unspoken`: marks of stored rollouts that wait for the trainer's word: they are read again."""
        _recall(unspoken)
        found = {_trainer_key(tail.path): tail.state() for tail in self.trainer_tails}
        for tail in self.tails:
            found |= tail.states() if isinstance(tail, SourceTail) else {}
        return found

    def _good(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            if isinstance(item, InputError):
                self._refuse(item)
            else:
                yield item


def settle(rollouts: Iterable[Rollout]) -> None:
    """Nothing more will come of these: they are not read again after a restart."""
    for rollout in rollouts:
        if rollout.mark is not None:
            rollout.mark.settle()


def _recall(waiting: Iterable[Mark]) -> None:
    """Reading begins anew at the oldest rollout that waits for the trainer's word, in each file; what is stored is only remembered there."""
    oldest: dict[Progress, tuple[int, int]] = {}
    for mark in waiting:
        oldest[mark.progress] = min(mark.start, oldest.get(mark.progress, mark.start))
    for progress, start in oldest.items():
        progress.recall = start if start[0] < progress.low else None


def _tail(source: FileSource, kept: States) -> SourceTail | RedisTail:
    options = ReadOptions(tokenizer=source.tokenizer, allow_pickle=source.allow_pickle, version_at_start=source.version_at_start)
    if source.path.startswith(SCHEME):
        return RedisTail(source.path, options=options)
    return SourceTail(source.path, source.format or None, options=options, kept=kept)


def _trainer_key(path: str | Path) -> str:
    return f"trainer:{Path(path).absolute()}"
