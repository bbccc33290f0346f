"""Every signal of the table as a series: exact from stored sums, in a bounded number of columns, from older stores too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from fastapi.testclient import TestClient
from test_api_read import RunningDaemon, arrow, slices_of

from collector import signals
from collector.metric_table import METRICS
from collector.records import BatchStats
from collector.series import read_series
from collector.series_signals import MAX_SIGNALS, _ALWAYS
from collector.store import Store
from collector.store_schema import TABLES
from klaxon.api import build_api

NAMES = [metric.name for metric in METRICS]
COUNTS = {metric.name for metric in METRICS if metric.level == "count"}
BATCHES = 9


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("series") / "k.duckdb"
    with Store(path) as store:
        for t in range(BATCHES):
            mine = slices_of(t) if t != 4 else ()
            trained = tuple(replace(item, population="trained") for item in mine if item.replica == "b")
            store.append_batch(BatchStats(t=t, opened_at=float(t), closed_at=t + 1.0, slices=(*mine, *trained)))
    return path


def everything(store: Store, **options) -> list[dict]:
    """All signals, asked for a few at a time."""
    rows: list[dict] = [{} for _ in range(read_series(store, **options).num_rows)]
    for start in range(0, len(NAMES), MAX_SIGNALS):
        names = NAMES[start:start + MAX_SIGNALS]
        wanted = [name + suffix for name in names for suffix in ("", ":min", ":max")]
        for row, more in zip(rows, read_series(store, names=names, **options).to_pylist(), strict=True):
            row |= {name: more[name] for name in wanted}
    return rows


def whole(*ts: int, replica: str | None = None) -> dict[str, float]:
    items = [item for t in ts for item in slices_of(t) if replica in (None, item.replica)]
    return signals.metrics(signals.total(items))


def same(row: dict, expected: dict[str, float]) -> None:
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-12) if np.isfinite(value) else row[name] is None, name


def test_a_value_needs_no_sum_its_row_does_not_name() -> None:
    record = signals.total(slices_of(3))
    for metric in METRICS:
        kept = {name: record.sums[name] for name in (*metric.sums, *_ALWAYS) if name != "hist"}
        assert metric.value(replace(record, sums=kept)) == pytest.approx(metric.value(record), nan_ok=True), metric.name


def test_every_signal_comes_out_of_the_store_as_it_was_computed(path: Path) -> None:
    with Store(path) as store:
        rows = everything(store)
        same(rows[2], whole(2))
        same(rows[8], whole(8))
        assert all(rows[4][name] is None for name in NAMES if name not in COUNTS), "an empty batch is a gap"


def test_a_point_of_several_batches_is_computed_from_their_sums(path: Path) -> None:
    with Store(path) as store:
        rows = everything(store, max_points=3)
    same(rows[0], whole(0, 1, 2))
    apart = [whole(t)["seq_ess"] for t in range(3)]
    assert rows[0]["seq_ess:min"] == pytest.approx(min(apart)) and rows[0]["seq_ess:max"] == pytest.approx(max(apart))


def test_slices_and_other_populations_have_every_signal_too(path: Path) -> None:
    with Store(path) as store:
        same(everything(store, replica="a")[3], whole(3, replica="a"))
        same(everything(store, population="trained")[3], whole(3, replica="b"))


def test_an_older_store_opens_and_its_signals_come_from_the_slices(path: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.duckdb"
    old.write_bytes(path.read_bytes())
    with duckdb.connect(str(old)) as connection:
        for column in ("hist_pos", "hist_neg", "sums"):
            connection.execute(f"ALTER TABLE series DROP COLUMN {column}")
        connection.execute("UPDATE meta SET value = '1' WHERE key = 'version'")
    with Store(old) as store:
        store.append_batch(BatchStats(t=BATCHES, opened_at=9.0, closed_at=10.0, slices=slices_of(BATCHES)))
        rows = everything(store)
        same(rows[2], whole(2))
        same(rows[BATCHES], whole(BATCHES))
        same(everything(store, max_points=1)[0], whole(*(t for t in range(BATCHES + 1) if t != 4)))


def test_the_columns_are_few_whatever_the_table_holds(path: Path) -> None:
    assert len(TABLES["series"]) < 30 < len(METRICS)
    with Store(path) as store, TestClient(build_api(store, RunningDaemon())) as client:
        plain, more = arrow(client, "/v1/series"), arrow(client, "/v1/series", signal=["tis_truncated", "k3"])
        assert set(more.column_names) - set(plain.column_names) == {"tis_truncated", "tis_truncated:min", "tis_truncated:max", "k3:min", "k3:max"}
        by_replica = arrow(client, "/v1/slices", by="replica", signal="seq_ess").to_pylist()
        assert {row["replica"] for row in by_replica} == {"a", "b"} and all(0 < row["seq_ess"] <= 1 for row in by_replica)
        assert {row["name"] for row in client.get("/v1/signals").json()} == set(NAMES)
        for names, words in ((["gossip"], "gossip"), (NAMES[:MAX_SIGNALS + 1], "at most")):
            answer = client.get("/v1/series", params={"signal": names})
            assert answer.status_code == 400 and words in answer.json()["error"]
