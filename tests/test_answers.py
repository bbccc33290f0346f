"""Kept answers of the read API: the same as read afresh after any write, a new batch seen at once, and bounded in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from collector import signals
from collector.records import BatchStats, Evidence, Rollout, Score, WeightSpan
from collector.store import Store
from collector.store_config import StoreConfig
from klaxon.answers import Answers
from klaxon.api import build_api

ASKED = (
    "/v1/series", "/v1/series?start=1003.5&max_points=4", "/v1/series?replica=a", "/v1/series?population=trained", "/v1/series?signal=chi2&signal=ess&start=1002",
    "/v1/slices", "/v1/slices?by=replica&start=1002&end=1006", "/v1/slices?by=position&signal=chi2", "/v1/evidence", "/v1/evidence?latest=true&end=1005",
    "/v1/metrics", "/v1/metrics?name=reward&start=1004", "/v1/breakdown?by=replica&points=4&start=1002", "/v1/breakdown?by=version,lag",
    "/v1/breakdown?by=env", "/v1/breakdown?by=probability&only=replica=a", "/v1/coverage?start=1001", "/v1/throughput?points=3",
)


class Nobody:
    """A daemon without incidents."""

    def status(self) -> dict:
        return {"now": 2000.0}

    def incidents(self) -> list:
        return []


def pair(t: int, replica: str) -> tuple[Rollout, Score]:
    rng = np.random.default_rng([t, ord(replica)])
    trainer = rng.uniform(-3, -0.1, 40).astype(np.float32)
    rollout = Rollout(
        request_id=f"{replica}-{t}", engine=replica, prompt_tokens_P=np.arange(5, dtype=np.int32), completion_tokens_T=np.arange(40, dtype=np.int32),
        sampled_mask_T=np.ones(40, bool), engine_logprobs_T=(trainer + rng.normal(0, 0.02, 40)).astype(np.float32), cached_prompt_tokens=0,
        weight_versions=(WeightSpan(start=0, end=40, version=str(t // 2)),), finished_at=1000.0 + t, labels={"env": "gsm8k" if t % 2 else "math"},
        base_coin=True, inclusion_probability=0.5)
    return rollout, Score(request_id=rollout.request_id, views={"expected": trainer})


def batch(t: int) -> BatchStats:
    slices = signals.merge([item for replica in "ab" for item in signals.slice_stats(*pair(t, replica))])
    return BatchStats(t=t, opened_at=1000.0 + t, closed_at=1001.0 + t, slices=slices, counts={"seen": 2, "tokens_seen": 80, "tokens_seen@a": 40})


def append(store: Store, t: int) -> None:
    store.append_batch(batch(t), [Evidence(t=t, stream="self_bets", weight=0.5, gain=0.1, log_sr=0.1 * t, started_at=0)], ln_m=t / 10, ln_a=9.98)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "k.duckdb") as store:
        for t in range(6):
            append(store, t)
            store.append_rollouts(t, [pair(t, "a")])
            store.append_metrics(t, 1001.0 + t, {"reward": float(t)})
        yield store


WRITES = {
    "nothing": lambda store: None,
    "a batch": lambda store: append(store, 6),
    "rollouts of an old batch": lambda store: store.append_rollouts(3, [pair(3, "b")]),
    "a trainer's metric inside the range": lambda store: store.append_metrics(9, 1004.5, {"reward": 77.0}),
    "a weight version": lambda store: store.append_weights("9", seen_at=1000.5),
    "retention": lambda store: store.retention(1004.0 + 86_400.0, StoreConfig(batches_ttl_days=1, metrics_ttl_days=1, rollouts_ttl_days=1, evidence_ttl_days=1)),
}


@pytest.mark.parametrize("written", WRITES)
def test_a_kept_answer_is_the_one_read_afresh_after_every_kind_of_write(store: Store, written: str) -> None:
    kept = TestClient(build_api(store, Nobody()))
    before = {path: kept.get(path).content for path in ASKED}
    WRITES[written](store)
    afresh = TestClient(build_api(store, Nobody()))
    assert {path: kept.get(path).content for path in ASKED} == {path: afresh.get(path).content for path in ASKED}
    assert (before == {path: kept.get(path).content for path in ASKED}) == (written == "nothing")


def test_a_question_is_read_once_until_its_tables_change(store: Store) -> None:
    api = build_api(store, Nobody())
    client, answers = TestClient(api), api.state.answers
    for _ in range(3):
        client.get("/v1/breakdown?by=replica&start=1002.25")
    assert answers.made == 1
    client.get("/v1/breakdown?by=replica&start=1002.75")  # the window slid and holds the same batches
    store.append_event(1010.0, "weights", "version 3", {})  # no table of this answer
    client.get("/v1/breakdown?by=replica&start=1002.25")
    assert answers.made == 1
    client.get("/v1/breakdown?by=replica&start=1003.25")  # it has lost one
    assert answers.made == 2
    append(store, 6)
    client.get("/v1/breakdown?by=replica&start=1003.25")
    assert answers.made == 3


def test_a_refused_question_is_refused_again_and_not_kept(store: Store) -> None:
    client = TestClient(build_api(store, Nobody()))
    for _ in range(2):
        answer = client.get("/v1/breakdown?by=nonsense")
        assert answer.status_code == 400 and "nonsense" in answer.json()["error"]
    assert client.get("/v1/series?signal=nonsense").status_code == 400


def test_what_is_kept_stays_below_its_bound_and_the_newest_question_is_in_it(store: Store) -> None:
    answers = Answers(store, most_bytes=10_000, largest_bytes=4_000)
    for number in range(50):
        answers.of(number, ("batches",), lambda: b"x" * 1500)
        assert answers.bytes_held() <= 10_000
    made = answers.made
    answers.of(49, ("batches",), lambda: b"never made")
    assert answers.made == made
    answers.of("large", ("batches",), lambda: b"x" * 4_001)
    answers.of("large", ("batches",), lambda: b"x" * 4_001)
    assert answers.made == made + 2  # larger than what is kept at most: made twice


def test_a_write_while_an_answer_is_being_read_makes_that_answer_old(store: Store) -> None:
    answers = Answers(store)

    def reading() -> bytes:
        found = str(store.next_t()).encode()
        append(store, store.next_t())
        return found

    assert answers.of("next", ("batches",), reading) == b"6"
    assert answers.of("next", ("batches",), lambda: str(store.next_t()).encode()) == b"7"


def test_those_who_ask_the_same_at_once_share_one_reading(store: Store) -> None:
    answers, reading, go = Answers(store), threading.Event(), threading.Event()

    def slow() -> bytes:
        reading.set()
        assert go.wait(30)
        return b"one"

    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(answers.of("q", ("batches",), slow))) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert reading.wait(30)
    go.set()
    for thread in threads:
        thread.join(30)
    assert found == [b"one"] * 8 and answers.made == 1


def test_a_batch_is_seen_as_soon_as_its_append_has_returned_while_many_ask(store: Store) -> None:
    client = TestClient(build_api(store, Nobody()))
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            client.get("/v1/throughput?points=60")

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for t in range(6, 16):
            append(store, t)
            assert client.get("/v1/series").content == TestClient(build_api(store, Nobody())).get("/v1/series").content
            assert store.query("SELECT max(t) FROM batches") == [(t,)]
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
