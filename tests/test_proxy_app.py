"""The proxy over real HTTP: a real upstream server, a real client, byte for byte; and what may not disturb it."""

import asyncio
import contextlib
import gzip
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
import uvicorn

from collector.errors import ConfigError
from klaxon.proxy import observer as watching
from klaxon.proxy.app import Proxy
from klaxon.proxy.observer import Observer
from klaxon.proxy.serve import listening
from klaxon_tap.sender import Sender
from tests.tap_daemon import Daemon, wait

ANSWER = {"id": "cmpl-1", "choices": [{"index": 0, "text": "ab", "prompt_token_ids": [1, 2], "token_ids": [3, 4],
          "finish_reason": "stop", "logprobs": {"token_logprobs": [-0.5, -1.5], "tokens": ["a", "b"]}}]}
PIECES = [b'data: {"id": "s", "choices": [{"index": 0, "prompt_token_ids": [1], "token_ids": [%d], '
          b'"logprobs": {"token_logprobs": [-0.%d]}, "finish_reason": %s}]}\n\n' % (at, at, b'"stop"' if at == 3 else b"null")
          for at in (1, 2, 3)] + [b"data: [DONE]\n\n"]


class Upstream:
    """An engine's HTTP side: answers by path, keeps what it was asked, notices who hangs up."""

    def __init__(self):
        self.asked, self.peers, self.hung_up = [], set(), threading.Event()
        self.release = threading.Event()

    async def __call__(self, scope, receive, send):
        self.peers.add(scope["client"])
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        self.asked.append((scope["method"], scope["raw_path"], scope["query_string"], scope["headers"], b"".join(parts)))
        await getattr(self, scope["path"].strip("/").replace("/", "_"), self.plain)(scope, receive, send)

    async def plain(self, scope, receive, send, status=200, body=None, headers=()):
        body = json.dumps(ANSWER).encode() if body is None else body
        await send({"type": "http.response.start", "status": status, "headers": [
            (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"x-engine", b"one"),
            (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), *headers]})
        await send({"type": "http.response.body", "body": body})

    async def v1_completions(self, scope, receive, send):
        asked = json.loads(self.asked[-1][4])
        if asked.get("status"):
            await self.plain(scope, receive, send, status=asked["status"], body=b'{"error": "as the engine says it"}')
        elif asked.get("gzip"):
            await self.plain(scope, receive, send, body=gzip.compress(json.dumps(ANSWER).encode(), mtime=0), headers=[(b"content-encoding", b"gzip")])
        elif asked.get("stream"):
            await self.stream(receive, send, asked)
        else:
            await self.plain(scope, receive, send)

    async def stream(self, receive, send, asked):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for piece in PIECES:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            while asked.get("held") and not self.release.is_set():
                await asyncio.sleep(0.01)
            if asked.get("broken"):
                return  # the server closes the connection in the middle of the answer
            if asked.get("endless"):
                while (await receive())["type"] != "http.disconnect":
                    pass
                self.hung_up.set()
                return
        await send({"type": "http.response.body", "body": b""})

    async def slow(self, scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass
        self.hung_up.set()


@contextlib.contextmanager
def running(app):
    """A uvicorn server in a thread; gives its URL."""
    config = uvicorn.Config(app, lifespan="off", log_config=None, server_header=False, date_header=False,
                            access_log=False, timeout_graceful_shutdown=1)
    server, bound = uvicorn.Server(config), listening("127.0.0.1:0")

    async def serve():
        await server.serve(sockets=[bound])
        if isinstance(app, Proxy):
            await app.aclose()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    wait(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(5)
        bound.close()


class Kept:
    """A sink that reads every exchange at once."""

    def __init__(self):
        self.messages, self.readers = [], []

    def put(self, message, *, items=1):
        self.messages += message() if callable(message) else [message]
        return True

    def rollouts(self):
        return [message for message in self.messages if message.get("token_ids")]


@pytest.fixture
def engine():
    upstream = Upstream()
    with running(upstream) as url:
        upstream.url = url
        yield upstream


@pytest.fixture
def proxied(engine):
    """(the engine, the proxy's URL, the app, what it reported)."""
    kept = Kept()
    app = Proxy(engine.url, Observer(sink=kept, engine="e0"))
    with running(app) as url:
        yield engine, url, app, kept


def raw(url, path, body, *, headers=None, method="POST"):
    """(status, headers that are not about the connection, body as sent on the wire)."""
    with httpx.Client(trust_env=False) as client:
        with client.stream(method, url + path, content=body, headers=headers) as answer:
            sent = b"".join(answer.iter_raw())
            kept = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in (b"connection", b"transfer-encoding")]
            return answer.status_code, kept, sent


@pytest.mark.parametrize(("path", "body", "method"), [
    ("/v1/completions", b'{"prompt": "x"}', "POST"),
    ("/v1/completions", b'{"prompt": "x", "stream": true}', "POST"),
    ("/v1/completions", b'{"gzip": true}', "POST"),
    ("/v1/completions", b'{"status": 503}', "POST"),
    ("/v1/completions", b'{"status": 422}', "POST"),
    ("/v1/models", None, "GET"),
    ("/a%2Fb/c%20d?q=%7B1%7D&r=a+b", b"\x00\xff anything", "PUT"),
    ("/health", None, "HEAD"),
])
def test_client_and_engine_see_the_same_bytes_with_and_without_the_proxy(proxied, path, body, method):
    engine, url, _, _ = proxied
    direct, through = raw(engine.url, path, body, method=method), raw(url, path, body, method=method)
    assert through == direct
    (m1, p1, q1, h1, b1), (m2, p2, q2, h2, b2) = engine.asked
    assert (m1, p1, q1, b1) == (m2, p2, q2, b2)
    assert [sorted(header for header in sent if header[0] != b"connection") for sent in (h1, h2)] == [sorted(h2)] * 2


def test_a_completion_becomes_a_rollout(proxied):
    _, url, app, kept = proxied
    raw(url, "/v1/completions", b'{"prompt": "x", "temperature": 0.7}')
    wait(kept.rollouts)
    rollout, = kept.rollouts()
    assert rollout["kind"] == "rollout" and rollout["source"] == "proxy" and rollout["engine"] == "e0"
    assert rollout["token_ids"] == [3, 4] and rollout["engine_sampling"] == {"temperature": 0.7} and "sampling" not in rollout


def test_a_stream_arrives_piece_by_piece_and_becomes_a_rollout(proxied):
    engine, url, _, kept = proxied
    with httpx.stream("POST", url + "/v1/completions", content=b'{"stream": true, "held": true}', trust_env=False) as answer:
        parts = answer.iter_raw()
        assert next(parts) == PIECES[0]  # here before the engine has sent the next
        engine.release.set()
        assert b"".join(parts) == b"".join(PIECES[1:])
    wait(kept.rollouts)
    assert kept.rollouts()[0]["token_ids"] == [1, 2, 3]


def test_a_compressed_answer_is_passed_on_compressed_and_still_read(proxied):
    _, url, _, kept = proxied
    _, headers, sent = raw(url, "/v1/completions", b'{"gzip": true}')
    assert (b"content-encoding", b"gzip") in headers and json.loads(gzip.decompress(sent)) == ANSWER
    wait(kept.rollouts)


def test_a_large_request_arrives_whole_and_a_copy_that_would_be_too_large_is_given_up(proxied, monkeypatch):
    engine, url, app, kept = proxied
    monkeypatch.setattr(watching, "MAX_BODY_BYTES", 1 << 20)
    big = json.dumps({"prompt": "x" * (8 << 20)}).encode()
    chunks = (big[at:at + 65_536] for at in range(0, len(big), 65_536))
    assert httpx.post(url + "/v1/completions", content=chunks, trust_env=False).json() == ANSWER
    assert engine.asked[0][4] == big
    wait(lambda: app._observer.counts)
    assert app._observer.counts == {"openai": {"unusable_too_large": 1}} and not kept.rollouts()
    assert app._observer._room._free == watching.MAX_COPIES_BYTES


@pytest.mark.parametrize(("asked", "cumulative", "counts"), [
    ({"input_ids": [1, 2]}, True, {"rollouts": 1}),
    ({"input_ids": [[1, 2]]}, True, {"unusable_too_large": 1}),  # another prompt's end may have been dropped
    ({"input_ids": [1, 2]}, False, {"unusable_length_mismatch": 1}),  # an incremental stream of which the beginning is lost
])
def test_a_long_cumulative_stream_is_read_from_its_end(monkeypatch, asked, cumulative, counts):
    monkeypatch.setattr(watching, "MAX_BODY_BYTES", 100_000)
    kept = Kept()
    observer = Observer(sink=kept, engine="e0")
    watch = observer.watch("POST", "/generate", [])
    watch.asked.add(json.dumps(asked).encode())
    watch.start(200, [(b"content-type", b"text/event-stream; charset=utf-8")])
    rows = [[-0.01 * at, at, None] for at in range(1, 401)]
    for at in range(1, 401):
        meta = {"id": "r", "prompt_tokens": 2, "completion_tokens": at, "finish_reason": {"type": "stop"} if at == 400 else None,
                "output_token_logprobs": rows[:at] if cumulative else rows[at - 1:at]}
        padding = "" if cumulative else "x" * 1000
        watch.answered.add(b"data: " + json.dumps({"text": padding, "meta_info": meta}).encode() + b"\n\n")
    watch.whole = True
    observer.finish(watch)
    assert observer.counts == {"sglang": counts} and observer._room._free == watching.MAX_COPIES_BYTES
    assert [len(rollout["token_ids"]) for rollout in kept.rollouts()] == [400] * counts.get("rollouts", 0)


@pytest.mark.parametrize("endless", [True, False])
def test_a_client_that_leaves_takes_its_request_to_the_engine_with_it(proxied, endless):
    engine, url, app, kept = proxied
    if endless:  # in the middle of a stream
        with httpx.stream("POST", url + "/v1/completions", content=b'{"stream": true, "endless": true}', trust_env=False) as answer:
            assert next(answer.iter_raw()) == PIECES[0]
        wait(lambda: kept.messages)
        assert [(m["aborted"], "token_ids" in m) for m in kept.messages] == [(True, False)]
        assert app._observer.counts == {"openai": {"aborted": 1}}
    else:  # before the engine has said a word
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + "/slow", content=b"{}", timeout=0.3, trust_env=False)
    assert engine.hung_up.wait(5)
    wait(lambda: app.counts["client_gone"] == 1)
    assert raw(url, "/health", None, method="GET")[0] == 200


