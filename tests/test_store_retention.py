"""How long data stay: each kind its own time, an upper limit of the whole, sealed hours as Parquet."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow.parquet as parquet
import pytest

from collector import store_retention
from collector.errors import Unavailable
from collector.records import BatchStats
from collector.store import Store
from collector.store_config import StoreConfig
from collector.store_seal import forget, seal

DAY, HOUR = 86_400.0, 3600.0
NOW = 500_000 * HOUR  # a whole hour


def filled(path: Path, *, days: int, evidence: int = 0) -> Store:
    """A store of so many days up to NOW, four batches an hour, and so many rows of evidence."""
    store = Store(path, threads=1)
    with store._cursor() as cursor:
        for sql in ("INSERT INTO batches SELECT i, ?1 + i * 900, ?1 + (i + 1) * 900, '{}', 0.0, 9.9 FROM range(?2) r(i)",
                    "INSERT INTO series (t, closed_at, n_tokens) SELECT i, ?1 + (i + 1) * 900, 5 FROM range(?2) r(i)"):
            cursor.execute(sql, [NOW - days * DAY, days * 96]).fetchall()
        cursor.execute("INSERT INTO evidence SELECT i * ?1 // ?2, md5(i::VARCHAR) || md5((i + 1)::VARCHAR), random(), random(), random(), 0 FROM range(?2) r(i)",
                       [days * 96, max(evidence, 1)]).fetchall()
    store.checkpoint()
    return store


def used(store: Store) -> int:
    with store._cursor() as cursor:
        return store_retention.in_use_bytes(cursor)


def test_beyond_the_limit_the_oldest_go_first_the_least_missed_first_and_the_newest_day_stays(tmp_path: Path) -> None:
    with filled(tmp_path / "k.duckdb", days=6, evidence=1_500_000) as store:
        before = used(store)
        gone = store.retention(NOW, StoreConfig(max_gb=0.6 * before / 1e9))
        assert gone["evidence"] > 0 and gone["batches"] == 0, "evidence is missed least"
        assert used(store) <= 0.6 * before
        assert 0 < store.query("SELECT min(t) FROM evidence")[0][0] < 480
        size = store.size_bytes()
        store.retention(NOW, StoreConfig(max_gb=1e-9))
        assert store.query("SELECT min(t), max(t) FROM batches") == [(479, 575)] and [batch.t for batch in store.read_batches()] == list(range(479, 576))
        assert store.query("SELECT min(t) FROM series") == [(479,)] and store.query("SELECT min(t) FROM evidence") == [(479,)]
        with store._cursor() as cursor:
            cursor.execute("INSERT INTO evidence SELECT 575, md5(i::VARCHAR) || md5((i + 1)::VARCHAR), random(), random(), random(), 0 FROM range(300000) r(i)").fetchall()
        store.checkpoint()
        assert store.size_bytes() <= size, "freed space is filled again"


def test_without_a_limit_only_the_times_to_live_count(tmp_path: Path) -> None:
    with filled(tmp_path / "k.duckdb", days=2, evidence=1920) as store:
        assert not any(store.retention(NOW, StoreConfig()).values())
        gone = store.retention(NOW, StoreConfig(evidence_ttl_days=1))
        assert gone["evidence"] == 950 and gone["batches"] == 0


def test_an_hour_is_sealed_once_it_is_over_whole_and_only_once(tmp_path: Path) -> None:
    sealed = tmp_path / "sealed"
    with filled(tmp_path / "k.duckdb", days=1) as store:
        store.append_event(NOW - 5 * HOUR + 60, "restart", "again")
        assert seal(store.query_arrow, sealed, ["series", "evidence", "events", "metrics"], NOW) == 23 + 1 + 1, "the newest hour is not an hour old"
        files = sorted((sealed / "series").iterdir())
        rows = [row for path in files for row in parquet.read_table(path).to_pylist()]
        assert [row["t"] for row in rows] == list(range(len(rows))) and len(rows) >= 23 * 4 - 1
        stamps = {path: path.stat().st_mtime_ns for path in files}
        assert seal(store.query_arrow, sealed, ["series", "events"], NOW) == 0 and {path: path.stat().st_mtime_ns for path in files} == stamps
        assert seal(store.query_arrow, sealed, ["series"], NOW + HOUR) == 1
    assert duckdb.sql(f"SELECT count(DISTINCT t) FROM '{sealed}/series/*.parquet'").fetchall()[0][0] == len(rows) + 4
    assert not (sealed / "metrics").exists() and not list(sealed.rglob(".*"))
    (sealed / "series/mine.parquet").write_text("mine")
    assert forget(sealed, 0.5, NOW) == 13 and (sealed / "series/mine.parquet").exists() and len(list((sealed / "series").glob("*.parquet"))) < 15


def test_a_sealed_hour_that_cannot_be_written_is_said_and_tried_again(tmp_path: Path) -> None:
    with filled(tmp_path / "k.duckdb", days=1) as store:
        (tmp_path / "sealed").write_text("in the way")
        with pytest.raises(Unavailable, match="cannot be written"):
            seal(store.query_arrow, tmp_path / "sealed", ["series"], NOW)
        (tmp_path / "sealed").unlink()
        assert seal(store.query_arrow, tmp_path / "sealed", ["series"], NOW) == 23


def test_a_copy_is_whole_while_others_append(tmp_path: Path) -> None:
    with filled(tmp_path / "k.duckdb", days=1) as store:
        moments: list[int] = []
        store.copy_to(tmp_path / "copy.duckdb", beside=lambda: moments.append(store.next_t()))
        store.append_batch(BatchStats(t=96, opened_at=0.0, closed_at=1.0))
        with Store(tmp_path / "copy.duckdb") as copy:
            assert copy.next_t() == moments[0] == 96 and copy.request_hash("a") == store.request_hash("a")
            assert list(map(repr, copy.read_batches())) == list(map(repr, store.read_batches(end=96)))
        with pytest.raises(Unavailable, match="cannot be written"):
            store.copy_to(tmp_path / "no/such/copy.duckdb")
        store.append_batch(BatchStats(t=97, opened_at=0.0, closed_at=1.0))
