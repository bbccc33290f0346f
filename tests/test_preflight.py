"""`klaxon preflight` and `klaxon compare-engines` over real HTTP, against the recorded answers of a live vLLM 0.32."""

from __future__ import annotations

import gzip
import json
import secrets
import threading
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from collector.errors import Unavailable
from collector.records import Rollout, Sampling
from klaxon.cli import app
from klaxon.demo.model import DEFAULT_FOLDER
from klaxon.preflight.client import Client, Told
from klaxon.preflight.force import force, read_echo, read_prompt_logprobs
from klaxon.preflight.prompts import Probe, prompts
from klaxon.preflight.run import Options
from klaxon.preflight.update import update_rows

FIXTURES = Path(__file__).parent / "fixtures"
GETS = {"/version": "version.json", "/weight_info": "weight_info.json", "/metrics": "metrics.txt", "/server_info": "server_info.json", "/v1/models": "models.json"}
NONCE = "0a1b2c3d"


def recorded(name):
    return json.loads(gzip.decompress((FIXTURES / "preflight" / f"{name}.json.gz").read_bytes()))


class Replay:
    """An engine that answers what was recorded for the same prompt, in the order it was asked; `refuse` maps a path to (status, body)."""

    def __init__(self, port, rows):
        self.url, self.asked, self.refuse = f"http://127.0.0.1:{port}", [], {}
        self.gets = {"/health": b"", **{path: (FIXTURES / "audit" / name).read_bytes() for path, name in GETS.items()}}
        self._answers = defaultdict(list)
        self._lock = threading.Lock()
        for path, body, answer in rows:
            self._answers[self._key(path, body)].append(answer)

    def configure(self, section, **values):
        info = json.loads(self.gets["/server_info"])
        info["vllm_config"][section].update(values)
        self.gets["/server_info"] = json.dumps(info).encode()

    def answer(self, path, body):
        with self._lock:
            self.asked.append((path, body))
            if path in self.refuse:
                return self.refuse[path]
            left = self._answers.get(self._key(path, body))
            if not left:
                return 404, {"error": {"message": "nothing recorded for this prompt"}}
            return 200, left.pop(0) if len(left) > 1 else left[0]

    @staticmethod
    def _key(path, body):
        kind = [name for name in ("prompt_logprobs", "echo", "seed") if body.get(name)]
        return path, json.dumps(body.get("prompt")), body.get("temperature"), *kind


class Server(ThreadingHTTPServer):
    """Takes as many connections at once as a preflight opens: the default backlog of 5 resets some on a busy machine."""

    request_queue_size = 128
    daemon_threads = True


@contextmanager
def serving():
    """Start replaying engines; all of them stop at the end."""
    servers = []

    def start(rows=()):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = engine.gets.get(self.path.partition("?")[0])
                self.reply(404 if body is None else 200, body or b"")

            def do_POST(self):
                status, found = engine.answer(self.path.partition("?")[0], json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}"))
                self.reply(status, json.dumps(found).encode())

            def reply(self, status, body):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = Server(("127.0.0.1", 0), Handler)
        engine = Replay(server.server_address[1], rows)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
        return engine

    try:
        yield start
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


@pytest.fixture
def engines():
    with serving() as start:
        yield start


def sampling_of(rows):
    """The recorded short prompts as probes."""
    short = [body for path, body, _ in rows if path == "/v1/completions" and body.get("temperature") == 0.7 and len(body["prompt"]) < 20]
    unique = {json.dumps(body["prompt"]): body for body in short}
    return [Probe(name=f"p{i}", group="short", prompt=tuple(body["prompt"]), max_tokens=body["max_tokens"]) for i, body in enumerate(unique.values())]


def test_answers_of_a_live_engine_become_rollouts_with_what_the_trainer_assumes(engines):
    rows = recorded("preflight")
    engine = engines(rows)
    probes = sampling_of(rows)
    answers = Client(engine.url).sample(probes, Told(sampling=Sampling(temperature=0.7), engine_dtype="float32"), logprobs=5, concurrency=4)
    assert len(answers) == len(probes) >= 8 and not any(answer.why_not for answer in answers)
    for probe, answer in zip(probes, answers, strict=True):
        one = answer.rollout
        assert tuple(one.prompt_tokens_P.tolist()) == probe.prompt and one.sampling == Sampling(temperature=0.7) and one.traffic == "canary"
        assert np.isfinite(one.engine_logprobs_T).all() and one.cached_prompt_tokens == 0 and one.engine_dtype == "float32"
        assert min(ids.size for ids in one.top_tokens) >= 5, "top logprobs come as ids"


def test_what_the_trainer_does_not_declare_is_not_sent(engines):
    engine = engines(recorded("preflight"))
    probe = sampling_of(recorded("preflight"))[0]
    Client(engine.url).sample([probe], Told(sampling=Sampling(temperature=0.7)), logprobs=5, concurrency=1)
    sent = engine.asked[-1][1]
    assert sent["temperature"] == 0.7 and "top_p" not in sent and "repetition_penalty" not in sent, "the engine's own defaults must be able to show"



