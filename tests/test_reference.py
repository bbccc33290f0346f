"""Reference bands: learnt across runs, left only by what leaves them, in the budget of every other alarm."""

import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import signal, stats
from typer.testing import CliRunner

from collector.errors import ConfigError, InputError, KlaxonError
from collector.sources.metrics.history import Series, kind_of, read_history
from collector.store import Store
from detectors import bounded, departure, reference
from detectors.esr import ShiryaevRoberts
from klaxon.cli import app
from klaxon.checks import settings
from klaxon.config import Config
from klaxon.run_files import read_band
from klaxon.trainer_side import TrainerSide


def ar(rng: np.random.Generator, steps: int, phi: float) -> np.ndarray:
    """AR(1) noise of standard deviation 1."""
    return signal.lfilter([math.sqrt(1 - phi**2)], [1, -phi], rng.normal(size=steps + 300))[300:]


def run(rng: np.random.Generator, *, phi: float = 0.6, steps: int = 200, fault: float = 0.0, start: int = 100) -> dict[str, Series]:
    """A learning curve with a seed's own level (.03), slow wander (.01), fast noise (.02), and perhaps a fault from `start` on."""
    at = np.arange(steps)
    level = 0.3 + 0.4 * (1 - np.exp(-at / 80)) + 0.03 * rng.normal() + 0.01 * ar(rng, steps, 0.97)
    values = level + 0.02 * ar(rng, steps, phi) + fault * (at >= start)
    return {"reward": Series(steps=at, values=values), "kl": Series(steps=at, values=np.exp(-6 + values))}


def band(rng: np.random.Generator, runs: int, **options) -> reference.Band:
    return reference.learn({f"r{i}": run(rng, **options) for i in range(runs)}, names=["reward", "kl"])


@pytest.mark.statistical
@pytest.mark.parametrize("phi", [0.0, 0.9])
def test_a_run_of_the_same_kind_stays_inside_and_one_that_falls_is_found(phi: float) -> None:
    false, found, since = 0, 0, []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        learnt = band(rng, 5, phi=phi)
        false += any(verdict.left for verdict in departure.check(learnt, run(rng, phi=phi)))
        left = [verdict for verdict in departure.check(learnt, run(rng, phi=phi, fault=-0.4)) if verdict.left]
        found += bool(left)
        since += [verdict.since_step for verdict in left]
    assert stats.binomtest(false, 15, 0.01 + 2 * 0.01).proportion_ci(0.99).low <= 0.03, false
    assert found >= 13 and 98 <= np.median(since) <= 106
    assert {verdict.side for verdict in left} == {"below"}


@pytest.mark.statistical
def test_at_the_very_edge_the_live_evidence_keeps_the_budget() -> None:
    """The worst healthy run: its level lies on the edge all the time."""
    ln_a, alarms, watched = math.log(100.0), 0, 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        phi = (0.0, 0.6, 0.9)[seed % 3]
        learnt = band(rng, 4, phi=phi)
        names = [name for name in reference.streams(learnt) if ":reward:above" in name]
        process, one = ShiryaevRoberts(), learnt.metrics["reward"]
        process.add(len(names))
        noise = 0.02 * ar(rng, 199, phi)
        for step in range(199):
            gains = reference.gains(learnt, step, {"reward": one.edges(step)[1] + noise[step]})
            process.update(step, np.arange(len(names)), np.minimum([gains[name] for name in names], ln_a / 2))
            watched += 1
            if np.logaddexp.reduce(process.log_sr) - math.log(len(names)) >= ln_a:
                alarms += 1
                break
    assert stats.binomtest(alarms, watched, 1 / 100).proportion_ci(0.99).low <= 1 / 100, (alarms, watched)


def test_more_runs_narrow_the_band_and_one_run_needs_a_tolerance() -> None:
    widths = [np.mean([np.mean(np.subtract(band(np.random.default_rng(seed), runs).metrics["reward"].high,
                                           band(np.random.default_rng(seed), runs).metrics["reward"].low)) for seed in range(4)]) for runs in (2, 4, 8)]
    assert widths[0] > 3 * widths[1] and widths[1] > 1.2 * widths[2]
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="one run alone needs a tolerance"):
        band(rng, 1)
    alone = reference.learn({"r": run(rng)}, names=["reward"], tolerance={"": 0.1})
    assert not alone.seed_variance_known
    low, high = alone.metrics["reward"].edges(100)
    assert high - low == pytest.approx(0.2 * np.median(run(np.random.default_rng(0))["reward"].values), rel=0.05)


