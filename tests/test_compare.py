"""`klaxon compare`: honest about autocorrelated noise, about seeds, and about what it cannot tell."""

import json
import math

import numpy as np
import pytest
from scipy import signal, stats
from typer.testing import CliRunner

from collector.sources.metrics.history import Series
from detectors.compare import compare
from klaxon.cli import app

ALPHA, MARGIN = 0.05, {"": 0.05}


def ar(rng: np.random.Generator, steps: int, phi: float) -> np.ndarray:
    """AR(1) noise of standard deviation 1."""
    return signal.lfilter([math.sqrt(1 - phi**2)], [1, -phi], rng.normal(size=steps + 200))[200:]


def curve(rng: np.random.Generator, steps: int, phi: float, shift: float = 0.0) -> dict[str, Series]:
    at = np.arange(steps)
    return {"reward": Series(steps=at, values=0.3 + 0.4 * (1 - np.exp(-at / 80)) + 0.05 * ar(rng, steps, phi) + shift)}


def answers(steps: int, phi: float, *, shift: float = 0.0, pairs: int = 300) -> list[str]:
    found = []
    for seed in range(pairs):
        rng = np.random.default_rng(seed)
        a, b = curve(rng, steps, phi), curve(rng, steps, phi, shift)
        found.append(compare([a], [b], names=["reward"], alpha=ALPHA, margin=MARGIN)[0].answer)
    return found


@pytest.mark.statistical
@pytest.mark.parametrize(("steps", "phi"), [(60, 0.0), (60, 0.5), (200, 0.5), (200, 0.8), (200, 0.95), (600, 0.9)])
def test_pairs_that_differ_by_noise_alone_are_called_different_no_more_often_than_stated(steps: int, phi: float) -> None:
    false = answers(steps, phi).count("different")
    assert stats.binomtest(false, 300, ALPHA).proportion_ci(0.99).low <= ALPHA, false


@pytest.mark.statistical
def test_a_shift_as_large_as_the_noise_is_found_and_small_noise_is_called_the_same() -> None:
    assert answers(600, 0.5, shift=0.05, pairs=60).count("different") >= 57
    assert answers(200, 0.8, shift=0.05, pairs=60).count("different") >= 25
    assert answers(600, 0.0, pairs=60).count("same") >= 57


def test_what_cannot_be_told_says_how_much_more_is_needed() -> None:
    rng = np.random.default_rng(1)
    (slow,) = compare([curve(rng, 60, 0.97)], [curve(rng, 60, 0.97)], names=["reward"], margin=MARGIN)
    assert slow.answer == "cannot tell" and slow.times_more > 2 and "slowly" in slow.why
    (short,) = compare([curve(rng, 10, 0.0)], [curve(rng, 10, 0.0)], names=["reward"], margin=MARGIN)
    assert short.answer == "cannot tell" and "fewer than 20 steps" in short.why
    (absent,) = compare([curve(rng, 60, 0.0)], [{}], names=["reward"], margin=MARGIN)
    assert "not every run logs it" in absent.why


@pytest.mark.statistical
def test_seeds_that_differ_are_no_difference_between_two_sides_of_several_runs() -> None:
    false = found = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        runs = [curve(rng, 100, 0.5, shift=0.1 * rng.normal()) for _ in range(8)]
        false += compare(runs[:4], runs[4:], names=["reward"], margin=MARGIN)[0].answer == "different"
        far = [curve(rng, 100, 0.5, shift=0.5 + 0.1 * rng.normal()) for _ in range(4)]
        found += compare(runs[:4], far, names=["reward"], margin=MARGIN)[0].answer == "different"
    assert stats.binomtest(false, 150, ALPHA).proportion_ci(0.99).low <= ALPHA, false
    assert found >= 130


def test_one_run_against_several_is_judged_by_how_much_those_differ() -> None:
    rng = np.random.default_rng(2)
    runs = [curve(rng, 100, 0.0, shift=0.1 * i) for i in range(5)]
    near, far = curve(rng, 100, 0.0, shift=0.25), curve(rng, 100, 0.0, shift=2.0)
    assert compare(runs, [near], names=["reward"], margin=MARGIN)[0].answer == "cannot tell"
    assert compare(runs, [far], names=["reward"], margin=MARGIN)[0].answer == "different"


def write(path, rng, *, factor: float = 1.0, steps: int = 300) -> str:
    with path.open("w") as stream:
        for step in range(steps):
            row = {"step": step, "rl/kl_new_old": factor * 1e-3 * math.exp(0.1 * rng.normal()), "rl/reward": 0.5 + 0.02 * rng.normal(), "other": 1}
            stream.write(json.dumps(row) + "\n")
        stream.write("nonsense\n")
    return str(path)


def test_the_command_answers_the_migration_question_in_plain_words(tmp_path) -> None:
    rng, runner, cli = np.random.default_rng(0), CliRunner(env={"COLUMNS": "200"}), app(["compare"])
    v0, v1 = write(tmp_path / "v0.jsonl", rng), write(tmp_path / "v1.jsonl", rng, factor=3.0)
    done = runner.invoke(cli, ["compare", v0, v1, "--json"])
    found = json.loads(done.stdout)
    rows = {row["metric"]: row for row in found["metrics"]}
    assert done.exit_code == 1 and found["verdict"] == "Different in kl." and set(rows) == {"kl", "reward"}
    assert rows["kl"]["ratio"][1] < 3.0 < rows["kl"]["ratio"][2] and rows["reward"]["answer"] == "same"
    assert "seeds are unknown" in found["notes"][0] and "1 lines refused" in found["notes"][1]
    shown = runner.invoke(cli, ["compare", v0, v1]).stdout
    assert "different: the second is higher" in shown and "same: any difference" in shown
    again = runner.invoke(cli, ["compare", v0, write(tmp_path / "v0b.jsonl", rng), "--metric", "reward", "--margin", "reward=5%"])
    assert again.exit_code == 0 and "The same within noise in all 1 metrics." in again.stdout


@pytest.mark.parametrize(("arguments", "words"), [
    (["nowhere.jsonl", "nowhere2.jsonl"], "no such file or folder"), (["A", "A"], "named twice"), (["A", "B", "--margin", "x"], "--margin 'x'"),
    (["A", "B", "--metric", "none"], "no run logs none"), (["A", "."], "name the file itself"), (["A", "B", "--framework", "x"], "docs/trainer-metrics.md")])
def test_a_users_mistake_is_one_clear_line(tmp_path, monkeypatch, arguments, words) -> None:
    from collector.errors import KlaxonError

    monkeypatch.chdir(tmp_path)
    for name in ("A", "B"):
        write(tmp_path / name, np.random.default_rng(0), steps=30)
    with pytest.raises(KlaxonError, match=words):
        CliRunner().invoke(app(["compare"]), ["compare", *arguments], catch_exceptions=False)
