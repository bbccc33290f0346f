"""What Prometheus and Grafana get: the table of docs/monitoring.md, bounded labels, the dashboard asked of a real Prometheus."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dashboard_served import faulty_run
from klaxon.api_metrics import table
from klaxon.metric_labels import MOST, OTHER, Labels
from klaxon.metric_rows import EXPORTED, Exported
from test_command_daemon import free_port

ROOT = Path(__file__).parent.parent
PAGE, DASHBOARD = ROOT / "docs/monitoring.md", ROOT / "deploy/grafana/klaxon.json"
UNITS = ("_seconds", "_nats", "_ratio", "_bytes", "_versions", "_tokens", "_rollouts", "_batches", "_per_second", "_total", "_ln_m", "_ln_a", "_ln_share")
NO_UNIT = {"klaxon_verdict", "klaxon_tier", "klaxon_learning", "klaxon_batch_number", "klaxon_alarms", "klaxon_promised_false_alarms", "klaxon_incidents_open",
           "klaxon_incidents", "klaxon_trainer_step", "klaxon_trainer_metric", "klaxon_tap_up", "klaxon_alerts_receiver_up", "klaxon_alerts_waiting",
           "klaxon_alerts_dead_letters", "klaxon_export_up"}
UNIT_IN_WORDS = re.compile(r"nats|versions|batch|/min|a minute|log|1 while|incidents|alarms|units|tokens|rollouts|messages", re.IGNORECASE)
NAMES = {one.name for one in EXPORTED}
NAME = re.compile(r"\bklaxon_[a-z0-9_]+")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prometheus")
    with faulty_run(folder, batches=30, exports={"tensorboard_dir": str(folder / "tb")}) as running:
        running.daemon.exports.start()
        running.daemon.exports.stop()
        running.daemon._heartbeat({"source": "plugin", "engine": "http://e1:8000", "pid": 1, "sent": 3, "dropped": 2})
        running.daemon.trainer.take_metrics({"step": 4, "metrics": {"reward": 0.5, "clip_rate": 0.01, "my/own": 1.0}})
        yield running


@pytest.fixture(scope="module")
def scraped(served):
    """name → samples as a scraper sees them."""
    text = httpx.get(f"{served.url}/metrics", trust_env=False).text
    return {sample.name: [] for family in text_string_to_metric_families(text) for sample in family.samples} | {
        family.name + ("_total" if family.type == "counter" else ""): family.samples for family in text_string_to_metric_families(text)}


def test_the_page_lists_exactly_what_is_exported(scraped) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert table() in page, "run `python -m klaxon.api_metrics` and put its table into docs/monitoring.md"
    assert set(scraped) == NAMES


def test_every_name_ends_in_its_unit_or_counts_something() -> None:
    assert {name for name in NAMES if not name.endswith(UNITS)} == NO_UNIT
    assert all((one.kind == "counter") == one.name.endswith("_total") for one in EXPORTED)


def test_every_sample_carries_the_run_and_the_labels_of_its_row(scraped) -> None:
    samples = [(one, sample) for one in EXPORTED for sample in scraped[one.name]]
    assert len(samples) > 50
    assert [sample.name for one, sample in samples if sample.labels.get("run") != "r1" or set(sample.labels) != {"run", *one.labels}] == []


def test_a_real_fault_shows_in_the_numbers(scraped) -> None:
    value = {(sample.name, *sorted(set(sample.labels.values()) - {"r1"})): sample.value for samples in scraped.values() for sample in samples}
    assert value["klaxon_verdict", "mismatch"] == 1.0 and value["klaxon_verdict", "healthy"] == 0.0
    assert value["klaxon_incidents", "firing", "raw_logprobs"] == 1.0 and value[("klaxon_incidents_open",)] == 1.0
    assert value["klaxon_abs_d_nats", "0.99"] > value["klaxon_abs_d_nats", "0.5"] > 0 and value[("klaxon_k3_nats",)] > 0
    assert value["klaxon_tap_dropped_total", "http://e1:8000", "plugin"] == 2.0 and value["klaxon_rollouts_dropped_total", "dropped_by_taps"] == 2.0
    assert value["klaxon_trainer_metric", "clip_rate"] == 0.01 and ("klaxon_trainer_metric", "my/own") not in value
    assert value["klaxon_export_written_total", "tensorboard"] == 30.0
    assert abs(value["klaxon_heartbeat_timestamp_seconds", "daemon"] - time.time()) < 3600


def test_labels_from_outside_are_bounded_for_the_life_of_the_daemon() -> None:
    labels, (most, name) = Labels(), (MOST["reason"], "klaxon_rollouts_dropped_total")
    row = Exported(name, "counter", ("reason",), "", lambda picture: ())
    for scrape in range(3):
        samples = [((f"reason {scrape * 1000 + i}",), 2.0) for i in range(1000)]
        found = dict(labels.bounded(row, samples))
        assert len(found) <= most + 1 and sum(found.values()) == 2000.0
    assert set(found) == {(OTHER,)}, "all of them came after the bound was reached"
    gauge = Exported("klaxon_stream_ln_share", "gauge", ("stream",), "", lambda picture: ())
    many = dict(labels.bounded(gauge, [((f"s{i}",), float(i)) for i in range(MOST["stream"] + 5)]))
    assert many[(OTHER,)] == MOST["stream"] + 4
    assert dict(labels.bounded(gauge, [(("x" * 5000,), 1.0)])).keys() <= {("x" * 200,), (OTHER,)}
    closed = {"part", "verdict", "quantile", "state", "metric", "exporter"}
    assert {label for one in EXPORTED for label in one.labels} == closed | set(MOST)


def panels() -> list[dict]:
    return [panel for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def test_the_dashboard_is_what_its_maker_makes() -> None:
    made = runpy.run_path(str(ROOT / "deploy/grafana/make.py"))["dashboard"]()
    assert json.loads(DASHBOARD.read_text(encoding="utf-8")) == made, "run `python deploy/grafana/make.py`"


def test_every_panel_has_a_unit_and_a_description_and_asks_for_what_is_exported() -> None:
    assert len(panels()) >= 20
    for panel in panels():
        assert len(panel["description"]) > 15 and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        described = panel["description"] + "".join(target["legendFormat"] for target in panel["targets"])
        plain = panel["type"] != "stat" and panel["fieldConfig"]["defaults"]["unit"] == "none"
        assert not plain or UNIT_IN_WORDS.search(described), f"{panel['title']}: say the unit"
    for expr in expressions():
        assert NAME.search(expr) and set(NAME.findall(expr)) <= NAMES and 'run=~"$run"' in expr, expr
        for selector in re.findall(r"(klaxon_[a-z0-9_]+)\{([^}]*)\}", expr):
            labels = {part.split("=")[0].rstrip("!") for part in selector[1].split(",")}
            assert labels <= {"run", *next(one.labels for one in EXPORTED if one.name == selector[0])}, expr


def test_the_panels_lie_beside_and_below_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


@pytest.fixture(scope="module")
def prometheus(served, tmp_path_factory):
    """A real Prometheus that scrapes the daemon and has loaded the rules."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs prometheus (apt-get install prometheus)")
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    target = served.url.removeprefix("http://")
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: [{json.dumps(str(ROOT / 'deploy/prometheus/klaxon.rules.yml'))}]\n"
        f"scrape_configs: [{{job_name: klaxon, static_configs: [{{targets: ['{target}']}}]}}]\n")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                                    f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT)
    try:
        yield wait_for(f"http://127.0.0.1:{port}", process, folder / "log")
    finally:
        process.terminate()
        process.wait(60)


