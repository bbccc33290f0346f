"""W&B through its real client: offline files read back, and a local server that behaves like W&B's. The hosted service was not asked."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from alerts.notifiers.wandb_alert import own_run
from collector.errors import ConfigError
from collector.sources.metrics.wandb_run import WandbRun
from collector.sources.metrics.wandb_log import WandbLog
from dashboard_served import faulty_run
from klaxon.commands.check import examine
from klaxon.config import parse_config
from klaxon.demo.settings import write_config
from klaxon.exports import wandb
from klaxon.exports.points import Note, Point
from test_command_daemon import ROLLOUT, daemon_of, free_port, get, klaxon, post
from wandb_server import WandbServer, wandb_server

pytest.importorskip("wandb")
KEY = "0123456789abcdef" * 2 + "01234567"
NOTE = Note(incident="inc_1", state="firing", title="Klaxon: rollout logprobs no longer match", text="Cause: raw_logprobs", level="ERROR")


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Nothing of the machine's own W&B; a key."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)


@pytest.fixture
def server():
    with wandb_server() as running:
        yield running


def config_of(folder: Path, **given):
    given = {"mode": "online", "entity": "team", "project": "rl", **given}
    return parse_config({"run": {"name": "r1", "dir": str(folder)}, "daemon": {"port": free_port()}, "exports": {"wandb": given}}, where="test")


def point(t: int, *, step: int | None = None) -> Point:
    values = {"klaxon/batch": float(t), "klaxon/k3_nats": 0.01 * t, **({} if step is None else {"klaxon/trainer_step": float(step)})}
    return Point(t=t, at=1000.0 + t, step=step, values=values)


def wait(condition, seconds: float = 120.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


def records(folder: Path) -> list:
    """The records of the one .wandb file below a folder."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.rglob("*.wandb")
    found = []
    for data in WandbLog(path).records():
        found.append(wandb_internal_pb2.Record())
        found[-1].ParseFromString(data)
    return found


def test_a_run_of_its_own_in_the_trainers_group_gets_numbers_and_alerts(server, tmp_path) -> None:
    sink = wandb.WandbSink(config_of(tmp_path, base_url=server.url, group="grpo-7b"))
    for item in (point(0), point(1), NOTE, point(2, step=40)):
        sink.write(item)
    sink.close()
    run = server.runs[own_run("r1")]
    assert (run["groupName"], run["displayName"], run["jobType"], run["project"], run["entity"]) == ("grpo-7b", "klaxon r1", "klaxon", "rl", "team")
    assert [(row["klaxon/batch"], row["klaxon/k3_nats"]) for row in server.history(own_run("r1"))] == [(0, 0), (1, 0.01), (2, 0.02)]
    (alert,) = server.alerts
    assert (alert["title"], alert["severity"], alert["runName"]) == (NOTE.title, "ERROR", own_run("r1")) and alert["waitDuration"] <= 1000
    assert server.streamed[-1]["complete"] is True
    assert str(tmp_path) not in json.dumps(run), "no path of this machine"


def test_shared_mode_writes_into_the_trainers_run_and_does_not_end_it(server, tmp_path) -> None:
    sink = wandb.WandbSink(config_of(tmp_path, base_url=server.url, mode="shared", run_id="trainer1"))
    sink.write(point(3, step=12))
    sink.close()
    assert list(server.runs) == ["trainer1"] and server.history("trainer1")[0]["klaxon/trainer_step"] == 12
    assert not {"displayName", "groupName", "jobType"} & set(server.runs["trainer1"]), "the trainer's names stay"
    assert not any(sent.get("complete") for sent in server.streamed), "the trainer's run goes on"


def test_offline_files_hold_the_numbers_the_axis_and_the_alert(tmp_path) -> None:
    sink = wandb.WandbSink(config_of(tmp_path, mode="offline"))
    for item in (point(0), point(1), NOTE, point(2, step=40), point(3, step=41)):
        sink.write(item)
    sink.close()
    rows = list(WandbRun(str(tmp_path / "wandb")).poll(0.0))
    assert [row.values["klaxon/k3_nats"] for row in rows] == [0.0, 0.01, 0.02, 0.03]
    kept = records(tmp_path)
    assert [record.alert.title for record in kept if record.HasField("alert")] == [NOTE.title]
    axes = [record.metric.step_metric for record in kept if record.HasField("metric") and record.metric.step_metric]
    assert axes[-1] == "klaxon/trainer_step" and "klaxon/batch" in axes
    (run,) = [record.run for record in kept if record.HasField("run")][:1]
    assert (run.run_id, run.run_group, run.job_type) == (own_run("r1"), "r1", "klaxon")


def test_a_server_that_fails_later_is_a_complaint_and_what_was_logged_arrives_when_it_is_back(server, tmp_path) -> None:
    sink = wandb.WandbSink(config_of(tmp_path, base_url=server.url))
    server.fault = 500
    sink.write(point(1))
    assert "500" in wait(sink.trouble)
    server.fault = None
    sink.close()
    assert [row["klaxon/batch"] for row in server.history(own_run("r1"))] == [1]


