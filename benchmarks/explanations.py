"""Self-bets and betting explanations on recordings of real engines: silent on healthy ones, how many rollouts on hidden faults.

    PYTHONPATH=. python benchmarks/explanations.py record recordings --engine vllm|transformers [--dtype bfloat16] [--raw]
    PYTHONPATH=. python benchmarks/explanations.py judge recordings [--trainer float32]

record: `--seeds` recordings of 24 rollouts of up to 60 tokens each for every sampler. Healthy ones declare the sampler they used; a fault
declares T = .7 (or T = 1) alone and samples otherwise, or (`--raw`, vLLM) reports raw logprobs. judge: re-scores with the shadow, feeds a
bank with batches of `--batch` rollouts at 1 per 30 days of 2-minute batches, and prints per recording the highest ln M, and when it paged.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = 60
MODEL = Path(".cache/models/smollm2-135m-instruct")
TOPICS = ("the sea", "a train", "bread", "winter", "a small robot", "chess", "tea", "an old map", "the moon", "a garden", "rain", "a lighthouse",
          "honey", "a bicycle", "clouds", "music", "a bridge", "sand", "a letter", "the market", "a river", "glass", "a clock", "stars")
TASKS = ("Write two sentences about {}.", "Explain {} to a child.", "What is strange about {}?", "List three facts about {}.")
HEALTHY = [dict(zip(("temperature", "top_p", "top_k", "min_p", "repetition_penalty"), row, strict=True)) for row in (
    (0.7, 1.0, 0, 0.0, 1.0), (1.0, 1.0, 0, 0.0, 1.0), (0.6, 1.0, 0, 0.0, 1.0), (1.2, 1.0, 0, 0.0, 1.0), (0.7, 0.9, 0, 0.0, 1.0),
    (1.0, 0.95, 0, 0.0, 1.0), (0.8, 1.0, 50, 0.0, 1.0), (1.0, 1.0, 20, 0.0, 1.0), (0.7, 1.0, 0, 0.05, 1.0), (1.0, 0.9, 40, 0.0, 1.0),
    (0.7, 1.0, 0, 0.0, 1.1), (0.9, 0.95, 0, 0.02, 1.0))]
PLAIN = HEALTHY[0]
FAULTS = {"hidden T .8": {"temperature": 0.8}, "hidden T .6": {"temperature": 0.6}, "hidden repetition penalty 1.2": {"repetition_penalty": 1.2},
          "hidden top-p .9": {"top_p": 0.9}, "hidden min-p .05": {"min_p": 0.05}, "hidden top-k 20": {"top_k": 20}}


def main() -> None:
    """Parse and run one half."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    halves = parser.add_subparsers(dest="half", required=True)
    record = halves.add_parser("record")
    record.add_argument("folder", type=Path)
    record.add_argument("--engine", choices=("vllm", "transformers"), required=True)
    record.add_argument("--dtype", default="float32")
    record.add_argument("--raw", action="store_true", help="vLLM reports raw logprobs; only the faults are recorded")
    record.add_argument("--seeds", type=int, default=3)
    record.add_argument("--faults", action="store_true", help="the hidden samplers too")
    judge = halves.add_parser("judge")
    judge.add_argument("folder", type=Path)
    judge.add_argument("--trainer", default="float32", help="dtype of the shadow's body")
    judge.add_argument("--batch", type=int, default=5, help="rollouts a batch")
    judge.add_argument("--json", action="store_true")
    options = parser.parse_args()
    (record_all if options.half == "record" else judge_all)(options)


def plan(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, sampler used, sampler declared)."""
    name = f"{options.engine}-{options.dtype}"
    if options.raw:
        for temperature in (0.7, 1.0):
            used = PLAIN | {"temperature": temperature, "top_p": 0.9 if temperature == 1.0 else 1.0}
            yield f"fault raw logprobs, T {temperature} top-p {used['top_p']}", used, used
        return
    for used in HEALTHY:
        yield f"healthy {name} " + " ".join(f"{k}={v}" for k, v in used.items() if v != (1.0 if k in ("top_p", "repetition_penalty") else 0)), used, used
    for fault, change in FAULTS.items() if options.faults else ():
        yield f"fault {fault}", PLAIN | change, PLAIN


def record_all(options: argparse.Namespace) -> None:
    """One JSONL file a recording."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    engine = (Vllm if options.engine == "vllm" else Transformers)(options)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, used, declared in plan(options):
        for seed in range(options.seeds):
            path = options.folder / f"{name.replace(' ', '_').replace('/', '_')}_{seed}.jsonl"
            if path.exists():
                continue
            began = time.perf_counter()
            texts = [TASKS[(i + seed) % len(TASKS)].format(topic) for i, topic in enumerate(TOPICS)]
            prompts = [tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False) for text in texts]
            lines = [{"kind": "rollout", "request_id": f"{seed}-{i}", "prompt_token_ids": prompt, "engine": options.engine, "finished_at": time.time(),
                      "sampling": declared | {"top_k": declared["top_k"] or -1}, "expected_logprobs_mode": "processed_logprobs",
                      "weight_versions": [[0, len(found["token_ids"]), "1"]], **found}
                     for i, (prompt, found) in enumerate(zip(prompts, engine.sample(prompts, used, 1000 * seed + 7), strict=True))]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            print(f"{path.name}: {sum(len(line['token_ids']) for line in lines)} tokens, {time.perf_counter() - began:.0f} s", flush=True)


