"""Canary probes over real HTTP: only while the run is quiet, at the run's own sampling parameters, marked as what they are."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from collector.records import Sampling
from klaxon.canary import MARK, Canary
from klaxon.spine_config import CanaryConfig


@pytest.fixture
def engine():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer({"data": [{"id": "policy"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append((self.headers["X-Request-Id"], body))
            self.answer({"choices": []}, server.status)

        def answer(self, obj, status=200):
            payload = json.dumps(obj).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.status = [], 200
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def canary(engine, *, last: float | None, now: float = 1000.0, **config) -> tuple[Canary, list[str]]:
    said: list[str] = []
    made = CanaryConfig(prompts=["one", [5, 6]], quiet_seconds=60, max_tokens=8, **config)
    return Canary(f"http://127.0.0.1:{engine.server_address[1]}", made, Sampling(temperature=0.7, top_p=1.0), clock=lambda: now,
                  last_rollout_at=lambda: last, say=lambda kind, text, data: said.append(text)), said


def test_prompts_are_sent_in_turn_at_the_runs_sampling_parameters(engine) -> None:
    probe, said = canary(engine, last=None)
    assert [probe.sing() for _ in range(3)] == [True] * 3 and not said
    assert [body["prompt"] for _, body in engine.asked] == ["one", [5, 6], "one"]
    name, body = engine.asked[0]
    assert name.startswith(MARK) and len({name for name, _ in engine.asked}) == 3
    assert body == {"model": "policy", "prompt": "one", "max_tokens": 8, "logprobs": 1, "return_token_ids": True, "temperature": 0.7, "top_p": 1.0}


@pytest.mark.parametrize(("last", "sent"), [(None, True), (939.0, True), (941.0, False)])
def test_a_busy_run_needs_no_canary(engine, last: float | None, sent: bool) -> None:
    probe, _ = canary(engine, last=last)
    assert probe.sing() is sent and len(engine.asked) == int(sent)
    assert probe.counts["canaries_sent"] + probe.counts["canaries_not_needed"] == 1


def test_an_engine_that_refuses_is_said_once_and_counted(engine) -> None:
    probe, said = canary(engine, last=None)
    engine.status = 503
    assert not probe.sing() and not probe.sing()
    engine.status = 200
    assert probe.sing() and probe.counts == {"canary_errors": 2, "canaries_sent": 1}
    assert len(said) == 1 and "503" in said[0]
