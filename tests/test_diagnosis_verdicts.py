"""Explanations compete on rollouts of real engines, each fault made the way it happens.

The shadow scorer's answers are kept beside the fixtures (fixtures/diagnosis/scores.py made them with the real model), so
these tests judge the verdicts; tests/test_command_diagnose.py runs the scorer itself.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from collector.records import Diagnosis
from diagnosis.compete import diagnose
from diagnosis.config import DiagnosisConfig
from diagnosis.prompts import Marks
from diagnosis.settings import Candidates, Rules

HERE = Path(__file__).parent / "fixtures" / "diagnosis"
_spec = importlib.util.spec_from_file_location("klaxon_diagnosis_scores", HERE / "scores.py")
kept = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kept)

TRUTH = {
    "v0181_raw_t07": "raw_logprobs", "v0181_processed_t07": "healthy", "v085_t07": "engine_numerics", "v085f32_t07": "healthy",
    "temperature_08": "temperature", "stale_weights": "stale_weights", "stale_prefix_cache": "stale_prefix_cache",
    "healthy_v2": "healthy", "top_p_09": "truncation", "repetition_115": "penalties",
}
CONFIDENT = ("v0181_raw_t07", "v0181_processed_t07", "temperature_08", "stale_weights", "stale_prefix_cache", "healthy_v2")


GENERATED = {
    "healthy_f32": ("healthy", {}), "bos_doubled": ("prompt_mismatch", {"engine_prompt": "BOS doubled"}),
    "system_dropped": ("prompt_mismatch", {"engine_prompt": "system prompt dropped"}), "position_56": ("position_dependent", {"position": 58}),
    "corrupted": ("corrupted_requests", {"requests": ["corrupted-3", "corrupted-11"]}),
    "raw_and_stale": ("raw_logprobs", {"with": "stale_weights", "version": "1"}), "fp8": ("quantization", {"scheme": "fp8"}),
    "repetition_112": ("penalties", {}), "presence_06": ("penalties", {}), "frequency_03": ("penalties", {}), "min_p_05": ("truncation", {}),
}
"""Made by generate.py, float32 on both sides (fp8: the engine in bfloat16): cause and some of its parameters."""

SMOL = Marks(bos=1, openers=frozenset({1}), system_role=(9690,), default_system=(
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198))
"""As prompts.marks_of reads them from the model's folder."""


@functools.cache
def judged(name: str, *, count: int | None = None, marks: Marks | None = None) -> Diagnosis:
    """Of all rollouts of a case, or of the first few."""
    scorer = kept.KeptScores(HERE / f"{name}.scores.npz")
    return diagnose(kept.rollouts_of(name)[:count], scorer, versions=(kept.CASES | kept.GENERATED)[name], config=DiagnosisConfig(),
                    floor=lambda _: scorer.floor_nats, marks=marks or (SMOL if name in GENERATED else None))


@pytest.mark.parametrize("name", GENERATED)
def test_a_fault_of_the_prompt_the_position_single_requests_or_two_at_once_is_named_for_sure(name: str) -> None:
    verdict, (cause, parameters) = judged(name), GENERATED[name]
    assert (verdict.verdict, verdict.confident) == (cause, True)
    assert parameters.items() <= verdict.causes[0].parameters.items()


def test_mixed_up_requests_name_the_donor_whose_prompt_explains_them() -> None:
    rollouts = {rollout.request_id: rollout for rollout in kept.rollouts_of("corrupted")}
    donors = judged("corrupted").causes[0].parameters["donors"]
    assert set(donors) == {"corrupted-3", "corrupted-11"}
    for taker, giver in donors.items():  # generate.py takes the prompt of the third question after
        whose = rollouts[f"corrupted-{(int(taker.rpartition('-')[2]) % 10 + 3) % 10}"].prompt_tokens_P
        assert rollouts[giver].prompt_tokens_P.tolist() == whose.tolist()


@pytest.mark.parametrize("count", [3, 6, 10])
def test_few_tokens_of_a_quantised_engine_never_give_a_confident_wrong_verdict(count: int) -> None:
    verdict = judged("fp8", count=count, marks=Marks())
    assert not verdict.confident or verdict.verdict == "quantization"


def test_a_quantised_engine_is_named_by_its_direction_though_noise_of_its_kernels_remains() -> None:
    verdict = judged("fp8")
    residual = {cause.cause: cause.residual_nats for cause in verdict.causes}
    assert 2 * verdict.floor_nats < residual["quantization"] < 0.8 * residual["healthy"]
    assert any("β = +0." in text for text in verdict.causes[0].evidence)


def test_of_two_faults_the_second_is_in_the_evidence() -> None:
    assert any("together with stale_weights" in text for text in judged("raw_and_stale").causes[0].evidence)


