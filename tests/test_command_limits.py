"""`klaxon look` counts clipping by the run's own [signals], and says which limits it took."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from collector.config import SignalsConfig
from collector.records import Rollout, Score
from klaxon.cli import app
from klaxon.scripting.files import per_rollout

D = 0.1  # the trainer's logprob is .1 nats higher on every second token: w = 1.105


@pytest.fixture
def file(tmp_path: Path) -> Path:
    line = {"prompt_token_ids": [1, 2], "token_ids": [3] * 40, "logprobs": [-1.0] * 40, "trainer_logprobs": [-1.0, -1.0 + D] * 20}
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(line | {"request_id": f"r{n}"}) + "\n" for n in range(4)))
    return path


def said(*arguments: str) -> dict:
    result = CliRunner().invoke(app(["look"]), ["look", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


def test_look_takes_the_limits_of_the_config_and_names_them(file: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('[signals]\nalgorithm = "dapo"\neps_high = 0.05\n')
    default, own = said(str(file)), said(str(file), "--config", str(config))
    assert (default["signals"]["clip_rate"], own["signals"]["clip_rate"]) == (0.0, 0.5)
    assert default["limits"]["source"] is None and default["limits"]["algorithm"] == "grpo"
    assert own["limits"]["source"] == str(config) and own["limits"]["eps_high"] == 0.05
    page = CliRunner().invoke(app(["look"]), ["look", str(file), "--config", str(config)], env={"COLUMNS": "300"}).stdout
    assert "dapo, clipped below 0.8 and above 1.05" in page and str(config) in page.replace("\n", "")


def test_score_counts_by_the_limits_it_is_given() -> None:
    rollout = Rollout(request_id="r", prompt_tokens_P=np.array([1], np.int32), completion_tokens_T=np.zeros(4, np.int32),
                      engine_logprobs_T=np.full(4, -1.0, np.float32), sampled_mask_T=np.ones(4, bool))
    score = Score(request_id="r", views={"expected": np.full(4, -1.0 + D, np.float32)})
    rates = [per_rollout([rollout], [score], limits)[0]["clip_rate"] for limits in (None, SignalsConfig(eps_high=0.05).limits())]
    assert rates == [0.0, 1.0]


def test_a_config_that_is_missing_is_named(file: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app(["look"]), ["look", str(file), "--config", str(tmp_path / "no.toml")])
    assert "no.toml" in str(result.exception)
