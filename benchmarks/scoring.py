"""What the shadow scorer costs, against plain transformers and martingale's recompute, in one run.

    python benchmarks/scoring.py [--model DIR] [--repeat 3] [--quick] [--json]

Rollouts: `mixed` (16 of different prompts and lengths) and `groups` (2 groups of 8 on prompts of 512 tokens), seeded random tokens. The
sides score the same completion tokens with the same float32 body on one thread, each in a process of its own, interleaved,
after a warm-up; the median run counts. `plain`: padded batches of 8 in the order given, full float32 logits, log-softmax,
gather. `plain-all`: all rollouts in one padded batch. `martingale`: hf_score_fn, what `martingale recompute` scores with (one
rollout at a time); needs `pip install martingale==0.2.0`, else it says that it did not run. Errors are against one float64
forward a rollout. Then: six views against one, memory at a 152k vocabulary, the head alone against float64, and on a
GPU the share of the card's bfloat16 matrix rate.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import scoring_parts as parts

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"mixed": 2.0, "groups": 3.0, "views": 1.3, "memory_mib": 256.0, "head_nats": 1e-5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/models/smollm2-135m-instruct")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each side, interleaved")
    parser.add_argument("--quick", action="store_true", help="half of the rollouts")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the tables")
    args = parser.parse_args()
    if args.task:
        print(json.dumps(parts.TASKS[args.task.split(":")[0]](args.model, args.quick, *args.task.split(":")[1:])))
        return
    if not (args.model / "config.json").is_file():
        sys.exit(f"{args.model} is no model folder: it has no config.json; name one with --model")
    report = {"load_average": os.getloadavg()[0], **speed(args), "views": views(args), "memory": run(args, "memory"),
              "head": run(args, "head"), "gpu": run(args, "gpu")}
    print(json.dumps(report)) if args.json else show(report)


def run(args: argparse.Namespace, task: str) -> dict:
    """One measurement in a fresh process on one thread."""
    print(f"… {task}", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--task", task, "--model", str(args.model), *(["--quick"] if args.quick else [])]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        sys.exit(f"{task} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def speed(args: argparse.Namespace) -> dict:
    """Every side on every shape; the median run by CPU time."""
    sides = ["klaxon", "plain", "plain-all", *(["martingale"] if importlib.util.find_spec("martingale") else [])]
    found: dict[str, dict] = {}
    for shape in ("mixed", "groups"):
        rounds = [{side: run(args, f"speed:{side}:{shape}") for side in sides} for _ in range(args.repeat)]
        rows = {}
        for side in sides:
            order = sorted((one[side] for one in rounds), key=lambda row: row["cpu_seconds"])
            rows[side] = order[len(order) // 2] | {"error": run(args, f"error:{side}:{shape}")["nats"]}
        for side in sides:
            for kind in ("cpu_seconds", "seconds"):
                rows[side][f"{kind}_over_klaxon"] = statistics.median(one[side][kind] / one["klaxon"][kind] for one in rounds)
        found[shape] = rows
    return found


def views(args: argparse.Namespace) -> dict:
    """Six views over one, interleaved."""
    pairs = [(run(args, "views:1"), run(args, "views:6")) for _ in range(args.repeat)]
    return {"ratio": statistics.median(six["cpu_seconds"] / one["cpu_seconds"] for one, six in pairs),
            "cpu_seconds": [statistics.median(pair[i]["cpu_seconds"] for pair in pairs) for i in range(2)]}


def show(report: dict) -> None:
    """The tables a human reads, each figure beside its target."""
    print(f"one thread, body and head float32, load average {report['load_average']:.1f}")
    for shape in ("mixed", "groups"):
        rows = report[shape]
        print(f"\n{shape}: {rows['klaxon']['rollouts']} rollouts, {rows['klaxon']['tokens']} completion tokens; target plain / klaxon ≥ {TARGETS[shape]:g}")
        print(f"{'side':<11}{'tokens/s':>9}{'tokens/CPU s':>13}{'CPU s':>8}{'CPU ×':>7}{'wall ×':>7}{'peak MiB':>9}{'|error| max':>12}{'mean':>9}")
        for side, row in rows.items():
            print(f"{side:<11}{row['tokens'] / row['seconds']:>9.0f}{row['tokens'] / row['cpu_seconds']:>13.0f}{row['cpu_seconds']:>8.1f}"
                  f"{row['cpu_seconds_over_klaxon']:>7.2f}{row['seconds_over_klaxon']:>7.2f}{row['peak_mib']:>9.0f}{row['error'][1]:>12.1e}{row['error'][0]:>9.1e}")
        if "martingale" not in rows:
            print("martingale not run: it is not installed here (pip install martingale==0.2.0)")
    head, memory = report["head"], report["memory"]
    print(f"\nsix views / one: {report['views']['ratio']:.2f} (target ≤ {TARGETS['views']:g})")
    print(f"peak memory above the model at a vocabulary of {memory['vocabulary']:,}: {memory['peak_mib']:.0f} MiB (target ≤ {TARGETS['memory_mib']:.0f}), "
          f"of it {memory['kept_mib']:.0f} KV of prompts kept for later")
    print(f"head against float64, same hidden states: float32 {head['float32']:.1e}, bf16 × bf16 {head['bfloat16']:.1e}, "
          f"float32 split in bf16 parts {head['split']:.1e} nats at most (target ≤ {TARGETS['head_nats']:g})")
    gpu = report["gpu"]
    print(f"GPU: {gpu['not_run']}" if "not_run" in gpu else
          f"GPU {gpu['name']}: scorer {gpu['scorer_tflops']:.0f} TFLOP/s = {gpu['share']:.0%} of the {gpu['matrix_tflops']:.0f} its bfloat16 matmul reaches")


if __name__ == "__main__":
    main()
