"""Views against a float64 reference written row by row, and against the reading of vLLM's sampler."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from collector.records import Rollout, Sampling
from collector.shadow.views import VIEWS, entropy, expected_distribution, processed, sampling_rows, temperature_views

V = 40
rng = np.random.default_rng(11)
LOGITS = torch.tensor(rng.normal(0, 3, (6, V)), dtype=torch.float32)
IDS = torch.tensor(rng.integers(0, V, 6))


def rows(sampling: Sampling, *, mode="processed_logprobs", n=6):
    rollout = Rollout(request_id="r", prompt_tokens_P=np.array([1, 2, 3], np.int32),
                      completion_tokens_T=IDS.numpy().astype(np.int32), engine_logprobs_T=np.zeros(n, np.float32),
                      sampled_mask_T=np.ones(n, bool), sampling=sampling, expected_logprobs_mode=mode)
    return sampling_rows((rollout,), np.zeros(n, dtype=int), np.arange(n), torch.device("cpu"))


def reference(sampling: Sampling) -> np.ndarray:
    """vLLM's order, one row and one token at a time, float64."""
    out = []
    for n in range(6):
        z = LOGITS[n].double().numpy().copy()
        before = IDS[:n].tolist()
        for token in {1, 2, 3, *before}:
            r = sampling.repetition_penalty or 1.0
            z[token] = z[token] / r if z[token] > 0 else z[token] * r
        for token in set(before):
            z[token] -= (sampling.frequency_penalty or 0) * before.count(token) + (sampling.presence_penalty or 0)
        greedy = sampling.temperature < 1e-5
        z = z / (1.0 if greedy else sampling.temperature)
        if sampling.min_p and not greedy:
            z[np.exp(z - z.max()) < sampling.min_p] = -math.inf
        if sampling.top_k and sampling.top_k > 0 and not greedy:
            z[z < np.sort(z)[-sampling.top_k]] = -math.inf
        if sampling.top_p is not None and sampling.top_p < 1 and not greedy:
            order = np.argsort(z)  # ascending, as vLLM: drop while the mass up to and including is ≤ 1 − p
            mass = np.cumsum(np.exp(z[order]) / np.exp(z).sum())
            drop = order[:-1][mass[:-1] <= 1 - sampling.top_p]
            z[drop] = -math.inf
        out.append(z[IDS[n]] - np.log(np.exp(z).sum()))
    return np.array(out)


@pytest.mark.parametrize("sampling", [
    Sampling(temperature=1.0), Sampling(temperature=0.7), Sampling(temperature=0.0, top_p=0.5, top_k=3),
    Sampling(temperature=0.7, top_k=5), Sampling(temperature=1.3, top_p=0.8), Sampling(temperature=1.0, min_p=0.05),
    Sampling(temperature=0.9, top_k=12, top_p=0.7, min_p=0.01), Sampling(temperature=0.7, top_k=-1, top_p=1.0),
    Sampling(temperature=0.7, repetition_penalty=1.2),
    Sampling(temperature=0.7, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.3),
], ids=str)
def test_the_expected_view_is_vllms_processed_logprob(sampling: Sampling) -> None:
    got = VIEWS["expected"](LOGITS, IDS, rows(sampling)).numpy()
    want = reference(sampling)
    assert np.isneginf(got).tolist() == np.isneginf(want).tolist()
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_a_nucleus_wider_than_the_first_candidates_is_found_by_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = rows(Sampling(temperature=1.0, top_p=0.95))
    whole = VIEWS["expected"](LOGITS, IDS, sampling)
    monkeypatch.setattr("collector.shadow.views._CANDIDATES", 2)
    torch.testing.assert_close(VIEWS["expected"](LOGITS, IDS, sampling), whole)


def test_raw_ignores_the_sampler_and_is_what_a_raw_trainer_expects() -> None:
    want = torch.log_softmax(LOGITS.double(), -1).gather(-1, IDS[:, None])[:, 0].float()
    hot = Sampling(temperature=0.5, top_k=3)
    torch.testing.assert_close(VIEWS["raw"](LOGITS, IDS, rows(hot)), want)
    torch.testing.assert_close(VIEWS["expected"](LOGITS, IDS, rows(hot, mode="raw_logprobs")), want)


def test_rows_of_different_trainers_do_not_mix() -> None:
    a, b = (Rollout(request_id=x, prompt_tokens_P=np.array([1], np.int32), completion_tokens_T=IDS.numpy(),
                    engine_logprobs_T=np.zeros(6, np.float32), sampled_mask_T=np.ones(6, bool),
                    sampling=Sampling(temperature=t, top_k=k), expected_logprobs_mode=m)
            for x, t, k, m in (("a", 0.5, 3, "processed_logprobs"), ("b", 2.0, None, "raw_logprobs")))
    mixed = sampling_rows((a, b), np.array([0, 1, 0, 1, 0, 1]), np.arange(6), torch.device("cpu"))
    got = VIEWS["expected"](LOGITS, IDS, mixed)
    torch.testing.assert_close(got[0::2], VIEWS["expected"](LOGITS, IDS, rows(Sampling(temperature=0.5, top_k=3)))[0::2])
    torch.testing.assert_close(got[1::2], VIEWS["raw"](LOGITS, IDS, mixed)[1::2])


def test_processed_replaces_only_what_it_names() -> None:
    trainer = rows(Sampling(temperature=0.7, top_k=5), mode="raw_logprobs")
    torch.testing.assert_close(processed(temperature=0.9)(LOGITS, IDS, trainer),
                               VIEWS["expected"](LOGITS, IDS, rows(Sampling(temperature=0.9, top_k=5))))
    with pytest.raises(TypeError, match="temprature"):
        processed(temprature=0.9)


def test_the_temperature_grid_is_named_by_its_values() -> None:
    grid = temperature_views((0.5, 1.0))
    assert list(grid) == ["temperature:0.5", "temperature:1"]
    torch.testing.assert_close(grid["temperature:1"](LOGITS, IDS, rows(Sampling(temperature=0.2))),
                               VIEWS["raw"](LOGITS, IDS, rows(Sampling(temperature=0.2))))


def test_entropy_is_of_the_expected_distribution_and_survives_truncation() -> None:
    distribution = expected_distribution(LOGITS, rows(Sampling(temperature=0.7, top_k=1)))
    assert entropy(distribution).abs().max() == 0
    free = torch.softmax(LOGITS.double() / 0.7, -1)
    torch.testing.assert_close(entropy(expected_distribution(LOGITS, rows(Sampling(temperature=0.7)))).double(),
                               -(free * free.log()).sum(-1), atol=1e-5, rtol=0)


def test_a_bfloat16_head_moves_logprobs_by_its_rounding() -> None:
    moved = (VIEWS["bf16_head"](LOGITS, IDS, rows(Sampling(temperature=1.0))) - VIEWS["raw"](LOGITS, IDS, rows(
        Sampling(temperature=1.0)))).abs()
    assert 0 < moved.max() < 0.06
