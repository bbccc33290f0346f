"""Per-request corruption: quiet on healthy floors however heavy their tails, and it finds one rollout in a thousand.

Healthy rollouts are bootstrapped from a real engine's (token by token), corrupted ones are real completions scored behind
somebody else's prompt (tests/fixtures/requests/make.py).
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from collector.records import Rollout, Score
from collector.sources.rollout_json import read_rollouts
from detectors.bank import Bank
from detectors.config import DetectorsConfig
from detectors.esr import ShiryaevRoberts
from detectors.requests import Normal, Requests, oddness, stream, streams
from detectors.requests_config import RequestsConfig
from klaxon import bank_state

HERE = Path(__file__).parent
RECORDINGS = HERE.parent / "klaxon" / "recordings"
NAME = "v0181_processed_t07.jsonl"
ROLLOUTS = [rollout for rollout in read_rollouts(RECORDINGS / NAME) if isinstance(rollout, Rollout)]
TRAINER = json.loads((RECORDINGS / "trainer_logprobs.json").read_text())[NAME]
SWAPPED = json.loads((HERE / "fixtures" / "requests" / "swapped_prompts.json").read_text())
CONFIG = RequestsConfig(warmup_rollouts=300, delay_rollouts=300, memory_rollouts=2000)
LN_A, SHARE = 10.0, 0.1  # one false page per 30 days of 2-minute batches; a tenth of the budget
GROUPS, GROUP = 8, 8  # a batch


def scored(rollout: Rollout, trainer: list[float]) -> tuple[Rollout, Score]:
    return rollout, Score(request_id=rollout.request_id, views={"expected": np.array(trainer, np.float32)}, source="trainer")


GOOD = [scored(rollout, TRAINER[rollout.request_id]) for rollout in ROLLOUTS]
BAD = [scored(rollout, SWAPPED[rollout.request_id]) for rollout in ROLLOUTS]


def bootstrapped(rng: np.random.Generator, floor: str, sure: float = 1.0) -> tuple[Rollout, Score]:
    """A healthy rollout of 8 to 60 tokens drawn from a recorded one; `floor` makes its d heavier-tailed, `sure` shrinks p and d."""
    rollout, score = GOOD[rng.integers(len(GOOD))]
    pick = rng.integers(rollout.n_tokens, size=int(rng.integers(8, 60)))
    p = rollout.engine_logprobs_T[pick].astype(float)
    d = score.views["expected"][pick] - p
    d = d * {"recorded": lambda: 1.0, "tokens t(2)": lambda: np.abs(rng.standard_t(2, size=d.size)),
             "rollouts e^t(5)": lambda: math.exp(0.5 * rng.standard_t(5))}[floor]()
    p, d = p * sure, d * sure
    made = replace(rollout, completion_tokens_T=rollout.completion_tokens_T[pick], engine_logprobs_T=p, sampled_mask_T=np.ones(p.size, bool))
    return made, Score(request_id="r", views={"expected": np.minimum(p + d, 0.0)})


def watch(seed: int, batches: int, *, floor: str = "recorded", corrupted: float = 0.0, start: int = 0, sharpens: float = 0.0) -> list[float]:
    """ln M of these streams alone after each batch, with their share of the budget. `sharpens`: how fast prompts are learnt by heart."""
    rng, requests, names = np.random.default_rng(seed), Requests(CONFIG), streams(CONFIG)
    process, path = ShiryaevRoberts(), []
    process.add(len(names))
    for t in range(batches):
        total = dict.fromkeys(names, 0.0)
        for i in range(GROUPS * GROUP):
            odd = t >= start and rng.random() < corrupted
            sure = math.exp(-min(sharpens * t * rng.exponential(), 7.0)) if sharpens else 1.0
            rollout, score = BAD[rng.integers(len(BAD))] if odd else bootstrapped(rng, floor, sure)
            found = oddness(rollout, score, min_tokens=CONFIG.min_tokens)
            assert found is not None
            for name, gain in requests.weigh(found, base=True, group=(t, i // GROUP)).gains.items():
                total[name] += gain
        process.update(t, np.arange(len(names)), np.minimum([total[name] for name in names], LN_A / 2))
        path.append(float(np.logaddexp.reduce(process.log_sr)) + math.log(SHARE / len(names)))
    return path


@pytest.mark.statistical
@pytest.mark.parametrize("floor", ["recorded", "tokens t(2)", "rollouts e^t(5)"])
def test_a_healthy_floor_stays_far_from_the_threshold_once_learnt_however_heavy_its_tails(floor: str) -> None:
    assert max(watch(1, 80, floor=floor)) < LN_A / 2


@pytest.mark.statistical
def test_prompts_that_are_learnt_by_heart_one_after_another_are_no_corruption() -> None:
    """The floor of a sharpening policy falls thirty-fold in 50 batches, for some prompts long before others."""
    assert max(watch(1, 80, sharpens=0.07)) < LN_A / 2


@pytest.mark.statistical
def test_one_corrupted_rollout_in_a_thousand_is_found() -> None:
    start, delays = 30, []
    for seed in range(3):
        path = watch(seed, 105, corrupted=0.001, start=start)
        assert max(path[:start]) < LN_A
        delays.append(next((t - start + 1 for t, ln_m in enumerate(path) if ln_m >= LN_A), None))
    found = [delay for delay in delays if delay is not None]
    assert len(found) >= 2, delays


@pytest.mark.statistical
def test_the_probability_of_a_healthy_rollout_is_at_most_uniform() -> None:
    rng, normal = np.random.default_rng(5), Normal(CONFIG, 5000.0)
    draws = rng.standard_t(3, size=6000)
    found = []
    for value in draws:
        if normal.ready:
            found.append(normal.outlier(float(value)))
        normal.learn(float(value), 0)
    for level in (0.1, 0.01, 0.001):
        below, allowed = sum(p <= level for p in found), level * len(found)
        assert below <= allowed + 4 * math.sqrt(allowed) + 2, level


def test_nothing_is_bet_before_the_normal_is_known_and_one_rollout_is_bounded() -> None:
    rng, requests = np.random.default_rng(0), Requests(CONFIG)
    for i in range(CONFIG.warmup_rollouts + CONFIG.delay_rollouts):
        assert requests.judge(*bootstrapped(rng, "recorded")).gains == {}, i
    assert not requests.learning
    judged = requests.judge(*BAD[0])
    assert judged.probability is not None and judged.probability < 1e-4
    assert set(judged.gains) == set(streams(CONFIG))
    assert 3 < judged.gains[stream("outlier", 0.01)] < math.log(1 + 2.1e5 * 0.01)


def test_eight_odd_answers_to_one_prompt_count_as_one_witness() -> None:
    rng, requests = np.random.default_rng(0), Requests(CONFIG)
    for i in range(1000):
        requests.weigh(oddness(*bootstrapped(rng, "recorded"), min_tokens=1), base=True, group=(i,))
    odd, name = oddness(*BAD[0], min_tokens=1), stream("outlier", 0.01)
    alone = requests.weigh(odd, base=True, group=("alone",)).gains[name]
    together = sum(requests.weigh(odd, base=True, group=("same",)).gains[name] for _ in range(8))
    assert together == pytest.approx(alone, abs=0.01)


def test_what_moves_everybody_is_no_single_request() -> None:
    rng, requests = np.random.default_rng(3), Requests(CONFIG)
    gained = 0.0
    for i in range(2000):
        found = oddness(*bootstrapped(rng, "recorded"), min_tokens=1)
        if i >= 1200:
            found = replace(found, outlier=found.outlier + 2.0)  # the floor rose sevenfold for all
        gains = requests.weigh(found, base=True, group=(i,)).gains
        gained = gained + gains.get(stream("outlier", 0.01), 0.0) if i >= 1200 + 128 else 0.0
    assert gained < 0


def test_hinted_rollouts_are_compared_with_hinted_ones() -> None:
    rng, requests = np.random.default_rng(0), Requests(CONFIG)
    for _ in range(1000):
        requests.judge(*bootstrapped(rng, "recorded"))
    rollout, score = BAD[0]
    assert requests.judge(replace(rollout, base_coin=False), score).gains == {}


def test_a_new_environment_is_learnt_by_itself() -> None:
    rng, requests = np.random.default_rng(0), Requests(CONFIG)
    for _ in range(1000):
        rollout, score = bootstrapped(rng, "recorded")
        requests.judge(replace(rollout, labels={"env": "maths"}), score)
    other, score = BAD[0]
    assert requests.judge(replace(other, labels={"env": "code"}), score).gains == {}
    assert requests.judge(replace(other, labels={"env": "maths"}), score).gains[stream("outlier", 0.01)] > 3
    for i in range(100):
        requests.judge(replace(other, labels={"env": str(i)}), score)
    assert len(requests._normal) == len(requests._recent) == 32


def test_a_rollout_that_cannot_be_compared_is_left_out() -> None:
    rollout, score = GOOD[0]
    nothing = Score(request_id="r", views={"expected": np.full(rollout.n_tokens, np.nan, np.float32)})
    assert oddness(rollout, nothing, min_tokens=1) is None
    assert oddness(rollout, Score(request_id="r", views={"expected": np.zeros(1, np.float32)}), min_tokens=1) is None
    outside = score.views["expected"].copy()
    outside[:] = -np.inf
    found = oddness(rollout, Score(request_id="r", views={"expected": outside}), min_tokens=1)
    assert found is not None and np.isfinite(found.outlier) and found.outlier > 3


def test_what_was_learnt_survives_a_restart(tmp_path: Path) -> None:
    rng, whole = np.random.default_rng(5), Requests(CONFIG)
    for i in range(900):
        whole.weigh(oddness(*bootstrapped(rng, "recorded"), min_tokens=CONFIG.min_tokens), base=True, group=(i,))
    bank_state.save(Bank(DetectorsConfig(), batch_seconds=120), tmp_path, DetectorsConfig(), requests=whole.to_state())
    restored = Requests(CONFIG)
    assert restored.learning and bank_state.load_requests(tmp_path, restored) and not restored.learning
    for i in range(900, 960):
        found = oddness(*(BAD[i % len(BAD)] if i % 20 == 0 else bootstrapped(rng, "recorded")), min_tokens=CONFIG.min_tokens)
        assert restored.weigh(found, base=True, group=(i,)) == whole.weigh(found, base=True, group=(i,))
    assert restored.to_state() == whole.to_state()


@pytest.mark.parametrize("text", ["", "[]", '{"requests": 7}', '{"requests": [{"base": 1}]}'])
def test_a_state_that_cannot_be_read_means_learning_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / bank_state.NAME).write_text(text)
    assert not bank_state.load_requests(tmp_path, Requests(CONFIG))
