"""`klaxon look`: real recordings in, plain words and exit codes out."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from klaxon.cli import app

RECORDINGS = Path(__file__).parent.parent / "klaxon" / "recordings"
FIXTURES = Path(__file__).parent / "fixtures" / "diagnosis"
HEALTHY = ("v0181_processed_t07", "v085_t07", "v085f32_t07")


def run(*arguments: str, text: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app(["look"]), ["look", *arguments], input=text)
    return result.exit_code, result.stdout, str(result.exception or "")


def look_json(path: Path, *more: str) -> dict:
    code, out, _ = run(str(path), "--json", *more)
    report = json.loads(out)
    assert report["exit_code"] == code
    return report


def rewritten(path: Path, out: Path, change) -> Path:
    lines = []
    for line in path.read_text().splitlines():
        rollout = json.loads(line)
        change(rollout)
        lines.append(json.dumps(rollout))
    out.write_text("\n".join(lines) + "\n")
    return out


def test_raw_logprobs_of_the_real_v1_engine_are_found_and_named() -> None:
    report = look_json(RECORDINGS / "v0181_raw_t07.jsonl")
    assert (report["verdict"], report["looks_like"], report["exit_code"]) == ("mismatch", "raw_logprobs", 1)
    assert report["self_bets"]["rollouts_to_alarm"] <= 8
    low, high = report["self_bets"]["top_one"]["if_raw"]
    assert low < report["self_bets"]["top_one"]["observed"] < high
    assert report["self_bets"]["lattice"][0]["report_temperature"] == 1.0


@pytest.mark.parametrize("name", HEALTHY)
def test_engines_that_report_what_they_sample_pass_and_the_blind_spots_are_named(name: str) -> None:
    report = look_json(RECORDINGS / f"{name}.jsonl")
    assert (report["verdict"], report["exit_code"], report["tier"]) == ("nothing_wrong_found", 0, 0)
    assert any("stale weights" in text for text in report["cannot_see"])


def test_a_hidden_temperature_is_read_off_the_bf16_lattice() -> None:
    report = look_json(FIXTURES / "temperature_08.jsonl")
    assert (report["looks_like"], report["exit_code"]) == ("temperature", 1)
    assert report["self_bets"]["lattice"][0]["report_temperature"] == 0.8


def test_text_report_says_what_tier_zero_cannot_see() -> None:
    code, out, _ = run(str(RECORDINGS / "v0181_processed_t07.jsonl"))
    assert code == 0
    assert "NOTHING WRONG FOUND" in out and "cannot see" in out and "stale weights" in out


def test_look_loads_no_torch_no_transformers_and_no_vllm() -> None:
    program = ("import sys; sys.argv = ['klaxon', 'look', sys.argv[1]]\n"
               "from klaxon.cli import main\n"
               "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 1, end.code\n"
               "loaded = {'torch', 'transformers', 'vllm'} & set(sys.modules)\nassert not loaded, loaded\n")
    subprocess.run([sys.executable, "-c", program, str(RECORDINGS / "v0181_raw_t07.jsonl")], check=True, capture_output=True)


def test_standard_input_and_gzip_give_the_same_numbers(tmp_path: Path) -> None:
    source = RECORDINGS / "v085f32_t07.jsonl"
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    _, piped, _ = run("-", "--json", text=source.read_text())
    assert look_json(packed)["self_bets"] == look_json(source)["self_bets"] == json.loads(piped)["self_bets"]


def test_a_truncated_line_is_refused_with_its_number_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_bytes((RECORDINGS / "v0181_raw_t07.jsonl").read_bytes()[:60_000])
    report = look_json(path)
    assert report["refused"]["count"] == 1 and "cut.jsonl:" in report["refused"]["first"][0]
    assert report["rollouts"] > 5 and report["exit_code"] == 1
    assert look_json(path, "--strict")["exit_code"] == 2


@pytest.mark.parametrize(("content", "says"), [
    (b"", "is empty"), (b"hello\n", "not JSON"), (bytes(range(128, 256)), "cannot be read as text"), (b"[1]\n", "a JSON object is expected"),
    (b'{"prompt_token_ids": [1], "token_ids": [2], "logprobs": [3.5]}\n', "logits mode"),
    (b'{"prompt_token_ids": [1], "token_ids": [2, 3], "logprobs": [-0.5]}\n', "length mismatch"),
])
def test_a_file_with_nothing_usable_ends_in_one_clear_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    code, _, error = run(str(path))
    assert code != 0 and says in error and "\n" not in error


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_missing_file_and_a_folder_are_named(tmp_path: Path, name: str) -> None:
    code, _, error = run(str(tmp_path / name))
    assert code != 0 and str(tmp_path) in error


def test_non_finite_logprobs_are_a_hard_fact_with_their_count(tmp_path: Path) -> None:
    def spoil(rollout: dict) -> None:
        rollout["logprobs"][0] = None

    report = look_json(rewritten(RECORDINGS / "v085f32_t07.jsonl", tmp_path / "nan.jsonl", spoil))
    assert report["facts"] == ["nonfinite_logprobs"] and report["looks_like"] == "non_finite" and report["exit_code"] == 1
    assert any("32 sampled tokens" in finding["text"] for finding in report["findings"])


def test_without_top_logprobs_nothing_is_tested_and_the_report_says_so(tmp_path: Path) -> None:
    report = look_json(rewritten(RECORDINGS / "v085f32_t07.jsonl", tmp_path / "bare.jsonl", lambda rollout: rollout.pop("top_logprobs")))
    assert report["verdict"] == "untested" and report["exit_code"] == 0


def test_raw_logprobs_that_the_trainer_expects_are_not_accused(tmp_path: Path) -> None:
    path = rewritten(RECORDINGS / "v0181_raw_t07.jsonl", tmp_path / "asked.jsonl",
                     lambda rollout: rollout.update(expected_logprobs_mode="raw_logprobs"))
    assert look_json(path)["exit_code"] == 0


def test_an_engine_that_admits_another_temperature_is_believed(tmp_path: Path) -> None:
    path = rewritten(RECORDINGS / "v085f32_t07.jsonl", tmp_path / "hot.jsonl",
                     lambda rollout: rollout.update(engine_sampling={"temperature": 0.9}))
    report = look_json(path)
    assert report["looks_like"] == "temperature" and report["exit_code"] == 1


def test_trainer_logprobs_raise_the_tier_and_a_shift_is_a_mismatch(tmp_path: Path) -> None:
    """The trainer's side here is the float32 engine's own report: equal, then shifted by a top-p that keeps 92 %."""
    def agree(rollout: dict) -> None:
        rollout["trainer_logprobs"] = rollout["logprobs"]

    def shift(rollout: dict) -> None:
        rollout["trainer_logprobs"] = [value - 0.08 for value in rollout["logprobs"]]

    fine = look_json(rewritten(RECORDINGS / "v085f32_t07.jsonl", tmp_path / "fine.jsonl", agree))
    bad = look_json(rewritten(RECORDINGS / "v085f32_t07.jsonl", tmp_path / "bad.jsonl", shift))
    assert (fine["tier"], fine["exit_code"], fine["signals"]["mean_abs_d"]) == (1, 0, 0.0)
    assert bad["exit_code"] == 1 and bad["signals"]["mean_d"] == pytest.approx(-0.08, abs=1e-6)
