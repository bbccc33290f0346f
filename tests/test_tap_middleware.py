import asyncio
import json

import pytest

from klaxon_tap import middleware, plugin


class Kept:
    def __init__(self):
        self.messages = []

    def start(self):
        pass

    def put(self, message, *, items=1):
        self.messages += message() if callable(message) else [message]
        return True


@pytest.fixture
def tapped(monkeypatch):
    monkeypatch.setenv("KLAXON_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(plugin, "_active", None)

    def make(parts, status=200):
        async def app(scope, receive, send):
            await receive()
            await send({"type": "http.response.start", "status": status, "headers": []})
            for index, part in enumerate(parts):
                await send({"type": "http.response.body", "body": part, "more_body": index < len(parts) - 1})
        wrapped = middleware.KlaxonMiddleware(app)
        wrapped._sender = Kept()
        return wrapped
    return make


def serve(app, path, body):
    out = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        out.append(message)

    asyncio.run(app({"type": "http", "method": "POST", "path": path, "query_string": b"mode=wait"}, receive, send))
    return [message["body"] for message in out if message["type"] == "http.response.body"]


COMPLETION = {"id": "cmpl-1", "choices": [
    {"index": 0, "prompt_token_ids": [1, 2], "token_ids": [3, 4], "finish_reason": "stop",
     "logprobs": {"token_logprobs": [-0.5, -1.5]}},
    {"index": 1, "prompt_token_ids": [1, 2], "token_ids": [5], "finish_reason": "length", "logprobs": {"token_logprobs": [-0.1]}}]}


def test_a_completion_is_reported_and_every_byte_passes_unchanged(tapped):
    parts = [json.dumps(COMPLETION).encode()[:30], json.dumps(COMPLETION).encode()[30:]]
    app = tapped(parts)
    assert serve(app, "/v1/completions", json.dumps({"temperature": 0.7, "prompt": "x"}).encode()) == parts
    first, second = app._sender.messages
    assert (first["request_id"], second["request_id"]) == ("cmpl-1-0", "cmpl-1-1")
    assert first["token_ids"] == [3, 4] and first["logprobs"] == [-0.5, -1.5] and first["prompt_token_ids"] == [1, 2]
    assert first["engine_sampling"] == {"temperature": 0.7}


def test_a_streamed_chat_answer_is_put_together(tapped):
    events = [{"id": "c", "prompt_token_ids": [9], "choices": [{"index": 0, "token_ids": [i], "logprobs": {"content": [{"logprob": -0.1 * i}]},
                                                               "finish_reason": "stop" if i == 3 else None}]} for i in (1, 2, 3)]
    parts = [f"data: {json.dumps(event)}\n\n".encode() for event in events] + [b"data: [DONE]\n\n"]
    app = tapped(parts)
    assert serve(app, "/v1/chat/completions", b"{}") == parts
    message, = app._sender.messages
    assert message["token_ids"] == [1, 2, 3] and message["logprobs"] == pytest.approx([-0.1, -0.2, -0.3])
    assert message["finish_reason"] == "stop"


def test_an_answer_without_ids_or_logprobs_is_left_out(tapped):
    app = tapped([json.dumps({"id": "x", "choices": [{"index": 0, "text": "hi"}]}).encode()])
    serve(app, "/v1/completions", b"{}")
    assert app._sender.messages == [] and app.faults == 0


def test_garbage_is_counted_and_passed_on(tapped):
    app = tapped([b"<html>502</html>"])
    assert serve(app, "/v1/completions", b"{}") == [b"<html>502</html>"]
    assert app.faults == 1


def test_weight_update_calls_are_reported(tapped):
    app = tapped([b"{}"])
    serve(app, "/pause", b"")
    event, = app._sender.messages
    assert event["kind"] == "event" and event["data"]["path"] == "/pause" and event["data"]["query"] == "mode=wait"
    assert event["data"]["status"] == 200


def test_the_middleware_is_passive_while_the_plugin_is_at_work(tapped, monkeypatch):
    app = tapped([json.dumps(COMPLETION).encode()])
    monkeypatch.setattr(plugin, "active", lambda: True)
    serve(app, "/v1/completions", b"{}")
    assert app._sender.messages == []


def test_what_the_middleware_reports_is_what_the_daemon_reads(tapped):
    from collector.sources.rollout_json import parse_rollout

    app = tapped([json.dumps(COMPLETION).encode()])
    serve(app, "/v1/completions", json.dumps({"temperature": 0.7}).encode())
    rollout = parse_rollout(app._sender.messages[0], where="tap")
    assert rollout.engine_sampling.temperature == 0.7 and rollout.sampling.temperature is None


def test_top_logprobs_are_reported_where_their_tokens_have_ids(tapped):
    choice = {"index": 0, "prompt_token_ids": [1], "token_ids": [3], "finish_reason": "stop"}
    named = {"token_logprobs": [-0.5], "top_logprobs": [{"token_id:3": -0.5, "token_id:8": -1.25}]}
    words = {"token_logprobs": [-0.5], "top_logprobs": [{" the": -0.5, " a": -1.25}]}
    integers = {"content": [{"logprob": -0.5, "top_logprobs": [{"token_id": 3, "logprob": -0.5}, {"token_id": 8, "logprob": -1.25}]}]}
    for logprobs, expected in ((named, [[[3, -0.5], [8, -1.25]]]), (words, None), (integers, [[[3, -0.5], [8, -1.25]]])):
        app = tapped([json.dumps({"id": "x", "choices": [{**choice, "logprobs": logprobs}]}).encode()])
        serve(app, "/v1/completions", b"{}")
        message, = app._sender.messages
        assert message.get("top_logprobs") == expected, logprobs


def test_the_generate_endpoint_is_read_with_its_prompt_and_weight_spans(tapped):
    answer = {"request_id": "g", "choices": [{"index": 0, "token_ids": [3, 4], "finish_reason": "length",
              "logprobs": {"content": [{"token_id": 3, "logprob": -0.1}, {"token_id": 4, "logprob": -0.2}]},
              "weight_versions": [{"version": "default", "start": 0, "end": 1}, {"version": "7", "start": 1, "end": 2}]}]}
    app = tapped([json.dumps(answer).encode()])
    serve(app, "/inference/v1/generate", json.dumps({"token_ids": [1, 2], "sampling_params": {"temperature": 0.5}}).encode())
    message, = app._sender.messages
    assert message["prompt_token_ids"] == [1, 2] and message["engine_sampling"] == {"temperature": 0.5}
    assert message["weight_versions"] == [[1, 2, "7"]] and message["request_id"] == "g"
