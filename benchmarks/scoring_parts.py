"""The measurements of scoring.py, each run in a process of its own."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from collector.config import ShadowConfig
from collector.records import Rollout, Sampling, WeightVersion
from collector.shadow.head import Head
from collector.shadow.model import ShadowModel, model_shelf
from collector.shadow.scorer import ShadowScorer
from collector.shadow.views import ALWAYS, VIEWS, log_softmax, pick, temperature_views

Side = Callable[[Sequence[Rollout]], list[np.ndarray]]
ERROR_ROLLOUTS = 6  # a float64 forward is slow


def rollouts_of(shape: str, quick: bool) -> list[Rollout]:
    """mixed: prompts of 16 to 256 and completions of 8 to 512 tokens, log-uniform. groups: 8 completions of 16 to 128 to each prompt of 512."""
    rng = np.random.default_rng(7)
    count = 8 if quick else 16
    if shape == "mixed":
        sizes = [(int(np.exp(rng.uniform(np.log(16), np.log(256)))), int(np.exp(rng.uniform(np.log(8), np.log(512))))) for _ in range(count)]
        prompts = [rng.integers(0, 40_000, size) for size, _ in sizes]
    else:
        sizes = [(512, int(np.exp(rng.uniform(np.log(16), np.log(128))))) for _ in range(count)]
        prompts = [prompt for prompt in rng.integers(0, 40_000, (count // 8, 512)) for _ in range(8)]
    return [Rollout(request_id=str(index), prompt_tokens_P=prompt.astype(np.int32), completion_tokens_T=rng.integers(0, 40_000, size).astype(np.int32),
                    engine_logprobs_T=np.full(size, -1.0, np.float32), sampled_mask_T=np.ones(size, bool), sampling=Sampling(temperature=1.0))
            for index, (prompt, (_, size)) in enumerate(zip(prompts, sizes, strict=True))]


def scorer(model: Path, **config: object) -> ShadowScorer:
    """A scorer with one version, loaded."""
    one = ShadowConfig(**{"body_dtype": "float32", "threads": 1, **config})
    shelf = model_shelf(one, [WeightVersion(version="1", path=str(model), published_at=0.0, digest="")])
    shelf.get("1")
    return ShadowScorer(one, shelf)


def side_of(name: str, model: Path) -> Side:
    """How a side scores: rollouts → logprobs at temperature 1."""
    if name == "klaxon":
        shadow = scorer(model)
        return lambda rollouts: [score.views["raw"] for score in shadow.score(rollouts, version="1")]
    if name == "martingale":
        from martingale.diagnostics.reference import hf_score_fn

        score_one = hf_score_fn(str(model))
        return lambda rollouts: [np.array(score_one(r.prompt_tokens_P.tolist(), r.completion_tokens_T.tolist())) for r in rollouts]
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()
    return lambda rollouts: [row for at in range(0, len(rollouts), 8 if name == "plain" else len(rollouts))
                             for row in plain(net, rollouts[at: at + (8 if name == "plain" else len(rollouts))])]


@torch.inference_mode()
def plain(net: torch.nn.Module, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
    """One padded batch, full logits."""
    rows = [np.concatenate([r.prompt_tokens_P, r.completion_tokens_T]).astype(np.int64) for r in rollouts]
    ids, mask = (np.zeros((len(rows), max(map(len, rows))), np.int64) for _ in range(2))
    for index, row in enumerate(rows):
        ids[index, : row.size], mask[index, : row.size] = row, 1
    logits = net(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits[:, :-1].float()
    picked = torch.log_softmax(logits, dim=-1).gather(-1, torch.from_numpy(ids[:, 1:, None]))[:, :, 0].numpy()
    return [picked[i, r.prompt_tokens_P.size - 1:][: r.n_tokens].copy() for i, r in enumerate(rollouts)]


def speed(model: Path, quick: bool, side: str, shape: str) -> dict:
    """One timed run after a warm-up on one rollout."""
    score, rollouts = side_of(side, model), rollouts_of(shape, quick)
    score([rollouts_of("mixed", True)[0]])
    with PeakMemory() as memory:
        wall, cpu = time.perf_counter(), time.process_time()
        rows = score(rollouts)
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    return {"tokens": sum(row.size for row in rows), "rollouts": len(rollouts), "seconds": seconds, "cpu_seconds": cpu_seconds - memory.cpu_seconds,
            "peak_mib": memory.peak_mib}


def error(model: Path, quick: bool, side: str, shape: str) -> dict:
    """[mean, max] |logprob − float64| in nats over the first rollouts, scored together."""
    rollouts = rollouts_of(shape, quick)[:ERROR_ROLLOUTS]
    got = np.concatenate(side_of(side, model)(rollouts))
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64, local_files_only=True).eval()
    with torch.inference_mode():
        want = np.concatenate([exact(net, rollout) for rollout in rollouts])
    gap = np.abs(got.astype(np.float64) - want)
    return {"nats": [float(gap.mean()), float(gap.max())]}


def exact(net: torch.nn.Module, rollout: Rollout) -> np.ndarray:
    """A plain float64 forward of one rollout."""
    ids = torch.from_numpy(np.concatenate([rollout.prompt_tokens_P, rollout.completion_tokens_T]).astype(np.int64))
    logits = net(input_ids=ids[None]).logits[0, rollout.prompt_tokens_P.size - 1: -1].double()
    return pick(torch.log_softmax(logits, -1), ids[rollout.prompt_tokens_P.size:]).numpy()


def views(model: Path, quick: bool, count: str) -> dict:
    """CPU seconds with the first `count` views."""
    named = {**ALWAYS, **temperature_views((0.8, 0.9, 1.1)), "bf16_head": VIEWS["bf16_head"]}
    shadow, rollouts = scorer(model, prompt_kv_mb=0), rollouts_of("mixed", quick)
    chosen = dict(list(named.items())[:int(count)])
    shadow.score(rollouts[:2], views=chosen, version="1")
    cpu = time.process_time()
    shadow.score(rollouts, views=chosen, version="1")
    return {"cpu_seconds": time.process_time() - cpu}


def memory(_model: Path, quick: bool) -> dict:
    """Peak above the loaded model: a random model of Qwen2.5-0.5B's width and vocabulary, fewer layers, default settings, six views."""
    config = LlamaConfig(vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=4, num_attention_heads=14,
                         num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        shadow = scorer(Path(folder), versions_held=1)
    named = {**ALWAYS, **temperature_views((0.8, 0.9, 1.1)), "bf16_head": VIEWS["bf16_head"]}
    rollouts = rollouts_of("groups", quick) + rollouts_of("mixed", quick)
    with PeakMemory() as peak:
        shadow.score(rollouts, views=named, version="1")
    kept = sum(entry.size_bytes for prompts in shadow.prompts for entry in prompts._entries)
    return {"vocabulary": config.vocab_size, "peak_mib": peak.peak_mib, "kept_mib": kept / 2**20}


def head(_model: Path, quick: bool) -> dict:
    """Largest |logprob − float64| of the head alone at 152k × 896, logits of about ±25 nats."""
    torch.manual_seed(1)
    weight_VH, hidden_NH = torch.randn(151_936, 896) * 0.15, torch.randn(16, 896)
    ids_N, config = torch.arange(16) * 9000, LlamaConfig()
    found = {}
    for name, weight, hidden in (("float32", weight_VH, hidden_NH), ("split", weight_VH, hidden_NH),
                                 ("bfloat16", weight_VH.bfloat16(), hidden_NH.bfloat16())):
        ours = Head(weight, None, config, dtype=torch.float32, split=name == "split").logits(hidden)
        want = torch.cat([hidden.double() @ part.double().T for part in weight.split(20_000)], dim=1)
        gap = pick(log_softmax(ours), ids_N).double() - pick(torch.log_softmax(want, -1), ids_N)
        found[name] = float(gap.abs().max())
    return found


def gpu(model: Path, quick: bool) -> dict:
    """Matrix work of scoring over the time it took, against a plain 8192³ bfloat16 matmul on the same card."""
    if not torch.cuda.is_available():
        return {"not_run": "not run: no GPU (torch sees no CUDA device)"}
    shadow, rollouts = scorer(model, body_dtype="bfloat16", device="cuda", forward_tokens=16_384, chunk_tokens=2048, logits_mb=1024), rollouts_of("groups", False) * 8
    loaded: ShadowModel = shadow.shelf.get("1")
    body = sum(p.numel() for name, p in loaded._model.base_model.named_parameters() if p.ndim == 2 and "embed" not in name)
    shadow.score(rollouts, version="1")
    shadow.prompts[0] = type(shadow.prompts[0])(0)
    torch.cuda.synchronize()
    before, start = shadow.counts["body_tokens"], time.perf_counter()
    shadow.score(rollouts, version="1")
    torch.cuda.synchronize()
    seconds, tokens = time.perf_counter() - start, sum(r.n_tokens for r in rollouts)
    done = 2 * (body * (shadow.counts["body_tokens"] - before) + tokens * loaded.vocab_size * loaded._text_config.hidden_size) / seconds / 1e12
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for repeat in range(2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(20):
            a @ b
        torch.cuda.synchronize()
    rate = 20 * 2 * 8192**3 / (time.perf_counter() - start) / 1e12
    return {"name": torch.cuda.get_device_name(), "scorer_tflops": done, "matrix_tflops": rate, "share": done / rate}


class PeakMemory:
    """Samples this process's resident memory; `peak_mib` is its largest rise above the value at the start."""

    def __enter__(self) -> PeakMemory:
        self._start, self.peak_mib, self.cpu_seconds, self._stop = resident_mib(), 0.0, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak_mib = max(self.peak_mib, resident_mib() - self._start)
            self.cpu_seconds = time.thread_time()


def resident_mib() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


TASKS: dict[str, Callable[..., dict]] = {"speed": speed, "error": error, "views": views, "memory": memory, "head": head, "gpu": gpu}
