"""What the trainer says of one rollout: its own logprobs, loss mask, and whether the rollout was dropped.

One JSON object (docs/tap.md): `logprobs` [T] and a name for the rollout, either `request_id` or both `prompt_token_ids`
and `token_ids`. Optional: version (the weights it recomputed with), loss_mask (or as verl and NeMo-RL name it), dropped, traffic, reward.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from collector.errors import InputError
from collector.records import Rollout, Traffic
from collector.sources import fields
from collector.sources.file_tail import JsonLinesTail
from collector.sources.lines import json_lines
from collector.sources.progress import Mark

TELLING_TOKENS = 16
"""Two rollouts whose completions are this long and equal are taken for one, if nothing else matches."""

LOSS_MASKS = ("loss_mask", "response_mask", "token_loss_mask")
"""What a line may call its loss mask: Klaxon's name (and slime's, prime-rl's), verl's, NeMo-RL's; the first that is there counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerWord:
    """The trainer's word on one rollout. None = not said."""

    request_id: str | None = None
    content: str | None = None  # content_key of prompt and completion
    prompt_P: np.ndarray | None = None  # int32, as the trainer has it
    completion_T: np.ndarray | None = None  # int32
    logprobs_T: np.ndarray | None = None  # float32 [T] nats
    loss_mask_T: np.ndarray | None = None  # bool [T]
    version: str | None = None
    dropped: bool | None = None
    traffic: Traffic | None = None
    reward: float | None = None
    where: str = ""
    mark: Mark | None = None  # where it was read; settled once the batch that counts it is stored, or it is of no use

    def settle(self) -> None:
        """Nothing will come of it, or it is stored."""
        if self.mark is not None:
            self.mark.settle()

    def on(self, rollout: Rollout) -> Rollout:
        """The rollout with this said of it. Logprobs and mask of a completion of other token ids are no word on this one's tokens: left out.

        Raises:
            InputError: the arrays have another length than the completion.
        """
        if self.completion_T is not None and _other_tokens(self.completion_T, rollout.completion_tokens_T):
            return replace(self, completion_T=None, logprobs_T=None, loss_mask_T=None).on(replace(rollout, trainer_completion_T=self.completion_T))
        for name, values in (("logprobs", self.logprobs_T), ("loss_mask", self.loss_mask_T)):
            if values is not None and values.size != rollout.n_tokens:
                raise InputError(f"length mismatch: {values.size} entries for the {rollout.n_tokens} tokens of request "
                                 f"{rollout.request_id}", field=name, where=self.where)
        said = {"trainer_logprobs_T": self.logprobs_T, "trainer_prompt_P": self.prompt_P, "trainer_completion_T": self.completion_T, "loss_mask_T": self.loss_mask_T, "trainer_version": self.version,
                "dropped": self.dropped, "traffic": self.traffic, "reward": self.reward}
        return replace(rollout, **{name: value for name, value in said.items() if value is not None})


def _other_tokens(one_T: np.ndarray, other_T: np.ndarray) -> bool:
    """Do two completions differ in ids, and not only in where they end?"""
    both = min(one_T.size, other_T.size)
    return not np.array_equal(one_T[:both], other_T[:both])


def content_key(prompt_tokens_P: np.ndarray, completion_tokens_T: np.ndarray) -> str:
    """Names a rollout by its tokens."""
    digest = hashlib.blake2b(prompt_tokens_P.astype(np.int32).tobytes(), digest_size=16)
    digest.update(b"|" + completion_tokens_T.astype(np.int32).tobytes())
    return digest.hexdigest()


def completion_key(completion_tokens_T: np.ndarray) -> str | None:
    """Names a rollout by its completion alone, where it is long enough to be told from any other; for prompts that differ."""
    if completion_tokens_T.size < TELLING_TOKENS:
        return None
    return hashlib.blake2b(completion_tokens_T.astype(np.int32).tobytes(), digest_size=16).hexdigest()


def parse_trainer_word(obj: Mapping[str, Any], *, where: str) -> TrainerWord:
    """One object.

    >>> parse_trainer_word({"request_id": "a", "logprobs": [-0.1]}, where="line 1").logprobs_T.size
    1

    Raises:
        InputError: naming `where`, the field and the reason.
    """
    try:
        return _parse(obj, where)
    except InputError as error:
        raise InputError(error.reason, field=error.field, where=where) from None


def _parse(obj: Mapping[str, Any], where: str) -> TrainerWord:
    if not isinstance(obj, Mapping):
        raise InputError(f"a JSON object is expected, not {type(obj).__name__}")
    request_id = fields.text(obj, "request_id")
    prompt_P, completion_T = (fields.token_ids(obj[name], name) if obj.get(name) is not None else None
                              for name in ("prompt_token_ids", "token_ids"))
    if request_id is None and (prompt_P is None or completion_T is None):
        raise InputError("which rollout is this? request_id, or prompt_token_ids and token_ids, is required", field="request_id")
    marks = next((name for name in LOSS_MASKS if obj.get(name) is not None), LOSS_MASKS[0])
    sizes = {len(obj[name]) for name in ("logprobs", marks, "token_ids") if isinstance(obj.get(name), list)}
    if len(sizes) > 1:
        raise InputError(f"logprobs, {marks} and token_ids have lengths {sorted(sizes)}", field="logprobs")
    n_tokens = sizes.pop() if sizes else 0
    return TrainerWord(
        request_id=request_id, where=where, prompt_P=prompt_P, completion_T=completion_T,
        content=content_key(prompt_P, completion_T) if prompt_P is not None and completion_T is not None else None,
        logprobs_T=None if obj.get("logprobs") is None else fields.logprobs(obj["logprobs"], "logprobs", n_tokens),
        loss_mask_T=None if obj.get(marks) is None else fields.mask(obj[marks], marks, n_tokens),
        version=fields.text(obj, "version"),
        dropped=fields.flag(obj, "dropped"), reward=fields.number(obj, "reward"),
        traffic=None if obj.get("traffic") is None else fields.choice(obj, "traffic", Traffic, "unknown"),
    )


class TrainerTail:
    """What the trainer says of its rollouts, from a tailed JSONL file."""

    def __init__(self, path: str | Path, state: Sequence[dict[str, Any]] = ()) -> None:
        """`state`: as `state()` gave it in an earlier life."""
        self.path = Path(path)
        self._tail = JsonLinesTail(path, state=state)
        self.counts = self._tail.counts  # tail_rotated, tail_truncated
        self.state = self._tail.state

    def poll(self) -> list[TrainerWord | InputError]:
        """New lines, a refused one as its InputError."""
        found: list[TrainerWord | InputError] = []
        for line in self._tail.lines():
            progress = self._tail.progress
            progress.open(line.end, 0 if line.item is None else 1, line=line.start[1] + 1, edge=line.edge)
            if line.item is None or progress.stored(line.end, 0):
                continue
            mark = Mark(progress=progress, record=line.end, item=0, start=line.start, name=self.path.name)
            item = _or_error(line.where, line.item)
            found.append(item if isinstance(item, InputError) else replace(item, mark=mark))
            if isinstance(item, InputError):
                mark.settle()
        return found


def read_trainer_file(path: str | Path) -> Iterator[TrainerWord | InputError]:
    """Every line of a whole file.

    Raises:
        InputError: it cannot be opened.
    """
    for where, item in json_lines(path):
        yield _or_error(where, item)


def _or_error(where: str, item: Any) -> TrainerWord | InputError:
    if isinstance(item, InputError):
        return item
    try:
        return parse_trainer_word(item, where=where)
    except InputError as error:
        return error
