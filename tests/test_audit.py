"""`klaxon audit` against a real HTTP server that gives the answers of a vLLM 0.32 engine, recorded once (tests/fixtures/audit)."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from collector.errors import ConfigError, InputError, Unavailable
from collector.records import Sampling
from diagnosis.engine_audit import CHECKS, MIGRATION, audit
from diagnosis.engine_migration import resets
from diagnosis.engine_told import Assumed, Told
from diagnosis.known_faults import NEEDS, table
from klaxon.cli import app
from klaxon.engine_facts import ask
from klaxon.trainer_file import read_assumed

FIXTURES = Path(__file__).parent / "fixtures" / "audit"
DOCS = Path(__file__).parent.parent / "docs" / "audit.md"
RECORDED = {"/version": "version.json", "/v1/models": "models.json", "/weight_info": "weight_info.json",
            "/metrics": "metrics.txt", "/server_info": "server_info.json"}


class Recorded:
    """The recorded engine; `routes` may be changed, None answers 404."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"
        self.routes = {"/health": b"", **{path: (FIXTURES / name).read_bytes() for path, name in RECORDED.items()}}

    def configure(self, section, **values):
        info = json.loads(self.routes["/server_info"])
        info["vllm_config"][section].update(values)
        self.routes["/server_info"] = json.dumps(info).encode()


@pytest.fixture
def engine():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path, _, query = self.path.partition("?")
            body = recorded.routes.get(path)
            if path == "/server_info" and "config_format=json" not in query:
                body = b'{"vllm_config": "text"}'
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    recorded = Recorded(server.server_address[1])
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield recorded
    server.shutdown()
    server.server_close()


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    (folder / "config.json").write_text('{"hidden_size": 576}')
    return folder


def states(told, assumed=None):
    return {check.name: check for check in audit(told, assumed or Assumed())}