@pytest.mark.parametrize(("name", "truth"), TRUTH.items())
def test_the_verdict_names_the_fault_that_was_made(name: str, truth: str) -> None:
    verdict = judged(name)
    assert verdict.verdict == truth
    assert verdict.causes[0].cause == truth and verdict.causes[0].evidence
    assert bool(verdict.fix) == (truth != "healthy")


@pytest.mark.parametrize("name", CONFIDENT)
def test_the_verdict_is_confident_on_about_700_tokens(name: str) -> None:
    assert judged(name).confident


ESTIMATES = {
    "repetition_112": {"repetition_penalty": (1.12, 0.01)}, "presence_06": {"presence_penalty": (0.6, 0.02)}, "frequency_03": {"frequency_penalty": (0.3, 0.02)},
    "min_p_05": {"min_p": (0.05, 0.005)}, 
    "top_p_09": {"top_p": (0.9, 0.03)}, "repetition_115": {"repetition_penalty": (1.15, 0.03)}, "temperature_08": {"temperature": (0.8, 0.02)},
}
"""What generate.py and make.py hid, and how near the estimate must come."""


@pytest.mark.parametrize("name", ESTIMATES)
def test_the_strength_of_a_hidden_setting_is_estimated(name: str) -> None:
    found = judged(name).causes[0].parameters
    for setting, (truth, within) in ESTIMATES[name].items():
        assert found[setting] == pytest.approx(truth, abs=within)


@pytest.mark.parametrize("count", [3, 6, 10, 16])
def test_a_stale_cache_on_few_bf16_tokens_is_never_taken_for_a_position(count: int) -> None:
    verdict = judged("stale_prefix_cache", count=count)
    assert verdict.verdict != "position_dependent"
    assert verdict.verdict in ("stale_prefix_cache", "stale_weights") or not verdict.confident


SETTINGS = ("healthy_f32", "repetition_112", "presence_06", "frequency_03", "min_p_05")


@pytest.mark.parametrize(("name", "count"), [(n, c) for n in SETTINGS for c in (4, 9)])
def test_few_tokens_of_a_hidden_setting_never_give_a_confident_wrong_verdict(name: str, count: int) -> None:
    verdict = judged(name, count=count)
    assert not verdict.confident or verdict.verdict == GENERATED[name][0]


@pytest.mark.parametrize(("name", "count"), [(n, c) for n in TRUTH for c in (3, 6, 10)])
def test_less_data_never_gives_a_confident_wrong_verdict(name: str, count: int) -> None:
    verdict = judged(name, count=count)
    assert not verdict.confident or verdict.verdict == TRUTH[name]
    if count == 3:
        assert not verdict.confident
        assert any("more tokens" in text for text in verdict.causes[0].evidence)


def test_the_right_explanation_drops_the_residual_to_the_floor_and_healthy_does_not() -> None:
    verdict = judged("v0181_raw_t07")
    residual = {cause.cause: cause.residual_nats for cause in verdict.causes}
    assert residual["raw_logprobs"] < 2 * verdict.floor_nats < residual["healthy"] / 3


def test_the_stale_cache_is_traced_to_the_version_its_keys_came_from() -> None:
    assert judged("stale_prefix_cache").causes[0].parameters == {"kv_version": "1"}


class RawExpected(kept.KeptScores):
    """The kept scores for a trainer that expects raw logprobs."""

    def score(self, rollouts, *, views, version=None, prefix_version=None):
        found = super().score(rollouts, views=views, version=version, prefix_version=prefix_version)
        return [replace(one, views=one.views | {"expected": self._raw(rollout)}) for one, rollout in zip(found, rollouts, strict=True)]

    def _raw(self, rollout):
        wide = super().score([rollout], views={"candidates": None})[0].views["candidates"]
        return Candidates(wide, Rules.of([rollout], np.zeros(len(wide), dtype=np.int64))).raw()


@pytest.mark.parametrize(("name", "truth"), [("v0181_processed_t07", "raw_logprobs"), ("temperature_08", "temperature"), ("v0181_raw_t07", "healthy")])
@pytest.mark.parametrize("temperature", [0.697, 0.7, 0.703])
def test_where_the_trainer_expects_raw_logprobs_processed_ones_are_the_mode_and_not_a_temperature(name: str, truth: str, temperature: float) -> None:
    scorer = RawExpected(HERE / f"{name}.scores.npz")
    rollouts = [replace(rollout, expected_logprobs_mode="raw_logprobs") for rollout in kept.rollouts_of(name)]
    config = DiagnosisConfig(temperature_min=temperature / 2, temperature_max=2 * temperature)  # the grid's middle: it fits as well as the declared one
    verdict = diagnose(rollouts, scorer, versions=kept.CASES[name], config=config, floor=lambda _: scorer.floor_nats)
    assert (verdict.verdict, verdict.confident) == (truth, True), verdict.causes[0].evidence
