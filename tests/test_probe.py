"""The engine probe against a real HTTP server that answers as vLLM does, with and without dev mode."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from klaxon.probe import EngineProbe


@pytest.fixture
def engine():
    routes = {"/health": {}, "/version": {"version": "0.32.0"}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = routes.get(self.path.split("?")[0])
            found = found() if callable(found) else found
            body = json.dumps(found).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", routes
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("label", "known"), [("41", "41"), ("default", None), ("", None)])
def test_the_weight_label_of_dev_mode_is_read_and_default_means_unknown(engine, label, known):
    url, routes = engine
    routes["/weight_info"] = {"weight_version": label}
    probe = EngineProbe(url, lambda *_: None)
    assert probe.probe(1.0) and probe.facts["weight_version"] == known


def test_without_dev_mode_the_label_is_unknown_and_the_engine_still_answers(engine):
    url, routes = engine
    probe = EngineProbe(url, lambda *_: None)
    assert probe.probe(1.0) and probe.facts["weight_version"] is None and probe.facts["version"] == "0.32.0"
    routes["/weight_info"] = {"weight_version": "1"}
    probe.probe(2.0)
    routes["/weight_info"] = {"weight_version": "2"}
    probe.probe(3.0)
    assert probe.facts["weight_version"] == "2", "asked every round, not once"


def settings(**model):
    return {"vllm_config": {"model_config": {"logprobs_mode": "raw_logprobs", **model}}}


def test_a_restart_with_another_setting_is_an_event_and_what_the_tap_tells_is_left_to_it(engine):
    url, routes = engine
    said = []
    probe = EngineProbe(url, lambda kind, text, data: said.append((kind, data.get("key"), data.get("after"))))
    routes["/server_info"] = settings(enforce_eager=True)
    assert probe.probe(1.0) and probe.facts["enforce_eager"] is True
    health = routes.pop("/health")
    assert not probe.probe(2.0) and probe.facts == {}
    routes |= {"/health": health, "/server_info": {**settings(enforce_eager=False, logprobs_mode="processed_logprobs")}}
    assert probe.probe(3.0) and probe.facts["logprobs_mode"] == "processed_logprobs"
    assert said == [("engine_down", None, None), ("engine_up", None, None), ("engine_config", "enforce_eager", False)]


def test_settings_that_come_late_are_asked_for_again(engine):
    url, routes = engine
    probe = EngineProbe(url, lambda *_: None)
    assert probe.probe(1.0) and "logprobs_mode" not in probe.facts
    routes["/server_info"] = {"vllm_config": {"model_config": 3, "cache_config": {"block_size": 32}}}
    assert probe.probe(2.0) and probe.facts["block_size"] == 32


def test_a_server_info_that_does_not_answer_in_time_is_no_engine_down(engine, monkeypatch):
    url, routes = engine
    monkeypatch.setattr("klaxon.probe.SETTINGS_SECONDS", 0.2)
    over = threading.Event()
    routes["/server_info"] = lambda: settings() if over.wait(30) else None
    said = []
    probe = EngineProbe(url, lambda kind, *_: said.append(kind))
    assert probe.probe(1.0) and probe.probe(2.0) and "logprobs_mode" not in probe.facts and not said
    over.set()
    routes["/server_info"] = settings()
    monkeypatch.setattr("klaxon.probe.SETTINGS_SECONDS", 30.0)
    assert probe.probe(3.0) and probe.facts["logprobs_mode"] == "raw_logprobs"