def test_only_the_bad_directions_bet_and_only_inside_the_common_steps() -> None:
    learnt = band(np.random.default_rng(0), 4)
    gains = reference.gains(learnt, 50, {"reward": 0.6, "kl": 1.0, "unknown": 3.0, "entropy": math.nan})
    assert {name.rsplit(":", 1)[0] for name in gains} == {"reference:reward:above", "reference:reward:below", "reference:kl:above"}
    assert set(gains) <= set(reference.streams(learnt))
    assert gains["reference:kl:above:2"] == pytest.approx(bounded.gain(4.0, 2.0))
    assert reference.gains(learnt, 5000, {"reward": 0.6}) == {} == reference.gains(learnt, 50, {"reward": math.nan})


def test_a_band_comes_back_from_its_file_as_it_was_and_a_damaged_one_is_named() -> None:
    learnt = band(np.random.default_rng(0), 3)
    data = json.loads(json.dumps(learnt.to_json()))
    assert reference.band_from(data, where="b") == learnt
    del data["metrics"]["kl"]["low"]
    with pytest.raises(InputError, match="b: metrics.kl: KeyError"):
        reference.band_from(data, where="b")
    with pytest.raises(InputError, match="klaxon_band: is 7"):
        reference.band_from({"klaxon_band": 7}, where="b")


def write(path, series: dict[str, Series]) -> str:
    with path.open("w") as stream:
        for i, step in enumerate(series["reward"].steps.tolist()):
            stream.write(json.dumps({"step": step, **{name: float(one.values[i]) for name, one in series.items()}}) + "\n")
    return str(path)


@pytest.fixture
def place(tmp_path):
    rng = np.random.default_rng(4)
    runs = [write(tmp_path / f"run{i}.jsonl", run(rng)) for i in range(5)]
    bad = write(tmp_path / "bad.jsonl", run(rng, fault=-0.4))
    return tmp_path, runs, bad


def test_the_commands_learn_check_and_draw(place) -> None:
    folder, runs, bad = place
    runner, cli, out = CliRunner(env={"COLUMNS": "200"}), app(["reference"]), str(folder / "band.json")
    learnt = runner.invoke(cli, ["reference", "learn", *runs[:4], "-o", out, "--json"])
    assert learnt.exit_code == 0 and json.loads(learnt.stdout)["metrics"] == ["kl", "reward"], learnt.output
    inside = runner.invoke(cli, ["reference", "check", runs[4], "--band", out])
    assert inside.exit_code == 0 and "stayed within the band of 4 reference runs" in inside.stdout
    picture = folder / "picture.html"
    outside = runner.invoke(cli, ["reference", "check", bad, "--band", out, "--json", "--html", str(picture)])
    found = json.loads(outside.stdout)
    reward = next(row for row in found["metrics"] if row["metric"] == "reward")
    assert outside.exit_code == 1 and "reward" in found["left"] and reward["side"] == "below"
    assert 95 <= reward["since_step"] <= 110 and reward["excess"] > 0.2
    page = picture.read_text()
    assert "reward: left below" in page and page.count("<svg") == 2 and "http" not in page
    assert ElementTree.fromstring(page[page.index("<svg"):page.index("</svg>") + 6]).find("polygon") is not None
    shown = runner.invoke(cli, ["reference", "check", bad, "--band", out]).stdout
    assert "left below, since step" in shown and "at most 0.01" in shown


def test_one_run_with_a_tolerance_says_that_seeds_are_unknown(place) -> None:
    folder, runs, bad = place
    runner, cli, out = CliRunner(env={"COLUMNS": "200"}), app(["reference"]), str(folder / "one.json")
    with pytest.raises(ConfigError, match="seed variance is unknown"):
        runner.invoke(cli, ["reference", "learn", runs[0], "-o", out], catch_exceptions=False)
    said = runner.invoke(cli, ["reference", "learn", runs[0], "-o", out, "--tolerance", "25%", "--tolerance", "kl=60%"])
    assert said.exit_code == 0 and "seed variance is unknown" in said.stdout
    assert runner.invoke(cli, ["reference", "check", runs[1], "--band", out]).exit_code == 0
    assert runner.invoke(cli, ["reference", "check", bad, "--band", out]).exit_code == 1


