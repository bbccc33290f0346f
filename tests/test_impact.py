"""What an alarm is worth: the gradient's bias against a brute-force reference, and the facts around it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from alerts.rows import diagnosis_to_json
from collector.config import SignalsConfig
from collector.limits import Limits
from collector.records import Diagnosis, Rollout, Score, WeightSpan
from diagnosis.gradient_bias import NEEDED, gradient_bias
from diagnosis.impact import impact
from klaxon.commands.status import worth

LIMITS = Limits(tis_cap=1.5, icepop=(0.6, 2.5), mis=(0.8, 1.25))


def pair(rng: np.random.Generator, name: str, *, tokens: int = 40, size: float = 0.5, prompt: int = 1, **fields: object) -> tuple[Rollout, Score]:
    trainer_T = -rng.exponential(1.0, tokens).astype(np.float32)
    engine_T = np.minimum(trainer_T - size * rng.normal(0.3, 1.0, tokens), -1e-3).astype(np.float32)
    rollout = Rollout(
        request_id=name, prompt_tokens_P=np.array([prompt], dtype=np.int32), completion_tokens_T=np.zeros(tokens, dtype=np.int32),
        engine_logprobs_T=engine_T, sampled_mask_T=np.ones(tokens, dtype=bool),
        weight_versions=(WeightSpan(start=0, end=tokens, version="3"),), **fields)
    return rollout, Score(request_id=name, views={"expected": trainer_T})


def brute(pairs: list[tuple[Rollout, Score]], advantages: list[float], limits: Limits) -> dict[str, tuple[float, float, float]]:
    """(relative bias, angle in degrees, share touched), token by token in Python's exact sums of float64."""
    out = {}
    rules = {"uncorrected": lambda w: 1.0, "tis": lambda w: min(w, limits.tis_cap),
             "icepop": lambda w: w if limits.icepop[0] <= w <= limits.icepop[1] else 0.0,
             "mis": lambda w: w if limits.mis[0] <= w <= limits.mis[1] else 0.0}
    for name, rule in rules.items():
        off, meant2, got2, dot, touched, count = [], [], [], [], 0, 0
        for (rollout, score), advantage in zip(pairs, advantages, strict=True):
            mask = rollout.sampled_mask_T if rollout.loss_mask_T is None else rollout.sampled_mask_T & rollout.loss_mask_T
            for engine, trainer, kept in zip(rollout.engine_logprobs_T.tolist(), score.views["expected"].tolist(), mask.tolist(), strict=True):
                if kept and math.isfinite(engine):
                    w = math.exp(trainer - engine)
                    meant, got = advantage * w, advantage * rule(w)
                    off.append((got - meant) ** 2)
                    meant2.append(meant**2)
                    got2.append(got**2)
                    dot.append(got * meant)
                    touched += rule(w) != w
                    count += 1
        cosine = math.fsum(dot) / math.sqrt(math.fsum(got2) * math.fsum(meant2))
        out[name] = (math.sqrt(math.fsum(off) / math.fsum(meant2)), math.degrees(math.acos(cosine)), touched / count)
    return out


def agrees(found: dict, expected: dict[str, tuple[float, float, float]]) -> None:
    for name, (relative, angle, touched) in expected.items():
        assert found[name]["relative_bias"] == pytest.approx(relative, rel=1e-9)
        assert found[name]["angle_degrees"] == pytest.approx(angle, rel=1e-6)
        if name != "uncorrected":
            assert found[name]["truncated_or_masked"] == pytest.approx(touched) and 0 < touched < 1


def test_told_advantages_masks_and_missing_logprobs_agree_with_brute_force() -> None:
    rng = np.random.default_rng(5)
    advantages = [1.5, -0.7, 0.2]
    pairs = [pair(rng, f"r{i}", labels={"advantage": str(a)}) for i, a in enumerate(advantages)]
    pairs[0][0].engine_logprobs_T[3] = np.nan
    loss_T = rng.random(40) < 0.5
    pairs[1] = (replace(pairs[1][0], loss_mask_T=loss_T), pairs[1][1])
    apart = [pair(rng, "dropped", dropped=True, labels={"advantage": "9"}), pair(rng, "hinted", base_coin=False, labels={"advantage": "9"}),
             pair(rng, "untold")]
    found = gradient_bias(pairs + apart, limits=LIMITS)
    assert found["basis"] == "advantages" and found["rollouts"] == 3 and found["tokens"] == 39 + int(loss_T.sum()) + 40
    agrees(found, brute(pairs, advantages, LIMITS))
    assert "bound" not in found