def run(*args):
    """(exit code, the JSON object) of `klaxon audit … --json`."""
    result = CliRunner().invoke(app(["audit"]), ["audit", *map(str, args), "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_the_recorded_engine_is_read_whole(engine, model):
    code, found = run(engine.url, "--model", model)
    lines = {check["name"]: check for check in found["checks"]}
    assert code == 0 and found["vllm_version"] == "0.32.0" and set(found["sources"].values()) == {"answers"}
    assert {name: line["state"] for name, line in lines.items()} == {
        "logprobs mode": "ok", "prefix cache": "risky", "async scheduling": "ok", "logits head dtype": "unknown",
        "cascade attention": "ok", "chunked prefill": "ok", "batch invariance": "ok", "body dtype": "unknown",
        "KV-cache dtype": "ok", "quantization": "ok", "attention backend": "unknown", "CUDA graphs": "ok",
        "TP / EP / DP / PP": "ok", "MoE backend": "ok", "speculative decoding": "ok", "generation_config": "ok",
        "weight version label": "risky", "max_logprobs": "ok", "vLLM version": "risky"}
    assert "64 of 162 prompt tokens" in lines["prefix cache"]["seen"]
    assert list(lines)[:MIGRATION] == ["logprobs mode", "prefix cache", "async scheduling", "logits head dtype"]
    assert all(line["do"] for line in lines.values() if line["state"] != "ok"), "what is not fine says what to type"


def test_raw_logprobs_are_wrong_and_the_exit_code_says_so(engine, model):
    engine.configure("model_config", logprobs_mode="raw_logprobs")
    code, found = run(engine.url, "--model", model)
    first = found["checks"][0]
    assert code == 1 and first["state"] == "wrong" and "--logprobs-mode processed_logprobs" in first["do"]
    text = CliRunner().invoke(app(["audit"]), ["audit", engine.url])
    assert text.exit_code == 1 and "--logprobs-mode processed_logprobs" in text.stdout and "1 wrong" in text.stdout


def test_raw_and_processed_logprobs_are_one_only_where_the_trainer_declares_a_neutral_sampler():
    told = Told(tap={"logprobs_mode": "raw_logprobs"})
    neutral = Sampling(temperature=1.0, top_p=1.0, top_k=-1)
    assert states(told, Assumed(sampling=neutral))["logprobs mode"].state == "risky"
    assert states(told, Assumed(sampling=Sampling(temperature=1.0)))["logprobs mode"].state == "wrong", "top_p was not declared"
    assert states(told, Assumed(logprobs_mode="raw_logprobs"))["logprobs mode"].state == "ok"


def test_without_dev_mode_what_only_server_info_tells_is_unknown(engine):
    engine.routes["/server_info"] = engine.routes["/weight_info"] = None
    asked = ask(engine.url)
    found = states(asked.told)
    told_by_metrics = {"prefix cache": "risky", "KV-cache dtype": "ok", "vLLM version": "risky"}
    assert {name: check.state for name, check in found.items() if check.state != "unknown"} == told_by_metrics
    assert "dev mode is off" in asked.sources["/server_info"]
    assert "VLLM_SERVER_DEV_MODE=1" in found["logprobs mode"].do, "how to make it known"
    assert "/metrics" in found["prefix cache"].seen


def test_nothing_told_is_nothing_known():
    assert {check.state for check in audit(Told(), Assumed())} == {"unknown"}
    assert all(check.do for check in audit(Told(), Assumed()))


def test_an_engine_that_is_gone_is_said_with_what_to_do(engine):
    gone = "http://127.0.0.1:1"
    with pytest.raises(Unavailable, match=r"no engine answers at http://127.0.0.1:1 .*vllm serve"):
        ask(gone)
    with pytest.raises(InputError, match="no address of an engine"):
        ask("localhost")


@pytest.mark.parametrize("garbage", [b"<html>hello</html>", b"[1, 2]", b"\xff\xfe{", b'{"vllm_config": 7, "version": [], "data": 3, "weight_version": {}}'])
def test_garbage_is_no_engine_and_never_a_traceback(engine, garbage):
    engine.routes.update(dict.fromkeys(RECORDED, garbage))
    with pytest.raises(Unavailable, match="not as a vLLM engine"):
        ask(engine.url)


def test_garbage_of_one_route_leaves_the_others_good(engine):
    engine.routes["/server_info"] = b'{"vllm_config": {"model_config": 3, "cache_config": [], "scheduler_config": {"async_scheduling": "maybe"}}, "vllm_env": 5}'
    engine.routes["/v1/models"] = b"oops"
    asked = ask(engine.url)
    found = states(asked.told)
    assert asked.sources["/v1/models"] == "its answer is no JSON object"
    assert found["async scheduling"].state == found["logprobs mode"].state == "unknown" and found["prefix cache"].state == "risky"


@pytest.mark.parametrize(("section", "values", "name", "state"), [
    ("cache_config", {"enable_prefix_caching": False}, "prefix cache", "ok"),
    ("scheduler_config", {"async_scheduling": True}, "async scheduling", "risky"),
    ("model_config", {"hf_overrides": {"head_dtype": "bfloat16"}}, "logits head dtype", "wrong"),
    ("model_config", {"hf_overrides": "<function f>"}, "logits head dtype", "unknown"),
    ("model_config", {"disable_cascade_attn": False}, "cascade attention", "risky"),
    ("cache_config", {"mamba_block_size": 512}, "chunked prefill", "risky"),
    ("model_config", {"dtype": "torch.bfloat16"}, "body dtype", "ok"),
    ("model_config", {"dtype": "auto"}, "body dtype", "unknown"),
    ("cache_config", {"cache_dtype": "fp8_e4m3"}, "KV-cache dtype", "risky"),
    ("model_config", {"quantization": "fp8"}, "quantization", "risky"),
    ("attention_config", {"backend": "vllm.v1.attention.backends.flash_attn.FlashAttentionBackend"}, "attention backend", "ok"),
    ("parallel_config", {"pipeline_parallel_size": 2}, "TP / EP / DP / PP", "risky"),
    ("parallel_config", {"is_moe_model": True}, "MoE backend", "risky"),
    ("model_config", {"max_logprobs": 0}, "max_logprobs", "wrong"),
])
def test_one_changed_setting_changes_its_line(engine, model, section, values, name, state):
    assumed = Assumed(head_dtype="float32", body_dtype="bfloat16")
    before = states(ask(engine.url, model=str(model)).told, assumed)[name].state
    engine.configure(section, **values)
    after = states(ask(engine.url, model=str(model)).told, assumed)[name].state
    assert after == state != before


@pytest.mark.parametrize("value", [None, 3, "x", [], {}, True, -1.5, {"head_dtype": 7}])
def test_no_setting_of_any_type_breaks_the_checklist(value):
    config = json.loads((FIXTURES / "server_info.json").read_bytes())["vllm_config"]
    assumed = Assumed(head_dtype="float32", body_dtype="bfloat16", engine_dtype="fp8")
    for section, settings in config.items():
        for key in settings if isinstance(settings, dict) else ():
            told = Told(version="0.32.0", config={**config, section: {**settings, key: value}}, generation_config={"top_k": value}, model_config={"head_dtype": value})
            assert len(audit(told, assumed)) == len(CHECKS)
        assert len(audit(Told(config={**config, section: value}, tap={"dtype": value}), assumed)) == len(CHECKS)


@pytest.mark.parametrize(("eager", "mode", "quantization", "state", "said"), [
    (False, [2, 1], "fp8", "risky", "FULL_AND_PIECEWISE"), (False, [2, 1], None, "ok", "FULL_AND_PIECEWISE"),
    (False, 0, "fp8", "ok", "NONE"), (True, 0, "fp8", "ok", "enforce_eager = True")])
def test_captured_graphs_are_risky_where_a_reload_moves_tensors(engine, eager, mode, quantization, state, said):
    engine.configure("model_config", enforce_eager=eager, quantization=quantization)
    engine.configure("compilation_config", cudagraph_mode=mode)
    check = states(ask(engine.url).told)["CUDA graphs"]
    assert check.state == state and said in check.seen


def test_penalties_the_trainer_declares_make_async_scheduling_wrong():
    told = Told(tap={"async_scheduling": True})
    assert states(told, Assumed(sampling=Sampling(repetition_penalty=1.1)))["async scheduling"].state == "wrong"
    assert states(told, Assumed(sampling=Sampling(repetition_penalty=1.0)))["async scheduling"].state == "risky"


def test_a_float32_trainer_with_a_bf16_engine_is_wrong_and_the_contract_is_kept():
    told = Told(config={"model_config": {"dtype": "torch.bfloat16", "quantization": None}})
    assert states(told, Assumed(body_dtype="float32"))["body dtype"].state == "wrong"
    assert states(told, Assumed(body_dtype="bfloat16", engine_dtype="float16"))["body dtype"].state == "wrong"
    fp8 = Told(config={"model_config": {"quantization": "fp8"}})
    assert states(fp8, Assumed(engine_dtype="fp8", correction="tis"))["quantization"].state == "ok"
    assert states(fp8, Assumed(engine_dtype="bfloat16", correction="tis"))["quantization"].state == "wrong"


def test_generation_config_is_a_trap_unless_declared_or_switched_off(engine, model):
    (model / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20, "top_p": 1.0, "repetition_penalty": 1.05, "do_sample": true}')
    check = states(ask(engine.url, model=str(model)).told)["generation_config"]
    assert check.state == "risky" and "--generation-config vllm" in check.do
    assert all(part in check.seen for part in ("temperature = 0.6", "top_k = 20", "repetition_penalty = 1.05")) and "top_p" not in check.seen
    declared = Assumed(sampling=Sampling(temperature=0.6, top_k=20, repetition_penalty=1.05))
    assert states(ask(engine.url, model=str(model)).told, declared)["generation_config"].state == "ok"
    engine.configure("model_config", generation_config="vllm")
    assert states(ask(engine.url, model=str(model)).told)["generation_config"].state == "ok"
    engine.configure("model_config", override_generation_config={"temperature": 0.5})
    assert states(ask(engine.url, model=str(model)).told)["generation_config"].state == "risky"
    engine.configure("model_config", generation_config="auto", override_generation_config={})
    assert states(ask(engine.url).told)["generation_config"].state == "unknown", "the folder the engine names is not on this machine"


def test_the_folder_the_engine_names_is_read_where_this_machine_has_it(engine, model):
    (model / "config.json").write_text('{"head_dtype": "float32"}')
    (model / "generation_config.json").write_text('{"temperature": 0.6}')
    engine.configure("model_config", model=str(model), dtype="torch.bfloat16")
    told = ask(engine.url).told
    assert states(told)["generation_config"].state == "risky"
    assert states(told, Assumed(head_dtype="float32"))["logits head dtype"].state == "ok", "config.json asks for a float32 head"
    engine.configure("model_config", model=model.name)
    assert ask(engine.url).told.generation_config is None, "a relative path is relative to the engine's folder, not to ours"


def test_a_model_folder_that_cannot_be_read_is_named(engine, model):
    (model / "generation_config.json").write_text("{")
    with pytest.raises(InputError, match=r"generation_config\.json: cannot be read"):
        ask(engine.url, model=str(model))
    with pytest.raises(InputError, match="is no folder"):
        ask(engine.url, model=str(model / "missing"))


def test_the_trainers_file_declares_only_what_is_written(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[run]\nname = "r"\n[trainer.sampling]\ntemperature = 0.7\nheat = 1\n[shadow]\nhead_dtype = "float32"\n[optimizer]\nlr = 1e-5\n')
    assumed, unread = read_assumed(path)
    assert assumed == Assumed(sampling=Sampling(temperature=0.7), head_dtype="float32"), "defaults of Klaxon's are no declaration"
    assert unread == ["optimizer", "trainer.sampling.heat"]
    as_json = tmp_path / "trainer.json"
    as_json.write_text('{"trainer": {"expected_logprobs_mode": "raw_logprobs"}, "contract": {"floor_nats": 0.001}}')
    assert read_assumed(as_json)[0] == Assumed(logprobs_mode="raw_logprobs", floor_nats=0.001)


@pytest.mark.parametrize(("name", "text", "error", "said"), [
    ("a.toml", "[trainer.sampling]\ntemperature = 'hot'\n", ConfigError, r"a\.toml: `trainer\.sampling\.temperature`.*hot"),
    ("a.toml", "[shadow]\nhead_dtype = 'fp7'\n", ConfigError, r"a\.toml: `shadow\.head_dtype`.*fp7"),
    ("a.toml", "trainer = 3\n", ConfigError, r"a\.toml: `trainer`"),
    ("a.toml", "[trainer\n", InputError, r"a\.toml: is not TOML.*line 1"),
    ("a.json", '{"trainer": \n 3,,}', InputError, r"a\.json:2: is not JSON"),
    ("a.json", "[]", InputError, r"a\.json: is no JSON object"),
    ("a.yaml", "a: 1", InputError, r"a\.yaml: YAML is not read"),
])
def test_a_wrong_trainer_file_is_named_with_its_field(tmp_path, name, text, error, said):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(error, match=said):
        read_assumed(path)


def daemon_routes(engine, *, name, calls=(), taps=1):
    status = {"engine": {"engine": name, "logprobs_mode": "raw_logprobs", "url": ""},
              "taps": [{"engine": f"{name}{number or ''}", "source": "plugin"} for number in range(taps)]}
    events = [{"at": at, "kind": "engine_call", "text": path, "data": {"path": path, "query": query, "status": code}}
              for at, (path, query, code) in enumerate(calls)]
    engine.routes |= {"/v1/status": json.dumps(status).encode(), "/v1/events": json.dumps(events[::-1]).encode(), "/server_info": None}


def test_the_taps_account_tells_what_a_hidden_engine_does_not(engine):
    """One server stands in for the engine and for the daemon beside it."""
    calls = [("/pause", "clear_cache=false", 200), ("/reset_prefix_cache", "", 500), ("/update_weight_version", "", 200), ("/resume", "", 200)]
    daemon_routes(engine, name=engine.url, calls=calls)
    code, found = run(engine.url, "--klaxon", engine.url)
    lines = {check["name"]: check for check in found["checks"]}
    assert code == 1 and lines["logprobs mode"]["state"] == "wrong" and "(tap)" in lines["logprobs mode"]["seen"]
    assert lines["prefix cache"]["state"] == "wrong" and "0 of 1 weight updates" in lines["prefix cache"]["seen"], "a reset that failed is none"
    daemon_routes(engine, name=engine.url, calls=calls, taps=2)
    assert states(ask(engine.url, daemon=engine.url).told)["prefix cache"].state == "risky", "whose update it was is not told"


def test_a_daemon_that_speaks_of_another_engine_is_not_believed(engine):
    daemon_routes(engine, name="http://127.0.0.1:9")
    asked = ask(engine.url, daemon=engine.url)
    assert states(asked.told)["logprobs mode"].state == "unknown" and "another engine" in asked.sources["tap"]
    with pytest.raises(Unavailable, match="no Klaxon daemon answers"):
        ask(engine.url, daemon="http://127.0.0.1:1")


@pytest.mark.parametrize(("calls", "expected"), [
    ([("/update_weights", ""), ("/update_weight_version", "")], "wrong"),
    ([("/pause", "mode=keep&clear_cache=false"), ("/update_weights", ""), ("/resume", "")], "wrong"),
    ([("/pause", ""), ("/update_weights", ""), ("/resume", "")], "ok"),
    ([("/update_weights", ""), ("/reset_prefix_cache", ""), ("/resume", ""), ("/update_weights", "")], "wrong"),
    ([("/pause", ""), ("/resume", "")], "risky"),
])
def test_the_prefix_cache_is_judged_by_the_updates_seen(calls, expected):
    assert states(Told(tap={"enable_prefix_caching": True}, calls=calls))["prefix cache"].state == expected
    updates, covered = resets(calls)
    assert covered <= updates


def test_known_faults_apply_by_version_and_by_what_the_engine_is():
    moe = {"parallel_config": {"is_moe_model": True}, "model_config": {"quantization": None, "enforce_eager": False}}
    assert states(Told(version="0.20.1", config=moe))["vLLM version"].state == "wrong"
    assert states(Told(version="0.21.0", config=moe))["vLLM version"].state == "risky", "only the chunked reload is left"
    dense = {"parallel_config": {"is_moe_model": False}}
    assert states(Told(version="0.21.0", config=dense))["vLLM version"].state == "ok"
    assert states(Told(version="0.20.1"))["vLLM version"].state == "unknown", "whether it has experts was not told"
    assert states(Told(version="main"))["vLLM version"].state == "unknown"
    cached = {"cache_config": {"enable_prefix_caching": True}, "device_config": {"device": "cuda"}, **dense}
    assert "reload_weights" in states(Told(version="0.32.0+cpu", config=cached))["vLLM version"].seen


def test_every_known_fault_has_a_source_and_needs_that_can_be_asked():
    for fault in table():
        assert set(fault) == {"versions", "needs", "state", "what", "source", "do"} and set(fault["needs"]) <= set(NEEDS)


def test_every_check_is_documented():
    text = DOCS.read_text(encoding="utf-8")
    names = [check.name for check in audit(Told(), Assumed())]
    assert len(names) == len(set(names)) == len(CHECKS) and not [name for name in names if f"| {name} |" not in text]
