"""Rows of a preflight and numbers of a comparison, from rollouts and scores made by hand: pure, no engine, no model."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from collector.records import Cause, Diagnosis, Rollout, Score
from diagnosis.config import DiagnosisConfig
from diagnosis.engine_audit import audit
from diagnosis.engine_told import Assumed, Told
from diagnosis.parity import CLASSES, Forced, differences, direction, identical, numbers, pair_floor, token_class, too_little
from diagnosis.preflight import Probed, Row, batch_row, cache_rows, canaries_row, exit_code, mismatch_row, sampler_row, settings_row, tokenizer_row
from diagnosis.preflight_update import label_row, reset_row, weights_row
from diagnosis.sheet import Sheet

CONFIG = DiagnosisConfig()
VALUES = {"mean_abs_d": 0.02, "k3": 1e-3, "clip_rate": 0.0, "ess": 0.99}
RNG = np.random.default_rng(20261121)


def rollout(name="r", logprobs=(-0.5,) * 8, *, cached=0, tokens=None, prompt=8, group="fixed"):
    n = len(logprobs)
    return Rollout(request_id=name, prompt_tokens_P=np.arange(prompt, dtype=np.int32), completion_tokens_T=np.array(range(n) if tokens is None else tokens, dtype=np.int32),
                   engine_logprobs_T=np.array(logprobs, dtype=np.float32), sampled_mask_T=np.ones(n, dtype=bool), cached_prompt_tokens=cached, labels={"group": group})


def probed(count, *, noise, cached, group="fresh", kept=False, seed=0):
    """`count` probes of 32 tokens whose engine scatters by `noise` nats around the expected logprobs."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        expected = -rng.exponential(1.0, 32)
        one = rollout(f"{group}-{seed}-{i}", np.minimum(0, expected + rng.normal(0, noise, 32)), cached=cached)
        made.append(Probed(rollout=one, score=Score(request_id=one.request_id, views={"expected": expected.astype(np.float32)}), group=group, kept=kept))
    return made


def found(verdict, *, confident=True, evidence=(), **parameters):
    cause = Cause(cause=verdict, residual_nats=0.02, tokens=900, evidence=evidence, parameters=parameters)
    return Diagnosis(verdict=verdict, confident=confident, causes=(cause,), floor_nats=0.018, next="", fix="mend it", tokens=900)


def test_only_a_failed_row_fails_the_preflight():
    rows = [Row(name="a", state=state, seen="") for state in ("passed", "unknown", "measured")]
    assert exit_code(rows) == 0 and exit_code([*rows, Row(name="b", state="failed", seen="")]) == 1


def test_raw_logprobs_fail_the_settings_by_name_and_untold_ones_are_unknown():
    wrong = settings_row(audit(Told(config={"model_config": {"logprobs_mode": "raw_logprobs"}}), Assumed()))
    assert wrong.state == "failed" and wrong.cause == "raw_logprobs" and "--logprobs-mode processed_logprobs" in wrong.do
    untold = settings_row(audit(Told(version="0.32.0"), Assumed()))
    assert untold.state == "unknown" and "VLLM_SERVER_DEV_MODE=1" in untold.do
    right = settings_row(audit(Told(config={"model_config": {"logprobs_mode": "processed_logprobs"}}), Assumed()))
    assert right.state == "passed" and "unknown" in right.seen, "what else was not told is counted in the line"


def test_texts_with_other_ids_fail_and_an_engine_without_a_tokenizer_route_is_unknown():
    assert tokenizer_row([], 8).state == "passed"
    assert tokenizer_row(["Once upon"], 8).state == "failed" and tokenizer_row(["Once upon"], 8).cause == "prompt_mismatch"
    assert tokenizer_row("the engine's /tokenize does not answer", 8).state == "unknown"


def test_an_unanswered_probe_or_a_missing_logprob_fails_the_canaries():
    good = [rollout(f"r{i}", prompt=500) for i in range(3)]
    assert canaries_row(good, {}).state == "passed" and "positions up to 508" in canaries_row(good, {}).seen
    refused = canaries_row(good, {"400: too many logprobs": 2})
    assert refused.state == "failed" and "3 of 5 probes" in refused.seen and "--max-logprobs" in refused.do
    broken = canaries_row([*good, rollout("r4", (-0.1, math.nan))], {})
    assert broken.state == "failed" and broken.cause == "non_finite" and "1 logprobs" in broken.seen


def test_the_mismatch_passes_when_healthy_and_else_names_the_cause_its_parameters_and_the_fix():
    assert mismatch_row(found("healthy"), VALUES).state == "passed"
    doubtful = mismatch_row(found("healthy", confident=False, evidence=("residual small", "not sure: 90 tokens")), VALUES)
    assert doubtful.state == "passed" and "not sure: 90 tokens" in doubtful.seen
    wrong = mismatch_row(found("temperature", temperature=0.6), VALUES)
    assert (wrong.state, wrong.cause, wrong.do) == ("failed", "temperature", "mend it") and "temperature 0.6" in wrong.seen


def test_a_sampler_without_top_logprobs_is_unknown():
    assert sampler_row(None).state == "unknown"


