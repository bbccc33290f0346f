"""A confusion matrix of the diagnosis: faults really made, verdicts at 250 and 1,000 tokens, and what a diagnosis costs.

    python tests/fixtures/diagnosis/generate.py MODEL --work WORK --out FOLDER --samples 4 --rollouts 40     # once, minutes
    PYTHONPATH=. python benchmarks/diagnosis.py FOLDER --work WORK [--trainer float32|bfloat16] [--json] [CASE …]

Every case is cut into disjoint groups of rollouts of about so many tokens; each group is diagnosed alone, by the real scorer. Printed: verdict × times,
"!" where it was confident, wrong ones marked; seconds a diagnosis, and that as a multiple of scoring the same rollouts once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]  # or this file hides the room of its name

TRUTH = {
    "healthy_f32": "healthy", "bos_doubled": "prompt_mismatch", "bos_missing": "prompt_mismatch", "system_dropped": "prompt_mismatch",
    "system_added": "prompt_mismatch", "position_56": "position_dependent", "corrupted": "corrupted_requests", "raw_and_stale": "raw_logprobs",
    "repetition_112": "penalties", "presence_06": "penalties", "frequency_03": "penalties", "min_p_05": "truncation", "temperature_and_top_p": "temperature",
    "top_p_and_bos": "truncation", "lora_not_applied": "lora_not_applied", "int8": "quantization",
}
"""Case → the cause that was made; of a pair the first one."""

MODEL = Path(".cache/models/smollm2-135m-instruct")
SIZES = (250, 1000)


def main() -> None:
    """Parse, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder of generate.py with version_2 and adapter")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--trainer", default="float32", help="dtype of the shadow's body")
    parser.add_argument("--groups", type=int, default=4, help="groups a case and size at most")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="tokens a group")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    options = parser.parse_intermixed_args()
    rows = [judge(name, size, options) for name in options.cases or TRUTH if (options.folder / f"{name}.jsonl").exists() for size in options.sizes]
    if options.json:
        print(json.dumps(rows))


def judge(name: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """One line of the matrix."""
    from klaxon.commands.look import read_file

    rollouts, _ = read_file(str(options.folder / f"{name}.jsonl"))
    per_group = max(1, round(size / rollouts[0].n_tokens))
    groups = [rollouts[i:i + per_group] for i in range(0, len(rollouts) - per_group + 1, per_group)][:options.groups]
    counts: Counter[str] = Counter()
    seconds, once, confident, wrong = 0.0, 0.0, 0, 0
    for group in groups:
        verdict, spent, plain = one(name, group, options)
        counts[f"{verdict.verdict}{'!' if verdict.confident else ''}"] += 1
        confident += verdict.confident
        wrong += verdict.confident and verdict.verdict != TRUTH[name]
        seconds, once = seconds + spent, once + plain
    row = {"case": name, "truth": TRUTH[name], "tokens": per_group * rollouts[0].n_tokens, "verdicts": dict(counts), "confident": confident,
           "confident_wrong": wrong, "groups": len(groups), "seconds": round(seconds / len(groups), 1), "times_one_score": round(seconds / once, 2)}
    if not options.json:
        said = ", ".join(f"{key} {n}" for key, n in counts.most_common())
        print(f"{name:16} {row['tokens']:5} tokens  truth {TRUTH[name]:18}  {said:60} {row['seconds']:6.1f} s, {row['times_one_score']:.2f} × one score"
              f"{'   WRONG AND CONFIDENT' if wrong else ''}", flush=True)
    return row


def one(name: str, rollouts: list[Any], options: argparse.Namespace) -> tuple[Any, float, float]:
    """(verdict, seconds of the diagnosis, seconds of one score), each with a scorer of its own and the weights loaded beforehand."""
    from diagnosis.compete import diagnose
    from diagnosis.config import DiagnosisConfig

    scorer, versions = opened(name, options)
    scorer.score(rollouts[:1])
    began = time.perf_counter()
    scorer.score(rollouts, views={})
    plain = time.perf_counter() - began
    scorer, versions = opened(name, options)
    scorer.score(rollouts[:1])
    began = time.perf_counter()
    return diagnose(rollouts, scorer, versions=versions, config=DiagnosisConfig()), time.perf_counter() - began, plain


def opened(name: str, options: argparse.Namespace) -> tuple[Any, list[str]]:
    """A fresh scorer and its versions; a case labelled with the adapter has that alone."""
    from collector.config import ShadowConfig
    from collector.shadow.model import model_shelf
    from collector.shadow.scorer import ShadowScorer
    from collector.weights.checkpoint import inspect

    config = ShadowConfig(body_dtype=options.trainer)
    known = [inspect(options.work / "adapter", version="adapter", base=str(options.model))] if name == "lora_not_applied" else [
        inspect(options.model, version="1"), *([inspect(options.work / "version_2", version="2")] if "stale" in name else [])]
    return ShadowScorer(config, model_shelf(config, known)), [one.version for one in known]


if __name__ == "__main__":
    main()
