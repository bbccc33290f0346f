"""Klaxon's numbers for trackers: fed from the store, never waiting, kept while the other side is away; TensorBoard read back."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from collector.errors import ConfigError
from collector.sources.metrics.source import MetricsRow
from collector.sources.metrics.tensorboard import TensorBoardMetrics
from collector.store import Store
from dashboard_served import _append, faulty_run
from klaxon.commands.check import examine
from klaxon.config import parse_config
from klaxon.exports import tensorboard
from klaxon.exports.exports import Exports
from klaxon.exports.points import NAMES, Note, Point, note, points
from klaxon.exports.relay import COMPLAINT_SECONDS, Relay
from test_command_daemon import free_port

NEVER = {"status": dict, "incidents": list}


class Away:
    """A sink that refuses while `away` is set; keeps what it took."""

    def __init__(self) -> None:
        self.away, self.taken, self.said = threading.Event(), [], ""
        self.closed = 0

    def write(self, item: Point | Note) -> None:
        if self.away.is_set():
            raise OSError("the other side is away")
        self.taken.append(item)

    def close(self) -> None:
        self.closed += 1

    def trouble(self) -> str:
        said, self.said = self.said, ""
        return said


def wait(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def config_of(folder: Path, **exports):
    return parse_config({"run": {"name": "r1", "dir": str(folder)}, "daemon": {"port": free_port()}, "exports": exports}, where="test")


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "k.duckdb") as store:
        for t in range(6):
            _append(store, t, 1000.0 + 10 * t)
        yield store


def relay_of(sink: Away, **more) -> Relay:
    return Relay("x", lambda _: sink, where="nowhere", capacity=more.pop("capacity", 3), takes_notes=True, pause_seconds=0.01, **more)


def exports_of(folder: Path, store: Store, relay: Relay, **live) -> Exports:
    """Exports with one relay of the test's own in the place of the configured ones."""
    found = Exports(config_of(folder), store, **{**NEVER, **live})
    found.relays = [relay]
    kept = found._kept().get("x") or {}
    relay.done_t, relay.told = kept.get("t", -1), kept.get("incidents", {})
    found._offered, found._offered_notes = {"x": relay.done_t}, {"x": dict(relay.told)}
    return found


def test_points_carry_the_stored_numbers_of_a_batch_and_the_trainers_step_of_then(store) -> None:
    store.append_metrics(3, 1015.0, {"reward": 1.0})
    store.append_metrics(4, 1035.0, {"reward": 1.0})
    found = points(store, after=0, most=100)
    assert [point.t for point in found] == [1, 2, 3, 4, 5]
    assert [(point.step, point.x) for point in found] == [(None, 1), (3, 3), (3, 3), (4, 4), (4, 4)], "without a trainer's step the batch is the axis"
    assert len(points(store, after=-1, most=2)) == 2
    row = store.query("SELECT k3, p99_abs_d, clip_rate, n_tokens FROM series WHERE t = 3")[0]
    values = found[2].values
    assert (values["klaxon/k3_nats"], values["klaxon/abs_d_p99_nats"], values["klaxon/clip_rate"], values["klaxon/compared_tokens"]) == row
    assert all(set(point.values) <= set(NAMES) for point in found)


def test_a_sink_that_is_away_loses_nothing_delays_nobody_and_shows(store, tmp_path) -> None:
    sink = Away()
    sink.away.set()
    relay = relay_of(sink)
    exports = exports_of(tmp_path, store, relay)
    relay.start()
    for _ in range(5):
        began = time.perf_counter()
        exports.feed()
        assert time.perf_counter() - began < 5.0
    wait(lambda: relay.counts["failed"] >= 2)
    told = exports.status()[0]
    assert told["state"] == "failing" and told["written"] == 0 and "away" in told["last_error"] and told["queued"] <= 3
    sink.away.clear()
    wait(lambda: exports.feed() or relay.done_t == 5)
    exports.stop()
    assert [item.t for item in sink.taken] == [0, 1, 2, 3, 4, 5] and exports.status()[0]["state"] == "ok"


def test_after_a_restart_it_goes_on_where_it_was(store, tmp_path) -> None:
    sink, again = Away(), Away()
    for taker, expected in ((sink, [0, 1, 2, 3, 4, 5]), (again, [6, 7])):
        relay = relay_of(taker, capacity=10)
        exports = exports_of(tmp_path, store, relay)
        relay.start()
        wait(lambda: exports.feed() or relay.done_t == store.next_t() - 1)
        exports.stop()
        assert [item.t for item in taker.taken] == expected and taker.closed == 1
        for t in (6, 7):
            _append(store, t, 1000.0 + 10 * t)


