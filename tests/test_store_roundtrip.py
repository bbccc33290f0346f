"""The store keeps what it acknowledged, exactly, and only what it may keep."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest

from collector import signals
from collector.errors import Unavailable
from collector.records import BatchStats, Evidence, Fact, Rollout, Score, SliceStats, WeightSpan, WeightVersion
from collector.series import read_slices
from collector.store import Store
from collector.store_config import StoreConfig

DAY = 86_400.0


def slice_stats(rng: np.random.Generator, *, replica: str = "http://a:8000", version: str | None = "3",
                cached: bool | None = None) -> SliceStats:
    bins = len(signals.EDGES) - 1
    hist_pos, hist_neg = rng.integers(0, 50, bins), rng.integers(0, 50, bins)
    return SliceStats(
        replica=replica, position="0-1k", version=version, cached=cached, n_tokens=int(hist_pos.sum() + hist_neg.sum()),
        n_sequences=float(rng.random()), hist_pos=hist_pos.astype(np.int64), hist_neg=hist_neg.astype(np.int64),
        sums={name: float(rng.normal()) for name in signals.SUMS},
    )


def batch(t: int, *, rng: np.random.Generator | None = None) -> BatchStats:
    rng = rng or np.random.default_rng(t)
    return BatchStats(
        t=t, opened_at=1e9 + 120 * t, closed_at=1e9 + 120 * (t + 1),
        slices=(slice_stats(rng), slice_stats(rng, version=None, cached=True), slice_stats(rng, replica="b#dp1", version="12")),
        gains={"z_last": 0.1 + 0.2, "a_first": -float(rng.random()), "tiny": 5e-324, "bottom": -np.inf},
        counts={"seen": 7, "sampled": 5, "dropped_full": 0},
        facts=(Fact(name="non_finite", text="3 of 90 logprobs are NaN", slice={"replica": "a"}, at=1e9 + 5.25),
               Fact(name="blind", text="nothing seen")),
    )


def same(a: BatchStats, b: BatchStats) -> bool:
    """Bit for bit, order included: repr shows every bit of a float, and NumPy arrays are compared apart."""
    def shape(item: BatchStats) -> tuple:
        return (item.t, repr(item.opened_at), repr(item.closed_at), repr(list(item.gains.items())),
                repr(list(item.counts.items())), repr(item.facts),
                [(s.replica, s.position, s.version, s.cached, s.n_tokens, repr(s.n_sequences), s.hist_pos.tolist(),
                  s.hist_neg.tolist(), s.hist_pos.dtype, repr(list(s.sums.items()))) for s in item.slices])
    return shape(a) == shape(b)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "klaxon.duckdb") as opened:
        yield opened


def test_batches_come_back_bit_for_bit_and_in_order(tmp_path):
    written = [batch(t) for t in range(70)]  # more than one chunk
    with Store(tmp_path / "k.duckdb") as store:
        for item in written:
            store.append_batch(item, ln_m=-np.inf, ln_a=9.9)
    with Store(tmp_path / "k.duckdb") as store:
        read = list(store.read_batches())
        assert store.next_t() == 70
    assert len(read) == 70
    assert all(same(a, b) for a, b in zip(written, read, strict=True))


def test_an_empty_batch_is_a_missing_batch_and_comes_back_as_one(store):
    empty = BatchStats(t=0, opened_at=0.0, closed_at=120.0)
    store.append_batch(empty)
    assert [item.missing for item in store.read_batches()] == [True]
    assert store.query("SELECT n_tokens, mean_abs_d, version_max FROM series") == [(0, None, None)]


def test_the_series_row_is_what_the_signals_say(store):
    item = batch(4)
    store.append_batch(item, ln_m=1.5, ln_a=9.9)
    expected = signals.metrics(signals.total(item.slices))
    (k3, mean_abs_d, p99, version), = store.query("SELECT k3, mean_abs_d, p99_abs_d, version_max FROM series")
    assert (k3, mean_abs_d, p99, version) == (expected["k3"], expected["mean_abs_d"], expected["p99_abs_d"], 12)


def test_a_range_of_batches_can_be_read(store):
    for t in range(5):
        store.append_batch(batch(t))
    assert [item.t for item in store.read_batches(start=1, end=4)] == [1, 2, 3]


def test_evidence_keeps_infinite_logs(store):
    store.append_batch(batch(0), [Evidence(t=0, stream="self_bets", weight=0.5, gain=2.5, log_sr=-np.inf, started_at=None)])
    assert store.query("SELECT stream, gain, log_sr, started_at FROM evidence") == [("self_bets", 2.5, -np.inf, None)]


def test_a_rollout_leaves_statistics_and_no_ids(store, tmp_path):
    rollout = Rollout(
        request_id="cmpl-secret-7", prompt_tokens_P=np.array([1, 2, 3], np.int32),
        completion_tokens_T=np.array([4, 5, 6, 7], np.int32), sampled_mask_T=np.array([True, True, False, True]),
        engine_logprobs_T=np.array([-1.0, -2.0, -9.0, np.nan], np.float32),
        weight_versions=(WeightSpan(start=0, end=4, version="8"),), finished_at=12.5, cached_prompt_tokens=2,
    )
    score = Score(request_id="cmpl-secret-7", views={"expected": np.array([-1.5, -1.0, 0.0, -1.0], np.float32)})
    store.append_rollouts(3, [(rollout, score), (rollout, None)])
    rows = store.query("SELECT request, t, version, n_tokens, n_scored, mean_d, mean_abs_d, max_abs_d FROM rollouts")
    key = store.request_hash("cmpl-secret-7")
    assert rows == [(key, 3, "8", 4, 2, 0.25, 0.75, 1.0), (key, 3, "8", 4, 0, None, None, None)]
    store.checkpoint()
    assert b"cmpl-secret" not in store.path.read_bytes()


def test_events_metrics_and_weights_are_kept(store):
    store.append_event(5.0, "alarm", "it rang", {"ln_m": 12.0, "path": store.path})
    store.append_metrics(3, 6.0, {"reward": 0.5, "clip": 0.01})
    store.append_weights(WeightVersion(version="3", path="/w/3", published_at=5.5, digest="ab"), seen_at=6.0)
    store.append_weights("3", engine_at=7.0)
    assert store.query("SELECT kind, text FROM events") == [("alarm", "it rang")]
    assert store.query("SELECT step, name, value, source FROM metrics ORDER BY name") == [
        (3, "clip", 0.01, "trainer"), (3, "reward", 0.5, "trainer")]
    assert store.query("SELECT version, max(digest), min(seen_at), min(engine_at) FROM weights GROUP BY 1") == [
        ("3", "ab", 6.0, 7.0)]


def test_retention_deletes_the_old_and_keeps_the_young(store):
    config = StoreConfig(batches_ttl_days=2, evidence_ttl_days=1, metrics_ttl_days=1)
    for t, item in enumerate([batch(0), batch(1), batch(2)]):
        moved = BatchStats(t=t, opened_at=t * DAY, closed_at=(t + 1) * DAY, slices=item.slices, gains=item.gains)
        store.append_batch(moved, [Evidence(t=t, stream="s", weight=1.0, gain=0.0, log_sr=0.0, started_at=None)])
    store.append_event(0.0, "old", "old")
    store.append_event(3 * DAY, "young", "young")
    deleted = store.retention(3.5 * DAY, config)
    assert deleted["batches"] == 1 and deleted["slices"] == 3
    assert [item.t for item in store.read_batches()] == [1, 2]
    assert store.query("SELECT t FROM evidence") == [(2,)]
    assert store.query("SELECT kind FROM events") == [("young",)]


def test_reads_go_on_beside_writes(store):
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(30):
                store.query_arrow("SELECT t, sum(n_tokens) FROM slices GROUP BY t")
                list(store.read_batches())
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for t in range(40):
        store.append_batch(batch(t))
        if t % 10 == 0:
            store.checkpoint()
    for reader in readers:
        reader.join()
    assert not failures
    assert len(list(store.read_batches())) == 40


def test_a_failed_append_leaves_nothing_behind(store):
    bad = BatchStats(t=1, opened_at=0.0, closed_at=1.0, gains={"fine": 1.0}, facts=(Fact(name="x", text=7),))
    with pytest.raises(Exception, match="str|bytes|int"):
        store.append_batch(bad)
    store.append_batch(batch(2))
    assert [item.t for item in store.read_batches()] == [2]


def test_a_closed_store_says_so(store):
    store.close()
    with pytest.raises(Unavailable, match="closed"):
        store.append_batch(batch(0))


def test_a_store_of_an_earlier_klaxon_is_read_and_written_on(tmp_path: Path) -> None:
    """Its slices had no population: they were all served."""
    rng = np.random.default_rng(5)
    path = tmp_path / "old.duckdb"
    with Store(path) as store:
        store.append_batch(BatchStats(t=0, opened_at=0.0, closed_at=1.0, slices=(slice_stats(rng),)))
    with duckdb.connect(str(path)) as old:
        old.execute("ALTER TABLE slices DROP COLUMN population")
        old.execute("UPDATE meta SET value = '1' WHERE key = 'version'")
    with Store(path) as store:
        store.append_batch(BatchStats(t=1, opened_at=1.0, closed_at=2.0, slices=(replace(slice_stats(rng), population="trained"),)))
        assert [item.population for batch in store.read_batches() for item in batch.slices] == ["served", "trained"]
        assert read_slices(store, start=0.0)["n_tokens"].to_pylist() == [next(store.read_batches()).slices[0].n_tokens]
