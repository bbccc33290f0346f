"""A confusion matrix of the diagnosis: faults really made, verdicts at 250 to 2,000 tokens, and what a diagnosis costs.

    python tests/fixtures/diagnosis/record.py MODEL --work WORK --out FOLDER                                   # a real vLLM engine, once
    python tests/fixtures/diagnosis/generate.py MODEL --work WORK --out FOLDER --samples 4 --rollouts 40       # faults that need another engine: transformers
    PYTHONPATH=. python benchmarks/verdicts.py FOLDER [CASE …] --work WORK [--trainer float32|bfloat16]          # hours; goes on where it was interrupted
    PYTHONPATH=. python benchmarks/verdicts.py FOLDER --work WORK --page                                      # docs/diagnosis-matrix.md from what is there

Every case is cut into disjoint groups of rollouts of about so many tokens; each group is diagnosed alone, by the real scorer. The largest size runs first and
its forward passes are kept for the smaller ones (the same rollouts, cut finer), so seconds and cost are those of the largest alone: CPU seconds of one thread, and
as a multiple of scoring the group once. The file of results grows by a line a group; what stands there is not run again.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

MADE = HERE.parent / "tests" / "fixtures" / "diagnosis"
PAGE, RESULTS = HERE.parent / "docs" / "diagnosis-matrix.md", HERE / "verdicts_results.jsonl"
BEGIN, END = "<!-- printed by benchmarks/verdicts.py: begin -->", "<!-- printed by benchmarks/verdicts.py: end -->"
GENERATED = {
    "healthy_f32": "healthy", "gen_bos_doubled": "prompt_mismatch", "bos_missing": "prompt_mismatch", "gen_system_dropped": "prompt_mismatch",
    "system_added": "prompt_mismatch", "position_56": "position_dependent", "corrupted": "corrupted_requests", "gen_raw_and_stale": "raw_logprobs",
    "gen_top_p_and_bos": "truncation", "gen_lora_not_applied": "lora_not_applied", "int8": "quantization",
    "fp8": "quantization", "fp8_kv": "quantization", "bf16": "healthy", "update_within": "policy_lag",
    "repetition_112": "penalties", "presence_06": "penalties", "frequency_03": "penalties", "min_p_05": "truncation", "temperature_and_top_p": "temperature",
}
"""Case of generate.py (behind "gen_" where record.py has one of that name) → the cause that was made; of a pair the first one."""

MODEL = Path(".cache/models/smollm2-135m-instruct")
SIZES = (2000, 1000, 500, 250)
MOST_SMALL = 4
"""Groups of a smaller size and one case, at most, or --groups where that is more."""


def faults() -> Any:
    """The module tests/fixtures/diagnosis/faults.py."""
    spec = importlib.util.spec_from_file_location("klaxon_real_faults", MADE / "faults.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Sharing:
    """A scorer that keeps its answers; `tokens` counts the completion tokens that were asked for, kept or not."""

    def __init__(self, scorer: Any) -> None:
        self._scorer, self._rows, self.tokens = scorer, {}, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def score(self, rollouts: Sequence[Any], *, views: Mapping[str, Any], version: str | None = None, prefix_version: str | None = None) -> list[Any]:
        """As the real one. A stale prefix is not kept: how far it reaches depends on the rollouts of the call."""
        self.tokens += sum(one.n_tokens for one in rollouts)
        keys = [(one.request_id, one.prompt_tokens_P.tobytes(), tuple(sorted(views)), version) for one in rollouts]
        missing = [i for i, key in enumerate(keys) if prefix_version is not None or key not in self._rows]
        scores = self._scorer.score([rollouts[i] for i in missing], views=views, version=version, prefix_version=prefix_version) if missing else []
        fresh = dict(zip(missing, scores, strict=True))
        if prefix_version is None:
            self._rows.update({keys[i]: score for i, score in fresh.items()})
        return [fresh[i] if i in fresh else self._rows[keys[i]] for i in range(len(keys))]


class Case:
    """One recording: its truth and what a diagnosis of it may load."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        real = faults().REAL.get(name)
        self.name, self.options, self.real = name, options, real is not None
        self.truth = real.truth if real else (GENERATED[name],)
        base = name.removeprefix("gen_")
        self.versions = real.versions if real else ("adapter",) if "lora" in name else ("1", "2") if "stale" in name or name == "update_within" else ("1",)
        self.kv_on_update = real.kv_on_update if real else "reset"
        self.path = next((path for stem in (name, base) for ending in (".jsonl.gz", ".jsonl")
                          if (path := (options.folder if real else options.generated or options.folder) / (stem + ending)).exists()), None)

    def scorer(self) -> Any:
        """A fresh scorer with its versions."""
        from collector.config import ShadowConfig
        from collector.shadow.model import model_shelf
        from collector.shadow.scorer import ShadowScorer
        from collector.weights.checkpoint import inspect

        config, work, model = ShadowConfig(body_dtype=self.options.trainer, kv_on_update=self.kv_on_update, threads=1), self.options.work, self.options.model
        known = [inspect(work / "adapter", version=name, base=str(model)) if name == "adapter" else
                 inspect(model if name == "1" else work / f"version_{name}", version=name) for name in self.versions]
        return ShadowScorer(config, model_shelf(config, known))

    def groups(self, size: int) -> list[list[Any]]:
        """Disjoint groups of about `size` tokens."""
        from klaxon.commands.look import read_file

        rollouts, _ = read_file(str(self.path))
        each = rollouts[0].n_tokens
        largest = max(1, round(max(self.options.sizes) / each))
        within, count = rollouts[:self.options.groups * largest], max(1, round(size / each))
        return [within[i:i + count] for i in range(0, len(within) - count + 1, count)][:max(self.options.groups, MOST_SMALL)]


