"""Experiments against an engine over real HTTP: its prefix cache may be stale, its numbers may depend on the batch."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from collector.errors import Unavailable
from collector.records import Cause, Diagnosis, Rollout
from collector.sources.inbox import TapInbox
from klaxon.batches import BatchBuilder
from klaxon.canary import EXPERIMENT
from klaxon.config import parse_config
from klaxon.diagnose_task import Diagnostician, with_findings
from klaxon.experiments import EXPERIMENTS, Finding, recent_prompts, run
from klaxon.worker import Worker

PROMPTS = [[1, 7 * i + 3, i + 40] for i in range(10)]
LIMIT = 0.02


class Engine:
    """A completions server whose next token depends on the prompt alone, but for its faults. A request that waits for company is one of a batch."""

    def __init__(self, *, stale: float = 0.0, batch: float = 0.0, decode: float = 0.0, broken: bool = False) -> None:
        self.stale, self.batch, self.decode, self.broken = stale, batch, decode, broken
        self.bodies: list[dict] = []
        self.ids: list[str] = []
        self.running, self.lock = 0, threading.Condition()

    def logprobs(self, body: dict, beside: int) -> dict[str, float]:
        rng = np.random.default_rng(body["prompt"])
        row = rng.normal(size=8)
        if "cache_salt" not in body:
            row = row + self.stale * rng.normal(size=8)
        if beside > 1:
            row = row + self.batch * np.random.default_rng(beside).normal(size=8)
        row -= np.log(np.exp(row).sum())
        return {f"token_id:{i}": float(row[i]) for i in np.argsort(-row)[:5]}

    def choice(self, body: dict, beside: int) -> dict:
        """As vLLM answers: what was sampled, the logprobs of the prompt, or the next token's top."""
        if "prompt_logprobs" in body:
            return {"prompt_logprobs": [None, *({str(token): {"logprob": self.forced(token)}, "7": {"logprob": -9.0}} for token in body["prompt"][1:])]}
        if body["max_tokens"] > 1:
            ids = np.random.default_rng(body["prompt"]).integers(100, 200, body["max_tokens"]).tolist()
            return {"token_ids": ids, "logprobs": {"token_logprobs": [self.forced(token) + self.decode * (-1) ** place for place, token in enumerate(ids)]}}
        return {"logprobs": {"top_logprobs": [self.logprobs(body, beside)]}}

    def forced(self, token: int) -> float:
        return -0.1 - token / 100