def test_a_cache_that_answers_like_a_computation_passes():
    rows = cache_rows([*probed(8, noise=0.02, cached=0), *probed(8, noise=0.02, cached=64, seed=1)], CONFIG, caching=True, limit_nats=0.04)
    assert [row.state for row in rows] == ["passed", "measured"]


def test_what_was_cached_before_and_answers_otherwise_is_a_stale_cache_and_the_new_cache_is_not_blamed():
    probes = [*probed(8, noise=0.02, cached=0), *probed(4, noise=0.02, cached=64, seed=1), *probed(8, noise=0.15, cached=64, group="fixed", kept=True, seed=2)]
    new, old = cache_rows(probes, CONFIG, caching=True, limit_nats=0.04)
    assert new.state == "passed" and old.state == "failed" and old.cause == "stale_prefix_cache" and "reset_prefix_cache" in old.do


def test_a_cache_that_is_off_passes_and_an_engine_that_does_not_tell_hits_is_unknown():
    assert [row.state for row in cache_rows([], CONFIG, caching=False, limit_nats=0.04)] == ["passed"]
    untold = cache_rows(probed(4, noise=0.02, cached=None), CONFIG, caching=True, limit_nats=0.04)
    assert [row.state for row in untold] == ["unknown"] and "--enable-prompt-tokens-details" in untold[0].do
    never = cache_rows(probed(4, noise=0.02, cached=0), CONFIG, caching=True, limit_nats=0.04)
    assert never[0].state == "unknown", "no request hit the cache: nothing was compared"


def test_batch_variance_is_a_measurement_unless_the_engine_promises_invariance():
    alone = [rollout("a", (-0.1, -0.2, -0.3)), rollout("b", (-0.1, -0.2, -0.3))]
    beside = [rollout("c", (-0.1, -0.25, -0.3))]
    measured = batch_row(alone, beside, promised=False)
    assert measured.state == "measured" and "0.0500 beside" in measured.seen and "0 nats alone twice" in measured.seen
    assert batch_row(alone, beside, promised=True).state == "failed" and batch_row(alone, alone[:1], promised=True).state == "passed"
    assert batch_row(alone[:1], beside, promised=False).state == "unknown"


def test_after_the_first_token_that_differs_nothing_is_compared():
    other = rollout("c", (-0.1, -9.0, -9.0), tokens=(0, 7, 7))
    row = batch_row([rollout("a", (-0.1, -0.2, -0.3))] * 2, [other], promised=False)
    assert "0 beside" in row.seen and "the first 1 of 3 tokens" in row.seen


def test_the_update_rows_see_a_label_that_did_not_move_and_a_cache_that_was_not_reset():
    assert label_row(set_to="x", told="x").state == "passed" and label_row(set_to="x", told="default").state == "failed"
    assert label_row(set_to="x", told=None).state == "unknown"
    assert reset_row([rollout(cached=0)] * 4).state == "passed" and reset_row([rollout(cached=None)]).state == "unknown"
    stale = reset_row([rollout(cached=0), rollout(cached=64)])
    assert stale.state == "failed" and "1 of 2" in stale.seen and stale.cause == "stale_prefix_cache"


def sheet_at(weights, *, count=12, noise=0.01):
    """Rollouts of an engine at `weights` ("model" or "previous"), and what both predict."""
    rng = np.random.default_rng(7)
    model = [-rng.exponential(1.0, 32) - 0.5 for _ in range(count)]
    previous = [one + rng.normal(0, 0.1, 32) for one in model]
    served = {"model": model, "previous": previous, "neither": [one + rng.normal(0, 0.5, 32) + 0.8 * (b - one) for one, b in zip(model, previous, strict=True)]}[weights]
    rollouts = [rollout(f"u{i}", one + rng.normal(0, noise, 32)) for i, one in enumerate(served)]
    sheet = Sheet.of(rollouts, [Score(request_id=r.request_id, views={"expected": one}) for r, one in zip(rollouts, model, strict=True)])
    return sheet, np.concatenate(model), np.concatenate(previous)


@pytest.mark.parametrize(("served", "on_previous", "state"), [
    ("previous", True, "passed"), ("model", True, "failed"), ("model", False, "passed"), ("previous", False, "failed"), ("neither", True, "failed")])
def test_the_weights_row_says_whether_the_engine_moved(served, on_previous, state):
    sheet, model_N, previous_N = sheet_at(served)
    row = weights_row("update: weights", sheet, model_N, previous_N, on_previous=on_previous, limit_nats=0.03, config=CONFIG)
    assert row.state == state, row.seen
    assert row.cause == ("stale_weights" if state == "failed" else "")


def test_two_versions_that_predict_the_same_cannot_be_told_apart():
    sheet, model_N, _ = sheet_at("model")
    assert weights_row("w", sheet, model_N, model_N, on_previous=True, limit_nats=0.03, config=CONFIG).state == "unknown"


