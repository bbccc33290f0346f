"""What `klaxon check` finds of an engine's surroundings: clocks that differ, a second sidecar, an upgrade under a running daemon."""

import contextlib
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from klaxon.checks.clocks import clocks, engine_ahead
from klaxon.checks.engine import sidecars, upgraded
from klaxon.claims import claimed, claims_of, held_by_others
from klaxon.config import parse_config
from klaxon.probe import EngineProbe
from klaxon.taps import TapBook
from test_command_daemon import free_port
from test_probe import engine  # noqa: F401  a fixture


def config_of(tmp_path, **sections):
    return parse_config({"run": {"name": "t", "dir": str(tmp_path / "state")}, "daemon": {"port": free_port()}, **sections}, where="test")


@contextlib.contextmanager
def serving(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("ahead", "words"), [(3600, "ahead of"), (-3600, "behind"), (0, None)])
def test_an_engine_with_another_clock_is_told_by_its_date(tmp_path, ahead, words):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def date_time_string(self, timestamp=None):
            return super().date_time_string(time.time() + ahead)

        def log_message(self, *_):
            pass

    with serving(Handler) as port:
        url = f"http://127.0.0.1:{port}"
        assert abs(engine_ahead(url) - ahead) < 3
        found = list(clocks(config_of(tmp_path, engine={"url": url}), None))
    assert [one.state for one in found] == ["ok" if words is None else "warn"]
    assert words is None or (words in found[0].text and "timedatectl" in found[0].next)


def test_a_trainer_with_another_clock_is_told_by_its_heartbeat(tmp_path):
    book = TapBook(lambda *_: None)
    book.beat({"source": "trainer", "engine": "node7:12", "pid": 1, "at": 1_000.0}, now=1_120.0)
    book.beat({"source": "plugin", "engine": "e", "pid": 2, "at": 1_119.9}, now=1_120.0)
    found = list(clocks(config_of(tmp_path), {"taps": book.listing(1_121.0), "counts": {}}))
    assert len(found) == 1 and found[0].state == "warn" and "trainer of node7:12 is 120 s behind" in found[0].text


def test_files_written_in_the_future_tell_of_their_writers_clock(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("")
    os.utime(path, (time.time() + 300,) * 2)
    found = list(clocks(config_of(tmp_path, sources={"files": [str(path)]}), None))
    assert len(found) == 1 and "ahead of" in found[0].text
    future = list(clocks(config_of(tmp_path), {"taps": [], "counts": {"pushed_clock_skew": 3}}))
    assert len(future) == 1 and "3 rollouts or metrics came from the future" in future[0].text


def test_a_second_sidecar_on_one_engine_is_found_and_gone_with_its_process(tmp_path):
    first, second = (config_of(tmp_path, run={"name": name, "dir": str(tmp_path)}, engine={"url": f"http://{host}:9"}) for name, host in (("one", "localhost"), ("two", "127.0.0.1")))
    with claimed(first) as others:
        assert others == []
        found = list(sidecars(second, None))
        assert len(found) == 1 and found[0].state == "bad" and "run one" in found[0].text and str(first.daemon.port) in found[0].next
        assert list(sidecars(first, {"run": "one", "taps": []})) == [], "its own daemon is no second one"
        with claimed(second) as others:
            assert others[0]["run"] == "one"
    assert held_by_others(claims_of(second)) == []


def test_a_tap_and_a_proxy_on_one_engine_count_twice(tmp_path):
    taps = [{"alive": True, "source": source, "engine": "http://e:8000"} for source in ("plugin", "proxy")]
    found = list(sidecars(config_of(tmp_path), {"taps": taps}))
    assert len(found) == 1 and found[0].state == "bad" and "KLAXON_TAP=off" in found[0].text
    assert list(sidecars(config_of(tmp_path), {"taps": taps[:1]})) == []


def test_an_engine_that_comes_back_as_another_version_is_an_event(engine):  # noqa: F811
    url, routes = engine
    said = []
    probe = EngineProbe(url, lambda kind, text, data: said.append((kind, data)))
    assert probe.probe(1.0)
    routes["/version"] = {"version": "0.33.0"}
    assert probe.probe(2.0) and probe.probe(3.0)
    assert said == [("engine_config", {"key": "version", "before": "0.32.0", "after": "0.33.0"})]
    book = TapBook(lambda kind, text, data: said.append((kind, data)))
    for version in ("0.32.0", "0.33.0"):
        book.beat({"source": "plugin", "engine": "e", "pid": version, "vllm_version": version, "config": {}}, now=float(version[2:4]) * 100)
    assert ("engine_config", {"key": "vllm_version", "before": "0.32.0", "after": "0.33.0"}) in said


def test_an_engine_upgraded_under_the_daemon_is_found_until_somebody_says_what_is_normal(tmp_path):
    from alerts_served import served_daemon

    with served_daemon(tmp_path) as served:
        config = config_of(tmp_path, run={"name": "r1", "dir": str(tmp_path)}, daemon={"port": int(served.url.rsplit(":", 1)[1])})
        status = served.daemon.live.status()
        assert list(upgraded(config, status)) == []
        served.daemon.say("engine_config", "version changed", {"key": "version", "before": "0.18.1", "after": "0.32.0"})
        found = list(upgraded(config, status))
        assert len(found) == 1 and "0.18.1 to 0.32.0" in found[0].text and 'klaxon rebaseline "vLLM 0.32.0"' in found[0].next
        assert "klaxon-tap must be installed" in found[0].text, "no tap is heard since"
        served.daemon.say("rebaseline", "declared", {})
        assert list(upgraded(config, status)) == []
