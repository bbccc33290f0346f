"""prompt_mismatch without any score: the trainer's own token ids against the engine's.

Question.    Did the trainer compute on the same prompt and completion ids as the engine?
Statistic.   Exact comparison, rollout by rollout; the first index that differs, and what was done to the ids (an edit of prompts.py, a cut, the same text
             in other tokens).
Guarantee.   None needed: ids differ or they do not. It says nothing of rollouts whose trainer ids are not known.
When it lies. Two rollouts joined by a request id that the trainer uses twice. One id repeated in front of the trainer's prompt is padding, not a fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collector.records import Cause, Diagnosis, Rollout
from diagnosis.causes import CAUSE_TEXTS
from diagnosis.prompts import Marks, edits

Decode = Callable[[Sequence[int]], str]
"""Token ids → text, special tokens included."""

SHOWN = 5
ENOUGH_SHARE = 0.5
"""From this share of the compared rollouts on, the ids alone are the verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdMismatch:
    """`rollouts` of `compared` differ. `kinds`: what differs → how many rollouts, the most frequent first."""

    compared: int
    rollouts: tuple[str, ...]  # request ids
    kinds: dict[str, int]
    first: tuple[str, ...]  # a few rollouts in words
    tokens: int  # completion tokens of the rollouts that differ

    @property
    def share(self) -> float:
        """Of the compared rollouts."""
        return len(self.rollouts) / self.compared

    @property
    def texts(self) -> tuple[str, ...]:
        """Evidence, one line each."""
        said = ", ".join(f"{kind} ({count})" for kind, count in self.kinds.items())
        return (f"trainer and engine have different token ids in {len(self.rollouts)} of {self.compared} rollouts whose ids both sides know: {said}", *self.first)

    @property
    def parameters(self) -> dict[str, Any]:
        """For the verdict."""
        return {"differs": next(iter(self.kinds)), "requests": len(self.rollouts)}

    @property
    def cause(self) -> Cause:
        """As one of the causes of a diagnosis."""
        return Cause(cause="prompt_mismatch", residual_nats=None, tokens=self.tokens, evidence=self.texts, parameters=self.parameters)

    def verdict(self) -> Diagnosis:
        """Ids that differ need no score."""
        text = CAUSE_TEXTS["prompt_mismatch"]
        return Diagnosis(verdict="prompt_mismatch", confident=True, causes=(self.cause,), floor_nats=None, next=text.next, fix=text.fix, tokens=self.tokens)


def compare_ids(rollouts: Sequence[Rollout], *, marks: Marks | None = None, decode: Decode | None = None) -> IdMismatch | None:
    """None where no ids differ, or none are known of the trainer.

    Args:
        marks: where a prompt's parts begin, to name what was added or dropped.
        decode: tells the same text in other tokens from another text.
    """
    compared, odd, kinds, first, tokens = 0, [], Counter[str](), [], 0
    for rollout in rollouts:
        pairs = [("prompt", rollout.trainer_prompt_P, rollout.prompt_tokens_P), ("completion", rollout.trainer_completion_T, rollout.completion_tokens_T)]
        known = [(part, mine, theirs) for part, mine, theirs in pairs if mine is not None]
        compared += bool(known)
        differing = [(part, mine, theirs) for part, mine, theirs in known if not np.array_equal(mine, theirs) and not _padded(mine, theirs)]
        if not differing:
            continue
        odd.append(rollout.request_id)
        tokens += rollout.n_tokens
        for part, mine, theirs in differing:
            kind = f"{part}: {_kind(part, mine, theirs, marks or Marks(), decode)}"
            kinds[kind] += 1
            if len(first) < SHOWN:
                first.append(f"request {rollout.request_id}, {_place(part, mine, theirs)}")
    if not odd:
        return None
    return IdMismatch(compared=compared, rollouts=tuple(odd), kinds=dict(kinds.most_common()), first=tuple(first), tokens=tokens)


def _kind(part: str, trainer: np.ndarray, engine: np.ndarray, marks: Marks, decode: Decode | None) -> str:
    """What was done to the trainer's ids to make the engine's."""
    if part == "prompt":
        named = next((name for name, ids in edits(trainer, marks).items() if np.array_equal(ids, engine)), None)
        if named is not None:
            return f"engine has {named}"
        named = next((name for name, ids in edits(engine, marks).items() if np.array_equal(ids, trainer)), None)
        if named is not None:
            return f"trainer has {named}"
    if decode is not None and decode(trainer.tolist()) == decode(engine.tolist()):
        return "the same text in other tokens (retokenised)"
    short, long, whose = (engine, trainer, "engine") if engine.size < trainer.size else (trainer, engine, "trainer")
    cut = long.size - short.size
    if cut and np.array_equal(long[cut:], short):
        return f"{whose} lacks the first tokens"
    if cut and np.array_equal(long[:short.size], short):
        return f"{whose} lacks the last tokens"
    return "other tokens"


def _padded(trainer: np.ndarray, engine: np.ndarray) -> bool:
    """Is all that the trainer has more one id, repeated in front?"""
    more = trainer.size - engine.size
    return more >= 2 and np.array_equal(trainer[more:], engine) and bool((trainer[:more] == trainer[0]).all())


def _place(part: str, trainer: np.ndarray, engine: np.ndarray) -> str:
    both = min(trainer.size, engine.size)
    apart = np.flatnonzero(trainer[:both] != engine[:both])
    at = int(apart[0]) if apart.size else both

    def said(ids: np.ndarray) -> str:
        return str(int(ids[at])) if at < ids.size else "the end"

    return (f"{part} index {at}: the engine has {said(engine)}, the trainer {said(trainer)} "
            f"({engine.size:,} tokens against {trainer.size:,})")


def decoder_of(folder: str | Path) -> Decode | None:
    """The decoder of a model folder's tokenizer.json; None without a readable one."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for a damaged file
        if type(error) is not Exception:
            raise
        return None
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)
