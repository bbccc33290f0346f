import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from collector.sources.inbox import TapInbox
from klaxon.ingest import Ingest, ingest_router

GOOD = {"kind": "rollout", "request_id": "r", "prompt_token_ids": [1], "token_ids": [2], "logprobs": [-0.5]}


def client(*, capacity=10, token=None):
    seen = []
    ingest = Ingest(TapInbox(capacity), {"metrics": lambda message: seen.append(message["metrics"]["kl"])})
    app = FastAPI()
    app.include_router(ingest_router(ingest, token=token))
    return TestClient(app), ingest, seen


def post(http, *messages, **headers):
    return http.post("/v1/ingest", content="\n".join(m if isinstance(m, str) else json.dumps(m) for m in messages), headers=headers)


def test_a_bad_line_is_refused_by_number_and_its_neighbours_are_kept():
    http, ingest, seen = client()
    answer = post(http, GOOD, "{broken", {**GOOD, "logprobs": [-1, -2]}, {"kind": "metrics", "metrics": {"kl": 0.1}}, {"kind": "gossip"}, GOOD)
    assert answer.status_code == 202 and answer.json()["accepted"] == 3
    assert [refused["line"] for refused in answer.json()["refused"]] == [2, 3, 5]
    assert len(ingest.inbox) == 2 and seen == [0.1]
    assert ingest.counts["refused"] == 3 and ingest.counts["length_mismatch"] == 1
    assert "gossip" in ingest.refusals[-1]


def test_a_message_that_misses_a_field_is_refused_not_crashed():
    http, ingest, _ = client()
    answer = post(http, {"kind": "metrics"})
    assert answer.status_code == 202 and "metrics" in answer.json()["refused"][0]["reason"]


def test_a_full_inbox_refuses_the_whole_body_and_asks_for_patience():
    http, ingest, _ = client(capacity=3)
    assert post(http, GOOD, GOOD).status_code == 202
    answer = post(http, GOOD, GOOD)
    assert answer.status_code == 429 and answer.headers["Retry-After"] == "1"
    assert len(ingest.inbox) == 2, "nothing of a refused body is taken, so trying again never doubles a rollout"
    ingest.inbox.poll(2)
    assert post(http, GOOD, GOOD).status_code == 202


@pytest.mark.parametrize(("given", "status"), [(None, 401), ("Bearer wrong", 401), ("Bearer s3cret", 202)])
def test_the_token_is_asked_for(given, status):
    http, _, _ = client(token="s3cret")
    headers = {"Authorization": given} if given else {}
    assert post(http, GOOD, **headers).status_code == status