def test_errors_of_the_engine_pass_unchanged_and_are_counted(proxied):
    _, url, app, kept = proxied
    status, _, sent = raw(url, "/v1/completions", b'{"status": 500}')
    assert (status, sent) == (500, b'{"error": "as the engine says it"}')
    assert app.counts["upstream_5xx"] == 1 and kept.messages == []


def test_an_engine_that_breaks_off_breaks_off_for_the_client_too(proxied):
    engine, url, app, kept = proxied
    for address in (engine.url, url):
        with pytest.raises(httpx.RemoteProtocolError):
            raw(address, "/v1/completions", b'{"stream": true, "broken": true}')
    assert app.counts["upstream_broke"] == 1
    wait(lambda: kept.messages)
    assert kept.messages[0]["aborted"] and app._observer.counts == {"openai": {"aborted": 1}}


def test_an_engine_that_is_down_is_a_clear_502(caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    kept = Kept()
    app = Proxy(f"http://127.0.0.1:{free}", Observer(sink=kept, engine="e0"))
    with running(app) as url, caplog.at_level(logging.WARNING):
        for _ in range(2):
            answer = httpx.post(url + "/v1/completions", json={"prompt": "x"}, trust_env=False)
    assert answer.status_code == 502 and answer.headers["content-type"] == "application/json"
    assert f"http://127.0.0.1:{free} does not answer" in answer.json()["error"]["message"]
    assert app.counts["upstream_down"] == 2 and kept.messages == []
    assert sum("does not answer" in record.message for record in caplog.records) == 1


def test_other_routes_pass_unwatched_and_weight_updates_reach_the_timeline(proxied):
    _, url, _, kept = proxied
    raw(url, "/v1/embeddings", b'{"input": "x"}')
    raw(url, "/update_weights_from_disk?x=1", b"{}")
    wait(lambda: kept.messages)
    event, = kept.messages
    assert event["kind"] == "event" and event["name"] == "weight_update_call" and event["data"]["status"] == 200
    assert event["data"]["path"] == "/update_weights_from_disk" and event["data"]["query"] == "x=1"


def test_a_fault_in_observing_never_shows(proxied, monkeypatch, caplog):
    engine, url, app, kept = proxied

    def broken(*_, **__):
        raise RuntimeError("a bug")

    expected = raw(engine.url, "/v1/completions", b'{"prompt": "x"}')
    monkeypatch.setattr(watching.dialects, "read", broken)
    assert raw(url, "/v1/completions", b'{"prompt": "x"}') == expected
    wait(lambda: app._observer.faults == 1)
    monkeypatch.setattr(kept, "put", broken)
    assert raw(url, "/v1/completions", b'{"prompt": "x"}') == expected
    monkeypatch.setattr(watching.dialects, "watched", broken)
    assert raw(url, "/v1/completions", b'{"prompt": "x"}') == expected
    wait(lambda: app._observer.faults == 3)
    assert sum("not understood" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("body", [b"", b"[", b'{"prompt": {"a": [[[]]]}, "n": "two"}', b"\xff\xfe", b"[1, 2]", b'{"stream": 1'])
def test_nonsense_passes_and_harms_nothing(proxied, body):
    engine, url, app, _ = proxied
    engine.v1_completions = engine.plain
    assert raw(url, "/v1/completions", body) == raw(engine.url, "/v1/completions", body)
    assert app.counts["requests"] == 1


def test_a_switched_off_proxy_only_forwards(engine):
    kept = Kept()
    with running(Proxy(engine.url, Observer(sink=kept, engine="e0", on=lambda: False))) as url:
        assert raw(url, "/v1/completions", b'{"prompt": "x"}')[0] == 200
        raw(url, "/flush_cache", b"")
    assert kept.messages == []


def test_the_traffic_goes_on_while_the_daemon_dies_and_comes_back(engine):
    daemon = Daemon(("127.0.0.1", 0))
    address = daemon.server.server_address
    sender = Sender(daemon.url, token=None, source="proxy", about=lambda: observer.heartbeat(), heartbeat_seconds=0.1)
    observer = Observer(sink=sender, engine="e0")
    try:
        with running(Proxy(engine.url, observer)) as url:
            raw(url, "/v1/completions", b'{"prompt": "x"}')
            wait(lambda: daemon.of("rollout") and daemon.of("heartbeat"))
            beat = daemon.of("heartbeat")[-1]
            assert beat["source"] == "proxy" and beat["engine"] == "e0" and "without_logprobs" in beat
            daemon.close()
            began = time.monotonic()
            for _ in range(20):
                assert raw(url, "/v1/completions", b'{"prompt": "x"}')[0] == 200
            assert time.monotonic() - began < 3
            wait(lambda: sender.errors)
            again = Daemon(address)
            wait(lambda: len(again.of("rollout")) == 20, seconds=15)
            again.close()
    finally:
        sender.close()


def test_the_daemon_takes_everything_the_proxy_sends(proxied):
    from collector.sources.inbox import TapInbox
    from klaxon.ingest import Ingest

    _, url, app, kept = proxied
    raw(url, "/v1/completions", b'{"prompt": "x"}')
    with pytest.raises(httpx.RemoteProtocolError):
        raw(url, "/v1/completions", b'{"stream": true, "broken": true}')
    raw(url, "/flush_cache", b"")
    wait(lambda: len(kept.messages) == 3)
    beat = {"kind": "heartbeat", "source": "proxy", **app._observer.heartbeat()}
    taken = []
    ingest = Ingest(inbox=TapInbox(10), handlers={"heartbeat": taken.append, "event": taken.append})
    lines = b"\n".join(json.dumps(message).encode() for message in [*kept.messages, beat])
    assert ingest.take(lines, sender="proxy") == (4, [])
    assert len(ingest.inbox) == 1 and ingest.counts["aborted"] == 1 and len(taken) == 2


@pytest.mark.parametrize("upstream", ["", "localhost:8000", "ftp://x", "http://", "http://h/?q=1", "http://me:secret@h"])
def test_an_upstream_that_is_no_address_is_refused_in_words(upstream):
    with pytest.raises(ConfigError, match="--upstream"):
        Proxy(upstream, Observer(sink=Kept(), engine="e0"))


def test_a_path_in_the_upstream_is_put_before_every_path(engine):
    with running(Proxy(engine.url + "/engines/a/", Observer(sink=Kept(), engine="e0"))) as url:
        raw(url, "/v1/models?x=1", None, method="GET")
    assert engine.asked[0][1:3] == (b"/engines/a/v1/models", b"x=1")


def test_an_address_that_is_taken_is_refused_in_words():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="choose another port"):
        listening(f"127.0.0.1:{taken.getsockname()[1]}")
    for nonsense in ("8900", ":8900", "host:", "host:99999"):
        with pytest.raises(ConfigError, match="HOST:PORT"):
            listening(nonsense)


def test_small_answers_are_not_held_back_and_the_engines_connection_is_kept(proxied):
    engine, url, app, _ = proxied
    took = []
    with httpx.Client(trust_env=False) as client:
        for _ in range(15):
            began = time.monotonic()
            client.get(url + "/health")
            took.append(time.monotonic() - began)
    assert sorted(took)[7] < 0.035  # Nagle and delayed acknowledgements together would make it 0.044
    assert len(engine.peers) == 1 and app.counts["client_gone"] == 0


def test_the_command_runs_and_stops_on_ctrl_c(engine):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    daemon = Daemon(("127.0.0.1", 0))
    command = [sys.executable, "-m", "klaxon", "proxy", "--upstream", engine.url, "--listen", f"127.0.0.1:{port}",
               "--klaxon", daemon.url, "--engine", "replica-3"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "KLAXON_TAP": "on"})
    try:
        wait(lambda: daemon.of("heartbeat"), seconds=20)
        assert raw(f"http://127.0.0.1:{port}", "/v1/completions", b'{"prompt": "x"}')[0] == 200
        wait(lambda: daemon.of("rollout"))
        assert daemon.of("rollout")[0]["engine"] == "replica-3"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=15)
    finally:
        process.kill()
        daemon.close()
    assert process.returncode == 0 and "Traceback" not in said
    assert "forwarded 1 requests" in said and "openai: rollouts 1" in said