def klaxon(*args):
    """(exit code, standard output, the error's text) of a command line."""
    result = CliRunner().invoke(app([args[0]]), [str(arg) for arg in args])
    return result.exit_code, result.stdout, str(result.exception or "")


@pytest.fixture(scope="module")
def flown():
    """One preflight of the recorded engine with the real weights: (exit code, JSON object, requests)."""
    patch = pytest.MonkeyPatch()
    patch.setattr(secrets, "token_hex", lambda size: NONCE)
    with serving() as start, patch.context():
        engine = start(recorded("preflight"))
        engine.configure("model_config", dtype="torch.float32")
        code, out, _ = klaxon("preflight", "--engine", engine.url, "--model", DEFAULT_FOLDER, "--temperature", "0.7", "--max-tokens", "12", "--body-dtype", "float32", "--json")
        patch.undo()
        return code, json.loads(out), engine.asked


def test_a_healthy_engine_passes_every_check_that_can_be_made(flown):
    code, found, asked = flown
    rows = {row["name"]: row for row in found["rows"]}
    assert code == 0 and found["passed"], [row for row in found["rows"] if row["state"] not in ("passed", "measured")]
    assert found["sampling"] == {"temperature": 0.7}
    assert {name: row["state"] for name, row in rows.items()} == {
        "settings": "passed", "tokenizer": "passed", "weights": "unknown", "canaries": "passed", "logprobs": "passed", "sampler": "passed",
        "prefix cache": "passed", "older cache": rows["older cache"]["state"], "batch": "measured"}
    assert rows["older cache"]["state"] in ("passed", "measured")
    assert found["diagnosis"]["verdict"] == "healthy" and found["signals"]["mean_abs_d"] < 1e-4, "a float32 engine and a float32 shadow"
    assert "34 of 34 probes answered" in rows["canaries"]["seen"] and not found["left_out"]


def test_nothing_but_completions_and_tokenize_is_posted_without_allow_update(flown):
    assert {path for path, _ in flown[2]} == {"/v1/completions", "/tokenize"}


def test_requests_ask_for_ids_and_logprobs_at_the_runs_own_sampling(flown):
    bodies = [body for path, body in flown[2] if path == "/v1/completions"]
    assert {body["temperature"] for body in bodies} == {0.7, 0.0}, "sampled as the run does, and the greedy reference"
    assert all(body["return_token_ids"] and body["logprobs"] == 5 and "top_p" not in body for body in bodies)


def test_prompts_are_the_same_every_time_but_for_the_fresh_ones_and_differ_from_their_first_block_on():
    def ids(text, begins):
        return [*([1] if begins else []), *(2 + ord(letter) for letter in text)]

    one, other = (prompts(ids, max_tokens=8, max_model_len=400, block_size=32) for _ in range(2))
    assert one.short == other.short and one.long == other.long and one.fixed == other.fixed and one.fresh != other.fresh
    starts = [probe.prompt[:32] for probe in (*one.fixed, *one.fresh, *one.long)]
    assert len(set(starts)) == len(starts) and all(len(probe.prompt) == 72 for probe in (*one.fixed, *one.fresh))
    assert max(len(probe.prompt) for probe in one.long) <= 400 - 9, "prompt and completion fit the engine"
    assert all(probe.prompt.count(1) == 1 for probe in (*one.fixed, *one.fresh, *one.long)), "special tokens only at the beginning"
    own = prompts(ids, own=["my prompt", [7, 8, 9]], max_tokens=8, max_model_len=None, block_size=None)
    assert [probe.prompt for probe in own.short] == [tuple(ids("my prompt", True)), (7, 8, 9)]


def test_an_engine_that_refuses_says_so_in_its_own_words(engines):
    engine = engines()
    engine.refuse["/v1/completions"] = (400, {"error": {"message": "Requested sample logprobs of 5, which is greater than max allowed: 1"}})
    answer = Client(engine.url).sample([Probe(name="p", group="short", prompt=(1, 2), max_tokens=4)], Told(), logprobs=5, concurrency=1)[0]
    assert answer.rollout is None and answer.why_not.startswith("400: Requested sample logprobs of 5")


@pytest.mark.parametrize("args", [
    ("preflight", "--engine", "{dead}", "--model", "{model}"), ("preflight", "--engine", "{other}", "--model", "{model}"),
    ("compare-engines", "{dead}", "{other}", "--model", "{model}")])
def test_no_engine_or_no_vllm_at_the_address_is_one_clear_error(engines, args, tmp_path):
    other = engines()
    other.gets = {"/health": b"", "/v1/models": b'{"data": []}'}
    names = {"dead": "http://127.0.0.1:9", "other": other.url, "model": DEFAULT_FOLDER}
    code, _, error = klaxon(*(arg.format(**names) for arg in args))
    assert code == 1 and ("no engine answers at" in error or "not as a vLLM engine" in error) and "curl" in error + "name the engine's own address, curl"