class Vllm:
    """vLLM V1 in process."""

    def __init__(self, options: argparse.Namespace) -> None:
        import os

        from klaxon.demo.engine import engine_environment
        os.environ |= engine_environment(gpu=False)
        from vllm import LLM

        self.llm = LLM(str(MODEL), dtype=options.dtype, enforce_eager=True, max_model_len=512, max_num_seqs=32, block_size=32,
                       logprobs_mode="raw_logprobs" if options.raw else "processed_logprobs", disable_log_stats=True)

    def sample(self, prompts: list[list[int]], used: dict[str, Any], seed: int) -> list[dict[str, Any]]:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=TOKENS, logprobs=2, seed=None, **used)
        out = []
        for request in self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False):
            one = request.outputs[0]
            rows = [sorted(((token, item.logprob) for token, item in row.items()), key=lambda pair: -pair[1]) for row in one.logprobs]
            out.append({"token_ids": list(one.token_ids), "logprobs": [row[token].logprob for token, row in zip(one.token_ids, one.logprobs, strict=True)],
                        "top_logprobs": [[[token, lp] for token, lp in row if math.isfinite(lp)][:2] for row in rows]})
        return out


class Transformers:
    """Hugging Face generate()."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=getattr(torch, options.dtype)).eval()
        self.pad = AutoTokenizer.from_pretrained(MODEL).pad_token_id or 0

    def sample(self, prompts: list[list[int]], used: dict[str, Any], seed: int) -> list[dict[str, Any]]:
        import torch

        torch.manual_seed(seed)
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        options = {k: v for k, v in used.items() if v} | ({} if used["top_k"] else {"top_k": 0})
        with torch.inference_mode():
            done = self.model.generate(ids, attention_mask=mask, do_sample=True, max_new_tokens=TOKENS, output_scores=True, return_dict_in_generate=True,
                                       pad_token_id=self.pad, **options)
        scores = torch.stack(done.scores, dim=1).float().log_softmax(-1)
        tokens = done.sequences[:, width:]
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        out = []
        for row, scored in zip(tokens.tolist(), scores, strict=True):
            n = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            top = scored[:n].topk(2)
            out.append({"token_ids": row[:n], "logprobs": scored[range(n), row[:n]].tolist(),
                        "top_logprobs": [[[t, lp] for t, lp in zip(ts, lps, strict=True) if math.isfinite(lp)]
                                         for ts, lps in zip(top.indices.tolist(), top.values.tolist(), strict=True)]})
        return out


def judge_all(options: argparse.Namespace) -> None:
    """A table by kind of recording."""
    import torch

    from collector.config import ShadowConfig
    from collector.records import BatchStats, Rollout
    from collector.shadow.model import model_shelf
    from collector.shadow.scorer import ShadowScorer
    from collector.sources.rollout_json import read_rollouts
    from collector.weights.checkpoint import inspect
    from detectors.bank import Bank
    from detectors.config import DetectorsConfig
    from detectors.gains import rollout_gains
    from klaxon.shadow_views import HEAD_VIEWS, with_bet_views

    torch.set_num_threads(1)
    shadow, config = ShadowConfig(body_dtype=options.trainer, threads=1), DetectorsConfig()
    scorer = ShadowScorer(shadow, model_shelf(shadow, [inspect(MODEL, version="1")]))
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(options.folder.glob("*.jsonl")):
        rollouts = [item for item in read_rollouts(path) if isinstance(item, Rollout)]
        bank = Bank(config, batch_seconds=120)
        gains = [rollout_gains(item, score, config) for item, score in zip(rollouts, with_bet_views(rollouts, scorer.score(rollouts, views=HEAD_VIEWS)), strict=True)]
        highest, paged = -math.inf, None
        for t, start in enumerate(range(0, len(gains), options.batch)):
            total: dict[str, float] = defaultdict(float)
            for one in gains[start:start + options.batch]:
                for name, gain in one.items():
                    total[name] += gain
            bank.update(BatchStats(t=t, opened_at=120.0 * t, closed_at=120.0 * t + 120, gains=dict(total), counts={"seen": options.batch}))
            highest = max(highest, bank.ln_m)
            if bank.firing and paged is None:
                paged = min(start + options.batch, len(gains)), bank.leading
        row = {"recording": path.stem, "ln_m": highest, "ln_a": bank.ln_a, "rollouts": paged and paged[0], "leading": paged and paged[1]}
        found[path.stem.rsplit("_", 1)[0]].append(row)
        print(json.dumps(row) if options.json else f"{path.stem:90s} ln M {highest:6.1f} of {bank.ln_a:.1f}" + (f"  paged after {paged[0]} rollouts: {paged[1]}" if paged else ""), flush=True)
    healthy = [row for kind, rows in found.items() if kind.startswith("healthy") for row in rows]
    if healthy:
        print(f"\nhealthy: {len(healthy)} recordings, {sum(row['rollouts'] is not None for row in healthy)} pages, highest ln M {max(row['ln_m'] for row in healthy):.1f}, "
              f"median {np.median([row['ln_m'] for row in healthy]):.1f}")
    for kind, rows in found.items():
        if kind.startswith("fault"):
            print(f"{kind}: rollouts to the page {[row['rollouts'] for row in rows]}, highest ln M {[round(row['ln_m'], 1) for row in rows]}")


if __name__ == "__main__":
    main()
