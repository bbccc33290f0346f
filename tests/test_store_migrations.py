"""A store of an earlier release opens, keeps what it holds and is continued; a newer one is refused in plain words."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import duckdb
import pytest

from collector import store_migrations
from collector.errors import Unavailable
from collector.records import BatchStats
from collector.store import Store
from collector.store_migrations import MIGRATIONS, VERSION, Migration
from test_command_daemon import ROLLOUT, daemon_of, free_port, get, post, wait
from klaxon.demo.settings import write_config

PACKED = Path(__file__).parent / "fixtures/release_0_1_0/run.tar.gz"
FIRST_DAY = """
CREATE TABLE batches (t BIGINT, opened_at DOUBLE, closed_at DOUBLE, counts VARCHAR, ln_m DOUBLE, ln_a DOUBLE);
CREATE TABLE slices (t BIGINT, seq BIGINT, replica VARCHAR, position VARCHAR, version VARCHAR, cached BOOLEAN, n_tokens BIGINT,
    n_sequences DOUBLE, hist_pos BIGINT[], hist_neg BIGINT[], sums MAP(VARCHAR, DOUBLE));
CREATE TABLE series (t BIGINT, closed_at DOUBLE, n_tokens BIGINT, n_sequences DOUBLE, version_max BIGINT, mean_d DOUBLE, mean_abs_d DOUBLE,
    k1 DOUBLE, k2 DOUBLE, k3 DOUBLE, clip_rate DOUBLE, clip_rate_low DOUBLE, clip_rate_high DOUBLE, gspo_clip_rate DOUBLE, ess DOUBLE,
    max_abs_d DOUBLE, p50_abs_d DOUBLE, p99_abs_d DOUBLE, pearson DOUBLE, ppl_ratio DOUBLE, confident_disagreements BIGINT, nonfinite BIGINT, zeros BIGINT);
CREATE TABLE gains (t BIGINT, seq BIGINT, stream VARCHAR, gain DOUBLE);
CREATE TABLE facts (t BIGINT, seq BIGINT, name VARCHAR, text VARCHAR, slice VARCHAR, "at" DOUBLE);
CREATE TABLE evidence (t BIGINT, stream VARCHAR, weight DOUBLE, gain DOUBLE, log_sr DOUBLE, started_at BIGINT);
CREATE TABLE rollouts (request VARCHAR, finished_at DOUBLE, t BIGINT, replica VARCHAR, version VARCHAR, traffic VARCHAR, n_prompt BIGINT,
    n_tokens BIGINT, n_scored BIGINT, cached BIGINT, mean_d DOUBLE, mean_abs_d DOUBLE, max_abs_d DOUBLE, reward DOUBLE, base_coin BOOLEAN,
    inclusion_probability DOUBLE, finish_reason VARCHAR, source VARCHAR);
