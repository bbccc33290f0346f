"""Loss masks and dropped rollouts out of every format that writes them: what is trained on is judged apart from what is served."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from collector import populations, signals
from collector.config import SignalsConfig
from collector.errors import InputError
from collector.records import Rollout
from collector.sources.formats import read_any
from collector.sources.trainer_logprobs import parse_trainer_word

HERE = Path(__file__).parent / "fixtures/formats"
NEMO, PRIME, SLIME = HERE / "nemo-rl/train_data_step5.jsonl", HERE / "prime-rl/token_exports/step_3/rank_0.jsonl", HERE / "slime"


def changed(source: Path, target: Path, **fields: object) -> list[Rollout | InputError]:
    """The rollouts of a fixture whose first record says something else."""
    records = [json.loads(line) for line in source.read_text().splitlines()]
    records[0] |= fields
    target.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(read_any(target))


def tokens(rollout: Rollout) -> dict[str, int]:
    slices = populations.slices_of(rollout, None, SignalsConfig())
    found = {name: signals.total(slices, population=name).n_tokens for name in ("served", "trained", "dropped")}
    return {name: count for name, count in found.items() if count}


@pytest.mark.parametrize("name", ["nemo-rl", "prime-rl", "slime"])
def test_what_a_trainer_wrote_out_is_judged_as_trained_on(name: str) -> None:
    for rollout in read_any(HERE / name):
        assert isinstance(rollout, Rollout) and rollout.dropped is False
        sampled = int(rollout.sampled_mask_T.sum())
        assert tokens(rollout) == {"served": sampled, "trained": sampled}


def test_a_sample_nemo_rl_left_out_of_the_loss_is_served_and_dropped_but_not_trained_on(tmp_path: Path) -> None:
    first, second, _ = changed(NEMO, tmp_path / NEMO.name, sample_loss_mask=[0.0])
    assert first.dropped is True and tokens(first) == {"served": 4, "dropped": 4}
    assert second.dropped is False and tokens(second) == {"served": 3, "trained": 3}


def test_tokens_prime_rls_ratio_filter_took_out_are_not_trained_on(tmp_path: Path) -> None:
    filtered = [None] * 3 + [False, True, False, False]
    first, *_ = changed(PRIME, tmp_path / PRIME.name, is_masked=filtered)
    assert first.loss_mask_T.tolist() == [True, False, True, True] and tokens(first) == {"served": 4, "trained": 3}
    wrong, *_ = changed(PRIME, tmp_path / PRIME.name, is_masked=[True])
    assert isinstance(wrong, InputError) and wrong.field == "is_masked"


def test_a_sample_slime_removed_is_dropped_and_one_without_the_trainers_side_unknown(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    content = torch.load(SLIME / "rollout_data/7.pt", weights_only=False)
    content["samples"][0]["remove_sample"] = True
    (tmp_path / "rollout_data").mkdir()
    torch.save(content, tmp_path / "rollout_data/7.pt")
    rollouts = list(read_any(tmp_path))
    assert [rollout.dropped for rollout in rollouts] == [True, None, None]
    assert rollouts[2].loss_mask_T.tolist() == [True, False, False, True, True]


@pytest.mark.parametrize("name", ["loss_mask", "response_mask", "token_loss_mask"])
def test_a_trainers_line_may_name_its_mask_as_its_framework_does(name: str) -> None:
    word = parse_trainer_word({"request_id": "r", "logprobs": [-1.0, -2.0], name: [1, 0]}, where="t:1")
    assert np.array_equal(word.loss_mask_T, [True, False])
    with pytest.raises(InputError, match=name):
        parse_trainer_word({"request_id": "r", "logprobs": [-1.0], name: [2]}, where="t:1")