def test_rewards_of_a_group_stand_in_for_advantages() -> None:
    rng = np.random.default_rng(6)
    rewards = [1.0, 0.0, 0.0, 0.5]
    pairs = [pair(rng, f"r{i}", prompt=1 if i < 3 else 2, reward=reward) for i, reward in enumerate(rewards)]
    found = gradient_bias(pairs, limits=LIMITS)
    mean, spread = 1 / 3, math.sqrt(2 / 9)
    assert found["basis"] == "rewards" and found["rollouts"] == 3, "a prompt sampled once has no group"
    agrees(found, brute(pairs[:3], [(reward - mean) / spread for reward in rewards[:3]], LIMITS))


def test_without_advantages_the_bound_holds_for_any_of_them() -> None:
    rng = np.random.default_rng(7)
    pairs = [pair(rng, f"r{i}", size=0.1 + 0.1 * i) for i in range(6)]
    found = gradient_bias(pairs, limits=LIMITS)
    assert found["basis"] == "equal"
    agrees(found, brute(pairs, [1.0] * 6, LIMITS))
    for _ in range(200):
        advantages = (rng.normal(size=6) * rng.exponential(3.0, 6)).tolist()
        relative, angle, _ = brute(pairs, advantages, LIMITS)["uncorrected"]
        assert relative <= found["bound"] + 1e-12 and angle <= found["bound_degrees"] + 1e-6
    only_last = brute(pairs, [0.0] * 5 + [1.0], LIMITS)["uncorrected"][0]
    assert max(brute([one], [1.0], LIMITS)["uncorrected"][0] for one in pairs) == pytest.approx(found["bound"])
    assert only_last <= found["bound"]


def test_equal_logprobs_bend_nothing_and_need_no_correction() -> None:
    rollout, score = pair(np.random.default_rng(8), "r", size=0.0)
    score = replace(score, views={"expected": rollout.engine_logprobs_T})
    found = gradient_bias([(rollout, score)])
    assert found["uncorrected"] == {"relative_bias": 0.0, "angle_degrees": pytest.approx(0.0, abs=1e-5)}
    assert found["correction_needed"] is False and found["bound"] == 0.0
    for name in ("tis", "icepop", "mis"):
        assert (found[name]["truncated_or_masked"], found[name]["weight_removed"], found[name]["ess"]) == (0.0, 0.0, pytest.approx(1.0))


def test_a_healthy_bf16_pair_needs_no_correction_and_a_large_mismatch_does() -> None:
    rng = np.random.default_rng(9)
    for size, needed in ((0.03, False), (0.6, True)):
        found = gradient_bias([pair(rng, f"r{i}", size=size) for i in range(20)])
        assert found["correction_needed"] is needed and (found["uncorrected"]["relative_bias"] > NEEDED) is needed
        assert found["tis"]["relative_bias"] <= found["uncorrected"]["relative_bias"]


def test_an_absurd_difference_stays_a_number_and_nothing_gives_none() -> None:
    rollout, score = pair(np.random.default_rng(10), "r", tokens=3)
    far = replace(score, views={"expected": np.array([-1.0, -500.0, -2.0], dtype=np.float32)})
    assert json.loads(json.dumps(gradient_bias([(rollout, far)]), allow_nan=False))["tokens"] == 3
    assert gradient_bias([]) is None
    assert gradient_bias([(replace(rollout, dropped=True), score)]) is None


def test_impact_gives_shares_steps_and_both_gradients_and_survives_the_incident_file() -> None:
    rng = np.random.default_rng(11)
    records = []
    for t in range(6):
        rollout, score = pair(rng, f"r{t}", size=0.01 if t < 4 else 0.8, prompt=t, labels={"step": str(30 + t)})
        records.append((t, replace(rollout, weight_versions=(WeightSpan(start=0, end=40, version=str(t)),)), score))
    limits = SignalsConfig(tis_cap=1.5).limits()
    found = impact(records, change_t=(4, 5), limits=limits, correction="tis")
    assert (found["last_clean_version"], found["last_clean_step"], found["first_tainted_version"]) == ("3", "33", "4")
    assert found["group_share"] == found["token_share"] == pytest.approx(1 / 3) and found["correction"] == "tis"
    assert found["gradient_after"]["uncorrected"]["relative_bias"] > 10 * found["gradient_before"]["uncorrected"]["relative_bias"]
    assert found["gradient_after"] == gradient_bias([(rollout, score) for _, rollout, score in records[4:]], limits=limits)
    line = worth({"id": "inc_1", "diagnosis": {"impact": found}})
    for word in ("last clean version 3", "policy gradient off by", "with TIS", "with IcePop", "correction is needed", "klaxon quarantine inc_1"):
        assert word in line
    assert worth({"id": "inc_1", "diagnosis": None}) == "tainted rollouts: klaxon quarantine inc_1"
    stored = diagnosis_to_json(Diagnosis(verdict="unexplained", confident=False, causes=(), floor_nats=None, next="", impact=found))
    assert json.loads(json.dumps(stored))["impact"]["gradient_after"]["tis"] == found["gradient_after"]["tis"]
