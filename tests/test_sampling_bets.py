"""Bets keep their null under overload: what the base coin keeps of a tenfold load bets no better than everything would."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

_spec = importlib.util.spec_from_file_location("sampling", Path(__file__).parent.parent / "benchmarks/sampling.py")
sampling = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sampling)


@pytest.mark.statistical
def test_explanation_bets_of_what_overload_leaves_have_a_mean_e_value_of_at_most_1() -> None:
    found = sampling.explanation_bets(np.random.default_rng(20), sampling.scored_pool(), minutes=6)
    assert found["streams"] >= 8 and found["rollouts"] >= 40 and 0.03 < found["share_kept"] < 0.3
    assert found["largest_z_above_1"] < 4, "a union bound over the streams: 4 standard errors, 1 in 30,000 each"


@pytest.mark.statistical
def test_the_simulation_notices_reports_that_follow_an_explanation() -> None:
    pool = [(sampling.replace(rollout, engine_logprobs_T=score.views["raw"]), score) for rollout, score in sampling.scored_pool()]
    detectors = sampling.DetectorsConfig()
    e_values = [np.exp(gain) for rollout, score in pool for name, gain in sampling.rollout_gains(rollout, score, detectors).items()
                if name.startswith("explain:raw_logprobs")]
    assert np.mean(e_values) > 1.1