CREATE TABLE metrics (step BIGINT, "at" DOUBLE, name VARCHAR, value DOUBLE, source VARCHAR);
CREATE TABLE events ("at" DOUBLE, kind VARCHAR, text VARCHAR, data VARCHAR);
CREATE TABLE weights (version VARCHAR, path VARCHAR, published_at DOUBLE, digest VARCHAR, seen_at DOUBLE, engine_at DOUBLE);
CREATE TABLE meta (key VARCHAR, value VARCHAR);
INSERT INTO meta VALUES ('version', '1'), ('request_key', repeat('ab', 32));
INSERT INTO batches VALUES (0, 0.0, 1.0, '{"seen": 3}', 0.5, 9.9);
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The folder of a run of release 0.1.0: eight rollouts, some batches, one step of metrics."""
    folder = tmp_path / "state"
    with tarfile.open(PACKED) as packed:
        packed.extractall(folder, filter="data")
    return folder


def columns(store: Store) -> list[tuple]:
    return sorted(store.query("SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal"))


def version(path: Path) -> str:
    connection = duckdb.connect(str(path))
    try:
        return connection.execute("SELECT value FROM meta WHERE key = 'version'").fetchall()[0][0]
    finally:
        connection.close()


def test_a_store_of_the_release_before_opens_with_all_it_holds_and_goes_on(old: Path) -> None:
    path = old / "klaxon.duckdb"
    assert version(path) == "1"
    with Store(path) as store:
        kept = list(store.read_batches())
        assert sum(batch.counts.get("seen", 0) for batch in kept) == 8 and sum(batch.counts.get("rebaseline", 0) for batch in kept) == 1
        assert store.query("SELECT count(*), count(read_from) FROM rollouts") == [(8, 0)]
        assert store.query("SELECT name, value FROM metrics") == [("kl", 0.25)]
        assert len(store.migrated) == VERSION - 1 and not store.notices
        store.append_batch(BatchStats(t=store.next_t(), opened_at=0.0, closed_at=1.0))
    assert version(path) == str(VERSION)
    with Store(path) as store:
        assert len(list(store.read_batches())) == len(kept) + 1 and not store.migrated


@pytest.mark.parametrize("day", ["first", "release"])
def test_a_store_that_was_brought_here_has_the_columns_of_a_new_one(day: str, old: Path, tmp_path: Path) -> None:
    path = old / "klaxon.duckdb"
    if day == "first":
        path.unlink()
        with duckdb.connect(str(path)) as connection:
            connection.execute(FIRST_DAY)
    with Store(path) as store, Store(tmp_path / "new.duckdb") as new:
        assert columns(store) == columns(new)
        assert len(list(store.read_batches())) >= 1


def test_a_daemon_takes_up_a_run_of_the_release_before_and_says_so(old: Path, tmp_path: Path) -> None:
    port = free_port()
    config = write_config(tmp_path / "config.toml", {
        "run": {"name": "old", "dir": str(old)}, "shadow": {"enabled": False}, "alerts": {"console": False},
        "daemon": {"port": port, "batch_seconds": 0.5, "watermark_seconds": 0.2}})
    url = f"http://127.0.0.1:{port}"
    with daemon_of(config, url):
        before = get(url, "/healthz")["batches"]
        assert before >= 5
        post(url, {**ROLLOUT, "request_id": "new"})
        wait(lambda: get(url, "/v1/status")["counts"].get("scored") == 1)
        scored = get(url, "/healthz")["batches"]
        wait(lambda: get(url, "/healthz")["batches"] >= scored + 3)
        said = [event["text"] for event in get(url, "/v1/events")]
        assert any(f"brought to format {VERSION}" in text for text in said) and any("took up the run at batch" in text for text in said)
    with Store(old / "klaxon.duckdb") as store:
        assert store.query("SELECT count(*) FROM rollouts") == [(9,)]
        assert sum(batch.counts.get("seen", 0) for batch in store.read_batches()) == 9


def test_a_migration_that_fails_or_is_killed_leaves_the_store_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old / "klaxon.duckdb"
    broken = {**MIGRATIONS, VERSION + 1: Migration(about="broken", statements=("CREATE TABLE half (a INT)", "SELECT * FROM nowhere"))}
    monkeypatch.setattr(store_migrations, "MIGRATIONS", broken)
    monkeypatch.setattr(store_migrations, "VERSION", VERSION + 1)
    with pytest.raises(duckdb.Error, match="nowhere"):
        Store(path)
    assert version(path) == "1"
    monkeypatch.undo()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert version(path) == "1"
    with Store(path) as store:
        assert store.query("SELECT count(*) FROM rollouts") == [(8,)]


KILLED = """
import os, signal, sys
from collector import store
def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
before = store.migrate
store.migrate = lambda *given, **named: (before(*given, **named), kill())
store.Store(sys.argv[1])
"""


@pytest.mark.parametrize("found", ["99", str(VERSION + 1), "0", "two"])
def test_a_store_of_a_newer_klaxon_is_refused_in_plain_words_and_left_alone(found: str, old: Path) -> None:
    path = old / "klaxon.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'version'", [found])
    with pytest.raises(Unavailable, match=f"store format {found}.*newer Klaxon wrote it"):
        Store(path)
    assert version(path) == found


def test_versions_are_counted_without_a_gap_and_each_says_what_it_is_for() -> None:
    assert sorted(MIGRATIONS) == list(range(2, VERSION + 1))
    assert all(step.about and step.statements for step in MIGRATIONS.values())


def test_the_fixture_is_what_the_release_wrote(old: Path) -> None:
    assert json.loads((old / "status.json").read_text())["counts"]["seen"] == 8
    assert version(old / "klaxon.duckdb") == "1"
