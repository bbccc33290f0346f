"""The example GRPO loop: its packed forward pass, its publishing, and its talk with an engine over real HTTP."""

from __future__ import annotations

import json
import random
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples" / "grpo"))

import policy as grpo_policy  # noqa: E402
import publish as grpo_publish  # noqa: E402
import rollouts as grpo_rollouts  # noqa: E402
import task as grpo_task  # noqa: E402
import train as grpo_train  # noqa: E402

CPU = torch.device("cpu")


def rollout(prompt: list[int], tokens: list[int], *, logprobs: list[float] | None = None, advantage: float = 0.0) -> grpo_rollouts.Rollout:
    question = grpo_task.Question(first=1, second=2, tokens_P=prompt)
    return grpo_rollouts.Rollout(question=question, prompt=prompt, tokens=tokens, logprobs=logprobs or [-1.0] * len(tokens),
                                 finished=True, version="0", advantage=advantage)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(64)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    return folder


def plain_logprobs(model: LlamaForCausalLM, one: grpo_rollouts.Rollout, temperature: float) -> torch.Tensor:
    tokens = torch.tensor([one.prompt + one.tokens])
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[0, len(one.prompt) - 1:-1].float() / temperature
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(one.tokens)[:, None])[:, 0]


def test_the_packed_tree_gives_the_logprobs_of_plain_forward_passes(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo_policy, "has_bfloat16", lambda device: True)  # no roundings: exact comparison in float32
    monkeypatch.setattr(grpo_policy, "autocast", lambda device: torch.autocast("cpu", enabled=False))
    trained = grpo_policy.Policy(tiny_model, learning_rate=1e-3, device=CPU)
    rng = random.Random(3)
    shared = [rng.randrange(64) for _ in range(9)]
    prompts = [shared + [rng.randrange(64) for _ in range(n)] for n in (1, 4, 3)]
    group = [rollout(prompt, [rng.randrange(64) for _ in range(rng.randint(1, 6))]) for prompt in prompts for _ in range(3)]
    rng.shuffle(group)
    packed_N, entropy_N = trained._logprobs(grpo_policy.pack(group, CPU), 0.7)
    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    plain_N = torch.cat([plain_logprobs(model, one, 0.7) for one in group])
    assert torch.allclose(packed_N.detach(), plain_N, atol=2e-5)
    assert entropy_N.shape == packed_N.shape and bool((entropy_N > 0).all())


def test_rounded_linears_differ_from_bfloat16_by_no_more_than_the_order_of_a_sum(tiny_model: Path) -> None:
    torch.manual_seed(1)
    linear = torch.nn.Linear(64, 32, bias=False)
    x = torch.randn(7, 64)
    import precision

    ours = precision.RoundedLinear(linear)(x)
    ours.sum().backward()
    native = torch.nn.functional.linear(x.bfloat16(), linear.weight.bfloat16()).float()
    assert torch.allclose(ours.detach(), native.detach(), atol=2 ** -7 * float(native.detach().abs().max()), rtol=0.0)
    assert linear.weight.grad is not None and linear.weight.grad.dtype is torch.float32


def test_a_step_makes_rewarded_tokens_likelier_and_reports_the_mismatch(tiny_model: Path) -> None:
    trained = grpo_policy.Policy(tiny_model, learning_rate=1e-2, device=CPU)
    good, bad = rollout([1, 2, 3], [4, 5], advantage=1.0), rollout([1, 2, 3], [6, 7], advantage=-1.0)
    tree = grpo_policy.pack([good, bad], CPU)
    before_N = trained._logprobs(tree, 1.0)[0].detach()
    good.logprobs, bad.logprobs = before_N[:2].tolist(), (before_N[2:] - 0.5).tolist()
    metrics = trained.step([good, bad], temperature=1.0)
    after_N = trained._logprobs(tree, 1.0)[0].detach()
    assert bool((after_N[:2] > before_N[:2]).all())
    assert metrics["mean_abs_d"] == pytest.approx(0.25, abs=1e-3)
    assert metrics["clip_rate"] == 0.5
    assert metrics["kl"] > 0.0


def test_logprobs_the_engine_left_out_do_not_poison_the_step(tiny_model: Path) -> None:
    trained = grpo_policy.Policy(tiny_model, learning_rate=1e-3, device=CPU)
    metrics = trained.step([rollout([1, 2, 3], [4, 5], logprobs=[float("nan"), -float("inf")], advantage=1.0),
                            rollout([1, 2, 3], [6], logprobs=[-3.0], advantage=-1.0)], temperature=1.0)
    assert all(value == value for value in metrics.values())


def test_a_published_version_is_whole_marked_and_loadable(tiny_model: Path, tmp_path: Path) -> None:
    trained = grpo_policy.Policy(tiny_model, learning_rate=1e-3, device=CPU)
    folder = grpo_publish.publish(tmp_path, 7, trained.save)
    assert folder == tmp_path / "weights" / "7"
    assert (folder / "COMPLETE").read_text().strip() == "7"
    again = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    original = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for name, tensor in original.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.bfloat16().float()), name


