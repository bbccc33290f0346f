"""Tier 1: the trainer's own logprobs joined to rollouts, from pushes and files; what is served and what is trained on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import test_command_daemon as daemons
from test_command_daemon import get, klaxon, place, post, start, wait  # noqa: F401  (place is a fixture)

from collector import populations, signals
from collector.config import SignalsConfig
from collector.errors import InputError
from collector.join import Join, join_all
from collector.records import Rollout, Score, WeightSpan
from collector.sources.trainer_logprobs import content_key, parse_trainer_word

CONFIG = SignalsConfig()


def rollout(number: int, *, tokens: int = 4, version: str | None = None, **fields) -> Rollout:
    values = dict(
        request_id=f"r{number}", prompt_tokens_P=np.array([1, 2], np.int32), completion_tokens_T=np.arange(tokens, dtype=np.int32) + number,
        engine_logprobs_T=np.full(tokens, -1.0, np.float32), sampled_mask_T=np.ones(tokens, bool),
        weight_versions=() if version is None else (WeightSpan(start=0, end=tokens, version=version),))
    return Rollout(**(values | fields))


def said(**fields):
    return parse_trainer_word(fields, where="t:1")


def abs_d(slices, population: str) -> float:
    return signals.metrics(signals.total(slices, population=population))["mean_abs_d"]


def test_the_trainer_may_speak_before_or_after_the_rollout_arrives() -> None:
    join: Join[str] = Join(limit=10, patience_seconds=60)
    join.say(said(request_id="r1", logprobs=[-1.1] * 4), now=0)
    assert join.matches(now=1) == []
    join.remember(rollout(1), "first")
    join.remember(rollout(2), "second")
    join.say(said(prompt_token_ids=[1, 2], token_ids=[2, 3, 4, 5], logprobs=[-1.2] * 4), now=2)
    found = dict((extra, joined.trainer_logprobs_T[0]) for joined, extra in join.matches(now=2))
    assert found == {"first": pytest.approx(-1.1), "second": pytest.approx(-1.2)}
    assert join.counts == {"trainer_joined": 2} and join.waiting == 0


def test_the_same_words_twice_are_two_rollouts() -> None:
    join: Join[int] = Join(limit=10, patience_seconds=60)
    for number in range(2):
        join.remember(replace(rollout(1), request_id=f"copy{number}"), number)
    for value in (-1.1, -1.1, -1.1):
        join.say(said(prompt_token_ids=[1, 2], token_ids=[1, 2, 3, 4], logprobs=[value] * 4), now=0)
    assert sorted(extra for _, extra in join.matches(now=0)) == [0, 1]
    assert join.counts == {"trainer_joined": 2, "trainer_repeated": 1}


def test_unmatched_words_and_wrong_lengths_are_counted_and_named() -> None:
    join: Join[int] = Join(limit=2, patience_seconds=5)
    join.remember(rollout(1), 1)
    join.say(said(request_id="nobody", logprobs=[-1.0]), now=0)
    join.say(said(request_id="r1", logprobs=[-1.0] * 3), now=0)
    (error,) = join.matches(now=1)
    assert isinstance(error, InputError) and "3 entries for the 4 tokens of request r1" in str(error) and error.where == "t:1"
    join.matches(now=6)
    assert join.counts == {"trainer_refused": 1, "trainer_unmatched": 1}


def test_memory_is_bounded_and_the_forgotten_are_unmatched() -> None:
    join: Join[int] = Join(limit=3, patience_seconds=0)
    for number in range(50):
        join.remember(rollout(number), number)
    join.say(said(request_id="r10", logprobs=[-1.0] * 4), now=0)
    join.say(said(request_id="r49", logprobs=[-1.0] * 4), now=0)
    assert [extra for _, extra in join.matches(now=1)] == [49]
    assert join.counts["trainer_unmatched"] == 1 and len(join._by_content) == 3 and len(join._by_id) == 3


def test_long_rollouts_are_bounded_by_their_tokens() -> None:
    join: Join[int] = Join(limit=100, limit_tokens=1000, patience_seconds=0)
    for number in range(20):
        join.remember(rollout(number, tokens=198), number)
    for number in (14, 15, 19):
        join.say(said(request_id=f"r{number}", logprobs=[-1.0] * 198), now=0)
    assert [extra for _, extra in join.matches(now=1)] == [15, 19], "five of 200 tokens are kept"


@pytest.mark.parametrize(("obj", "words"), [
    ({"logprobs": [-1.0]}, "which rollout is this"), ({"request_id": "a", "logprobs": [0.5]}, "above 0"),
    ({"request_id": "a", "logprobs": [-1.0], "loss_mask": [1, 0]}, "lengths [1, 2]"),
    ({"request_id": "a", "dropped": "yes"}, "neither true nor false"), ({"request_id": "a", "traffic": "fun"}, "none of train"),
])
def test_a_bad_word_names_its_field_and_reason(obj: dict, words: str) -> None:
    with pytest.raises(InputError, match=words.replace("[", r"\[")) as caught:
        said(**obj)
    assert caught.value.where == "t:1" and caught.value.field


def test_served_and_trained_are_judged_apart() -> None:
    """Two tokens off by .5 are masked out of the loss: the engine is off, what is trained on is not."""
    one = rollout(1, trainer_logprobs_T=np.array([-1, -1, -1.5, -1.5], np.float32), loss_mask_T=np.array([1, 1, 0, 0], bool))
    slices = populations.slices_of(one, None, CONFIG)
    assert abs_d(slices, "served") == pytest.approx(0.25) and abs_d(slices, "trained") == 0


@pytest.mark.parametrize("fields", [{"dropped": True}, {"traffic": "eval"}, {"traffic": "judge"}, {"loss_mask_T": np.zeros(4, bool)}])
def test_what_the_trainer_drops_is_served_but_not_trained_on(fields: dict) -> None:
    one = rollout(1, trainer_logprobs_T=np.full(4, -1.5, np.float32), **fields)
    slices = populations.slices_of(one, None, CONFIG)
    expected = {"served", "dropped"} if "dropped" in fields else {"served"}
    assert {item.population for item in slices} == expected and abs_d(slices, "served") == pytest.approx(0.5)


def test_a_trainer_that_moved_on_measures_staleness_not_mismatch() -> None:
    one = rollout(1, version="7", trainer_version="9", trainer_logprobs_T=np.full(4, -1.5, np.float32))
    slices = populations.slices_of(one, None, CONFIG)
    assert {item.population for item in slices} == {"lagged"} and abs_d(slices, "lagged") == pytest.approx(0.5)
    same = populations.slices_of(replace(one, trainer_version="7"), None, CONFIG)
    assert {item.population for item in same} == {"served", "trained"}


def test_trainer_and_shadow_check_each_other() -> None:
    one = rollout(1, trainer_logprobs_T=np.array([-1.2, np.nan, -1.2, -1.2], np.float32))
    shadow = Score(request_id="r1", views={"expected": np.full(4, -1.1, np.float32)})
    slices = populations.slices_of(one, shadow, CONFIG)
    assert abs_d(slices, "served") == pytest.approx(0.1) and abs_d(slices, "trainer_check") == pytest.approx(0.1)
    assert signals.total(slices, population="trainer_check").n_tokens == 3
    assert signals.total(signals.merge([*slices, *slices])).n_tokens == 8, "served alone, and twice"


def test_rollouts_kept_for_looking_odd_are_filed_apart() -> None:
    odd = rollout(1, trainer_logprobs_T=np.full(4, -1.5, np.float32), base_coin=False, loss_mask_T=np.ones(4, bool))
    assert {item.population for item in populations.slices_of(odd, None, CONFIG)} == {"hinted"}


def test_staleness_is_filed_by_lag_and_apart_from_mismatch() -> None:
    one = rollout(1, version="7")
    shadow = Score(request_id="r1", views={"expected": np.full(4, -1.1, np.float32), "newest:3": np.full(4, -1.5, np.float32)})
    slices = populations.slices_of(one, shadow, CONFIG)
    assert abs_d(slices, "served") == pytest.approx(0.1) and abs_d(slices, "stale") == pytest.approx(0.4)
    assert {item.version for item in slices if item.population == "stale"} == {"lag 3"}


def test_whole_files_are_joined_in_order() -> None:
    rollouts = [rollout(number) for number in range(3)]
    joined, refused, counts = join_all(rollouts, [said(request_id="r2", logprobs=[-2.0] * 4), said(request_id="x", dropped=True)])
    assert [one.request_id for one in joined] == ["r0", "r1", "r2"] and joined[2].trainer_logprobs_T[0] == -2
    assert not refused and counts == {"trainer_joined": 1, "trainer_unmatched": 1}
    assert content_key(rollouts[0].prompt_tokens_P, rollouts[0].completion_tokens_T) != content_key(
        np.array([1], np.int32), np.concatenate([[2], rollouts[0].completion_tokens_T]).astype(np.int32))


def test_pushed_logprobs_open_tier_1_in_a_running_daemon(place) -> None:  # noqa: F811
    config, url, folder = place
    daemon = start(config)
    try:
        wait(lambda: get(url, "/healthz")["ok"])
        served = {name: value for name, value in daemons.ROLLOUT.items() if name != "trainer_logprobs"}
        post(url, served, {**served, "request_id": "s"})
        wait(lambda: get(url, "/v1/status")["counts"].get("seen") == 2)
        assert get(url, "/v1/status")["tier"] == 0
        answer = post(url, {"kind": "trainer_logprobs", "request_id": "r", "logprobs": [-0.6, -1.6], "loss_mask": [1, 0]},
                      {"kind": "trainer_logprobs", "request_id": "s", "logprobs": [-0.6]},
                      {"kind": "trainer_logprobs", "logprobs": [-0.6]}).json()
        assert answer["accepted"] == 2 and "which rollout is this" in answer["refused"][0]["reason"]
        wait(lambda: get(url, "/v1/status")["counts"].get("joined") == 1)
        status = get(url, "/v1/status")
        assert status["tier"] == 1 and status["counts"]["scored"] == 1
        assert any("request s" in reason for reason in status["refusals"])
        rows = wait(lambda: klaxon("export", "slices", "--url", url).stdout.splitlines())
        assert json.loads(rows[0])["mean_abs_d"] == pytest.approx(0.1, abs=1e-6)
        post(url, {**served, "request_id": "cmpl-klaxon-canary-1", "labels": {"lora": "adapter-3"}, "trainer_logprobs": [-0.5, -1.5]})
        wait(lambda: get(url, "/v1/status")["counts"].get("seen") == 3)
        trained = daemons.httpx.get(url + "/v1/slices?population=trained", trust_env=False)
        assert trained.status_code == 200
        assert daemons.httpx.get(url + "/v1/slices?population=nonsense", trust_env=False).status_code == 422
    finally:
        daemon.terminate()
        assert daemon.wait(20) == 0


def test_look_joins_a_trainers_file(tmp_path) -> None:
    rollouts, trainer = tmp_path / "rollouts.jsonl", tmp_path / "trainer.jsonl"
    rows = [{"request_id": f"r{n}", "prompt_token_ids": [1, 2], "token_ids": list(range(n, n + 30)), "logprobs": [-1.0] * 30} for n in range(20)]
    rollouts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer.write_text("".join(json.dumps({"request_id": f"r{n}", "logprobs": [-1.3] * 30, "loss_mask": [1] * 10 + [0] * 20}) + "\n" for n in range(19))
                       + '{"request_id": "other", "logprobs": [-1]}\nnonsense\n')
    found = klaxon("look", str(rollouts), "--trainer", str(trainer), "--json")
    report = json.loads(found.stdout)
    assert found.returncode == 1 and report["tier"] == 1 and report["signals"]["mean_abs_d"] == pytest.approx(0.3, abs=1e-6)
    assert report["refused"]["count"] == 2 and any("no rollout of this file" in text for text in report["refused"]["first"])
    assert any("190 tokens are trained on" in line for finding in report["findings"] for line in finding["details"])
    trainer.write_text('{"request_id": "other", "logprobs": [-1]}\n')
    lost = klaxon("look", str(rollouts), "--trainer", str(trainer))
    assert lost.returncode == 2 and "none of its 1 lines speaks of these rollouts" in lost.stderr and "Traceback" not in lost.stderr