def test_a_sink_that_takes_all_and_complains_later_is_shown_for_a_while() -> None:
    sink, now = Away(), [100.0]
    relay = relay_of(sink, clock=lambda: now[0])
    relay.start()
    sink.said = "500 encountered, retrying request"
    relay.offer(Point(t=1, at=1.0, step=None))
    wait(lambda: relay.counts["complaints"] == 1)
    assert relay.status()["state"] == "complaining" and "500" in relay.status()["last_error"]
    now[0] += COMPLAINT_SECONDS + 1
    assert relay.status()["state"] == "ok"
    relay.stop()
    relay.join(30)


def test_each_incident_is_told_when_it_begins_and_when_it_ends_and_never_twice(store, tmp_path) -> None:
    incident = {"id": "inc_1", "state": "firing", "severity": "page", "title": "Rollout logprobs no longer match", "run": "r1",
                "diagnosis": {"verdict": "raw_logprobs", "confident": False}}
    over = {"id": "inc_0", "state": "resolved", "title": "of long ago"}
    listed = [incident, over]
    sink = Away()
    relay = relay_of(sink, capacity=50)
    exports = exports_of(tmp_path, store, relay, incidents=lambda: listed)
    relay.start()
    for state in ("firing", "firing", "acknowledged", "resolved", "resolved"):
        listed[0] = {**incident, "state": state}
        exports.feed()
    exports.stop()
    told = [item for item in sink.taken if isinstance(item, Note)]
    assert [(item.incident, item.state, item.level) for item in told] == [("inc_1", "firing", "ERROR"), ("inc_1", "resolved", "INFO")]
    assert "raw_logprobs (not sure yet)" in told[0].text and "/incident?incident=inc_1" in told[0].text and "klaxon explain inc_1" in told[0].text
    assert json.loads((tmp_path / "exports.json").read_text())["x"]["incidents"] == {"inc_1": "resolved"}
    assert [item.values.get("klaxon/incidents_open") for item in sink.taken if isinstance(item, Point)][-1] == 1


def test_a_note_without_a_page_has_no_link() -> None:
    assert "http" not in note({"id": "i", "state": "firing", "title": "t"}, dashboard_url="").text


def test_tensorboard_files_hold_the_stored_numbers_on_the_trainers_axis(tmp_path) -> None:
    out = tmp_path / "tb"
    with faulty_run(tmp_path, batches=4, incident=False, exports={"tensorboard_dir": str(out)}) as served:
        served.daemon.store.append_metrics(7, time.time() - 15.0, {"reward": 1.0})
        served.daemon.exports.start()
        served.daemon.exports.stop()
        assert served.daemon.live.status()["exports"][0]["written"] == 4
        stored = served.daemon.store.query("SELECT mean_abs_d FROM series ORDER BY t")
    rows = [row for row in TensorBoardMetrics(str(out)).poll(0.0) if isinstance(row, MetricsRow)]
    got = [value for row in rows for name, value in row.values.items() if name == "klaxon/mean_abs_d_nats"]
    assert got == pytest.approx([value for (value,) in stored][-len(got):], rel=1e-6) and rows[-1].step == 7
    assert set().union(*(row.values for row in rows)) <= set(NAMES)


def test_a_folder_that_cannot_be_written_stops_the_start_with_words(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="tensorboard_dir.*cannot be written"):
        tensorboard.check(tmp_path / "file" / "tb")


def test_check_names_every_exporter_as_off_on_or_broken(tmp_path) -> None:
    (tmp_path / "file").write_text("")

    def told(**exports) -> dict[str, str]:
        return {item.part: item.state for item in examine(config_of(tmp_path, **exports)) if item.part.startswith("export")}

    assert told() == {"export: prometheus": "off", "export: wandb": "off", "export: tensorboard": "off"}
    assert told(tensorboard_dir=str(tmp_path / "tb"))["export: tensorboard"] == "ok"
    assert told(tensorboard_dir=str(tmp_path / "file" / "tb"))["export: tensorboard"] == "bad"


def test_check_reads_a_running_daemons_metrics_and_exporters(tmp_path) -> None:
    with faulty_run(tmp_path, batches=2, exports={"tensorboard_dir": str(tmp_path / "tb")}) as served:
        served.daemon.exports.start()
        served.daemon.exports.stop()
        config = served.daemon.config
        config.daemon.port = int(served.url.rsplit(":", 1)[1])
        told = {item.part: item for item in examine(config)}
    assert told["export: prometheus"].state == "ok" and "series" in told["export: prometheus"].text
    assert told["export: tensorboard"].state == "ok" and "2 batches written" in told["export: tensorboard"].text


def test_the_daemon_imports_neither_wandb_nor_tensorboard() -> None:
    code = ("import sys, klaxon.app, klaxon.commands.check, klaxon.exports.exports, klaxon.exports.tensorboard, klaxon.exports.wandb\n"
            "sys.exit(', '.join(name for name in ('wandb', 'tensorboard', 'torch') if name in sys.modules) or None)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
