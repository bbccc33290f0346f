"""The tap in a real vLLM engine with the real model: what it reports is what the client got; and what a preflight says of that engine."""

import json
import os
import time

import httpx
import pytest
from tap_daemon import Daemon, wait
from typer.testing import CliRunner

from collector.records import Sampling
from collector.sources.rollout_json import parse_rollout
from diagnosis.engine_audit import audit
from diagnosis.engine_told import Assumed
from klaxon.canary import MARK, Canary
from klaxon.cli import app
from klaxon.demo.children import free_port
from klaxon.demo.engine import MODEL_NAME, Engine, engine_dtype
from klaxon.demo.model import DEFAULT_FOLDER
from klaxon.engine_facts import ask
from klaxon.spine_config import CanaryConfig

pytestmark = pytest.mark.engine
PROMPT = [1, *range(300, 380)]  # 81 tokens: two whole cache blocks of 32


def started(tmp_path_factory, **environment):
    daemon = Daemon(("127.0.0.1", 0))
    daemon.kill_file = tmp_path_factory.mktemp("kill") / "klaxon.off"
    engine = Engine(model=DEFAULT_FOLDER, port=free_port(8240), log=tmp_path_factory.mktemp("engine") / "engine.log",
                    tap={"KLAXON_URL": daemon.url, "KLAXON_KILL_FILE": str(daemon.kill_file), **environment})
    engine.start()
    try:
        engine.wait_ready()
        with httpx.Client(base_url=engine.url, timeout=120.0, trust_env=False) as client:
            yield engine, daemon, client
    finally:
        engine.stop()
        daemon.close()


@pytest.fixture(scope="module")
def tapped(tmp_path_factory):
    yield from started(tmp_path_factory, KLAXON_FORCE_LOGPROBS="1")


def complete(client, **options):
    body = {"model": MODEL_NAME, "prompt": PROMPT, "max_tokens": 6, "temperature": 0.7, "logprobs": 2,
            "return_token_ids": True, **options}
    answer = client.post("/v1/completions", json={key: value for key, value in body.items() if value is not None})
    answer.raise_for_status()
    return answer.json()


def test_every_request_is_reported_as_the_client_saw_it(tapped):
    _, daemon, client = tapped
    before = len(daemon.of("rollout"))
    answers = [complete(client) for _ in range(4)]
    wait(lambda: len(daemon.of("rollout")) == before + 4, seconds=15)
    reported = {tuple(message["token_ids"]): message for message in daemon.of("rollout")[before:]}
    for answer in answers:
        choice = answer["choices"][0]
        message = reported[tuple(choice["token_ids"])]
        assert message["prompt_token_ids"] == PROMPT
        assert message["logprobs"] == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-6)
        assert message["engine_sampling"]["temperature"] == 0.7 and message["finish_reason"] == "length"
        assert message["logprobs_mode"] == "processed_logprobs" and message["engine_dtype"] == engine_dtype()
        assert len(message["top_logprobs"]) == 6 and min(len(row) for row in message["top_logprobs"]) >= 2
        parse_rollout(message, where="tap")
    assert daemon.of("rollout")[-1]["cached_prompt_tokens"] == 64, "two blocks of the repeated prompt come from the cache"


def test_several_completions_of_one_request_arrive_apart(tapped):
    _, daemon, client = tapped
    before = len(daemon.of("rollout"))
    answer = complete(client, n=3)
    wait(lambda: len(daemon.of("rollout")) == before + 3, seconds=15)
    messages = daemon.of("rollout")[before:]
    assert sorted(m["token_ids"] for m in messages) == sorted(choice["token_ids"] for choice in answer["choices"])
    assert len({m["request_id"] for m in messages}) == 3


