"""`klaxon detect`: one line out for every line in, bad lines named and counted, alarms with slice and date."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from klaxon.cli import app
from klaxon.detecting import NO_EVIDENCE, Detecting, parse_cadence_seconds
from tests.simulate.streams import FAULTS, NULLS, Simulation, rows

SIMULATION = Simulation(family=NULLS["ar1"], runs=1, seed=8, replicas=3, positions=2)
GOOD = list(rows(replace(SIMULATION, fault=replace(FAULTS["replica x2"], replica=1), start=230), 260))


def written(path: Path, lines: list) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def run(*arguments: str, text: str | None = None) -> tuple[int, list[dict], str]:
    result = CliRunner().invoke(app(["detect"]), ["detect", *arguments], input=text)
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def test_a_sick_replica_is_named_with_feature_and_first_changed_batch(tmp_path: Path) -> None:
    code, answers, told = run(written(tmp_path / "batches.jsonl", GOOD))
    assert code == 1 and len(answers) == len(GOOD)
    first = next(answer for answer in answers if answer["alarm"])
    assert 230 <= first["t"] <= 240 and first["slice"] == {"replica": 1, "pos": None} and abs(first["started_at"] - 230) <= 2
    assert first["score"] >= np.log(21_600) and answers[50]["score"] == NO_EVIDENCE
    assert all(answer["alarm"] for answer in answers[first["t"]:]), "it latches"
    assert "alarm at t" in told


def test_without_the_latch_the_alarm_follows_the_evidence() -> None:
    watching = Detecting("1 per 30 days", cadence_seconds=None, latch=False)
    back = list(rows(SIMULATION, 340))[len(GOOD):]
    answers = [watching.take(json.dumps(row), where="x")[0] for row in [*GOOD, *back]]
    assert any(answer["alarm"] for answer in answers[230:]) and not any(answer["alarm"] for answer in answers[:230])
    assert all(answer["alarm"] == (answer["score"] >= watching.ln_a) for answer in answers[230:])


BAD = [
    ("nonsense", "line"), ("[1]", "line"), ("", None),
    ({"minute": 1, "slices": []}, "t"), ({"t": 5.5, "minute": 1, "slices": []}, "t"), ({"t": 500, "minute": 1}, "slices"),
    ({"t": 500, "minute": 1, "slices": [{"replica": 0, "pos": 0, "n_tok": -3, "n_seq": 1, "hist_pos": [0] * 12, "hist_neg": [0] * 12}]}, "slices[0].n_tok"),
    ({"t": 500, "minute": 1, "slices": [{"replica": 0, "pos": 0, "n_tok": 3.5, "n_seq": 1, "hist_pos": [0] * 12, "hist_neg": [0] * 12}]}, "slices[0].n_tok"),
    ({"t": 500, "minute": 1, "slices": [{"replica": 0, "pos": 0, "n_tok": 3, "n_seq": -1, "hist_pos": [0] * 12, "hist_neg": [0] * 12}]}, "slices[0].n_seq"),
    ({"t": 500, "minute": 1, "slices": [{"replica": 0, "pos": 0, "n_tok": 3, "hist_pos": [0] * 11, "hist_neg": [0] * 12}]}, "slices[0].hist_pos"),
    ({"t": 500, "minute": 1, "slices": [{"replica": 0, "pos": 0, "n_tok": 3, "hist_pos": [0.5] * 12, "hist_neg": [0] * 12}]}, "slices[0].hist_pos[0]"),
    ({"t": 500, "minute": float("nan"), "slices": []}, "minute"), ({"t": 500, "slices": []}, "minute"),
    ({"t": 0, "minute": 0, "slices": []}, "t"), ({"t": 500, "minute": 1, "stream": "kl", "value": float("inf")}, "value"),
    ({"t": 500, "minute": 1, "stream": "kl"}, "value"),
]


@pytest.mark.parametrize(("line", "field"), BAD)
def test_a_bad_line_is_refused_by_field_and_changes_nothing(line: object, field: str | None, tmp_path: Path) -> None:
    plain = run(written(tmp_path / "plain.jsonl", GOOD[:5]))[1]
    code, answers, told = run(written(tmp_path / "bad.jsonl", [*GOOD[:3], line, *GOOD[3:5]]))
    assert code == 0
    if field is None:
        assert answers == plain
        return
    assert [answer for answer in answers if "error" not in answer] == plain
    assert f"line 4: {field}: " in answers[3]["error"] and {k: v for k, v in answers[3].items() if k != "error"} == plain[2]
    assert "1 refused" in told and f"line 4: {field}: " in told


def test_a_file_without_a_usable_line_is_exit_two(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "klaxon", "detect", written(tmp_path / "x.jsonl", ["no", "{}"])], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "no usable line" in done.stderr and "Traceback" not in done.stderr


def test_fractional_sequences_and_missing_slices_are_fine(tmp_path: Path) -> None:
    lines = [dict(row, slices=[dict(s, n_seq=s["n_seq"] / 3, n_tok=float(s["n_tok"])) for s in row["slices"][: 1 + row["t"] % 6]]) for row in GOOD[:30]]
    code, answers, told = run(written(tmp_path / "x.jsonl", lines))
    assert code == 0 and len(answers) == 30 and "0 refused" in told


def test_plain_series_alarm_by_name_and_need_a_cadence_without_minutes() -> None:
    rng = np.random.default_rng(0)
    lines = [{"t": t, "stream": name, "value": float(scale * np.exp(0.2 * rng.normal() + (1.2 if name == "rl/kl" and t >= 230 else 0)))}
             for t in range(250) for name, scale in (("rl/kl", 1e-3), ("loss", 2.0))]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    assert "name --cadence" in run("-", text=text)[2]
    code, answers, _ = run("-", "--cadence", "2 min", text=text)
    first = next(answer for answer in answers if answer["alarm"])
    assert code == 1 and len(answers) == len(lines)
    assert 230 <= first["t"] <= 240 and first["feature"] == "rl/kl" and abs(first["started_at"] - 230) <= 2


def test_each_answer_comes_before_the_next_line_is_written() -> None:
    with subprocess.Popen([sys.executable, "-m", "klaxon", "detect"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdin and child.stdout
        for row in GOOD[:3]:
            child.stdin.write(json.dumps(row) + "\n")
            child.stdin.flush()
            assert json.loads(child.stdout.readline())["t"] == row["t"]
        child.stdin.close()
        assert child.wait(timeout=60) == 0


def test_the_summary_is_json_when_asked(tmp_path: Path) -> None:
    _, _, told = run(written(tmp_path / "x.jsonl", GOOD[:4]), "--json", "--false-alarms", "1 per 7 days")
    found = json.loads(told.splitlines()[-1])
    assert found["lines"] == 4 and found["learning"] is True and found["ln_a"] == pytest.approx(np.log(7 * 720))


def test_cadences_are_read_in_words() -> None:
    assert [parse_cadence_seconds(text) for text in ("120", "2 min", "90s", "1 hour", "0.5 minutes")] == [120, 120, 90, 3600, 30]


def test_a_backtest_reads_batch_lines_too(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    lines = written(tmp_path / "batches.jsonl", [*GOOD, {"t": 1, "minute": 2, "slices": []}])
    result = CliRunner().invoke(app(["backtest"]), ["backtest", lines, "--config", str(tmp_path / "config.toml"), "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == 1 and [page["slice"] for page in found["pages"]] == [{"replica": "1"}]
    assert len(found["refused"]) == 1 and found["batches"] == len(GOOD)