@pytest.mark.parametrize(("arguments", "words"), [
    (["check", "run0.jsonl", "--band", "none.json"], "klaxon reference learn"), (["check", "run0.jsonl", "--band", "run0.jsonl"], "is not JSON"),
    (["learn", "none.jsonl", "--tolerance", "1%"], "no such file"), (["learn", "run0.jsonl", "--tolerance", "wide"], "write 10%"),
    (["learn", "run0.jsonl", "run1.jsonl", "--metric", "nope"], "no run logs nope")])
def test_a_users_mistake_is_one_clear_line(place, monkeypatch, arguments, words) -> None:
    monkeypatch.chdir(place[0])
    with pytest.raises(KlaxonError, match=words):
        CliRunner().invoke(app(["reference"]), ["reference", *arguments], catch_exceptions=False)


def test_a_live_trainer_bets_each_step_once_and_check_shows_the_band(place) -> None:
    folder, runs, _ = place
    out = str(folder / "band.json")
    CliRunner().invoke(app(["reference"]), ["reference", "learn", *runs, "-o", out], catch_exceptions=False)
    config = Config.model_validate({"reference": {"band": out, "metrics": ["reward"]}, "shadow": {"enabled": False}, "run": {"dir": str(folder)}})
    bets: list[dict[str, float]] = []
    with Store(folder / "k.duckdb") as store:
        trainer = TrainerSide(config, store, lambda *_: None)
        trainer.bet = bets.append
        for step in (3, 4, 4, 2):
            trainer.take_metrics({"step": step, "metrics": {"reward": 9.0, "kl": 1.0, "loss": math.nan}, "at": 1.0})
        assert [fact.name for fact in trainer.health.facts(1.0)] == ["trainer_nonfinite"]
        assert json.dumps(trainer.latest, allow_nan=False)
    assert len(bets) == 2 and all(set(one) == {name for name in reference.streams(read_band(out)) if ":reward:" in name} for one in bets)
    shown = settings.reference(config)
    assert shown.state == "ok" and "5 run(s): reward" in shown.text
    broken = settings.reference(Config.model_validate({"reference": {"band": "none.json"}}))
    assert broken.state == "bad" and "klaxon reference learn" in broken.text


def test_a_run_is_read_whole_whatever_its_last_line_and_odd_values_are_counted(tmp_path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"step": 1, "actor/pg_clipfrac": 0.1}\n{"step": 2, "actor/pg_clipfrac": NaN}\n[1]\n{"step": 3, "actor/pg_clipfrac": 0.3, "actor/ppo_kl": 1}')
    found = read_history(str(path))
    assert found.framework == "verl" and found.series["clip_rate"].steps.tolist() == [1, 3] and found.nonfinite == {"clip_rate": 1}
    assert len(found.refused) == 1 and "run.jsonl:3" in str(found.refused[0])
    assert kind_of(str(path)) == "jsonl" and kind_of("wandb:me/p/r") == "wandb_api"
    (tmp_path / "tb" / "events.out.tfevents.1").parent.mkdir()
    (tmp_path / "tb" / "events.out.tfevents.1").touch()
    assert kind_of(str(tmp_path / "tb")) == kind_of(str(tmp_path / "tb" / "events.out.tfevents.1")) == "tensorboard"
    (tmp_path / "wandb" / "run-1-a").mkdir(parents=True)
    (tmp_path / "wandb" / "run-1-a" / "run-a.wandb").touch()
    assert kind_of(str(tmp_path / "wandb")) == kind_of(str(tmp_path / "wandb" / "run-1-a" / "run-a.wandb")) == "wandb"
    path.write_text('{"step": "x"}\n')
    with pytest.raises(InputError, match="no metric found; 1 lines refused"):
        read_history(str(path))


def test_the_docs_name_every_option_and_fact() -> None:
    from pathlib import Path

    from detectors.hardfacts import FACTS

    docs = Path(__file__).parents[1] / "docs"
    page, others = (docs / "reference-runs.md").read_text(), (docs / "other-alarms.md").read_text()
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})
    for command in (["reference", "learn"], ["reference", "check"], ["compare"]):
        assert f"klaxon {' '.join(command)}" in page
        assert runner.invoke(app([command[0]]), [*command, "--help"]).exit_code == 0
    assert all(option in page for option in ("--tolerance", "--coverage", "--alpha", "--html", "--margin", "--json", "--metric", "--a", "--b"))
    assert all(f"`{name}`" in others for name in FACTS)
    assert all(key in others for key in ("engine_dtype", "floor_nats", "correction", "cap", "min_ess", "disk_free_mb", "store_refusing_seconds"))