def test_wrong_addresses_folders_and_options_are_named(engines, tmp_path):
    engine = engines(recorded("preflight"))
    assert "is no address of an engine" in klaxon("preflight", "--engine", "localhost:8000", "--model", DEFAULT_FOLDER)[2]
    assert "no such folder" in klaxon("preflight", "--engine", engine.url, "--model", tmp_path / "none")[2]
    assert "config.json" in klaxon("preflight", "--engine", engine.url, "--model", tmp_path)[2]
    assert "--allow-update needs --previous" in klaxon("preflight", "--engine", engine.url, "--model", DEFAULT_FOLDER, "--allow-update")[2]
    assert "none of bfloat16" in klaxon("preflight", "--engine", engine.url, "--model", DEFAULT_FOLDER, "--body-dtype", "fp4")[2]
    assert "two addresses are one engine" in klaxon("compare-engines", engine.url, engine.url + "/", "--model", DEFAULT_FOLDER)[2]
    assert "its folder is not there" in klaxon("preflight", "--engine", engine.url, "--model", DEFAULT_FOLDER, "--save", tmp_path / "none" / "x.jsonl")[2]


def update_engine(engines, *, status=200):
    engine = engines()
    for path in ("/pause", "/resume", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version"):
        engine.refuse[path] = (200, {})
    engine.refuse["/collective_rpc"] = (status, {"error": "no such path"})
    return engine


def updating(engine, tmp_path, said):
    options = Options(engine=engine.url, model=tmp_path / "new", previous=tmp_path / "old", allow_update=True)
    return update_rows(options, None, lambda tag: [], limit_nats=0.04, say=said.append)


def test_an_update_goes_there_and_back_in_the_order_of_an_rl_loop(engines, tmp_path):
    engine, said = update_engine(engines), []
    rows = updating(engine, tmp_path, said)
    once = ["/pause", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"]
    assert [path for path, _ in engine.asked] == once * 2
    loaded = [body["kwargs"]["weights_path"] for path, body in engine.asked if path == "/collective_rpc"]
    labels = [body["new_version"] for path, body in engine.asked if path == "/update_weight_version"]
    assert loaded == [str((tmp_path / name).resolve()) for name in ("old", "new")] and labels == ["klaxon-preflight", json.loads(engine.gets["/weight_info"])["weight_version"]]
    assert {row.name: row.state for row in rows}["update: label"] in ("passed", "failed") and len(said) >= 3


def test_a_refused_update_resumes_the_engine_and_says_loudly_that_it_could_not_be_put_back(engines, tmp_path):
    engine = update_engine(engines, status=500)
    with pytest.raises(Unavailable, match=r"(?s)MAY STILL SERVE .*old.*collective_rpc answered 500"):
        updating(engine, tmp_path, [])
    assert [path for path, _ in engine.asked] == ["/pause", "/collective_rpc", "/resume"] * 2, "resumed both times"


def test_without_dev_mode_nothing_is_touched(engines, tmp_path):
    engine = update_engine(engines)
    engine.gets["/weight_info"] = None
    rows = updating(engine, tmp_path, [])
    assert [row.state for row in rows] == ["unknown"] and "VLLM_SERVER_DEV_MODE=1" in rows[0].do and not engine.asked


def tokens(*ids):
    return Rollout(request_id="r", prompt_tokens_P=np.array([1, 2], dtype=np.int32), completion_tokens_T=np.array(ids, dtype=np.int32),
                   engine_logprobs_T=np.zeros(len(ids), dtype=np.float32), sampled_mask_T=np.ones(len(ids), dtype=bool))


def test_forced_logprobs_are_read_from_vllms_layout_and_from_an_echo():
    rows = [None, {"2": {"logprob": -3.0}}, {"7": {"logprob": -0.5}, "9": {"logprob": -0.1}}, {"8": {"logprob": -9999.0}}]
    found = read_prompt_logprobs({"choices": [{"prompt_logprobs": rows}]}, tokens(7, 8))
    assert found[0] == -0.5 and np.isnan(found[1]), "-9999 is JSON's minus infinity"
    echoed = read_echo({"choices": [{"logprobs": {"token_logprobs": [None, -3.0, -0.5, -0.25, -7.0]}}]}, tokens(7, 8))
    assert echoed.tolist() == [-0.5, -0.25]
    assert "no prompt_logprobs" in read_prompt_logprobs({"choices": [{}]}, tokens(7, 8)) and "does not echo" in read_echo({"choices": []}, tokens(7))


def test_an_engine_without_prompt_logprobs_is_asked_to_echo(engines):
    engine = engines()
    engine.refuse["/v1/completions"] = (200, {"choices": [{"logprobs": {"token_logprobs": [None, -3.0, -0.5, -0.25]}}]})
    assert force(Client(engine.url), [tokens(7, 8)], concurrency=1)[0].tolist() == [-0.5, -0.25]
    assert [body.get("echo") for _, body in engine.asked] == [None, True]