def test_old_versions_go_but_the_base_and_the_newest_stay(tmp_path: Path) -> None:
    for version in range(grpo_publish.KEEP + 4):
        grpo_publish.publish(tmp_path, version, lambda folder: folder.mkdir())
    assert sorted(int(path.name) for path in (tmp_path / "weights").iterdir()) == [0, *range(4, grpo_publish.KEEP + 4)]
    assert not list((tmp_path / "staging").iterdir())


def test_a_version_that_cannot_be_written_never_appears(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        folder.mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        grpo_publish.publish(tmp_path, 3, fail)
    assert not (tmp_path / "weights" / "3").exists()


@pytest.mark.parametrize(("text", "finished", "expected"), [
    ("3 plus 4 makes 7.", True, 1.0), ("7", False, 0.5), ("7 or 8.", True, 0.0), ("seven", True, 0.0), ("", True, 0.0)])
def test_the_last_number_decides_the_reward(text: str, finished: bool, expected: float) -> None:
    question = grpo_task.Question(first=3, second=4, tokens_P=[])
    assert grpo_task.reward(question, text, finished=finished) == expected


class FakeRoutes(BaseHTTPRequestHandler):
    """vLLM's routes as the trainer uses them; keeps what was asked."""

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"null")
        self.server.asked.append((self.path, body))
        if self.path.endswith("/generate"):
            choice = {"token_ids": [5, 6], "finish_reason": "stop", "weight_versions": [{"start": 0, "end": 2, "version": "4"}],
                      "logprobs": {"content": [{"token_id": 5, "logprob": -0.5}, {"token_id": 6, "logprob": -0.25}]}}
            return self._answer({"choices": [choice] * body["sampling_params"]["n"]})
        return self._answer({}, 500 if self.path == self.server.broken else 200)

    def do_GET(self) -> None:
        self._answer({"weight_version": "4"} if self.path == "/weight_info" else {}, 200 if self.path == "/weight_info" else 404)

    def _answer(self, value: Any, code: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeRoutes) as running:
        running.asked, running.broken = [], None
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


def client(port: int) -> grpo_rollouts.EngineClient:
    return grpo_rollouts.EngineClient(f"http://127.0.0.1:{port}", temperature=0.7, max_tokens=8)


def test_a_push_pauses_reloads_forgets_the_cache_labels_and_resumes(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    client(server.server_address[1]).push(tmp_path, "5")
    assert [path for path, _ in server.asked] == ["/pause?mode=wait&clear_cache=true", "/collective_rpc", "/reset_prefix_cache",
                                                  "/update_weight_version", "/resume"]
    assert server.asked[1][1] == {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path)}}
    assert server.asked[3][1] == {"new_version": "5"}


def test_the_stale_cache_mistake_is_exactly_the_missing_reset(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    client(server.server_address[1]).push(tmp_path, "5", keep_cache=True)
    assert [path for path, _ in server.asked] == ["/pause?mode=wait&clear_cache=false", "/collective_rpc", "/update_weight_version", "/resume"]


def test_the_engine_is_resumed_although_a_push_was_refused(server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo_rollouts, "AWAY_SECONDS", 0.0)
    server.broken = "/collective_rpc"
    with pytest.raises(grpo_rollouts.EngineAway, match="start it again"):
        client(server.server_address[1]).push(tmp_path, "5")
    assert server.asked[-1][0] == "/resume"


def test_rollouts_carry_ids_logprobs_and_the_version_that_made_them(server: ThreadingHTTPServer) -> None:
    questions = [grpo_task.Question(first=1, second=n, tokens_P=[1, n]) for n in (2, 3)]
    found = client(server.server_address[1]).sample(questions, 4)
    assert [one.question.second for one in found] == [2] * 4 + [3] * 4
    assert found[0].tokens == [5, 6] and found[0].logprobs == [-0.5, -0.25] and found[0].version == "4"


def test_an_engine_that_is_away_for_a_while_is_waited_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeRoutes) as free:
        port = free.server_address[1]
    late: list[ThreadingHTTPServer] = []

    def start_late() -> None:
        late.append(ThreadingHTTPServer(("127.0.0.1", port), FakeRoutes))
        late[0].serve_forever(0.02)

    timer = threading.Timer(0.5, start_late)
    timer.start()
    assert client(port).version() == "4"
    assert "trying again" in capsys.readouterr().err
    late[0].shutdown()
    late[0].server_close()


def test_a_wrong_server_is_told_apart_from_a_sleeping_one(server: ThreadingHTTPServer) -> None:
    with pytest.raises(grpo_rollouts.EngineAway, match="answered 404.*\n.*enable-scale-out"):
        client(server.server_address[1])._call("GET", "/nowhere")


def test_advantages_are_normalised_within_each_group() -> None:
    group = [rollout([1], [2]) for _ in range(4)]
    for one, value in zip(group, (1.0, 0.0, 0.0, 0.0), strict=True):
        one.reward = value
    grpo_train.set_advantages(group, group_size=4)
    assert sum(one.advantage for one in group) == pytest.approx(0.0, abs=1e-5)
    assert group[0].advantage == pytest.approx(3 ** 0.5, rel=1e-3)
    grpo_train.set_advantages(group[1:], group_size=3)
    assert all(one.advantage == 0.0 for one in group[1:])