def truth_of(case: Case, group: Sequence[Any]) -> list[str]:
    """What is true of these rollouts: record.py swaps the prompts of every eighth, so a small group can hold none."""
    swapped = any(int(one.request_id.rpartition("-")[2]) % 8 == 3 for one in group)
    return list(case.truth) if case.name != "swapped" or swapped else ["healthy"]


def judged(case: Case, done: set[tuple[str, int, int]]) -> Iterator[dict[str, Any]]:
    """A line a group that is not done yet."""
    from diagnosis.compete import diagnose
    from diagnosis.config import DiagnosisConfig

    shared = Sharing(case.scorer())
    for number, size in enumerate(sorted(case.options.sizes, reverse=True)):
        for index, group in enumerate(case.groups(size)):
            if (case.name, size, index) in done:
                continue
            plain = one_score(case, group) if number == 0 else None
            shared.score(group[:1], views={})  # loads the weights
            before, began = shared.tokens, time.process_time()
            verdict = diagnose(group, shared, versions=case.versions, config=DiagnosisConfig())
            spent, asked, tokens = time.process_time() - began, shared.tokens - before, sum(one.n_tokens for one in group)
            first = verdict.causes[0]
            yield {"case": case.name, "real": case.real, "truth": truth_of(case, group), "size": size, "group": index, "tokens": tokens, "verdict": verdict.verdict,
                   "confident": verdict.confident, "residual": first.residual_nats, "floor": verdict.floor_nats, "parameters": dict(first.parameters),
                   "why": list(first.evidence[:4]), "scored_times": round(asked / tokens, 2),
                   "seconds": round(spent, 2) if number == 0 else None, "one_score_seconds": plain and round(plain, 2), "trainer": case.options.trainer}


@functools.cache
def _measured_once(size: int) -> list[float]:
    return []


def one_score(case: Case, group: Sequence[Any]) -> float:
    """CPU seconds of scoring a group of that many rollouts once, the weights loaded; measured on the first group of a run."""
    found = _measured_once(len(group))
    if not found:
        scorer = case.scorer()
        scorer.score(group[:1], views={})
        began = time.process_time()
        scorer.score(group)
        found.append(time.process_time() - began)
    return found[0]


