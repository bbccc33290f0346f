"""What the pages ask the daemon beyond the series: breakdowns, coverage, throughput, the band, the audit. Real store, real API."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from collector import breakdown, signals
from collector.records import BatchStats, Rollout, Score, WeightSpan
from collector.store import Store
from detectors.reference import Band, MetricBand
from detectors.trainer_metrics import transformed
from klaxon import audit_view
from klaxon.api import build_api
from klaxon.band_view import band_view
from klaxon.config import parse_config

BATCHES = 12


def rollout(rng: np.random.Generator, t: int, replica: str, *, shift: float) -> tuple[Rollout, Score]:
    trainer = rng.uniform(-3, -0.001, 60).astype(np.float32)
    one = Rollout(
        request_id=f"{t}-{replica}", engine=replica, prompt_tokens_P=np.arange(1000 if t % 2 else 20, dtype=np.int32), completion_tokens_T=np.zeros(60, np.int32),
        engine_logprobs_T=(trainer + rng.normal(shift, 0.02, 60)).astype(np.float32), sampled_mask_T=np.ones(60, bool), cached_prompt_tokens=16 * (t % 2),
        weight_versions=(WeightSpan(start=0, end=60, version=str(8 + t // 4)),), finished_at=1000.0 + t, traffic="train", inclusion_probability=0.5,
        labels={"env": "code" if t % 3 else "maths", "turn": str(t % 2)})
    return one, Score(request_id=one.request_id, views={"expected": trainer})


def pairs(t: int) -> list[tuple[Rollout, Score]]:
    rng = np.random.default_rng(t)
    return [rollout(rng, t, replica, shift=shift) for replica, shift in (("a", 0.0), ("b", 0.3))]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with Store(tmp_path_factory.mktemp("slices") / "k.duckdb", threads=1) as opened:
        for version, at in (("8", 990.0), ("9", 1004.0), ("10", 1006.0)):
            opened.append_weights(version, seen_at=at)
        for t in range(BATCHES):
            slices = signals.merge([item for pair in pairs(t) for item in signals.slice_stats(*pair)])
            opened.append_batch(BatchStats(t=t, opened_at=1000.0 + t, closed_at=1001.0 + t, slices=slices,
                                           counts={"seen": 4, "tokens_seen": 240, "tokens_seen@a": 120, 'tokens_seen@b"$.': 5, "tokens_seen@b": 120}))
            opened.append_rollouts(t, pairs(t))
        opened.append_event(1001.0, "engine_config", "engine a: dtype changed from bfloat16 to float16", {"key": "dtype", "before": "bfloat16", "after": "float16"})
        opened.append_event(1002.0, "engine_call", "POST /reset_prefix_cache", {"path": "/reset_prefix_cache", "query": "", "status": 200})
        yield opened


@pytest.fixture(scope="module")
def client(store):
    with TestClient(build_api(store, SimpleNamespace(status=dict, incidents=list)), raise_server_exceptions=False) as opened:
        yield opened


def arrow(client: TestClient, path: str, **params) -> list[dict]:
    answer = client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return pa.ipc.open_stream(io.BytesIO(answer.content)).read_all().to_pylist()


def whole(replica: str, **only) -> dict[str, float]:
    items = [item for t in range(BATCHES) for pair in pairs(t) for item in signals.slice_stats(*pair) if item.replica == replica]
    return signals.metrics(signals.total([item for item in items if all(getattr(item, key) == value for key, value in only.items())]))


def test_a_breakdown_says_what_the_metric_table_says(client):
    for row in arrow(client, "/v1/breakdown", by="replica"):
        expected = whole(row["replica"])
        for name in ("mean_d", "mean_abs_d", "mean_abs_d_se", "k3", "clip_rate", "n_tokens"):
            assert row[name] == pytest.approx(expected[name], rel=1e-9), name
        assert row["at"] is None and row["of"] == 2


def test_over_time_the_points_add_up_to_the_whole(client):
    rows = arrow(client, "/v1/breakdown", by="replica", points=4)
    assert len(rows) == 8 and len({row["at"] for row in rows}) == 4
    for replica in "ab":
        part = [row for row in rows if row["replica"] == replica]
        assert sum(row["n_tokens"] for row in part) == whole(replica)["n_tokens"]
        assert sum(row["mean_abs_d"] * row["n_tokens"] for row in part) / sum(row["n_tokens"] for row in part) == pytest.approx(whole(replica)["mean_abs_d"])


def test_rows_of_an_earlier_klaxon_are_read_from_their_map_of_sums(store, tmp_path):
    with Store(tmp_path / "old.duckdb", threads=1) as old:
        for t in range(BATCHES):
            slices = signals.merge([item for pair in pairs(t) for item in signals.slice_stats(*pair)])
            old.append_batch(BatchStats(t=t, opened_at=1000.0 + t, closed_at=1001.0 + t, slices=slices))
        asked = breakdown.Asked(by=("replica", "position"), points=5)
        new = breakdown.read_breakdown(old, asked)
        old.query("UPDATE slices SET abs_d = NULL, d = NULL, k3 = NULL WHERE t < 6")
        assert new.num_rows > 10 and breakdown.read_breakdown(old, asked) == new


def test_filters_hold_and_the_worst_keys_are_kept(client):
    row, = arrow(client, "/v1/breakdown", by="replica", most=1, only=["cached=hit", "position=0-1k"])
    assert row["replica"] == "b" and row["of"] == 2
    assert row["mean_abs_d"] == pytest.approx(whole("b", cached=True, position="0-1k")["mean_abs_d"])
    assert arrow(client, "/v1/breakdown", by="replica", only=["replica=nobody"]) == []
    assert {row["cached"] for row in arrow(client, "/v1/breakdown", by="cached")} == {"hit", "none"}


def test_lag_counts_the_versions_published_before_the_batch_began(client):
    found = {(row["version"], row["lag"]): row["n_tokens"] for row in arrow(client, "/v1/breakdown", by="version,lag")}
    # batches 0–3 run version 8, 4–7 version 9, 8–11 version 10; 9 is out at 1004, 10 at 1006
    assert found == {("8", "0"): 4 * 120, ("9", "0"): 2 * 120, ("9", "1"): 2 * 120, ("10", "0"): 4 * 120}


def test_environment_turn_and_probability_come_from_the_rollouts(client):
    rows = {row["env"]: row for row in arrow(client, "/v1/breakdown", by="env", only=["replica=a"])}
    assert {name: row["n_sequences"] for name, row in rows.items()} == {"code": 8, "maths": 4}
    assert len(arrow(client, "/v1/breakdown", by="env,turn")) == 4
    bins = arrow(client, "/v1/breakdown", by="probability", only=["replica=b"])
    assert sum(row["n_tokens"] for row in bins) == whole("b")["n_tokens"]
    assert sum(row["n_tokens"] * row["mean_abs_d"] for row in bins) / 720 == pytest.approx(whole("b")["mean_abs_d"], rel=1e-6)


@pytest.mark.parametrize("params", [{"by": "colour"}, {"by": "replica,replica"}, {"by": "env,position"}, {"only": "replica"}, {"only": "colour=red"},
                                    {"only": ["replica=a", "replica=b"]}, {"by": "env", "only": "probability=x"}, {"by": "replica,version,lag"}])
def test_a_question_that_makes_no_sense_is_refused_in_words(client, params):
    answer = client.get("/v1/breakdown", params=params)
    assert answer.status_code == 400 and len(answer.json()["error"]) > 10


def test_an_answer_is_bounded_and_an_empty_store_answers_empty(client, tmp_path):
    assert client.get("/v1/breakdown", params={"points": breakdown.MAX_POINTS + 1}).status_code == 422
    with Store(tmp_path / "empty.duckdb", threads=1) as empty, TestClient(build_api(empty, SimpleNamespace(status=dict, incidents=list))) as other:
        for path in ("/v1/breakdown?by=version,lag", "/v1/breakdown?by=env", "/v1/breakdown?by=probability&points=9", "/v1/coverage", "/v1/throughput"):
            assert arrow(other, path) == []
        assert other.get("/v1/reference-band").json() == {} and other.get("/v1/audit").json()["checks"] == []


def test_coverage_tells_the_replicas_that_are_not_compared_first(client):
    rows = [row for row in arrow(client, "/v1/coverage") if row["level"] == "replica"]
    assert [(row["replica"], row["coverage"]) for row in rows] == [('b"$.', 0.0), ("a", 0.5), ("b", 0.5)]
    strata = [row for row in arrow(client, "/v1/coverage", start=1000.0) if row["level"] == "stratum"]
    assert {row["prompt"] for row in strata} == {"< 256", "256–1k"} and all(row["sample_rate"] == pytest.approx(0.5) for row in strata)


def test_throughput_counts_what_was_served(client):
    rows = arrow(client, "/v1/throughput", points=3)
    assert len(rows) == 3 and all(row["tokens_per_second"] == pytest.approx(240) for row in rows)
    assert sum(row["tokens_seen"] for row in rows) == 240 * BATCHES and rows[0]["mean_abs_d"] > 0


def test_the_band_comes_in_the_units_the_trainer_logs():
    edges = {"center": (0.01, 0.02), "low": (0.005, 0.01), "high": (0.02, 0.04)}
    one = MetricBand(steps=(0.0, 10.0), noise=0.1, phi=0.0, runs=3, **{name: tuple(transformed(value, "logit") for value in values) for name, values in edges.items()})
    view = band_view(Band(runs=("runs/v0-a", "runs/v0-b", "c"), metrics={"clip_rate": one}))
    assert view["runs"] == ["v0-a", "v0-b", "c"] and view["seed_variance_known"]
    for name, values in edges.items():
        assert view["metrics"]["clip_rate"][name] == pytest.approx(values)
    assert band_view(None) == {} and math.isfinite(json.loads(json.dumps(view))["coverage"])


def daemon(store: Store, folder: Path, *, tap: dict, facts: dict) -> SimpleNamespace:
    config = parse_config({"run": {"dir": str(folder)}, "trainer": {"expected_logprobs_mode": "processed_logprobs"}}, where="test")
    return SimpleNamespace(taps=SimpleNamespace(engine_config=lambda: tap, listing=lambda now: [{"engine": "a", "source": "plugin"}]),
                           probe=SimpleNamespace(facts=facts), config=config, store=store)


def test_the_audit_judges_what_tap_and_probe_told_against_what_is_declared(store, tmp_path):
    tap = {"vllm_version": "0.18.1", "engine": "a", "logprobs_mode": "raw_logprobs", "enable_prefix_caching": True}
    view = audit_view.audit_view(daemon(store, tmp_path, tap=tap, facts={"max_logprobs": 20}))
    states = {check["name"]: check["state"] for check in view["checks"]}
    assert states["logprobs mode"] == "wrong" and states["max_logprobs"] == "ok" and states["quantization"] == "unknown"
    assert [(row["kind"], row.get("before"), row.get("after")) for row in view["history"]] == [("engine_config", "bfloat16", "float16")]
    assert audit_view.audit_view(daemon(store, tmp_path, tap={}, facts={}))["checks"] == []


def test_preflight_reports_of_the_runs_folder_are_shown_and_broken_ones_named(tmp_path):
    (tmp_path / "preflight.json").write_text(json.dumps({"passed": False, "engine": "http://e", "rows": [{"name": "batch", "state": "failed", "seen": "x" * 999}]}))
    (tmp_path / "preflight-2.json").write_text("{")
    (tmp_path / "preflight-3.json").write_text('{"passed": true, "rows": 3}')
    found = {report["file"]: report for report in audit_view.preflights(tmp_path)}
    assert not found["preflight.json"]["passed"] and len(found["preflight.json"]["rows"][0]["seen"]) == 300
    assert "JSONDecodeError" in found["preflight-2.json"]["problem"] and "TypeError" in found["preflight-3.json"]["problem"]
    assert audit_view.preflights(tmp_path / "nowhere") == []
