"""Sampler settings read from the wide view of one pass agree with the views that see the whole distribution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from collector.records import Rollout, Sampling
from collector.shadow.candidates import candidates
from collector.shadow.views import processed, raw, sampling_rows
from diagnosis.settings import Candidates, Kept, Rules

VOCABULARY, PROMPT, TOKENS = 3000, 40, 60


def rows(vocabulary: int = VOCABULARY, **sampling: float) -> tuple[torch.Tensor, torch.Tensor, tuple[Rollout, ...], np.ndarray, np.ndarray]:
    """Logits of two rollouts whose tokens repeat, as a head would give them."""
    rng = np.random.default_rng(5)
    made = []
    for i in range(2):
        ids = rng.choice(min(vocabulary, 50), TOKENS).astype(np.int32)
        made.append(Rollout(
            request_id=f"r{i}", prompt_tokens_P=rng.choice(vocabulary, PROMPT).astype(np.int32), completion_tokens_T=ids,
            engine_logprobs_T=np.zeros(TOKENS, np.float32), sampled_mask_T=np.ones(TOKENS, bool), sampling=Sampling(temperature=0.7, **sampling)))
    rollout_of_N, index_N = np.repeat([0, 1], TOKENS), np.tile(np.arange(TOKENS), 2)
    logits_NV = torch.from_numpy(rng.normal(0, 3.5, (2 * TOKENS, vocabulary)).astype(np.float32))
    ids_N = torch.from_numpy(np.concatenate([one.completion_tokens_T for one in made]).astype(np.int64))
    logits_NV[torch.arange(2 * TOKENS), ids_N] += 7  # sampled tokens are likely ones
    return logits_NV, ids_N, tuple(made), rollout_of_N, index_N


def both(settings: dict[str, float], *, vocabulary: int = VOCABULARY, **sampling: float) -> tuple[np.ndarray, Kept]:
    logits_NV, ids_N, made, rollout_of_N, index_N = rows(vocabulary, **sampling)
    assumed = sampling_rows(made, rollout_of_N, index_N, torch.device("cpu"))
    found = Candidates(candidates(logits_NV, ids_N, assumed).numpy(), Rules.of(made, rollout_of_N))
    return processed(**settings)(logits_NV, ids_N, assumed).numpy(), found.under(settings)


@pytest.mark.parametrize("settings", [
    {}, {"temperature": 0.5}, {"temperature": 1.3}, {"top_k": 1}, {"top_k": 20}, {"top_p": 0.9}, {"top_p": 0.5}, {"min_p": 0.05}, {"repetition_penalty": 1.2},
    {"repetition_penalty": 0.8}, {"presence_penalty": 0.7}, {"frequency_penalty": 0.4}, {"frequency_penalty": -0.3},
    {"repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.2, "temperature": 0.9, "top_p": 0.9},
    {"min_p": 0.02, "top_k": 30, "top_p": 0.8},
])
def test_a_setting_reads_as_the_whole_distribution_says(settings: dict[str, float]) -> None:
    whole_N, found = both(settings)
    inside_N = np.isfinite(whole_N)
    assert (np.isfinite(found.logprobs) == inside_N)[~found.edge].all()
    assert inside_N.any()
    assert found.logprobs[inside_N & ~found.edge] == pytest.approx(whole_N[inside_N & ~found.edge], abs=2e-3 if settings.get("temperature", 0) > 1 else 3e-4)


@pytest.mark.parametrize("vocabulary", [64, 200])
def test_a_vocabulary_smaller_than_the_candidates_is_exact(vocabulary: int) -> None:
    whole_N, found = both({"temperature": 1.7, "frequency_penalty": 0.5}, vocabulary=vocabulary)
    assert found.logprobs == pytest.approx(whole_N, abs=2e-5)


def test_what_the_trainer_declares_stays_in_place_beside_another_setting() -> None:
    whole_N, found = both({"presence_penalty": 0.5}, repetition_penalty=1.1, frequency_penalty=0.2)
    assert found.logprobs == pytest.approx(whole_N, abs=3e-4)


def test_raw_logprobs_are_read_too() -> None:
    logits_NV, ids_N, made, rollout_of_N, index_N = rows()
    assumed = sampling_rows(made, rollout_of_N, index_N, torch.device("cpu"))
    found = Candidates(candidates(logits_NV, ids_N, assumed).numpy(), Rules.of(made, rollout_of_N))
    assert found.raw() == pytest.approx(raw(logits_NV, ids_N, assumed).numpy(), abs=1e-4)


def test_a_prompt_of_more_distinct_tokens_than_are_kept_moves_nothing_that_counts() -> None:
    logits_NV, ids_N, made, rollout_of_N, index_N = rows()
    long = tuple(replace(one, prompt_tokens_P=np.arange(0, 2000, 2, dtype=np.int32)) for one in made)
    assumed = sampling_rows(long, rollout_of_N, index_N, torch.device("cpu"))
    found = Candidates(candidates(logits_NV, ids_N, assumed).numpy(), Rules.of(long, rollout_of_N)).under({"repetition_penalty": 1.2})
    whole_N = processed(repetition_penalty=1.2)(logits_NV, ids_N, assumed).numpy()
    assert np.abs(found.logprobs - whole_N).mean() < 0.05  # a flat distribution: the worst case


def test_the_mass_of_the_kept_set_is_what_truncation_adds() -> None:
    _, found = both({"top_p": 0.9})
    _, open_ = both({})
    inside_N = np.isfinite(found.logprobs)
    assert found.logprobs[inside_N] == pytest.approx((open_.logprobs - found.log_mass)[inside_N])
    assert (found.log_mass >= np.log(0.9) - 1e-6).all() and (found.log_mass <= 1e-9).all()
