"""`klaxon plan`: the arithmetic by hand, the impossible called impossible, the delays as the real bank has them."""

import json
import math
import subprocess
import sys

import pytest

from collector.errors import ConfigError
from collector.records import BatchStats
from detectors.bank import Bank
from detectors.config import DetectorsConfig
from detectors.streams import Weights
from klaxon import planning, planning_faults
from klaxon.checks.settings import coverage as _coverage
from klaxon.commands.plan import work_out
from klaxon.config import parse_config
from klaxon.planning import Run
from klaxon.planning_faults import batches, delay, typical


R32 = Run(params=32e9, gpu="H200", replicas=64, hidden=5120)


def test_the_cost_of_a_token_by_hand():
    """32B dense, bf16, H200 at 40 % of 989 TFLOP/s and 70 % of 4.8 TB/s; one pass, prompts of 500 tokens shared by 8 × 2000."""
    one = planning.replace(R32, versions_held=1)
    body = 64e9 / 395.6e12  # 161.8 µs a token; reading 64 GB once per 4096 tokens at 3.36 TB/s takes 4.65 µs, so compute decides
    head = 2 * 152_000 * 5120 / 395.6e12  # 3.9 µs
    views = 7 * 4 * 152_000 * 4 / 3.36e12  # 5.1 µs
    assert planning.seconds_per_token(one) == pytest.approx(body * (1 + 500 / 16_000) + head + views, rel=1e-12) == pytest.approx(175.86e-6, rel=1e-3)
    four = planning.seconds_per_token(planning.replace(R32, versions_held=3))
    assert four == pytest.approx(4 * (body * (1 + 1 / 32) + head) + 16 / 7 * views, rel=1e-12)


def test_loading_decides_the_stride_and_coverage_follows_by_hand():
    """64 GB at 2 GB/s are 32 s; a quarter of 60 s are 15 s, so every 3rd version; 32 of 180 s go into loading."""
    can = planning.capacity(planning.replace(R32, versions_held=1))
    assert (can.every, can.load_seconds) == (3, 32.0) and can.loading_share == pytest.approx(32 / 180)
    assert can.tokens_per_second == pytest.approx((1 - 32 / 180) / 175.86e-6, rel=1e-3)
    assert can.coverage == pytest.approx(can.tokens_per_second / 128_000)
    idle = planning.capacity(planning.replace(R32, versions_held=1, replicas=1, tokens_per_second=10))
    assert idle.coverage == pytest.approx(1 / 3), "the stride bounds coverage however idle the GPU"


def test_memory_by_hand():
    """64 GB a version; of 141 · 0.92 = 129.7 GB one fits, not two."""
    need = planning.memory(R32)
    assert need.version == 64 and need.usable == pytest.approx(129.72) and need.versions == 1
    assert need.head == pytest.approx(5 * 0.537)  # half a GB of logits and the views made of them
    assert planning.gpus_needed(R32) == 2 and planning.smallest_gpu(R32) == "B200"
    assert planning.memory(planning.replace(R32, params=8e9, hidden=4096)).versions == 7


def test_disk_by_hand():
    """720 batches a day; 64 replicas × 4 slices × 590 bytes; a rollout of 2000 tokens is 68 bytes; 30 kB a batch."""
    disk = planning.disk_gb_a_day(R32, 2000.0)
    assert disk == pytest.approx({"slices": 720 * 256 * 590e-9, "rollouts": 86_400 * 68e-9, "batches": 720 * 30e-6})


def test_a_mixture_of_experts_that_does_not_fit_is_called_impossible_and_what_would_do():
    found = work_out(Run(params=235e9, active_params=22e9, gpu="H200", replicas=8))
    assert not found["fits"] and found["coverage"] == 0 and found["verdict"].startswith("Impossible on one H200: a version of 235B bf16 is 470 GB")
    assert any("layers split over 8 H200s" in line for line in found["instead"]) and any("tier 1" in line for line in found["instead"])
    by = {row["fault"]: row for row in found["faults"]}
    assert by["raw logprobs"]["by"].startswith("self_bet") and by["truncation"]["batches"] is None, "tier 0 alone is left"


def test_with_one_version_in_memory_nothing_bets_on_old_weights():
    found = work_out(R32)
    assert found["fits"] and found["passes"] == 1 and any("versions_held = 1" in line for line in found["instead"])
    assert all(row["by"] != "explain:stale_weights:0.8" for row in found["faults"])
    held = work_out(Run(params=8e9, gpu="H200", replicas=8))
    assert any(row["by"].startswith("explain:stale_weights") for row in held["faults"]) and held["run"]["versions_held"] == 5


def test_the_batches_by_hand():
    """A = 21,600, ln A = 9.98. A sixth of .3 as weight: ln 20 = 3.0 more. 2 nats a batch: 12.98 / 2 → 7; half of it counts at most: 2."""
    ln_a = math.log(21_600)
    assert batches(2.0, weight=0.05, ln_a=ln_a) == 7 and batches(1e6, weight=0.05, ln_a=ln_a) == 2


