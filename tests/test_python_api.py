"""`import klaxon` for people who script: runs, files of rollouts, streams of batches, with typed results."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import polars
import pyarrow as pa
import pytest

import klaxon
from collector.store import Store
from dashboard_served import faulty_run

ROOT = Path(__file__).parent.parent
RECORDINGS = ROOT / "klaxon" / "recordings"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    with faulty_run(folder) as served:
        served.daemon.keep_status()
        store = Path(served.daemon.config.run.dir)
    return store


def test_a_stopped_run_is_read_as_arrow_pandas_and_polars(stopped):
    with klaxon.open_run(stopped) as run:
        table = run.series()
        assert isinstance(table, pa.Table) and table.num_rows == 40
        assert table.to_pandas()["mean_abs_d"].iloc[-1] > table.to_pandas()["mean_abs_d"].iloc[0]
        assert polars.from_arrow(table)["mean_abs_d"].max() == pytest.approx(max(table["mean_abs_d"].to_pylist()))
        assert run.series("chi2", replica="http://e1:8000").num_rows == 40
        assert set(run.slices("replica")["replica"].to_pylist()) == {"http://e0:8000", "http://e1:8000"}
        assert run.evidence().num_rows > 0 and run.events() and run.metrics().num_rows == 0 and isinstance(run.rollouts(), pa.Table)
        [incident] = run.incidents()
        assert incident.state == "firing" and incident.cause == "raw_logprobs" and incident.opened_at < time.time() and incident.id in repr(incident)
        assert run.name == "r1" and run.status()["sealed"]
        socket = run.url
    with pytest.raises(klaxon.KlaxonError, match="no Klaxon daemon answers"):
        klaxon.open_run(socket)
    with Store(stopped / "klaxon.duckdb") as store:
        assert store.next_t() == 40, "the files were copied, not held"


def test_a_running_daemon_is_read_by_its_address(tmp_path):
    with faulty_run(tmp_path) as served, klaxon.open_run(served.url) as run:
        assert run.series().num_rows == 40 and run.name == "r1"
        with pytest.raises(klaxon.KlaxonError, match="sirens"):
            run.series("sirens")
        with pytest.raises(klaxon.KlaxonError):
            klaxon.open_run(served.daemon.config.run.dir)  # the daemon owns the files


@pytest.mark.parametrize(("source", "said"), [("nowhere", "no folder and no address"), ("http://127.0.0.1:9", "no Klaxon daemon"), (".", "klaxon.duckdb")])
def test_what_is_no_run_is_refused_in_words(tmp_path, monkeypatch, source, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(klaxon.KlaxonError, match=said):
        klaxon.open_run(source)


def test_rollouts_are_read_and_looked_at_without_torch():
    script = ("import sys, klaxon; found = klaxon.read_rollouts(sys.argv[1]); report = klaxon.look(found.rollouts); "
              "assert 'torch' not in sys.modules; print(len(found.rollouts), report.verdict)")
    done = subprocess.run([sys.executable, "-c", script, str(RECORDINGS / "v0181_raw_t07.jsonl")], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["32", "mismatch"], done.stderr


def test_importing_klaxon_is_light_and_unknown_names_are_refused():
    script = "import sys, klaxon; print(sorted(set(sys.modules) & {'torch', 'duckdb', 'pyarrow', 'numpy', 'fastapi'}))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True).stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="sirens"):
        klaxon.sirens
    assert all(getattr(klaxon, name) is not None for name in klaxon.__all__) and set(dir(klaxon)) >= set(klaxon.__all__)


def test_detect_gives_evidence_a_line_and_the_first_alarm():
    quiet = [{"t": t, "stream": "kl", "value": 0.001 + 0.0001 * (t * 7919 % 13), "n": 1000} for t in range(300)]
    calm = klaxon.detect(quiet, cadence_seconds=120)
    assert calm.first_alarm is None and len(calm.answers) == 300 and not calm.refused and calm.ln_a > 9
    loud = klaxon.detect([*quiet, *({**row, "t": 300 + n, "value": 0.5} for n, row in enumerate(quiet[:80]))], cadence_seconds=120)
    assert loud.first_alarm["feature"] == "kl" and loud.first_alarm["t"] >= 300 and loud.table().num_rows == 380
    with pytest.raises(klaxon.KlaxonError, match="no usable line"):
        klaxon.detect(["{}"], cadence_seconds=120)


def test_detect_counts_refused_lines_and_keeps_the_good_ones(tmp_path):
    path = tmp_path / "series.jsonl"
    path.write_text("\n".join([json.dumps({"t": t, "stream": "kl", "value": 0.1, "n": 10}) for t in range(20)] + ["not json"]))
    found = klaxon.detect(path, cadence_seconds=120)
    assert len(found.answers) == 20 and len(found.refused) == 1 and "line 21" in str(found.refused[0])
    with pytest.raises(klaxon.KlaxonError, match="cannot be read"):
        klaxon.detect(tmp_path / "nowhere.jsonl")


def test_an_empty_list_of_rollouts_is_refused():
    with pytest.raises(klaxon.KlaxonError, match="no rollout"):
        klaxon.look([])
