"""The trainer's own token ids against the engine's: exact, so that no score is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from collector.join import join_all
from collector.records import Rollout, Score, WeightSpan
from collector.sources.trainer_logprobs import parse_trainer_word
from diagnosis.compete import diagnose
from diagnosis.config import DiagnosisConfig
from diagnosis.exact_ids import compare_ids
from diagnosis.prompts import Marks

SYSTEM = (1, 9690, 3, 2)
PROMPT = (*SYSTEM, 1, 40, 41, 42, 2, 1, 50, 9)
MARKS = Marks(bos=1, openers=frozenset({1}), system_role=(9690,))


def served(i: int, *, prompt: Sequence[int] = PROMPT, tokens: int = 20) -> Rollout:
    ids = np.arange(100 * i, 100 * i + tokens, dtype=np.int32)
    return Rollout(request_id=f"r{i}", prompt_tokens_P=np.asarray(prompt, dtype=np.int32), completion_tokens_T=ids,
                   engine_logprobs_T=np.linspace(-2, -0.1, tokens, dtype=np.float32), sampled_mask_T=np.ones(tokens, bool),
                   weight_versions=(WeightSpan(start=0, end=tokens, version="1"),))


def joined(rollouts: Sequence[Rollout], prompt: Sequence[int], *, by_id: bool = True, completion: Sequence[int] | None = None) -> list[Rollout]:
    """As the trainer speaks of them: its prompt, its completion, its logprobs."""
    words = []
    for one in rollouts:
        ids = one.completion_tokens_T.tolist() if completion is None else list(completion)
        word = {"prompt_token_ids": list(prompt), "token_ids": ids, "logprobs": [-1.0] * len(ids)} | ({"request_id": one.request_id} if by_id else {})
        words.append(parse_trainer_word(word, where="trainer.jsonl:1"))
    found, refused, _ = join_all(rollouts, words)
    assert not refused
    return found


class AsReported:
    """A scorer that agrees with every engine."""

    def score(self, rollouts: Sequence[Rollout], *, views: Mapping[str, Any], version: str | None = None, prefix_version: str | None = None) -> list[Score]:
        return [Score(request_id=r.request_id, views=dict.fromkeys(views, r.engine_logprobs_T)) for r in rollouts]


class Unasked:
    """A scorer that must not be needed."""

    def score(self, rollouts: Sequence[Rollout], **_: Any) -> list[Score]:
        raise AssertionError("exact ids need no score")


@pytest.mark.parametrize(("trainer", "kind", "index"), [
    (PROMPT[1:], "prompt: engine has BOS added", 0), ((1, *PROMPT), "prompt: engine has BOS missing", 1),
    (PROMPT[4:], "prompt: trainer has system prompt dropped", 1), (PROMPT[:9], "prompt: trainer has generation prompt dropped", 9),
    ((7, 8, *PROMPT), "prompt: engine lacks the first tokens", 0), ((*PROMPT[:6], 77, *PROMPT[7:]), "prompt: other tokens", 6)])
@pytest.mark.parametrize("by_id", [True, False])
def test_a_prompt_of_other_ids_is_named_with_its_place_without_a_score(trainer: tuple[int, ...], kind: str, index: int, by_id: bool) -> None:
    rollouts = joined([served(i) for i in range(4)], trainer, by_id=by_id)
    found = diagnose(rollouts, Unasked(), versions=["1"], config=DiagnosisConfig(), marks=MARKS)
    assert (found.verdict, found.confident) == ("prompt_mismatch", True)
    assert found.causes[0].parameters == {"differs": kind, "requests": 4}
    assert any(f"prompt index {index}:" in text for text in found.causes[0].evidence)


def test_equal_ids_and_left_padding_are_no_mismatch() -> None:
    for prompt in (PROMPT, (0, 0, 0, *PROMPT)):
        rollouts = joined([served(i) for i in range(3)], prompt)
        assert all(one.trainer_prompt_P is not None for one in rollouts) and compare_ids(rollouts, marks=MARKS) is None


def test_a_completion_in_other_tokens_of_the_same_text_is_retokenised_and_its_logprobs_are_not_compared() -> None:
    rollouts = joined([served(0)], PROMPT, completion=[0, 55, *range(3, 19)])
    assert rollouts[0].trainer_logprobs_T is None
    found = compare_ids(rollouts, decode=lambda ids: "the same words")
    assert found is not None and found.kinds == {"completion: the same text in other tokens (retokenised)": 1}
    assert "completion index 1: the engine has 1, the trainer 55 (20 tokens against 18)" in found.first[0]
    other = compare_ids(rollouts, decode=lambda ids: str(list(ids)))
    assert other is not None and list(other.kinds) == ["completion: other tokens"]


def test_a_completion_that_only_ends_elsewhere_is_still_refused_by_its_length() -> None:
    word = parse_trainer_word({"request_id": "r0", "prompt_token_ids": list(PROMPT), "token_ids": [0, 1, 2], "logprobs": [-1.0] * 3}, where="t.jsonl:1")
    _, refused, counts = join_all([served(0)], [word])
    assert counts["trainer_refused"] == 1 and "length mismatch" in str(refused[0])


def test_a_few_other_prompts_among_healthy_rollouts_are_the_verdict_and_beside_another_fault_evidence() -> None:
    rollouts = [served(i) for i in range(30)]
    rollouts = [*joined(rollouts[:4], PROMPT[1:]), *joined(rollouts[4:], PROMPT)]
    found = diagnose(rollouts, AsReported(), versions=["1"], config=DiagnosisConfig(), floor=lambda _: 0.002, marks=MARKS)
    assert (found.verdict, found.confident) == ("prompt_mismatch", True) and "4 of 30 rollouts" in found.causes[0].evidence[0]
    broken = [replace(one, engine_logprobs_T=np.where(np.arange(20) < 3, np.nan, one.engine_logprobs_T).astype(np.float32)) for one in rollouts]
    found = diagnose(broken, AsReported(), versions=["1"], config=DiagnosisConfig(), floor=lambda _: 0.002, marks=MARKS)
    assert found.verdict == "non_finite" and found.causes[-1].cause == "prompt_mismatch"


def test_a_short_completion_is_never_matched_by_itself() -> None:
    rollouts = [served(0, tokens=8)]
    word = parse_trainer_word({"prompt_token_ids": list(PROMPT[1:]), "token_ids": rollouts[0].completion_tokens_T.tolist(), "logprobs": [-1.0] * 8}, where="t:1")
    found, _, counts = join_all(rollouts, [word])
    assert counts["trainer_unmatched"] == 1 and found[0].trainer_prompt_P is None