def test_an_unlabelled_weight_version_is_unknown_and_a_label_is_reported(tapped):
    _, daemon, client = tapped
    assert "weight_versions" not in daemon.of("rollout")[0], "vLLM's \"default\" means unknown, never fresh"
    for path in ("/pause?mode=wait&clear_cache=true", "/update_weight_version", "/resume"):
        client.post(path, json={"new_version": "41"} if "version" in path else None).raise_for_status()
    before = len(daemon.of("rollout"))
    complete(client)
    wait(lambda: len(daemon.of("rollout")) == before + 1, seconds=15)
    assert daemon.of("rollout")[-1]["weight_versions"] == [[0, 6, "41"]]
    paths = [event["data"]["path"] for event in daemon.of("event")]
    assert paths[-3:] == ["/pause", "/update_weight_version", "/resume"]


def test_forced_logprobs_are_reported_and_taken_out_of_the_clients_answer(tapped):
    _, daemon, client = tapped
    before = len(daemon.of("rollout"))
    answer = complete(client, logprobs=None)
    assert answer["choices"][0]["logprobs"] is None
    wait(lambda: len(daemon.of("rollout")) == before + 1, seconds=15)
    message = daemon.of("rollout")[-1]
    assert message["token_ids"] == answer["choices"][0]["token_ids"] and all(lp is not None for lp in message["logprobs"])


