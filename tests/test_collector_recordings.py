"""The shadow on recordings of real engines and the real model: their known truths, from klaxon/recordings/README.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector import signals
from collector.config import ShadowConfig
from collector.records import WeightVersion
from collector.shadow.floor import intrinsic_floor
from collector.shadow.model import model_shelf
from collector.shadow.scorer import ShadowScorer
from collector.sources.rollout_json import read_rollouts
from collector.weights.checkpoint import inspect
from klaxon.demo.model import DEFAULT_FOLDER, prepare_model

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[1]
FLOAT32 = ShadowConfig(body_dtype="float32")


@pytest.fixture(scope="module")
def weights() -> WeightVersion:
    return inspect(prepare_model(ROOT / DEFAULT_FOLDER, say=print), version="1")


@pytest.fixture(scope="module")
def shadow(weights: WeightVersion) -> ShadowScorer:
    return ShadowScorer(FLOAT32, model_shelf(FLOAT32, [weights]))


def recording(name: str, n: int = 12) -> list:
    return list(read_rollouts(ROOT / "klaxon" / "recordings" / f"{name}_t07.jsonl"))[:n]


def mismatch(shadow: ShadowScorer, name: str) -> dict[str, dict[str, float]]:
    rollouts = recording(name)
    scores = shadow.score(rollouts, version="1")
    return {view: signals.metrics(signals.total(
        item for rollout, score in zip(rollouts, scores, strict=True) for item in signals.slice_stats(rollout, score, view=view)))
        for view in ("expected", "raw")}


def test_a_float32_engine_and_a_float32_shadow_agree_to_a_ten_thousandth(shadow: ShadowScorer) -> None:
    got = mismatch(shadow, "v085f32")["expected"]
    assert got["mean_abs_d"] < 1e-4 and got["max_abs_d"] < 1e-3 and got["clip_rate"] == 0 and got["n_tokens"] > 500


def test_the_upgraded_engine_looks_broken_as_declared_and_healthy_as_raw(shadow: ShadowScorer) -> None:
    got = mismatch(shadow, "v0181_raw")
    assert got["expected"]["mean_abs_d"] == pytest.approx(0.22, abs=0.04)
    assert got["raw"]["mean_abs_d"] == pytest.approx(0.022, abs=0.006)
    assert got["expected"]["clip_rate"] > 0.35 and got["raw"]["clip_rate"] == 0


def test_the_fixed_engine_is_healthy_as_declared(shadow: ShadowScorer) -> None:
    got = mismatch(shadow, "v0181_processed")
    assert got["expected"]["mean_abs_d"] == pytest.approx(0.025, abs=0.006)
    assert got["raw"]["mean_abs_d"] > 0.15


def test_the_bfloat16_floor_of_this_model_is_a_few_hundredths_of_a_nat(weights: WeightVersion) -> None:
    floor = intrinsic_floor(recording("v085f32", 4), weights=weights, config=FLOAT32)
    assert floor.dtype == "bfloat16" and floor.tokens > 150
    assert 0.01 < floor.nats < 0.05
