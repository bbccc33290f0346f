"""Tier 1: join what the trainer says to the rollouts the engine reported, whichever comes first.

By request id where both sides know it, else by the tokens themselves (the same words twice are told apart by taking the
oldest rollout first; their logprobs agree anyway, for they have the same context). What has waited in vain is matched by a long completion
alone: then the two sides have different prompts (diagnosis/exact_ids.py says so). Both sides wait in memory, bounded.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from collector.errors import InputError
from collector.records import Rollout
from collector.sources.progress import Mark
from collector.sources.trainer_logprobs import TrainerWord, completion_key, content_key

Extra = TypeVar("Extra")


@dataclass(slots=True)
class _Waiting(Generic[Extra]):
    rollout: Rollout
    extra: Extra
    content: str
    joined: bool = False


class Join(Generic[Extra]):
    """Remembers `limit` rollouts of `limit_tokens` tokens in all, each with whatever the caller wants back, and `limit` early
    words of the trainer. The top tokens of a rollout are not kept: they are most of its memory, and nothing here needs them.

    `counts`: trainer_joined, trainer_unmatched (no such rollout came), trainer_refused (lengths differ), trainer_repeated.
    """

    def __init__(self, *, limit: int, patience_seconds: float, limit_tokens: int = 2**62) -> None:
        self._limit, self._patience = limit, patience_seconds
        self._limit_tokens, self._tokens = limit_tokens, 0
        self._rollouts: OrderedDict[int, _Waiting[Extra]] = OrderedDict()
        self._serial = 0
        self._by_id: dict[str, int] = {}
        self._by_content: dict[str, deque[int]] = defaultdict(deque)
        self._by_completion: dict[str, int] = {}
        self._early: deque[tuple[float, TrainerWord]] = deque()
        self.counts: Counter[str] = Counter()

    def remember(self, rollout: Rollout, extra: Extra) -> None:
        """A rollout the trainer may still speak of."""
        self._serial += 1
        rollout = replace(rollout, top_tokens=(), top_logprobs=())
        waiting = _Waiting(rollout, extra, content_key(rollout.prompt_tokens_P, rollout.completion_tokens_T))
        self._tokens += _size(rollout)
        self._rollouts[self._serial] = waiting
        self._by_id[rollout.request_id] = self._serial
        self._by_content[waiting.content].append(self._serial)
        if (completion := completion_key(rollout.completion_tokens_T)) is not None:
            self._by_completion[completion] = self._serial
        while len(self._rollouts) > self._limit or (self._tokens > self._limit_tokens and len(self._rollouts) > 1):
            self._forget(*self._rollouts.popitem(last=False))

    def say(self, side: TrainerWord, *, now: float) -> None:
        """The trainer's word on a rollout, matched at the next `matches`."""
        self._early.append((now, side))
        if len(self._early) > self._limit:
            self._early.popleft()[1].settle()
            self.counts["trainer_unmatched"] += 1

    def matches(self, *, now: float) -> list[tuple[Rollout, Extra] | InputError]:
        """Every rollout the trainer has spoken of since, with its word on it and the word's mark; a length mismatch comes as its error."""
        found: list[tuple[Rollout, Extra] | InputError] = []
        still: deque[tuple[float, TrainerWord]] = deque()
        for at, side in self._early:
            waited = now - at > self._patience
            waiting = self._find(side) or (self._find_by_completion(side) if waited else None)
            if waiting is None:
                if waited:
                    self.counts["trainer_unmatched"] += 1
                    side.settle()
                else:
                    still.append((at, side))
                continue
            try:
                joined = replace(side.on(waiting.rollout), mark=side.mark)
            except InputError as error:
                self.counts["trainer_refused"] += 1
                side.settle()
                found.append(error)
                continue
            self.counts["trainer_repeated" if waiting.joined else "trainer_joined"] += 1
            if waiting.joined:
                side.settle()
            else:
                waiting.joined = True
                found.append((joined, waiting.extra))
        self._early = still
        return found

    @property
    def waiting(self) -> int:
        """Words of the trainer without a rollout yet."""
        return len(self._early)

    def unspoken(self) -> list[Mark]:
        """Marks of the rollouts that wait for the trainer's word."""
        return [one.rollout.mark for one in self._rollouts.values() if not one.joined and one.rollout.mark is not None]

    def _find(self, side: TrainerWord) -> _Waiting[Extra] | None:
        serial = self._by_id.get(side.request_id) if side.request_id is not None else None
        if serial is None and side.content is not None:
            serials = self._by_content.get(side.content, ())
            serial = next((one for one in serials if not self._rollouts[one].joined), serials[0] if serials else None)
        return self._rollouts.get(serial) if serial is not None else None

    def _find_by_completion(self, side: TrainerWord) -> _Waiting[Extra] | None:
        completion = None if side.completion_T is None or side.request_id is not None else completion_key(side.completion_T)
        found = self._rollouts.get(self._by_completion.get(completion, -1)) if completion is not None else None
        return None if found is None or found.joined else found

    def _forget(self, serial: int, waiting: _Waiting[Extra]) -> None:
        self._tokens -= _size(waiting.rollout)
        if self._by_id.get(waiting.rollout.request_id) == serial:
            del self._by_id[waiting.rollout.request_id]
        completion = completion_key(waiting.rollout.completion_tokens_T)
        if completion is not None and self._by_completion.get(completion) == serial:
            del self._by_completion[completion]
        serials = self._by_content[waiting.content]
        serials.remove(serial)
        if not serials:
            del self._by_content[waiting.content]


def _size(rollout: Rollout) -> int:
    return rollout.prompt_tokens_P.size + rollout.n_tokens


def join_all(rollouts: Sequence[Rollout], sides: Iterable[TrainerWord]) -> tuple[list[Rollout], list[InputError], Counter[str]]:
    """Whole files joined: the rollouts in their order, what was refused, and the counts of `Join`."""
    join: Join[int] = Join(limit=len(rollouts) + 1, patience_seconds=0.0)
    for place, rollout in enumerate(rollouts):
        join.remember(rollout, place)
    out, refused = list(rollouts), []
    for number, side in enumerate(sides):
        join.say(side, now=float(number))
        for found in join.matches(now=number + 1.0):
            if isinstance(found, InputError):
                refused.append(found)
            else:
                top = rollouts[found[1]]
                out[found[1]] = replace(found[0], top_tokens=top.top_tokens, top_logprobs=top.top_logprobs)
    return out, refused, join.counts
