"""The read API: JSON for state, Arrow for series, Prometheus text; faults answer words, never tracebacks."""

from __future__ import annotations

import io
import math

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from collector import signals
from collector.errors import Unavailable
from collector.records import BatchStats, Evidence, Rollout, Score, SliceStats, WeightSpan
from collector.store import Store
from klaxon.api import ARROW, build_api

N = 30


class RunningDaemon:
    """A Live whose answers a test can change."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.state = {
            "run": "r1", "tier": 2, "now": 5000.0, "heartbeat_at": 4999.0, "verdict": "healthy", "ln_m": -math.inf, "ln_a": 9.98,
            "floor_nats": 0.018, "counts": {"seen": np.int64(12), "dropped_inbox_full": 1}, "weights": {"lag": 1, "held": {"4"}},
            "scorer": {"tokens_per_second": 800.0, "backlog": 0, "coverage": 0.5}, "storage": {"bytes": 10},
            "taps": [{"source": "plugin", "engine": "http://a", "last_seen": 4998.0, "sent": 3, "dropped": 2, "alive": True}],
        }

    def status(self) -> dict:
        if self.error:
            raise self.error
        return self.state

    def incidents(self) -> list[dict]:
        return [{"id": "inc_1", "state": "firing"}, {"id": "inc_0", "state": "resolved"}]


def scored(rng: np.random.Generator, *, engine: str, version: int, shift: float) -> tuple[Rollout, Score]:
    trainer = rng.uniform(-3, -0.1, 60).astype(np.float32)
    rollout = Rollout(
        request_id=f"{engine}-{rng.integers(1 << 30)}", engine=engine, prompt_tokens_P=np.arange(5, dtype=np.int32),
        completion_tokens_T=np.arange(60, dtype=np.int32), sampled_mask_T=np.ones(60, bool),
        engine_logprobs_T=(trainer + rng.normal(shift, 0.02, 60)).astype(np.float32), cached_prompt_tokens=0,
        weight_versions=(WeightSpan(start=0, end=60, version=str(version)),), finished_at=1000.0 + version)
    return rollout, Score(request_id=rollout.request_id, views={"expected": trainer})


def slices_of(t: int) -> tuple[SliceStats, ...]:
    rng = np.random.default_rng(t)
    pairs = [scored(rng, engine=engine, version=t // 10, shift=shift) for engine, shift in (("a", 0.0), ("b", 0.3))]
    return signals.merge([item for pair in pairs for item in signals.slice_stats(*pair)])


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with Store(tmp_path_factory.mktemp("api") / "k.duckdb") as store:
        for t in range(N):
            empty = t == 7
            store.append_batch(
                BatchStats(t=t, opened_at=1000.0 + t, closed_at=1001.0 + t, slices=() if empty else slices_of(t),
                           counts={} if empty else {"seen": 2}),
                [Evidence(t=t, stream=stream, weight=weight, gain=0.1, log_sr=0.1 * t, started_at=3)
                 for stream, weight in (("self_bets", 0.5), ("raw_logprobs", 0.25))],
                ln_m=-math.inf if t == 0 else t / 10, ln_a=9.98)
            store.append_metrics(t, 1001.0 + t, {"reward": t / N, "actor/pg_clipfrac": 0.01, "rl/kl_new_old": math.nan})
        rng = np.random.default_rng(0)
        store.append_rollouts(0, [scored(rng, engine="a", version=0, shift=0.0) for _ in range(5)])
        store.append_event(1010.0, "weight_update", "weights 1", {"path": "/w/1", "bad": math.nan})
        store.append_event(1020.0, "alarm", "it rang")
        store.append_weights("1", seen_at=1009.0)
        store.append_weights("1", engine_at=1010.0)
        yield store


@pytest.fixture
def live():
    return RunningDaemon()


@pytest.fixture
def client(opened, live):
    with TestClient(build_api(opened, live), raise_server_exceptions=False) as client:
        yield client


def arrow(client: TestClient, path: str, **params) -> pa.Table:
    answer = client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == ARROW
    return pa.ipc.open_stream(io.BytesIO(answer.content)).read_all()


def test_series_has_one_row_a_batch_and_says_what_the_signals_say(client):
    table = arrow(client, "/v1/series")
    assert table["t"].to_pylist() == list(range(N))
    row = table.slice(12, 1).to_pylist()[0]
    expected = signals.metrics(signals.total(slices_of(12)))
    for name in ("mean_d", "mean_abs_d", "k3", "clip_rate", "gspo_clip_rate", "ess", "p50_abs_d", "p99_abs_d"):
        assert row[name] == row[f"{name}_min"] == row[f"{name}_max"] == pytest.approx(expected[name], rel=1e-12), name
    assert (row["n_tokens"], row["version_max"], row["ln_m"], row["ln_a"]) == (120, 1, 1.2, 9.98)
    assert (row["nonfinite"], row["confident_disagreements"], row["closed_at"]) == (0, 0, 1013.0)


def test_an_empty_batch_is_a_gap_not_a_zero(client):
    row = arrow(client, "/v1/series").slice(7, 1).to_pylist()[0]
    assert row["n_tokens"] == 0 and row["mean_abs_d"] is None and row["version_max"] is None


def test_series_are_cut_to_points_with_weighted_mean_min_and_max(client):
    fine, coarse = arrow(client, "/v1/series").to_pylist(), arrow(client, "/v1/series", max_points=10).to_pylist()
    assert len(coarse) == 10 and [row["batches"] for row in coarse] == [3] * 10
    group, point = fine[6:9], coarse[2]
    weights = [row["n_tokens"] for row in group]
    values = [row["mean_abs_d"] or 0 for row in group]
    assert point["mean_abs_d"] == pytest.approx(np.average(values, weights=weights))
    assert point["mean_abs_d_max"] == max(values) and point["mean_abs_d_min"] == min(v for v in values if v)
    assert point["n_tokens"] == sum(weights) and point["ln_m"] == 0.8 and point["ln_m_max"] == 0.8


def test_series_of_one_replica_come_from_its_slices(client):
    quiet, loud = (arrow(client, "/v1/series", replica=name).to_pylist()[3] for name in "ab")
    assert quiet["mean_abs_d"] < 0.03 < 0.25 < loud["mean_abs_d"]
    assert quiet["n_tokens"] == 60 and quiet["ln_a"] == 9.98
    merged = arrow(client, "/v1/series", replica="b", max_points=5).to_pylist()
    assert len(merged) == 5 and merged[0]["n_tokens"] == 6 * 60
    nothing = arrow(client, "/v1/series", replica="nobody")
    assert nothing.num_rows == N and nothing["mean_abs_d"].null_count == N


def test_series_of_a_time_range(client):
    assert arrow(client, "/v1/series", start=1005.0, end=1007.0)["t"].to_pylist() == [4, 5, 6]


def test_slices_are_put_together_by_the_keys_asked_for(client):
    rows = arrow(client, "/v1/slices", by="replica").to_pylist()
    assert {row["replica"] for row in rows} == {"a", "b"} and all(row["n_tokens"] == 29 * 60 for row in rows)
    assert len(arrow(client, "/v1/slices", start=1020.0)) == 4  # two replicas, versions 1 and 2
    answer = client.get("/v1/slices", params={"by": "colour"})
    assert answer.status_code == 400 and "colour" in answer.json()["error"]


def test_evidence_by_stream_and_the_latest_of_each(client):
    assert arrow(client, "/v1/evidence").num_rows == 2 * N
    latest = {row["stream"]: row for row in arrow(client, "/v1/evidence", latest=True).to_pylist()}
    assert latest["self_bets"]["log_sr"] == pytest.approx(2.9)
    assert latest["raw_logprobs"]["log_share"] == pytest.approx(2.9 + math.log(0.25))


def test_trainer_metrics_by_name(client):
    table = arrow(client, "/v1/metrics", name="reward", max_points=10)
    assert table.num_rows == 10 and set(table["name"].to_pylist()) == {"reward"}
    first = table.to_pylist()[0]
    assert (first["value_min"], first["value_max"], first["step"]) == (0.0, 2 / N, 2)
    assert set(arrow(client, "/v1/metrics")["name"].to_pylist()) == {"reward", "actor/pg_clipfrac", "rl/kl_new_old"}


def test_rollouts_are_statistics(client):
    table = arrow(client, "/v1/rollouts", limit=3)
    assert table.num_rows == 3 and 0 < table["mean_abs_d"][0].as_py() < 0.05
    assert not {"token_ids", "text", "request_id"} & set(table.column_names)


def test_state_is_strict_json_even_where_numbers_are_infinite(client):
    assert client.get("/v1/status").json()["ln_m"] is None
    assert client.get("/v1/status").json()["counts"]["seen"] == 12
    assert client.get("/v1/incidents").json()[0]["state"] == "firing"
    assert [item["kind"] for item in client.get("/v1/events").json()] == ["alarm", "weight_update"]
    assert client.get("/v1/events").json()[1]["data"] == {"path": "/w/1", "bad": None}
    assert [item["kind"] for item in client.get("/v1/events", params={"since": 1015}).json()] == ["alarm"]
    assert client.get("/v1/weights").json()[0] | {"path": None} == {
        "version": "1", "path": None, "published_at": None, "digest": None, "seen_at": 1009.0, "engine_at": 1010.0}
    assert client.get("/healthz").json() == {"ok": True, "batches": N}


@pytest.mark.parametrize("query", ["max_points=0", "max_points=1e9", "start=yesterday", "start=nan"])
def test_a_wrong_parameter_is_refused(client, query):
    assert client.get(f"/v1/series?{query}").status_code == 422


@pytest.mark.parametrize(("error", "code"), [(Unavailable("the store is closed"), 503), (RuntimeError("boom"), 500)])
def test_a_fault_answers_words_and_is_counted(client, live, error, code):
    live.error = error
    answer = client.get("/v1/status")
    assert answer.status_code == code and "Traceback" not in answer.text and "boom" not in answer.text
    live.error = None
    assert 'klaxon_api_faults_total{run="r1"} 1.0' in client.get("/metrics").text


def test_prometheus_sees_heartbeat_evidence_signals_counts_and_taps(client):
    text = client.get("/metrics").text
    for line in ('klaxon_heartbeat_timestamp_seconds{part="daemon",run="r1"} 4999.0', 'klaxon_heartbeat_timestamp_seconds{part="tap",run="r1"} 4998.0',
                 'klaxon_ln_m{run="r1"} -Inf', 'klaxon_ln_a{run="r1"} 9.98', 'klaxon_tier{run="r1"} 2.0',
                 'klaxon_verdict{run="r1",verdict="healthy"} 1.0', 'klaxon_verdict{run="r1",verdict="mismatch"} 0.0',
                 'klaxon_count_total{run="r1",what="dropped_inbox_full"} 1.0', 'klaxon_rollouts_dropped_total{reason="dropped_inbox_full",run="r1"} 1.0',
                 'klaxon_incidents_open{run="r1"} 1.0', 'klaxon_incidents{cause="diagnosing",run="r1",state="firing"} 1.0',
                 'klaxon_tap_up{engine="http://a",run="r1",source="plugin"} 1.0', 'klaxon_weight_lag_versions{run="r1"} 1.0',
                 f'klaxon_compared_batch_timestamp_seconds{{run="r1"}} {1000.0 + N}', 'klaxon_compared_tokens{run="r1"} 120.0'):
        assert line in text, line
    newest = signals.metrics(signals.total(slices_of(N - 1)))
    for name, signal in (("klaxon_mean_abs_d_nats{", "mean_abs_d"), ("klaxon_k3_nats{", "k3"), ("klaxon_clip_rate_ratio{", "clip_rate"),
                         ('klaxon_abs_d_nats{quantile="0.5",', "p50_abs_d"), ('klaxon_abs_d_nats{quantile="0.99",', "p99_abs_d")):
        assert f'{name}run="r1"}} {newest[signal]}' in text, name
    share = math.log(0.25) + 0.1 * (N - 1)
    assert f'klaxon_stream_ln_share{{run="r1",stream="raw_logprobs"}} {share}' in text