@contextmanager
def serving(engine: Engine, *, together: int = 1) -> Iterator[str]:
    """Yields the URL. Requests that come while others run wait until `together` of them are there."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {"data": [{"id": "m"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            engine.bodies.append(body)
            engine.ids.append(self.headers.get("X-Request-Id", ""))
            if engine.broken:
                return self.answer(500, {"error": {"message": "out of memory"}})
            with engine.lock:
                engine.running += 1
                engine.lock.notify_all()
                engine.lock.wait_for(lambda: engine.running >= together, timeout=0.2 if together > 1 else 0)
                beside = engine.running
            self.answer(200, {"choices": [engine.choice(body, beside)]})
            with engine.lock:
                engine.running -= 1
            return None

        def answer(self, status: int, found: dict) -> None:
            data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("stale", "decisive"), [(0.0, False), (0.3, True), (0.001, False)])
def test_a_stale_cache_shows_against_prompts_computed_anew(stale: float, decisive: bool) -> None:
    engine = Engine(stale=stale)
    with serving(engine) as url:
        found = run("caching", url, PROMPTS, limit_nats=LIMIT)
    assert (found.prompts, found.decisive, found.control_nats) == (10, decisive, 0.0)
    assert ("other weights" in found.text) == decisive and f"{found.difference_nats:.4f}" in found.text
    salts = [body.get("cache_salt") for body in engine.bodies]
    assert salts[:10] == [None] * 10 and len(set(salts[10:])) == 20, "served as they are first, then every one under a salt nobody has used"
    assert all(one.startswith(EXPERIMENT) for one in engine.ids) and len(set(engine.ids)) == 30, "the worker leaves them out"
    assert {body["max_tokens"] for body in engine.bodies} == {1}


@pytest.mark.parametrize(("batch", "decisive"), [(0.0, False), (0.3, True)])
def test_numbers_that_depend_on_the_batch_show_when_asked_at_once(batch: float, decisive: bool) -> None:
    with serving(Engine(batch=batch), together=5) as url:
        found = run("batch", url, PROMPTS, limit_nats=LIMIT)
    assert found.decisive == decisive and found.prompts == 10


@pytest.mark.parametrize(("decode", "decisive"), [(0.0, False), (0.05, True), (0.005, False)])
def test_decode_and_prefill_that_disagree_show_when_tokens_are_sent_back(decode: float, decisive: bool) -> None:
    engine = Engine(decode=decode)
    with serving(engine) as url:
        found = run("self_score", url, PROMPTS, limit_nats=LIMIT)
    assert (found.prompts, found.decisive, found.control_nats) == (10, decisive, 0.0)
    assert found.difference_nats == pytest.approx(decode, abs=1e-9) and ("decode and prefill disagree" in found.text) == decisive
    decoded, *forced = [[body for body in engine.bodies if ("prompt_logprobs" in body) == back] for back in (False, True)]
    assert len(decoded) == 10 and len(forced[0]) == 20 and len({body["cache_salt"] for body in forced[0]}) == 20
    assert all(body["temperature"] == 1.0 and body["repetition_penalty"] == 1.0 for body in engine.bodies), "reports are then plain logprobs in either mode"


def test_an_engine_that_answers_nothing_usable_decides_nothing_and_an_absent_one_says_so() -> None:
    with serving(Engine(broken=True)) as url:
        tried = [run(name, url, PROMPTS, limit_nats=LIMIT) for name in EXPERIMENTS]
    assert not any(found.decisive or found.prompts for found in tried) and all("nothing can be said" in found.text for found in tried)
    with pytest.raises(Unavailable, match="no engine answers"):
        run("caching", url, PROMPTS, limit_nats=LIMIT)


def rollout(i: int, *, cached: int) -> Rollout:
    return Rollout(request_id=f"r{i}", prompt_tokens_P=np.array([1, i], dtype=np.int32), completion_tokens_T=np.array([5], dtype=np.int32),
                   engine_logprobs_T=np.array([-1.0], dtype=np.float32), sampled_mask_T=np.ones(1, dtype=bool), cached_prompt_tokens=cached)


def test_prompts_that_hit_the_cache_come_first_the_newest_of_them_and_each_once() -> None:
    rollouts = [rollout(i % 20, cached=32 if i % 2 else 0) for i in range(40)]
    assert recent_prompts(rollouts) == [(1, i) for i in (19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 18, 16)]


def verdict(cause: str, *, sure: bool = False, rivals: dict[str, float] | None = None) -> Diagnosis:
    causes = [Cause(cause=name, residual_nats=left, tokens=300, evidence=("residual",)) for name, left in {cause: 0.08, **(rivals or {})}.items()]
    return Diagnosis(verdict=cause, confident=sure, causes=tuple(causes), floor_nats=0.01, next="", fix="", tokens=300)


FINDING = Finding(name="caching", prompts=10, difference_nats=0.3, control_nats=0.0, decisive=True, text="experiment caching: …")


@pytest.mark.parametrize(("cause", "decisive", "sure"), [("stale_prefix_cache", True, True), ("stale_prefix_cache", False, False), ("temperature", True, False)])
def test_a_decisive_experiment_makes_sure_what_leads_already_and_names_nothing_new(cause: str, decisive: bool, sure: bool) -> None:
    finding = replace(FINDING, decisive=decisive)
    found = with_findings(verdict(cause), [finding])
    assert (found.verdict, found.confident, found.causes[0].evidence) == (cause, sure, ("experiment caching: …", "residual"))
    assert with_findings(replace(found, causes=()), [finding]).causes == () and set(EXPERIMENTS) == {"caching", "batch", "self_score"}


@pytest.mark.parametrize(("leads", "sure", "stale", "named"), [
    ("engine_numerics", True, 0.07, "stale_prefix_cache"), ("unexplained", False, 0.07, "stale_prefix_cache"), ("truncation", False, 0.07, "stale_prefix_cache"),
    ("truncation", True, 0.07, "truncation"), ("engine_numerics", True, 0.13, "engine_numerics"),
])
def test_a_decisive_experiment_brings_its_cause_before_doubtful_ones_where_it_explains_more_than_health(leads: str, sure: bool, stale: float, named: str) -> None:
    found = with_findings(verdict(leads, sure=sure, rivals={"healthy": 0.12, "stale_prefix_cache": stale}), [FINDING])
    assert (found.verdict, found.causes[0].cause, found.confident) == (named, named, True)
    assert found.causes[0].evidence[0] == FINDING.text and len(found.causes) == 3
    assert ("reset_prefix_cache" in found.next + found.fix) == (named == "stale_prefix_cache")


class Incidents:
    """Alerts with one open incident, and what is attached to it."""

    def __init__(self) -> None:
        self.attached: list[Diagnosis] = []

    def open_incidents(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(id="inc_1", drifts=[SimpleNamespace(kind="statistical")])]

    def attach_diagnosis(self, incident_id: str, found: Diagnosis, *, now: float) -> None:
        self.attached.append(found)


def test_what_an_experiment_saw_reaches_the_incident_and_one_that_cannot_be_made_is_said() -> None:
    said: list[tuple[str, str]] = []

    def told(url: str) -> list[Diagnosis]:
        config = parse_config({"engine": {"url": url}, "diagnosis": {"experiments": ["caching"]}}, where="test")
        one = Diagnostician(config, worker=None, shadow=None, taps=None, alerts=(alerts := Incidents()), say=lambda kind, text, data: said.append((kind, text)))
        one._verdict = verdict("stale_prefix_cache")
        one._experiment([rollout(i, cached=32) for i in range(10)], one._findings)
        return alerts.attached

    with serving(Engine(stale=0.3)) as url:
        (found,) = told(url)
    assert found.confident and found.causes[0].evidence[0].startswith("experiment caching: next token of 10 recent prompts")
    assert told(url) == []
    assert [kind for kind, _ in said] == ["experiment", "experiment_failed"] and "no engine answers" in said[1][1]


@pytest.mark.parametrize(("decisive", "said"), [(True, "without the experiment not sure: 0.0300 nats remain"), (False, "not sure: 0.0300 nats remain")])
def test_doubts_that_an_experiment_ended_are_told_as_such(decisive: bool, said: str) -> None:
    asked = verdict("stale_prefix_cache")
    asked = replace(asked, causes=(replace(asked.causes[0], evidence=("residual", "not sure: 0.0300 nats remain")),))
    found = with_findings(asked, [replace(FINDING, decisive=decisive)])
    assert found.causes[0].evidence == (FINDING.text, "residual", said) and found.confident == decisive


def test_an_experiment_that_confirms_no_cause_is_evidence_alone() -> None:
    finding = replace(FINDING, name="self_score", text="experiment self_score: …")
    found = with_findings(verdict("engine_numerics", rivals={"healthy": 0.12, "stale_prefix_cache": 0.05}), [finding])
    assert (found.verdict, found.confident, found.causes[0].evidence[0]) == ("engine_numerics", False, finding.text)


def test_the_requests_of_an_experiment_are_counted_and_reach_no_statistic() -> None:
    inbox = TapInbox(8)
    builder = BatchBuilder(started_at=0.0, batch_seconds=60.0, watermark_seconds=1.0, first_t=0)
    worker = Worker(parse_config({}, where="test"), inbox=inbox, builder=builder, builder_lock=threading.Lock(), views=None, refuse=pytest.fail,
                    file_rollouts=lambda t, pairs: None, clock=lambda: 10.0)
    for name in (f"cmpl-{EXPERIMENT}a1-0", "cmpl-1-0"):
        assert inbox.offer(replace(rollout(1, cached=32), request_id=name))
    assert worker.step()
    assert worker.counts["own_experiments"] == 1 and worker.counts["seen"] == 1
