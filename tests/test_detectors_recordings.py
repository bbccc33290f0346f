"""Self-bets on recordings of real engines, one rollout a batch."""

from pathlib import Path

import pytest

from collector.records import BatchStats, Rollout
from collector.sources.rollout_json import read_rollouts
from detectors.config import DetectorsConfig
from detectors.evaluate import Run, run
from detectors.gains import rollout_gains
from detectors.streams import cause_of

RECORDINGS = Path(__file__).parents[1] / "klaxon" / "recordings"
CONFIG = DetectorsConfig()


def watch(name: str) -> Run:
    rollouts = list(read_rollouts(RECORDINGS / f"{name}.jsonl"))
    assert len(rollouts) == 32
    batches = []
    for t, rollout in enumerate(rollouts):
        assert isinstance(rollout, Rollout)
        gains = rollout_gains(rollout, None, CONFIG)
        batches.append(BatchStats(t=t, opened_at=t, closed_at=t + 1, gains=gains, counts={"seen": 1}))
    return run(batches, CONFIG, batch_seconds=120)


def test_raw_logprobs_of_an_upgraded_engine_page_within_a_few_rollouts() -> None:
    watched = watch("v0181_raw_t07")
    assert watched.alarm_at is not None and watched.alarm_at <= 8
    (page,) = watched.drifts
    assert page.change_t[0] == 0
    assert cause_of(page.stream) == "raw_logprobs"
    assert max(watched.ln_m) > 50


@pytest.mark.parametrize("name", ["v0181_processed_t07", "v085_t07", "v085f32_t07"])
def test_engines_whose_reports_match_their_sampler_stay_silent(name: str) -> None:
    watched = watch(name)
    assert watched.drifts == ()
    assert max(watched.ln_m) < 3
