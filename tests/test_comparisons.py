"""What `klaxon compare --json` says, kept beside a run: read for the page, in the words and units of its charts."""

from __future__ import annotations

import json
import math

import numpy as np
from typer.testing import CliRunner

from dashboard import now_numbers, trainer_names, training_charts
from klaxon.cli import app
from klaxon.comparisons import MOST_BYTES, comparisons


def logged(path, *, shift: float) -> str:
    rng = np.random.default_rng(5)
    lines = [{"step": step, "reward": 0.5 + shift + 0.01 * rng.normal(), "kl": float(np.exp(0.1 * rng.normal()))} for step in range(80)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)


def test_the_answer_of_the_command_is_what_the_page_draws(tmp_path):
    told = CliRunner().invoke(app(["compare"]), ["compare", logged(tmp_path / "v0.jsonl", shift=0.0), logged(tmp_path / "v1.jsonl", shift=-0.2), "--json"])
    (tmp_path / "compare-v1.json").write_text(told.stdout, encoding="utf-8")
    [report] = comparisons(tmp_path)
    assert report["a"] == ["v0.jsonl"] and report["b"] == ["v1.jsonl"] and "Different in reward" in report["verdict"] and report["notes"]
    rows = training_charts.compared(report).set_index("label")
    assert rows.loc["reward", "answer"] == "different" and rows.loc["reward", "high"] < -1 < 0
    assert set(rows["answer"]) <= set(training_charts.COMPARED) and rows["value"].between(-5, 5).all() and rows.loc["kl", "said"].startswith("× ")


def test_what_is_no_comparison_is_told_as_such_and_hides_no_other(tmp_path):
    for name, text in (("compare-a.json", "{"), ("compare-b.json", '{"alpha": 0.05}'), ("compare-c.json", " " * (MOST_BYTES + 1)), ("other.json", "{}")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    told = {one["file"]: one["problem"] for one in comparisons(tmp_path)}
    assert set(told) == {"compare-a.json", "compare-b.json", "compare-c.json"} and "is larger than" in told["compare-c.json"]
    assert "no report of klaxon compare --json" in told["compare-a.json"] and comparisons(tmp_path / "nowhere") == []


def test_a_metric_without_an_interval_has_no_place_in_the_picture_and_keeps_its_words():
    one = {"metric": "kl", "answer": "cannot tell", "words": "cannot tell: fewer than 20 steps in common", "difference": None, "low": None, "high": None, "margin": None, "ratio": None}
    [row] = training_charts.compared({"metrics": [one]}).to_dict("records")
    assert math.isnan(row["value"]) and row["words"].startswith("cannot tell") and row["said"] == "– (– to –)"


def test_every_metric_of_the_trainers_page_has_its_other_names_in_the_one_table():
    assert {watched.name for watched in training_charts.WATCHED} == set(trainer_names.OTHER_NAMES)
    others = [name for names in trainer_names.OTHER_NAMES.values() for name in names]
    assert len(others) == len(set(others)) and not set(others) & set(trainer_names.OTHER_NAMES)


def test_the_clip_rate_stands_beside_the_trainers_own_and_the_reference_runs_at_the_same_step():
    import pandas as pd

    from dashboard import charts
    from dashboard.client import Snapshot

    columns = ("mean_abs_d", "p50_abs_d", "p99_abs_d", "k3", "clip_rate", "gspo_clip_rate", "ln_m", "version_max")
    band = {"metrics": {"clip_rate": {"steps": [0.0, 10.0], "low": [0.0, 0.1], "center": [0.1, 0.2], "high": [0.2, 0.3]}}}
    trainer = pd.DataFrame({"name": "actor/pg_clipfrac", "step": [5, 10, 11], "at": [10.0, 20.0, 30.0], "value": [0.05, 0.06, 0.07]})
    shot = Snapshot(status={"now": 40.0}, incidents=[], events=[], weights=[], evidence=pd.DataFrame(), start=0.0, end=40.0, metrics={"clip_rate": trainer}, band=band,
                    series=pd.DataFrame({"closed_at": [30.0], "n_tokens": [5], **{name: [0.02] for name in columns}}))
    drawn = charts.clip(shot).rows
    middle = drawn[(drawn["row"] == "line") & (drawn["series"] == "reference runs")]
    assert middle["at"].tolist() == [10_000.0, 20_000.0] and middle["value"].round(6).tolist() == [0.15, 0.2]  # step 11 is not judged
    [clip] = [cell for cell in now_numbers.cells(shot) if cell[0] == "Clip rate"]
    assert clip[1:3] == ("2 %", "trainer's own 7 %, reference runs 20 %")