def main() -> None:
    """Parse, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="recordings of record.py")
    parser.add_argument("--generated", type=Path, help="recordings of generate.py, where they lie elsewhere")
    parser.add_argument("--work", type=Path, required=True, help="folder of record.py with version_2, version_3 and adapter")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSONL that grows by a line a group")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--trainer", default="float32", help="dtype of the shadow's body")
    parser.add_argument("--groups", type=int, default=2, help="groups of the largest size; the smaller ones are cut from the same rollouts, up to four of a size")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="tokens a group")
    parser.add_argument("--page", action="store_true", help="write the results into docs/diagnosis-matrix.md, run nothing")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    options = parser.parse_intermixed_args()
    rows = [json.loads(text) for text in options.results.read_text(encoding="utf-8").splitlines()] if options.results.exists() else []
    if options.page:
        PAGE.write_text(page_with(rows, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    import torch

    torch.set_num_threads(1)
    done = {(row["case"], row["size"], row["group"]) for row in rows}
    for name in options.cases or [*faults().REAL, *GENERATED]:
        case = Case(name, options)
        if case.path is None:
            print(f"{case.name}: no recording", file=sys.stderr)
            continue
        for row in judged(case, done):
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{row['case']:20} {row['tokens']:5} tokens  truth {row['truth'][0]:18}  {said(row):28} {row['scored_times']:5.2f} × scored"
                  + (f", {row['seconds']:6.1f} CPU s" if row["seconds"] else "") + ("   WRONG AND CONFIDENT" if wrong(row) else ""), flush=True)


def said(row: Mapping[str, Any]) -> str:
    """The verdict, "!" where it was confident."""
    return row["verdict"] + "!" * row["confident"]


def wrong(row: Mapping[str, Any]) -> bool:
    """Confident, and none of the causes that are true."""
    return row["confident"] and row["verdict"] not in row["truth"]


def page_with(rows: Sequence[Mapping[str, Any]], page: str) -> str:
    """The page with what stands between the marks replaced. Raises ValueError where the marks are missing."""
    before, mark, rest = page.partition(BEGIN + "\n")
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{PAGE.name}: the marks {BEGIN!r} and {END!r} are missing")
    judged_names = {row["case"] for row in rows}
    made = ["| recording | engine | how it was made |", "|---|---|---|"]
    made += [f"| {name} | {fault.engine} | {fault.made}{'' if name in judged_names else ' (not judged yet)'} |" for name, fault in faults().REAL.items()]
    text = "\n".join(made) + "\n\n" + table(rows)
    return f"{before}{BEGIN}\n{text}{END}{after}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line a case, a column a size, then the sums by cause and the cost."""
    sizes = sorted({row["size"] for row in rows})
    lines = ["| recording | truth | " + " | ".join(f"{size:,}" for size in sizes) + " |", "|---|---|" + "---|" * len(sizes)]
    for name in dict.fromkeys(row["case"] for row in rows):
        mine = [row for row in rows if row["case"] == name]
        lines.append(f"| {name} | {' or '.join(mine[0]['truth'])} | " + " | ".join(_cell([row for row in mine if row["size"] == size]) for size in sizes) + " |")
    lines += ["", "| truth | " + " | ".join(f"{size:,}" for size in sizes) + " |", "|---|" + "---|" * len(sizes)]
    for truth in dict.fromkeys(row["truth"][0] for row in rows):
        lines.append(f"| {truth} | " + " | ".join(_sum([row for row in rows if row["truth"][0] == truth and row["size"] == size]) for size in sizes) + " |")
    lines.append("| all | " + " | ".join(_sum([row for row in rows if row["size"] == size]) for size in sizes) + " |")
    timed = [row for row in rows if row["seconds"]]
    if timed:
        lines += ["", "| truth | groups | CPU seconds per 1,000 tokens | × one score | tokens scored, × the group's |", "|---|---|---|---|---|"]
        for truth in dict.fromkeys(row["truth"][0] for row in timed):
            mine = [row for row in timed if row["truth"][0] == truth]
            seconds, once = sum(row["seconds"] for row in mine), sum(row["one_score_seconds"] for row in mine)
            each = 1000 * seconds / sum(row["tokens"] for row in mine)
            lines.append(f"| {truth} | {len(mine)} | {each:.1f} | {seconds / once:.2f} | {sum(row['scored_times'] for row in mine) / len(mine):.2f} |")
    return "\n".join(lines) + "\n"


def _cell(rows: Sequence[Mapping[str, Any]]) -> str:
    """The verdicts of one case and size, the wrong confident ones in bold."""
    counts: dict[str, int] = {}
    for row in rows:
        text = f"**{said(row)} WRONG**" if wrong(row) else said(row)
        counts[text] = counts.get(text, 0) + 1
    return ", ".join(f"{n} {text}" for text, n in counts.items()) or "–"


def _sum(rows: Sequence[Mapping[str, Any]]) -> str:
    """Right of all; sure and right; sure and wrong."""
    if not rows:
        return "–"
    right = [row for row in rows if row["verdict"] in row["truth"]]
    return f"{len(right)} of {len(rows)} right, {sum(row['confident'] for row in right)} sure, {sum(map(wrong, rows))} sure and wrong"


if __name__ == "__main__":
    main()