@pytest.mark.parametrize(("text", "expected"), [
    (" the", "words"), ("don't", "words"), ("42", "digits"), (" 7", "digits"), ("\n", "space, punctuation"), (".", "space, punctuation"), (" ", "space, punctuation"),
    ("x1", "other"), ("\ufffd", "other"), ("été", "words"), ("", "other")])
def test_tokens_fall_into_the_class_a_reader_would_put_them(text, expected):
    assert token_class(text, index=3, special=False) == expected


def test_the_first_token_and_special_tokens_are_classes_of_their_own():
    assert token_class(" the", index=0, special=True) == "first token" and token_class("<|im_end|>", index=4, special=True) == "special"


def forced(count, *, noise, shift=0.0, prompt=8, seed=0):
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(count):
        own = -rng.exponential(1.0, 32).astype(np.float32)
        other = own + rng.normal(shift, noise, 32)
        pairs.append(Forced(rollout=rollout(f"f{i}", own, prompt=prompt), other_T=other.astype(np.float64), classes_T=tuple(CLASSES[j % 6] for j in range(32))))
    return pairs


def test_engines_that_scatter_within_the_floor_are_the_same():
    both = [direction("A on B", forced(20, noise=0.02)), direction("B on A", forced(20, noise=0.02, seed=1))]
    assert differences(both, 0.018, CONFIG) == [] and too_little(both, CONFIG) == ""
    assert sum(part.tokens for part in both[0].by_class) == both[0].total.tokens == 640
    assert {part.name for part in both[0].by_class} == set(CLASSES)


def test_engines_that_scatter_more_or_are_shifted_differ_and_the_reason_says_which_way():
    noisy = [direction("A on B", forced(20, noise=0.02)), direction("B on A", forced(20, noise=0.1, seed=1))]
    assert [reason.split(":")[0] for reason in differences(noisy, 0.018, CONFIG)] == ["B on A"]
    shifted = [direction("A on B", forced(20, noise=0.01, shift=0.02))]
    assert any("shifted" in reason for reason in differences(shifted, 0.018, CONFIG))


def test_a_fault_at_far_positions_alone_is_seen_in_its_bucket():
    near, far = forced(60, noise=0.005), forced(4, noise=0.4, prompt=1200, seed=1)
    one = direction("A on B", [*near, *far])
    reasons = differences([one], 0.02, CONFIG)
    assert one.total.mean_abs_d < 0.04 and any("positions 1k-4k" in reason for reason in reasons)


def test_few_tokens_are_too_few_and_unknown_ones_are_left_out():
    few = direction("A on B", forced(4, noise=0.02))
    assert "128 tokens of 4 rollouts" in too_little([few], CONFIG)
    hole = forced(1, noise=0.02)[0]
    hole.other_T[:5] = np.nan
    assert direction("A on B", [hole]).total.tokens == 27
    assert direction("A on B", [replace(hole, other_T=np.full(32, np.nan))]) is None and direction("A on B", []) is None


def test_the_numbers_are_their_formulas_and_one_rollout_has_no_standard_error():
    d = np.array([0.1, -0.2, 1.5, 0.0])
    one = numbers("all", d, np.array([0, 0, 1, 1]))
    w = np.exp(d)
    assert one.k1 == pytest.approx(-d.mean()) and one.k3 == pytest.approx((w - 1 - d).mean()) and one.beyond == pytest.approx(0.25)
    assert one.ess == pytest.approx(w.sum() ** 2 / (4 * (w**2).sum())) and one.mean_abs_d == pytest.approx(np.abs(d).mean())
    alone = numbers("all", d, np.zeros(4, dtype=int))
    assert math.isinf(alone.mean_abs_d_se) and math.isinf(alone.ess_se)


@pytest.mark.statistical
def test_the_clustered_errors_cover_what_they_claim():
    """200 seeded draws of 30 rollouts that share a level: |estimate| within 2 errors of the truth in at least 88 % (binomial, p = .95: below 1e-4)."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        cluster = np.repeat(np.arange(30), 16)
        one = numbers("all", rng.normal(0, 0.05, 30)[cluster] + rng.normal(0, 0.05, 480), cluster)
        hits += abs(one.mean_d) <= 2 * one.mean_d_se
    assert hits >= 176


def test_identical_completions_are_counted_up_to_the_first_token_that_differs():
    same = identical([rollout("a"), rollout("b")], [rollout("a"), rollout("b", tokens=(0, 1, 9, 3, 4, 5, 6, 7))])
    assert same is not None and same.prompts == 2 and same.whole == 1 and same.same == pytest.approx(10 / 16)
    assert identical([], []) is None


def test_the_floor_of_a_pair_grows_with_every_low_precision_side():
    assert pair_floor(0.02, ("float32", "float32"), CONFIG) == CONFIG.fp32_floor_nats
    assert pair_floor(0.02, ("bfloat16", "float32"), CONFIG) == pytest.approx(0.02)
    assert pair_floor(0.02, (None, "bfloat16"), CONFIG) == pytest.approx(0.02 * math.sqrt(2)), "an untold dtype is taken for bfloat16"
    assert pair_floor(math.nan, ("bfloat16", "bfloat16"), CONFIG) == CONFIG.fp32_floor_nats
