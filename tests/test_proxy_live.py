"""`klaxon proxy` in front of a real vLLM of two data-parallel ranks: the client's answers, and the rollouts of proxy and tap."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tap_daemon import Daemon, wait

from collector.sources.rollout_json import parse_rollout
from klaxon.demo.children import free_port
from klaxon.demo.engine import MODEL_NAME, Engine
from klaxon.demo.model import DEFAULT_FOLDER

pytestmark = pytest.mark.engine
PROMPT = [1, *range(300, 310)]
RANKS = 2
ASKED: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": MODEL_NAME, "prompt": PROMPT, "max_tokens": 5, "temperature": 0.7, "seed": 7, "logprobs": 2,
                        "return_token_ids": True},
    "/v1/chat/completions": {"model": MODEL_NAME, "messages": [{"role": "user", "content": "3+4=?"}], "max_tokens": 5,
                             "temperature": 0.7, "seed": 7, "logprobs": True, "return_token_ids": True},
    "/inference/v1/generate": {"model": MODEL_NAME, "token_ids": PROMPT,
                               "sampling_params": {"max_tokens": 5, "temperature": 0.7, "seed": 7, "logprobs": 1}},
}
STREAMED = ("/v1/completions", "/v1/chat/completions")


@dataclass
class Setup:
    direct: httpx.Client
    through: httpx.Client
    tap: Daemon
    proxy: Daemon
    engine: str

    def post(self, client: httpx.Client, path: str, **options: Any) -> httpx.Response:
        """One request on a cold prefix cache, under an id of ours, so that two answers can be equal to the byte."""
        self.direct.post("/reset_prefix_cache").raise_for_status()
        answer = client.post(path, json=ASKED[path] | options, headers={"X-Request-Id": "the-same"})
        answer.raise_for_status()
        return answer

    def rollouts(self, before: tuple[int, int], direct: int, through: int) -> tuple[list[dict], list[dict]]:
        """(the tap's, the proxy's) since `before`, once all have come."""
        tap, proxy = before
        wait(lambda: len(self.tap.of("rollout")) == tap + direct + through, seconds=120)
        wait(lambda: len(self.proxy.of("rollout")) == proxy + through, seconds=120)
        return self.tap.of("rollout")[tap:], self.proxy.of("rollout")[proxy:]

    def counts(self) -> tuple[int, int]:
        """Rollouts so far."""
        return len(self.tap.of("rollout")), len(self.proxy.of("rollout"))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder, tap, proxy = tmp_path_factory.mktemp("proxy_live"), Daemon(("127.0.0.1", 0)), Daemon(("127.0.0.1", 0))
    engine = Engine(model=Path(DEFAULT_FOLDER).resolve(), port=free_port(8340), log=folder / "engine.log", tap={"KLAXON_URL": tap.url})
    engine.child.command += ["--data-parallel-size", str(RANKS)]
    engine.start()
    proxying = None
    try:
        engine.wait_ready(patience_seconds=900.0)
        port = free_port(8940)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KLAXON_")}
        with (folder / "proxy.log").open("wb") as log:
            proxying = subprocess.Popen(
                [sys.executable, "-m", "klaxon", "proxy", "--upstream", engine.url, "--listen", f"127.0.0.1:{port}",
                 "--klaxon", proxy.url, "--engine", "by-proxy"], stdout=log, stderr=subprocess.STDOUT, env=environment)
        wait(lambda: proxy.of("heartbeat"), seconds=120)
        with httpx.Client(base_url=engine.url, timeout=300.0, trust_env=False) as direct, \
                httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300.0, trust_env=False) as through:
            yield Setup(direct, through, tap, proxy, engine.url)
    finally:
        if proxying is not None:
            proxying.terminate()
            proxying.wait(60)
        engine.stop()
        tap.close()
        proxy.close()


def timeless(body: bytes) -> bytes:
    """An answer without the second it was made in."""
    return re.sub(rb'"created":\s*\d+', b'"created":0', body)


def heard(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """A choice put together from its pieces: vLLM may put two tokens into one event whenever it is busy."""
    entries = [choice.get("logprobs") or {} for choice in choices]
    values = [value for one in entries for value in one.get("token_logprobs") or [entry["logprob"] for entry in one.get("content") or []]]
    return {"text": "".join(choice.get("text") or (choice.get("delta") or {}).get("content") or "" for choice in choices),
            "token_ids": [token for choice in choices for token in choice.get("token_ids") or []], "logprobs": values,
            "finish_reason": next(choice["finish_reason"] for choice in reversed(choices) if choice.get("finish_reason"))}


def streamed(answer: httpx.Response) -> dict[str, Any]:
    """The one choice of an answer in events."""
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]" and answer.headers["content-type"].startswith("text/event-stream")
    return heard([choice for event in events[:-1] for choice in json.loads(event)["choices"]])


def agree(tap: list[dict[str, Any]], proxy: list[dict[str, Any]]) -> None:
    """Every rollout the proxy made is one of the tap's: ids, logprobs, how it ended."""
    for rollout in proxy:
        assert rollout["source"] == "proxy" and rollout["engine"] == "by-proxy"
        twins = [one for one in tap if (one["prompt_token_ids"], one["token_ids"], one["finish_reason"])
                 == (rollout["prompt_token_ids"], rollout["token_ids"], rollout["finish_reason"])]
        assert twins, (rollout, tap)
        assert rollout["logprobs"] == pytest.approx(twins[0]["logprobs"], abs=1e-6)