def test_a_streamed_request_is_reported_whole(tapped):
    _, daemon, client = tapped
    before = len(daemon.of("rollout"))
    body = {"model": MODEL_NAME, "prompt": PROMPT, "max_tokens": 5, "temperature": 0.7, "logprobs": 1, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        text = "".join(answer.iter_text())
    assert text.rstrip().endswith("data: [DONE]")
    wait(lambda: len(daemon.of("rollout")) == before + 1, seconds=15)
    assert len(daemon.of("rollout")[-1]["logprobs"]) == 5


def generate(client, **sampling):
    answer = client.post("/inference/v1/generate", json={
        "token_ids": PROMPT, "sampling_params": {"max_tokens": 5, "temperature": 0.7, **sampling}, "model": MODEL_NAME})
    answer.raise_for_status()
    return answer.json()["choices"][0]


def test_the_generate_endpoint_is_reported_with_and_without_asking_for_logprobs(tapped):
    _, daemon, client = tapped
    for asked in ({"logprobs": 1}, {}):
        before = len(daemon.of("rollout"))
        choice = generate(client, **asked)
        wait(lambda: len(daemon.of("rollout")) == before + 1, seconds=15)
        message = daemon.of("rollout")[-1]
        assert message["token_ids"] == choice["token_ids"]
        if asked:
            assert message["logprobs"] == pytest.approx([entry["logprob"] for entry in choice["logprobs"]["content"]], abs=1e-6)
        else:
            assert choice["logprobs"] is None and all(lp is not None for lp in message["logprobs"])


def test_a_client_that_hangs_up_leaves_an_aborted_rollout(tapped):
    _, daemon, client = tapped
    before = len(daemon.of("rollout"))
    body = {"model": MODEL_NAME, "prompt": PROMPT, "max_tokens": 900, "ignore_eos": True, "logprobs": 1, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    wait(lambda: len(daemon.of("rollout")) == before + 1, seconds=30)
    message = daemon.of("rollout")[-1]
    assert message["aborted"] is True and message["finish_reason"] == "abort"
    assert 1 <= len(message["token_ids"]) < 900 and len(message["logprobs"]) == len(message["token_ids"])
    parse_rollout(message, where="tap")


def test_the_kill_file_silences_a_running_engine_and_its_removal_wakes_it(tapped):
    _, daemon, client = tapped
    kill_file = daemon.kill_file
    kill_file.touch()
    time.sleep(1.2)
    before = len(daemon.of("rollout"))
    complete(client)
    kill_file.unlink()
    time.sleep(1.2)
    answer = complete(client)
    wait(lambda: len(daemon.of("rollout")) > before, seconds=15)
    message, = daemon.of("rollout")[before:]
    assert message["token_ids"] == answer["choices"][0]["token_ids"], "only the second one"


def test_the_heartbeat_carries_the_engines_settings(tapped):
    _, daemon, _ = tapped
    wait(lambda: any(beat["source"] == "plugin" and beat["sent"] for beat in daemon.of("heartbeat")), seconds=15)
    beat = [beat for beat in daemon.of("heartbeat") if beat["source"] == "plugin"][-1]
    assert beat["vllm_version"].startswith("0.") and beat["faults"] == 0 and beat["dropped"] == 0
    assert beat["config"]["logprobs_mode"] == "processed_logprobs" and beat["config"]["enable_prefix_caching"] is True
    assert beat["config"]["block_size"] == 32 and beat["config"]["dtype"] == engine_dtype()


def test_without_the_plugin_the_middleware_reports(tmp_path_factory):
    """VLLM_PLUGINS can exclude a plugin silently; the public middleware then does what it can."""
    for _, daemon, client in started(tmp_path_factory, VLLM_PLUGINS="nothing"):
        answer = complete(client)
        wait(lambda: daemon.of("rollout"), seconds=15)
        message, = daemon.of("rollout")
        choice = answer["choices"][0]
        assert message["source"] == "middleware" and message["token_ids"] == choice["token_ids"]
        assert message["logprobs"] == choice["logprobs"]["token_logprobs"] and message["prompt_token_ids"] == PROMPT
        assert not any(beat["source"] == "plugin" for beat in daemon.of("heartbeat"))
        assert os.environ.get("VLLM_PLUGINS") is None


def test_a_canary_is_reported_under_its_mark(tapped):
    """The engine keeps the id Klaxon gave its probe, so that the daemon knows its own."""
    engine, daemon, _ = tapped
    before = len(daemon.of("rollout"))
    probe = Canary(engine.url, CanaryConfig(prompts=[PROMPT], max_tokens=5), Sampling(temperature=0.7), last_rollout_at=lambda: None,
                   say=lambda kind, text, data: pytest.fail(text))
    assert probe.sing()
    wait(lambda: len(daemon.of("rollout")) == before + 1, seconds=15)
    message = daemon.of("rollout")[-1]
    assert MARK in message["request_id"] and message["prompt_token_ids"] == PROMPT and len(message["logprobs"]) == 5


def test_the_audit_reads_every_setting_of_a_live_engine(tapped):
    engine, _, _ = tapped
    asked = ask(engine.url, model=str(DEFAULT_FOLDER))
    untold = {check.name for check in audit(asked.told, Assumed(head_dtype="float32", body_dtype=engine_dtype())) if check.state == "unknown"}
    assert set(asked.sources.values()) == {"answers"} and untold <= {"attention backend"}, "vLLM does not tell the kernel it chose"


@pytest.mark.parametrize(("expects", "code", "state", "verdict"), [("processed_logprobs", 0, "passed", "healthy"), ("raw_logprobs", 1, "failed", "raw_logprobs")])
def test_a_preflight_tells_what_the_trainer_may_take_these_logprobs_for(tapped, tmp_path, expects, code, state, verdict):
    engine, _, client = tapped
    client.post("/update_weight_version", json={"new_version": "default"}).raise_for_status()
    config = tmp_path / "config.toml"
    config.write_text(f'[trainer]\nexpected_logprobs_mode = "{expects}"\n[canary]\nmax_tokens = 12\n', encoding="utf-8")
    result = CliRunner().invoke(app(["preflight"]), ["preflight", "--engine", engine.url, "--model", str(DEFAULT_FOLDER), "--temperature", "0.7",
                                                     "--config", str(config), "--body-dtype", engine_dtype(), "--json"])
    found = json.loads(result.stdout)
    rows = {row["name"]: row["state"] for row in found["rows"]}
    assert (result.exit_code, rows["logprobs"], found["diagnosis"]["verdict"]) == (code, state, verdict), found["rows"]
    assert rows["tokenizer"] == rows["canaries"] == "passed" and (rows["settings"] == "failed") == (expects == "raw_logprobs")
