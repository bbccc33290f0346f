"""How fast is the shadow scorer, and what does it save over the obvious way?

    python benchmarks/score_speed.py --model DIR [--shape recordings|group] [--body-dtype float32] [--repeat 3] [--json]

The obvious way ("plain"): one padded batch through the transformers model, logits of every position, log-softmax,
gather. Both sides score the same completion tokens of the same rollouts, each in a process of its own, after a warm-up
on one rollout. Reported: scored completion tokens a second (median run), and the peak memory above the loaded model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("klaxon", "plain", "plain-8")


def rollouts_of(shape: str) -> list:
    """recordings: the 32 rollouts of one recording. group: 8 of its prompts, each with 8 recorded completions."""
    from collector.sources.rollout_json import read_rollouts

    folder = ROOT / "klaxon" / "recordings"
    fixed = list(read_rollouts(folder / "v0181_processed_t07.jsonl"))
    if shape == "recordings":
        return fixed
    prompts = list({item.prompt_tokens_P.tobytes(): item.prompt_tokens_P for item in fixed}.values())[:8]
    pool = fixed + list(read_rollouts(folder / "v0181_raw_t07.jsonl"))
    return [replace(item, prompt_tokens_P=prompts[index // 8], request_id=str(index)) for index, item in enumerate(pool[:64])]


def klaxon_side(model: Path, dtype: str) -> Callable[[Sequence], list[np.ndarray]]:
    """The shadow scorer with its default settings: views `expected` and `raw`, and the entropy."""
    from collector.config import ShadowConfig
    from collector.records import WeightVersion
    from collector.shadow.model import model_shelf
    from collector.shadow.scorer import ShadowScorer

    config = ShadowConfig(body_dtype=dtype, threads=1)
    shelf = model_shelf(config, [WeightVersion(version="1", path=str(model), published_at=0.0, digest="")])
    shelf.get("1")
    scorer = ShadowScorer(config, shelf)
    return lambda rollouts: [score.views["expected"] for score in scorer.score(rollouts, version="1")]


def plain_side(model: Path, dtype: str, batch: int | None) -> Callable[[Sequence], list[np.ndarray]]:
    """Padded batches (None = all rollouts in one), full logits in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    net = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), local_files_only=True).eval()

    @torch.inference_mode()
    def one(rollouts: Sequence) -> list[np.ndarray]:
        rows = [np.concatenate([r.prompt_tokens_P, r.completion_tokens_T]).astype(np.int64) for r in rollouts]
        ids, mask = (np.zeros((len(rows), max(map(len, rows))), np.int64) for _ in range(2))
        for index, row in enumerate(rows):
            ids[index, : row.size], mask[index, : row.size] = row, 1
        logits = net(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits[:, :-1].float()
        logprobs = torch.log_softmax(logits / rollouts[0].sampling.temperature, dim=-1)
        picked = logprobs.gather(-1, torch.from_numpy(ids[:, 1:, None]))[:, :, 0].numpy()
        starts = [r.prompt_tokens_P.size - 1 for r in rollouts]
        return [picked[i, s: s + r.n_tokens].copy() for i, (s, r) in enumerate(zip(starts, rollouts, strict=True))]

    def score(rollouts: Sequence) -> list[np.ndarray]:
        step = batch or len(rollouts)
        return [row for at in range(0, len(rollouts), step) for row in one(rollouts[at: at + step])]

    return score


class PeakMemory:
    """Samples this process's resident memory; `peak_mb` is its largest rise above the value at the start."""

    def __enter__(self) -> PeakMemory:
        self._start, self.peak_mb, self._stop = self._resident_mb(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak_mb = max(self.peak_mb, self._resident_mb() - self._start)

    @staticmethod
    def _resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def run_side(side: str, args: argparse.Namespace) -> dict:
    """Measure one side in this process."""
    rollouts = rollouts_of(args.shape)
    batch = int(side.partition("-")[2]) if "-" in side else None
    score = klaxon_side(args.model, args.body_dtype) if side == "klaxon" else plain_side(args.model, args.body_dtype, batch)
    score(rollouts[:1])
    seconds, cpu_seconds = [], []
    with PeakMemory() as memory:
        for _ in range(args.repeat):
            wall, cpu = time.perf_counter(), time.process_time()
            rows = score(rollouts)
            seconds.append(time.perf_counter() - wall)
            cpu_seconds.append(time.process_time() - cpu)
    tokens = sum(row.size for row in rows)
    return {"side": side, "tokens": tokens, "seconds": statistics.median(seconds),
            "cpu_seconds": statistics.median(cpu_seconds), "tokens_per_second": tokens / statistics.median(seconds),
            "tokens_per_cpu_second": tokens / statistics.median(cpu_seconds), "peak_mb": memory.peak_mb,
            "logprob_sum": float(sum(row.astype(float).sum() for row in rows)), "load_average": os.getloadavg()[0]}


def run_all(args: argparse.Namespace) -> dict:
    """Each side in a fresh process; ratios are plain / klaxon."""
    results = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--side", side, "--model", str(args.model), "--shape", args.shape,
                   "--body-dtype", args.body_dtype, "--repeat", str(args.repeat)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        if done.returncode != 0:
            sys.exit(f"{side} failed:\n{done.stderr}")
        results[side] = json.loads(done.stdout.splitlines()[-1])
    ours = results["klaxon"]
    ratios = {side: {"cpu_time": results[side]["cpu_seconds"] / ours["cpu_seconds"],
                     "time": results[side]["seconds"] / ours["seconds"],
                     "peak_memory": results[side]["peak_mb"] / max(1.0, ours["peak_mb"])} for side in SIDES[1:]}
    return {"shape": args.shape, "body_dtype": args.body_dtype, "sides": results, "plain_over_klaxon": ratios}


def show(report: dict) -> None:
    """The table a human reads."""
    print(f"shape {report['shape']}, body {report['body_dtype']}, head float32, 1 thread")
    print(f"{'side':<10}{'tokens':>8}{'seconds':>9}{'CPU s':>8}{'tokens/s':>10}{'tokens/CPU s':>14}{'peak MB':>9}{'load':>6}")
    for side, row in report["sides"].items():
        print(f"{side:<10}{row['tokens']:>8}{row['seconds']:>9.1f}{row['cpu_seconds']:>8.1f}{row['tokens_per_second']:>10.0f}"
              f"{row['tokens_per_cpu_second']:>14.0f}{row['peak_mb']:>9.0f}{row['load_average']:>6.1f}")
    for side, ratio in report["plain_over_klaxon"].items():
        print(f"{side} / klaxon: time {ratio['time']:.2f}, CPU time {ratio['cpu_time']:.2f}, peak memory {ratio['peak_memory']:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/models/smollm2-135m-instruct")
    parser.add_argument("--shape", choices=("recordings", "group"), default="recordings")
    parser.add_argument("--body-dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run_side(args.side, args)))
        return
    report = run_all(args)
    print(json.dumps(report)) if args.json else show(report)


if __name__ == "__main__":
    main()