@pytest.mark.parametrize("path", ASKED)
def test_the_client_gets_the_same_bytes_and_proxy_and_tap_tell_the_same_rollout(live: Setup, path: str) -> None:
    before = live.counts()
    direct, through = live.post(live.direct, path), live.post(live.through, path)
    assert timeless(through.content) == timeless(direct.content)
    assert through.headers["content-type"] == direct.headers["content-type"]
    tap, proxy = live.rollouts(before, direct=1, through=1)
    agree(tap, proxy)
    choice, = direct.json()["choices"]
    got = heard([choice])
    assert proxy[0]["token_ids"] == got["token_ids"] and proxy[0]["logprobs"] == pytest.approx(got["logprobs"], abs=1e-6)
    assert len(got["token_ids"]) == len(got["logprobs"]) > 0


@pytest.mark.parametrize("path", STREAMED)
def test_a_stream_says_the_same_through_the_proxy_and_becomes_the_same_rollout(live: Setup, path: str) -> None:
    before = live.counts()
    direct, through = (streamed(live.post(client, path, stream=True)) for client in (live.direct, live.through))
    assert (through["text"], through["token_ids"], through["finish_reason"]) == (direct["text"], direct["token_ids"], direct["finish_reason"])
    assert through["logprobs"] == pytest.approx(direct["logprobs"], abs=1e-6)
    tap, proxy = live.rollouts(before, direct=1, through=1)
    agree(tap, proxy)
    assert proxy[0]["token_ids"] == through["token_ids"]


def test_several_completions_of_one_request_are_the_same_rollouts_to_proxy_and_tap(live: Setup) -> None:
    before = live.counts()
    answer = live.post(live.through, "/v1/completions", n=3).json()
    tap, proxy = live.rollouts(before, direct=0, through=3)
    agree(tap, proxy)
    assert sorted(one["token_ids"] for one in proxy) == sorted(choice["token_ids"] for choice in answer["choices"])


def test_an_answer_cut_at_a_stop_string_has_as_many_logprobs_as_ids(live: Setup) -> None:
    before = live.counts()
    stop = live.post(live.direct, "/v1/completions", max_tokens=12).json()["choices"][0]["text"][3:5]
    choice, = live.post(live.through, "/v1/completions", max_tokens=12, stop=[stop]).json()["choices"]
    assert choice["finish_reason"] == "stop" and stop not in choice["text"]
    tap, proxy = live.rollouts(before, direct=1, through=1)
    agree(tap, proxy)
    assert tap[1]["token_ids"] == choice["token_ids"] and len(tap[1]["logprobs"]) == len(choice["token_ids"]) < 12


def served(metrics: str) -> Counter[int]:
    """Requests each rank says it has finished, out of the engine's own /metrics."""
    rows = re.findall(r'^vllm:request_success_total\{[^}]*engine="(\d+)"[^}]*\} ([\d.e+]+)$', metrics, re.MULTILINE)
    return Counter({int(rank): n for rank in {row[0] for row in rows} if (n := int(sum(float(count) for which, count in rows if which == rank)))})


def test_each_rank_behind_the_one_url_is_a_replica_of_its_own(live: Setup) -> None:
    """As many rollouts of each rank as the engine's own metrics count; a rank that the client chose is that rank."""
    before = live.counts()
    for _ in range(4):
        live.post(live.direct, "/v1/completions", seed=None)
    for rank in (1, 0, 1):
        live.direct.post("/v1/completions", json=ASKED["/v1/completions"], headers={"X-data-parallel-rank": str(rank)}).raise_for_status()
    tap, _ = live.rollouts(before, direct=7, through=0)
    assert [message["dp_rank"] for message in tap[-3:]] == [1, 0, 1]
    assert {message["dp_rank"] for message in tap[:4]} == {0, 1}, "vLLM spreads requests over its ranks"
    assert {parse_rollout(message, where="tap").replica for message in tap} == {f"{live.engine}#dp{rank}" for rank in range(RANKS)}
    expected = Counter(message["dp_rank"] for message in live.tap.of("rollout"))
    wait(lambda: served(live.direct.get("/metrics").text) == expected, seconds=120)