def wait_for(url: str, process: subprocess.Popen, log: Path) -> str:
    """Until it has scraped twice; while it starts it answers in words."""
    deadline = time.monotonic() + 120
    while True:
        assert time.monotonic() < deadline and process.poll() is None, log.read_text()[-2000:]
        try:
            if ask(url, "count_over_time(klaxon_tier[1m]) >= 2"):
                return url
        except (httpx.HTTPError, ValueError):
            pass
        time.sleep(0.25)


def ask(url: str, expr: str) -> list[dict]:
    found = httpx.get(f"{url}/api/v1/query", params={"query": expr}, timeout=20, trust_env=False).json()
    assert found["status"] == "success", f"{expr}: {found.get('error')}"
    return found["data"]["result"]


EMPTY_HERE = ("klaxon_floor_nats", "klaxon_ln_m", "klaxon_weight_lag_versions", "klaxon_rollout_lag_versions", "klaxon_scorer_", "klaxon_tokens_left_out_total")
"""What a served run whose worker and detectors do not run knows nothing of."""


def test_a_real_prometheus_answers_every_expression_of_the_dashboard(prometheus) -> None:
    filled = [expr.replace("$run", "r1").replace("$__rate_interval", "1m") for expr in expressions()]
    empty = [expr for expr in filled if not ask(prometheus, expr)]
    assert [expr for expr in empty if not any(name in expr for name in EMPTY_HERE)] == []
    runs = httpx.get(f"{prometheus}/api/v1/label/run/values", params={"match[]": "klaxon_heartbeat_timestamp_seconds"}, trust_env=False).json()
    assert runs["data"] == ["r1"]


def test_a_real_prometheus_evaluates_the_rules_and_fires_on_the_mismatch(prometheus) -> None:
    deadline = time.monotonic() + 60
    while "KlaxonMismatch" not in (firing := {row["metric"]["alertname"] for row in ask(prometheus, 'ALERTS{alertstate="firing"}')}):
        assert time.monotonic() < deadline, firing
        time.sleep(0.5)
    assert "KlaxonDown" not in firing and "KlaxonRunGone" not in firing
    rules = [rule for group in httpx.get(f"{prometheus}/api/v1/rules", trust_env=False).json()["data"]["groups"] for rule in group["rules"]]
    assert len(rules) >= 12 and [rule["name"] for rule in rules if rule["health"] not in ("ok", "unknown")] == []
