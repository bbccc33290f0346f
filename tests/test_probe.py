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