def test_the_self_bet_of_the_plan_is_the_documented_one():
    """Reported .5, drawn at .62: .3 · .62 − ln(1 + .5 · (e^.3 − 1)) = .0249 nats a token; .6: .6 · .62 − .3443 = .0277."""
    fault = typical(1)[0]
    found = delay(fault, scored=0.0, seen=0.1, tokens=100, batch_seconds=120, update_seconds=60, config=DetectorsConfig())
    assert found.stream == "self_bet:+0.6" and found.nats_a_batch == pytest.approx(10 * (0.6 * 0.62 - math.log(1 + 0.5 * math.expm1(0.6))))
    assert found.batches == math.ceil((math.log(21_600) + math.log(30)) / found.nats_a_batch) == 49


def test_the_bet_of_the_plan_by_hand():
    """Stale weights .204 → .038 nats: apart √(.204² − .038²) = .2004; g = (.166 − .005) / .2004 = .8033; ln(1 + .8 g) = .4966, for each of the 200 nats."""
    fault = next(one for one in typical(1) if one.name == "stale weights")
    found = planning_faults._bets(fault, 2.0, 1000, DetectorsConfig())
    assert found["explain:stale_weights:0.8"] == pytest.approx(2 * 200 * 0.4966, rel=2e-3)


@pytest.mark.parametrize("gain", [0.7, 1.9, 3.0, 50.0])
def test_the_real_bank_alarms_when_the_plan_says(gain):
    """Constant gains into the bank itself; other streams and the sum over start times may only make it a batch earlier."""
    config = DetectorsConfig()
    bank, stream = Bank(config, batch_seconds=120), "explain:stale_weights:0.8"
    for t in range(60):
        bank.update(BatchStats(t=t, opened_at=0.0, closed_at=0.0, gains={stream: gain}, counts={"seen": 1}))
        if bank.firing:
            break
    expected = batches(gain, weight=Weights(config).birth(stream), ln_a=bank.ln_a)
    assert expected - 1 <= t + 1 <= expected


def test_what_statistics_cannot_find_is_said():
    rows = {one.name: delay(one, scored=50, seen=500, tokens=2000, batch_seconds=120, update_seconds=60, config=DetectorsConfig()) for one in typical(64)}
    assert rows["stale weights, small"].stream.startswith("battery"), "explanations do not bet on differences below five dead bands"
    assert rows["raw logprobs, 1 of 64 replicas"].batches > 60, "diluted 64 times it is slow to show in the whole fleet"
    assert rows["weights never arrive"].batches == 10 and rows["non-finite or missing logprobs"].batches == 1


@pytest.mark.parametrize(("value", "text"), [(1.0, "100 %"), (0.32, "32 %"), (0.0123, "1.2 %"), (0.0092, "0.9 %"), (4e-5, "0.004 %"), (0.0, "0 %")])
def test_shares_read_well(value, text):
    assert planning.share(value) == text


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "klaxon", "plan", *arguments], capture_output=True, text=True, timeout=60)


def test_the_command_prints_a_sentence_or_json_and_its_exit_code_says_whether_it_fits():
    shown = run("--params", "32e9", "--replicas", "64", "--gpu", "h200")
    assert shown.returncode == 0 and shown.stdout.startswith("One H200 scores ") and "Assumes 40%" in shown.stdout
    data = run("--params", "235e9", "--active-params", "22e9", "--json")
    assert data.returncode == 1 and json.loads(data.stdout)["fits"] is False


@pytest.mark.parametrize(("arguments", "reason"), [(("--params", "1e9", "--gpu", "TPU"), "--gpu 'TPU' is none of A100-40"),
                                                   (("--params", "1e9", "--dtype", "fp8"), "it is the TRAINER's dtype"),
                                                   (("--params", "0"), "--params must be above 0"),
                                                   (("--params", "1e9", "--active-params", "2e9"), "more than --params")])
def test_a_wrong_option_is_one_clear_line(arguments, reason):
    ended = run(*arguments)
    assert ended.returncode == 2 and reason in ended.stderr and "Traceback" not in ended.stderr
    assert ConfigError.__name__ not in ended.stderr


def test_check_says_what_the_budget_allows_of_what_the_engine_makes():
    """120,000 tokens in 4 minutes are 30,000 a minute; a budget of 3,000 allows a tenth."""
    config = parse_config({"sampler": {"tokens_per_minute": 3000}, "weights": {"every": 4}}, where="test")
    status = {"now": 1240.0, "started_at": 1000.0, "counts": {"tokens_seen": 120_000, "skipped_by_stride": 31}, "scorer": {"coverage": 0.052}}
    (finding,) = _coverage(config, status)
    assert finding.text == ("5.2 % of 120,000 tokens scored; the engine makes 30,000 a minute, [sampler] tokens_per_minute = 3,000 allows 10 %, "
                            "[weights] every = 4 skipped 31 rollouts")
    assert list(_coverage(config, None)) == [] == list(_coverage(config, {"counts": {}}))