def test_a_client_that_dies_is_a_failure_and_leaves_no_process(server, tmp_path) -> None:
    sink = wandb.WandbSink(config_of(tmp_path, base_url=server.url))
    sink._child.send_signal(signal.SIGKILL)
    with pytest.raises(Exception, match="has ended"):
        sink.write(point(1))
    sink.close()
    assert sink._child.returncode == -signal.SIGKILL and not any(reader.is_alive() for reader in sink._readers)


@pytest.mark.parametrize(("given", "words"), [
    ({}, "set WANDB_API_KEY.*wandb login.*offline"),
    ({"key_env": "MY_KEY"}, "set MY_KEY"),
    ({"key_file": "nowhere"}, "file nowhere"),
])
def test_without_a_key_the_start_stops_and_says_what_to_do(tmp_path, monkeypatch, given, words) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(ConfigError, match=words):
        wandb.check(config_of(tmp_path, **given))
    config = write_config(tmp_path / "c.toml", {
        "run": {"dir": str(tmp_path / "s")}, "daemon": {"port": free_port()}, "shadow": {"enabled": False},
        "exports.wandb": {"mode": "online", "project": "rl", **given}})
    done = klaxon("run", "--config", str(config))
    assert done.returncode == 2 and "exports.wandb" in done.stderr and "Traceback" not in done.stderr
    shown = klaxon("check", "--config", str(config))
    assert shown.returncode == 2 and "export: wandb" in shown.stdout


def test_what_wandb_login_stored_is_a_key(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text(f"machine wandb.example.com\n  login user\n  password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb.api_key(config_of(tmp_path, base_url="https://wandb.example.com")) == KEY
    with pytest.raises(ConfigError, match="api.wandb.ai"):
        wandb.api_key(config_of(tmp_path))


def test_shared_mode_without_the_trainers_run_and_a_run_without_a_project_are_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match="run_id"):
        config_of(tmp_path, mode="shared")
    with pytest.raises(ConfigError, match="exports.wandb.project"):
        wandb.check(config_of(tmp_path, project=""))
    read = parse_config({"run": {"dir": str(tmp_path)}, "exports": {"wandb": {"mode": "online"}},
                         "metrics": {"sources": [{"type": "wandb_api", "path": "team/rl/abc"}]}}, where="test")
    assert wandb.place(read) == ("team", "rl")


@pytest.mark.parametrize(("fault", "key", "state", "words"), [
    (None, KEY, "ok", "team/rl"), (None, "another", "bad", "does not know the API key"), (503, KEY, "bad", "HTTP 503")])
def test_check_asks_the_server_whether_the_key_is_good(server, tmp_path, fault, key, state, words) -> None:
    server.fault, server.key = fault, key
    found = {item.part: item for item in examine(config_of(tmp_path, base_url=server.url))}["export: wandb"]
    assert found.state == state and words in found.text and KEY not in found.text


def test_a_daemon_with_a_run_behind_it_exports_every_batch_and_its_incident(server: WandbServer, tmp_path) -> None:
    with faulty_run(tmp_path, batches=30, exports={"wandb": {"mode": "online", "entity": "team", "project": "rl", "base_url": server.url}}) as served:
        served.daemon.exports.start()
        wait(lambda: served.daemon.exports.feed() or served.daemon.exports.relays[0].done_t == 29)
        served.daemon.exports.stop()
        (told,) = served.daemon.live.status()["exports"]
    assert told["state"] == "ok" and (told["written"], told["failed"], told["notes"]) == (30, 0, 1)
    rows = server.history(own_run("r1"))
    assert [row["klaxon/batch"] for row in rows] == list(range(30)) and rows[28]["klaxon/mean_abs_d_nats"] > 3 * rows[3]["klaxon/mean_abs_d_nats"]
    assert server.alerts[0]["severity"] == "ERROR" and "klaxon explain" in server.alerts[0]["text"]


def test_a_server_that_is_away_delays_neither_the_daemon_nor_its_end(tmp_path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    config = write_config(tmp_path / "config.toml", {
        "run": {"name": "t", "dir": str(tmp_path / "state")}, "shadow": {"enabled": False}, "alerts": {"console": False},
        "exports.wandb": {"mode": "online", "project": "rl", "entity": "team", "base_url": f"http://127.0.0.1:{free_port()}"},
        "daemon": {"port": port, "batch_seconds": 0.5, "watermark_seconds": 0.2}})
    with daemon_of(config, url):
        wait(lambda: post(url, ROLLOUT).status_code == 202 and (get(url, "/v1/status")["t"] or 0) >= 3)
        told = wait(lambda: [one for one in get(url, "/v1/status")["exports"] if one["queued"]])[0]
        assert told["exporter"] == "wandb" and told["written"] == 0 and told["state"] in ("starting", "failing")
        began = time.monotonic()
    assert time.monotonic() - began < 60
