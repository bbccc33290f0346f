"""The parts of a diagnosis: clustered means, projection, noise shape, lattice, audit, quick guess, impact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from collector.records import Drift, Rollout, Sampling, Score, WeightSpan
from collector.sources.rollout_json import read_rollouts
from diagnosis.audit import engine_facts, rollout_facts
from diagnosis.causes import CAUSE_TEXTS
from diagnosis.impact import impact
from diagnosis.lattice import lattice_test
from diagnosis.noise import noise_shape
from diagnosis.projection import projection
from diagnosis.quick import quick_diagnosis
from diagnosis.sheet import Sheet, clustered_mean
from diagnosis.top_one import top_one_test

RECORDINGS = Path(__file__).parent.parent / "klaxon" / "recordings"


def made(logprobs: np.ndarray, *, name: str = "r", version: str = "2", **fields: object) -> Rollout:
    n = logprobs.size
    return Rollout(
        request_id=name, prompt_tokens_P=np.array([1], dtype=np.int32), completion_tokens_T=np.full(n, 5, dtype=np.int32),
        engine_logprobs_T=logprobs.astype(np.float32), sampled_mask_T=np.ones(n, dtype=bool),
        weight_versions=(WeightSpan(start=0, end=n, version=version),), **fields)


def sheet_of(rows: list[np.ndarray]) -> Sheet:
    rollouts = [made(row, name=f"r{i}") for i, row in enumerate(rows)]
    return Sheet.of(rollouts, [Score(request_id=r.request_id, views={"expected": r.engine_logprobs_T}) for r in rollouts])


def recording(name: str) -> list[Rollout]:
    return [item for item in read_rollouts(RECORDINGS / f"{name}.jsonl") if isinstance(item, Rollout)]


def test_the_clustered_error_grows_when_tokens_of_a_rollout_move_together() -> None:
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(40), 25)
    together = np.repeat(rng.normal(size=40), 25)
    alone = rng.normal(size=1000)
    assert clustered_mean(together, clusters)[1] > 3 * clustered_mean(alone, clusters)[1]
    assert clustered_mean(alone, clusters)[1] == pytest.approx(1000**-0.5, rel=0.3)


def test_one_rollout_has_no_standard_error() -> None:
    assert clustered_mean(np.ones(5), np.zeros(5))[1] == np.inf


def test_folds_have_equal_size_and_do_not_depend_on_the_order_of_the_file() -> None:
    rows = [np.full(3, -1.0) for _ in range(10)]
    sheet = sheet_of(rows)
    assert sorted(np.bincount(sheet.fold_N)) == [15, 15]


@pytest.mark.parametrize(("truth", "sign"), [(0.0, -1), (1.0, 1)])
def test_the_projection_tells_two_versions_apart_below_the_noise(truth: float, sign: int) -> None:
    """Noise .03, versions .015 apart, 1,000 tokens: no residual can see it, β can."""
    rng = np.random.default_rng(7)
    older = [rng.normal(-1.0, 0.5, 25) for _ in range(40)]
    labelled = [row + rng.normal(0, 0.015, 25) for row in older]
    engine = [new + truth * (old - new) + rng.normal(0, 0.03, 25) for new, old in zip(labelled, older, strict=True)]
    sheet = sheet_of(engine)
    found = projection(sheet, sheet.flat(labelled), sheet.flat(older))
    assert found is not None and sign * found.z > 3 and abs(found.beta - truth) < 0.3


def test_noise_everywhere_is_told_from_a_few_bad_rollouts() -> None:
    rng = np.random.default_rng(3)
    rows = [rng.normal(-2.0, 0.5, 30) for _ in range(30)]
    sheet = sheet_of(rows)
    noisy = sheet.engine_N + rng.normal(0, 0.1, sheet.tokens)
    few = sheet.engine_N + rng.normal(0, 0.02, sheet.tokens) + np.where(sheet.rollout_N < 2, rng.normal(0, 2.0, sheet.tokens), 0)
    assert noise_shape(sheet, noisy, floor_nats=0.03).everywhere
    assert not noise_shape(sheet, few, floor_nats=0.03).everywhere
    assert not noise_shape(sheet, sheet.engine_N + 0.1, floor_nats=0.03).everywhere


@pytest.mark.parametrize(("name", "carried"), [("v0181_raw_t07", 1.0), ("v0181_processed_t07", 0.7), ("v085f32_t07", None), ("v085_t07", None)])
def test_the_lattice_reads_the_temperature_of_a_bf16_head_and_is_silent_for_float32(name: str, carried: float | None) -> None:
    found = lattice_test(recording(name), temperature=0.7)
    assert found is not None and found.report_temperature == carried


def test_rounded_reports_are_not_taken_for_a_lattice() -> None:
    rounded = [replace(r, top_logprobs=tuple(np.round(row * 32) / 32 for row in r.top_logprobs)) for r in recording("v085f32_t07")]
    found = lattice_test(rounded, temperature=0.7)
    assert found is not None and found.report_temperature is None


def test_the_bounds_for_raw_logprobs_hold_the_observed_frequency_only_where_they_are_raw() -> None:
    raw, processed = top_one_test(recording("v0181_raw_t07")), top_one_test(recording("v0181_processed_t07"))
    assert raw is not None and raw.looks_raw and raw.fits_raw_at == pytest.approx(0.7, abs=0.1)
    assert processed is not None and not processed.looks_raw and processed.observed < processed.if_raw[0]


def test_a_claimed_raw_mode_is_no_contradiction_when_the_trainer_samples_plainly() -> None:
    plain = made(np.array([-1.0]), sampling=Sampling(temperature=1.0, top_p=1.0), logprobs_mode="raw_logprobs")
    warm = replace(plain, sampling=Sampling(temperature=0.7))
    assert rollout_facts([plain]) == ()
    assert [fact.cause for fact in rollout_facts([warm])] == ["raw_logprobs"]


def test_masks_the_trainer_does_not_know_are_a_fact_of_truncation() -> None:
    fact, = rollout_facts([made(np.array([-1.0]), labels={"masks": "min_tokens"})])
    assert fact.cause == "truncation" and "min_tokens" in fact.text


def test_top_k_minus_one_and_zero_both_mean_off() -> None:
    assert rollout_facts([made(np.array([-1.0]), sampling=Sampling(top_k=-1), engine_sampling=Sampling(top_k=0))]) == ()


def test_the_first_guess_takes_the_engines_own_setting_before_a_stream() -> None:
    drift = Drift(kind="statistical", stream="explain:temperature:0.8:0.3", statistic=12.0, threshold=10.0, alarm_t=4, change_t=(2, 3), text="evidence")
    guess = quick_diagnosis([drift], engine_config={"logprobs_mode": "raw_logprobs"})
    assert guess is not None and (guess.verdict, guess.confident) == ("raw_logprobs", False)
    assert [cause.cause for cause in guess.causes] == ["raw_logprobs", "temperature"]
    alone = quick_diagnosis([drift], engine_config={})
    assert alone is not None and alone.verdict == "temperature" and "evidence" in alone.causes[0].evidence
    assert quick_diagnosis([]) is None


def test_every_cause_a_stream_can_point_to_has_a_text() -> None:
    from detectors.betting import EXPLANATIONS
    from detectors.streams import FACT_CAUSES

    assert set(EXPLANATIONS.values()) | set(FACT_CAUSES.values()) | {"unexplained"} <= set(CAUSE_TEXTS)
    assert {fact.cause for fact in engine_facts({"logprobs_mode": "raw_logprobs"}, expected_mode="processed_logprobs")} == {"raw_logprobs"}


def test_impact_counts_from_the_earliest_changed_batch() -> None:
    def seen(t: int, version: str, shift: float) -> tuple[int, Rollout, Score]:
        rollout = made(np.full(10, -1.0), name=f"r{t}", version=version)
        return t, rollout, Score(request_id=rollout.request_id, views={"expected": np.full(10, -1.0 + shift, dtype=np.float32)})

    records = [seen(0, "4", 0.0), seen(1, "5", 0.01), seen(2, "6", 0.5), seen(3, "7", 0.5)]
    found = impact(records, change_t=(2, 3))
    assert (found["last_clean_version"], found["first_tainted_version"]) == ("5", "6")
    assert (found["tainted_requests"], found["tainted_tokens"], found["token_share"]) == (2, 20, 0.5)
    assert found["gradient_bias_share"] == 1.0 and found["mean_abs_d_before"] == pytest.approx(0.005)
    assert impact([], change_t=(0, 0))["token_share"] is None
