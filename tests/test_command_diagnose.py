"""`klaxon score` and `klaxon diagnose`: the real scorer behind the command line, and what they say to bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from collector.errors import ConfigError, InputError, Unavailable
from klaxon.cli import app

ROOT = Path(__file__).parents[1]
RECORDING = ROOT / "klaxon" / "recordings" / "v0181_raw_t07.jsonl"
COMMANDS = ("score", "diagnose")


def run(command: str, *arguments: str | Path) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app([command]), [command, *map(str, arguments)])
    return result.exit_code, result.stdout, result.exception


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 64 tokens, as a checkpoint folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    shape = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def small_ids(tmp_path: Path) -> Path:
    """Rollouts the tiny model can read, sampled by nobody: their logprobs are made up."""
    rng = np.random.default_rng(0)
    rows = [{"request_id": f"r{i}", "prompt_token_ids": [1, 2, 3], "token_ids": rng.integers(0, 64, 12).tolist(),
             "logprobs": (-rng.random(12)).tolist(), "sampling": {"temperature": 1.0}} for i in range(8)]
    path = tmp_path / "small.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_of_another_vocabulary_names_the_request_and_the_token_id(command: str, tiny: Path) -> None:
    code, _, error = run(command, RECORDING, "--model", tiny)
    assert code != 0 and isinstance(error, InputError)
    assert "cmpl-" in str(error) and "9690" in str(error) and "ends at 63" in str(error)


@pytest.mark.parametrize("command", COMMANDS)
def test_one_rollout_of_another_vocabulary_is_left_out_and_counted(command: str, tiny: Path, small_ids: Path) -> None:
    bad = {"request_id": "odd", "prompt_token_ids": [1], "token_ids": [900], "logprobs": [-1.0], "sampling": {"temperature": 1.0}}
    small_ids.write_text(small_ids.read_text() + json.dumps(bad) + "\n")
    code, out, _ = run(command, small_ids, "--model", tiny, "--json")
    report = json.loads(out)
    assert code == 1
    assert len(report["left_out"]) == 1 and "odd" in report["left_out"][0] and "900" in report["left_out"][0]


def test_made_up_logprobs_are_a_mismatch_without_a_confident_cause(tiny: Path, small_ids: Path) -> None:
    code, out, _ = run("diagnose", small_ids, "--model", tiny, "--json")
    report = json.loads(out)
    assert code == 1 and report["verdict"] != "healthy" and report["confident"] is False


def test_the_trainers_own_prompt_ids_are_compared_exactly(tiny: Path, small_ids: Path, tmp_path: Path) -> None:
    trainer = tmp_path / "trainer.jsonl"
    rows = [json.loads(line) for line in small_ids.read_text().splitlines()]
    said = [{"request_id": row["request_id"], "prompt_token_ids": row["prompt_token_ids"][1:], "token_ids": row["token_ids"]} for row in rows]
    trainer.write_text("".join(json.dumps(row) + "\n" for row in said))
    code, out, _ = run("diagnose", small_ids, "--model", tiny, "--trainer", trainer, "--json")
    report = json.loads(out)
    assert (code, report["verdict"], report["confident"]) == (1, "prompt_mismatch", True)
    assert report["causes"][0]["parameters"]["requests"] == 8 and "prompt index 0" in report["causes"][0]["evidence"][1]


def test_the_temperature_may_be_declared_where_the_file_does_not_say(tiny: Path, small_ids: Path) -> None:
    silent = "".join(json.dumps({k: v for k, v in json.loads(line).items() if k != "sampling"}) + "\n" for line in small_ids.read_text().splitlines())
    small_ids.write_text(silent)
    code, _, error = run("score", small_ids, "--model", tiny)
    assert code != 0 and "temperature" in str(error)
    code, out, _ = run("score", small_ids, "--model", tiny, "--temperature", "1", "--json")
    assert json.loads(out)["tokens"] == 96


@pytest.mark.parametrize("command", COMMANDS)
def test_a_half_written_checkpoint_and_a_missing_folder_are_named(command: str, tiny: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.mkdir()
    for file in tiny.iterdir():
        content = file.read_bytes()
        (half / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
    for folder, says in ((half, "half-written"), (tmp_path / "absent", "no such folder")):
        code, _, error = run(command, RECORDING, "--model", folder)
        assert code != 0 and isinstance(error, Unavailable) and says in str(error)


def test_an_unknown_dtype_says_which_are_known(tiny: Path) -> None:
    _, _, error = run("diagnose", RECORDING, "--model", tiny, "--body-dtype", "int3")
    assert isinstance(error, ConfigError) and "bfloat16" in str(error)


@pytest.mark.engine
def test_raw_logprobs_of_the_real_engine_are_diagnosed_with_the_real_model(tmp_path: Path) -> None:
    from klaxon.demo.model import DEFAULT_FOLDER, prepare_model

    path = tmp_path / "raw.jsonl"
    path.write_text("".join(RECORDING.read_text().splitlines(keepends=True)[:16]))
    code, out, _ = run("diagnose", path, "--model", prepare_model(ROOT / DEFAULT_FOLDER, say=print), "--json")
    report = json.loads(out)
    assert (code, report["verdict"], report["confident"]) == (1, "raw_logprobs", True)
    assert {"cause", "residual_nats", "tokens", "evidence"} <= set(report["causes"][0])
    assert report["causes"][0]["residual_nats"] < 0.04 and 0.01 < report["floor_nats"] < 0.06
    assert "processed_logprobs" in report["fix"]
