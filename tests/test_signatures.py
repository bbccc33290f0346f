"""Known faults by shape: each shape is read off made-up data, the library and users' files are checked, the verdict stays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from collector.errors import ConfigError
from collector.records import Cause, Diagnosis, Rollout, Sampling, Score, WeightSpan
from diagnosis.shape import FEATURES, SHAPES, IncidentShape, shape_of
from diagnosis.signatures import SHOWN, builtin, library_of, match, read_signatures, render, with_signatures

ROOT = Path(__file__).parent.parent
T, A_BATCH, CHANGE = 60, 6, 8
Noise = Callable[[np.random.Generator, int, int], np.ndarray]  # (rng, batch, number) → d [T]


def quiet(rng: np.random.Generator, t: int, number: int) -> np.ndarray:
    return rng.normal(0.0, 0.01, T)


def made(d: Noise, *, batches: int = 24, fields: Callable[[int, int], dict] = lambda t, number: {},
         version: Callable[[int], str] = lambda t: "1") -> list[tuple[int, Rollout, Score]]:
    rng = np.random.default_rng(3)
    records = []
    for t in range(batches):
        for number in range(A_BATCH):
            trainer_T = np.minimum(-rng.exponential(0.7, T), -0.3).astype(np.float32)
            engine_T = np.minimum(trainer_T - (d if t >= CHANGE else quiet)(rng, t, number), 0.0).astype(np.float32)
            made_of = {"engine": "a", "cached_prompt_tokens": 0} | fields(t, number)
            rollout = Rollout(
                request_id=f"{t}-{number}", prompt_tokens_P=np.arange(5, dtype=np.int32), completion_tokens_T=np.arange(T, dtype=np.int32) % 40,
                engine_logprobs_T=made_of.pop("engine_logprobs_T", engine_T), sampled_mask_T=np.ones(T, dtype=bool), finished_at=100.0 * t + number,
                weight_versions=(WeightSpan(start=0, end=T, version=version(t)),), **made_of)
            records.append((t, rollout, Score(request_id=rollout.request_id, views={"expected": trainer_T})))
    return records


def shape(d: Noise, **how: object) -> IncidentShape:
    return shape_of(made(d, **how), change_t=(CHANGE, CHANGE))


def scaled(size: float) -> Noise:
    return lambda rng, t, number: rng.normal(0.0, size, T)


def at(places: slice, size: float = 0.3) -> Noise:
    def d(rng: np.random.Generator, t: int, number: int) -> np.ndarray:
        out = quiet(rng, t, number)
        out[places] += size * rng.choice([-1.0, 1.0], out[places].size)
        return out
    return d


def growing(rng: np.random.Generator, t: int, number: int) -> np.ndarray:
    return rng.normal(0.0, 0.02 + 0.01 * (t - CHANGE), T)


def of_some(chosen: Callable[[int, int], bool], d: Noise) -> Noise:
    return lambda rng, t, number: (d if chosen(t, number) else quiet)(rng, t, number)


hot = {"sampling": Sampling(temperature=0.7)}
CASES: list[tuple[str, IncidentShape | Callable[[], IncidentShape]]] = [
    ("temperature-left-out", lambda: shape(lambda rng, t, n: rng.normal(0.2, 0.1, T), fields=lambda t, n: dict(hot))),
    ("trainer-forgot-temperature", lambda: shape(lambda rng, t, n: rng.normal(-0.2, 0.1, T), fields=lambda t, n: dict(hot))),
    ("raw-logprobs", lambda: shape(lambda rng, t, n: rng.normal(0.2, 0.1, T), fields=lambda t, n: {"logprobs_mode": "raw_logprobs"})),
    ("kept-set", lambda: shape(lambda rng, t, n: rng.normal(-0.1, 0.02, T), fields=lambda t, n: {"sampling": Sampling(top_p=0.8)})),
    ("hidden-repetition-penalty", lambda: shape(at(slice(40, None)))),
    ("one-sided-head", lambda: shape(scaled(0.04))),
    ("stale-head-copy", lambda: shape(growing)),
    ("lora-not-applied", lambda: shape(growing, fields=lambda t, n: {"labels": {"lora": "x"}})),
    ("stale-prefix-cache", lambda: shape(of_some(lambda t, n: n % 2 == 1, growing), fields=lambda t, n: {"cached_prompt_tokens": 4 * (n % 2)})),
    ("cache-not-reset", lambda: shape(of_some(lambda t, n: n % 2 == 1, scaled(0.2)), fields=lambda t, n: {"cached_prompt_tokens": 4 * (n % 2)})),
    ("replica-missed-update", lambda: shape(of_some(lambda t, n: n == 1, growing), fields=lambda t, n: {"engine": "ab"[n == 1]})),
    ("wrong-request-state", lambda: shape(of_some(lambda t, n: n == 0, lambda rng, t, n: np.where(rng.random(T) < 0.5, -4.0, 0.0)))),
    ("slot-overflow", lambda: shape(of_some(lambda t, n: t % 6 == 0, scaled(0.5)), batches=44)),
    ("draft-near-the-end", lambda: shape(at(slice(-1, None), 2.0))),
    ("rope-scaling", lambda: shape(at(slice(30, None)))),
    ("template", lambda: shape(at(slice(0, 30)))),
    ("batch-variant-kernels", lambda: shape(lambda rng, t, n: np.where(rng.random(T) < 0.05, 1.0, 0.01) * rng.normal(0.0, 0.5, T))),
]


@pytest.mark.parametrize(("fault", "seen"), CASES, ids=[name for name, _ in CASES])
def test_a_made_fault_is_recognised_by_its_shape(fault: str, seen: Callable[[], IncidentShape]) -> None:
    found = seen()
    assert fault in [one.signature.id for one in match(found)], found


def test_a_step_tells_an_update_from_a_change_under_the_same_weights() -> None:
    update = shape(scaled(0.3), version=lambda t: str(int(t >= CHANGE)))
    assert {"sharp", "at_update"} <= update.features and "within_version" not in update.features
    assert {"sharp", "within_version"} <= shape(scaled(0.3)).features


def test_a_healthy_pair_looks_like_nothing() -> None:
    found = shape_of(made(quiet), change_t=(CHANGE, CHANGE))
    assert match(found) == [] and not found.shapes, found
    assert match(shape_of([])) == [] and shape_of([]).shapes == frozenset()
    assert match(shape_of(made(scaled(0.5), batches=9)[:2])) == [], "two rollouts say nothing about the others"


def test_facts_come_from_what_rollouts_declare_and_report() -> None:
    broken = np.full(T, -0.4, dtype=np.float32)
    broken[5] = np.nan
    assert "nan-race" in [one.signature.id for one in match(shape(quiet, fields=lambda t, n: {"engine_logprobs_T": broken} if n == 0 and t > CHANGE else {}))]
    zeros = np.zeros(T, dtype=np.float32)
    assert "zeros-from-drafts" in [one.signature.id for one in match(shape(quiet, fields=lambda t, n: {"engine_logprobs_T": zeros} if n == 0 and t > CHANGE else {}))]
    spans = (WeightSpan(start=0, end=9, version="1"), WeightSpan(start=9, end=T, version="2"))
    mixed = [(t, replace(one, weight_versions=spans, engine_dtype="fp8_e4m3"), score) for t, one, score in made(growing)]
    assert {"several_versions", "fp8"} <= shape_of(mixed, change_t=(CHANGE, CHANGE)).features


def test_where_the_alarm_points_counts() -> None:
    found = shape_of(made(scaled(0.3)), change_t=(CHANGE, CHANGE), slice_={"replica": "b", "position": "4k-16k"})
    assert {"one_replica", "late_positions"} <= found.features and {"subset", "position"} <= found.shapes


def test_every_forbidden_feature_silences_its_signature() -> None:
    for one in builtin():
        there = IncidentShape(shapes=frozenset({one.shape}), features=frozenset(one.must))
        assert one in [found.signature for found in match(there)]
        for name in one.must_not:
            silenced = replace(there, features=there.features | {name})
            assert one not in [found.signature for found in match(silenced)]
        for name in one.must:
            assert one not in [found.signature for found in match(replace(there, features=there.features - {name}))]
        assert one not in [found.signature for found in match(replace(there, shapes=frozenset(SHAPES) - {one.shape}))]


def test_the_library_is_of_the_size_promised_and_uses_every_shape() -> None:
    assert len(builtin()) >= 25 and {one.shape for one in builtin()} == set(SHAPES)
    assert {name for one in builtin() for name in (*one.must, *one.must_not)} <= set(FEATURES)


def test_the_demanding_come_first_and_the_verdict_stays() -> None:
    everything = IncidentShape(shapes=frozenset(SHAPES), features=frozenset(FEATURES) - {"growing", "cache_hits", "at_update"})
    found = match(everything)
    assert [len(one.said) for one in found] == sorted((len(one.said) for one in found), reverse=True) and len(found) > SHOWN
    before = Diagnosis(verdict="unexplained", confident=False, floor_nats=0.02, next="n", causes=(
        Cause(cause="unexplained", residual_nats=0.3, tokens=9, evidence=("mine",)), Cause(cause="healthy", residual_nats=0.4, tokens=9)))
    after = with_signatures(before, everything)
    assert after.causes[0].evidence == ("mine", *(one.text for one in found[:SHOWN])) and with_signatures(after, everything) == after
    assert replace(after, causes=before.causes) == before and after.causes[1:] == before.causes[1:]
    assert "looks like" in found[0].text and found[0].signature.source in found[0].text and "no proof" in found[0].text
    healthy = replace(before, verdict="healthy")
    assert with_signatures(healthy, everything) == healthy


GOOD = '[[signature]]\nid = "mine"\nlooks_like = "our fault"\nshape = "shift"\nmust = ["trainer_surer"]\nadvice = "mend it"\nsource = "our/repo#1"\n'


@pytest.mark.parametrize(("text", "said"), [
    (GOOD + 'suggests = "gremlins"\n', "signature 1 (mine): suggests: unknown cause 'gremlins'; known are raw_logprobs"),
    (GOOD + 'suggests = "healthy"\n', "suggests: unknown cause 'healthy'"),
    (GOOD.replace("trainer_surer", "trainer_sure"), "signature 1 (mine): must: unknown feature 'trainer_sure'; known are engine_surer"),
    (GOOD + 'must_not = ["trainer_surer"]\n', "'trainer_surer' is in must and in must_not"),
    (GOOD.replace('"shift"', '"wave"'), "signature 1 (mine): shape: "), (GOOD + "colour = 1\n", "signature 1 (mine): colour: "),
    (GOOD + GOOD, "signature 2 (mine): id: stands there twice"), (GOOD.replace("mine", "raw-logprobs"), "id: Klaxon has one of this name"),
    (GOOD.replace('source = "our/repo#1"\n', ""), "signature 1 (mine): source: Field required"), ("[[signature]\n", "is not TOML"),
    ("x = 1\n", "holds tables [[signature]]"), ("signature = [1]\n", "signature 1: "),
])
def test_a_wrong_file_is_refused_by_file_entry_and_field(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        library_of(str(path))
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_all_problems_of_a_file_are_told_at_once_and_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace("shift", "wave") + GOOD.replace("mine", "Mine Two"))
    with pytest.raises(ConfigError) as caught:
        read_signatures(path)
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(ConfigError, match="cannot be read"):
        library_of(str(tmp_path / "none.toml"))


def klaxon(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "klaxon", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=240)


def test_look_names_what_a_real_recording_resembles_and_keeps_its_verdict(tmp_path: Path) -> None:
    """vLLM 0.18.1 as upgraded, raw logprobs at T = 0.7, with what a trainer recomputed; and a signature of the user's own."""
    from klaxon.demo.player import PHASES, recorded

    file = tmp_path / "raw.jsonl"
    file.write_text("".join(json.dumps({key: value for key, value in row.items() if key != "kind"}) + "\n" for row in recorded(PHASES[1])))
    (tmp_path / "mine.toml").write_text(GOOD)
    config = tmp_path / "config.toml"
    config.write_text(f'[diagnosis]\nsignatures = "{tmp_path / "mine.toml"}"\n')
    done = klaxon("look", file, "--config", config, "--json")
    report = json.loads(done.stdout)
    said = [finding for finding in report["findings"] if finding["topic"] == "resembles"]
    assert done.returncode == 1 and report["verdict"] == "mismatch" and report["looks_like"] == "raw_logprobs"
    assert "trl#4159" in said[0]["text"] and any("our/repo#1" in finding["text"] for finding in said)
    assert {finding["state"] for finding in said} == {"unknown"} and not any(finding["cause"] for finding in said)
    (tmp_path / "mine.toml").write_text(GOOD + 'suggests = "gremlins"\n')
    refused = klaxon("look", file, "--config", config)
    assert refused.returncode == 2 and "unknown cause 'gremlins'" in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_check_counts_the_users_own_and_names_a_wrong_file(tmp_path: Path) -> None:
    from klaxon.checks import examine
    from klaxon.config import Config

    mine = tmp_path / "mine.toml"
    config = Config.model_validate({"run": {"dir": str(tmp_path)}, "diagnosis": {"signatures": str(mine)}, "shadow": {"enabled": False}})
    for text, state, said in ((GOOD, "ok", f"1 of {mine}"), (GOOD + "colour = 1\n", "bad", "colour")):
        mine.write_text(text)
        found, = (finding for finding in examine(config) if finding.part == "signatures")
        assert found.state == state and said in found.text


def test_docs_signatures_md_holds_the_generated_list() -> None:
    """`python -m diagnosis.signatures`"""
    assert (ROOT / "docs" / "signatures.md").read_text(encoding="utf-8").endswith("\n\n" + render())
