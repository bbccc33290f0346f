"""The numbers and the picture of docs/v0-to-v1.md, from recordings of the real engines.

    PYTHONPATH=. python docs/v0_to_v1.py                       # the tables, seconds: the shadow's answers are kept beside the tests
    PYTHONPATH=. python docs/v0_to_v1.py --write               # into the page, and docs/v0-to-v1.svg
    PYTHONPATH=. python docs/v0_to_v1.py --model MODEL_DIR     # the verdicts from a scorer run here and now (minutes); nothing is written

Signals compare the engine with `klaxon/recordings/trainer_logprobs.json`, a float32 forward of the same weights (32 rollouts); verdicts come from
the shadow scorer on every second rollout. `tests/test_v0_to_v1.py` holds the page to what this prints.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from collector import signals  # noqa: E402
from collector.records import Diagnosis, Rollout  # noqa: E402
from collector.sources.rollout_json import read_rollouts  # noqa: E402
from detectors.config import DetectorsConfig  # noqa: E402
from diagnosis.compete import diagnose  # noqa: E402
from diagnosis.config import DiagnosisConfig  # noqa: E402
from diagnosis.look import look  # noqa: E402

RECORDINGS = ROOT / "klaxon" / "recordings"
FIXTURES = ROOT / "tests" / "fixtures" / "diagnosis"
PAGE, PICTURE = HERE / "v0-to-v1.md", HERE / "v0-to-v1.svg"
BEGIN, END = "<!-- printed by docs/v0_to_v1.py: begin -->", "<!-- printed by docs/v0_to_v1.py: end -->"
ENGINES = {
    "v085f32_t07": ("V0, float32", "vLLM 0.8.5, V0 engine, --dtype float32: the reference"),
    "v085_t07": ("V0, bfloat16", "vLLM 0.8.5, V0 engine, --dtype bfloat16: what ran before the upgrade"),
    "v0181_raw_t07": ("V1 as upgraded", "vLLM 0.18.1, V1 engine, bfloat16, the same flags: --logprobs-mode is left at its new default, raw_logprobs"),
    "v0181_processed_t07": ("V1 as fixed", "vLLM 0.18.1, V1 engine, bfloat16, --logprobs-mode processed_logprobs"),
}
"""Recording → name in the tables, what was started."""

SIZE, GAP, DEEPEST = 170, 24, 6.0  # px of one panel, between panels; nats at its far edge

Judge = Callable[[str], Diagnosis]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What Klaxon says of one recording."""

    name: str
    engine_N: np.ndarray  # float64 [N] nats, sampled tokens
    trainer_N: np.ndarray  # float64 [N] nats, the same tokens
    sums: dict[str, float]  # collector.signals.metrics
    rollouts_to_alarm: int | None  # self-bets alone, one rollout after the other; None = silent to the end
    verdict: Diagnosis


def kept() -> Any:
    """The module tests/fixtures/diagnosis/scores.py."""
    spec = importlib.util.spec_from_file_location("klaxon_kept_scores", FIXTURES / "scores.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{FIXTURES / 'scores.py'} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def from_kept_scores(name: str) -> Diagnosis:
    """The verdict from the scorer's kept answers."""
    scores = kept()
    scorer = scores.KeptScores(FIXTURES / f"{name}.scores.npz")
    return diagnose(scores.rollouts_of(name), scorer, versions=scores.CASES[name], config=DiagnosisConfig(), floor=lambda _: scorer.floor_nats)


def scoring(model: Path, body_dtype: str) -> Judge:
    """A judge that runs the scorer. Raises as `open_scorer` where the folder holds no model."""
    from klaxon.commands.shadow_setup import open_scorer

    setup = open_scorer(model, [], body_dtype=body_dtype, head_dtype="float32")
    return lambda name: diagnose(kept().rollouts_of(name), setup.scorer, versions=setup.versions, config=DiagnosisConfig())


def measured(name: str, judge: Judge) -> Row:
    """One recording: signals and self-bets from all of its rollouts, the verdict from `judge`."""
    trainer = json.loads((RECORDINGS / "trainer_logprobs.json").read_text(encoding="utf-8"))[f"{name}.jsonl"]
    rollouts = [one for one in read_rollouts(RECORDINGS / f"{name}.jsonl") if isinstance(one, Rollout)]
    known = [replace(one, trainer_logprobs_T=np.array(trainer[one.request_id], np.float32)) for one in rollouts]
    slices = [part for one in known if (score := signals.trainer_score(one)) is not None for part in signals.slice_stats(one, score)]
    alone = look(rollouts, config=DetectorsConfig(), batch_seconds=120)
    return Row(name=name, engine_N=np.concatenate([one.engine_logprobs_T for one in rollouts]).astype(float),
               trainer_N=np.concatenate([trainer[one.request_id] for one in rollouts]), sums=signals.metrics(signals.total(slices)),
               rollouts_to_alarm=alone.numbers["rollouts_to_alarm"], verdict=judge(name))


def tables(rows: list[Row]) -> str:
    """Markdown: what was started, the signals, the verdicts."""
    lines = ["| | engine | rollouts, tokens |", "|---|---|---|"]
    lines += [f"| {ENGINES[row.name][0]} | {ENGINES[row.name][1]} | 32, {row.engine_N.size:,} |" for row in rows]
    lines += ["", "| | mean \\|d\\|, nats | KL k1 | KL k3 | clip rate (ε .2) | ESS | `klaxon look`, no weights |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        one = row.sums
        alarm = "silent" if row.rollouts_to_alarm is None else f"alarm after {row.rollouts_to_alarm} rollouts"
        lines.append(f"| {ENGINES[row.name][0]} | {_number(one['mean_abs_d'])} | {_number(one['k1'])} | {_number(one['k3'])} "
                     f"| {one['clip_rate']:.1%} | {one['ess']:.3f} | {alarm} |")
    lines += ["", "| | verdict | confident | residual as healthy → as the verdict, nats | floor, nats |", "|---|---|---|---|---|"]
    for row in rows:
        healthy = next(cause.residual_nats for cause in row.verdict.causes if cause.cause == "healthy")
        lines.append(f"| {ENGINES[row.name][0]} | {row.verdict.verdict} | {'yes' if row.verdict.confident else 'not sure'} "
                     f"| {healthy:.4f} → {row.verdict.causes[0].residual_nats:.4f} | {row.verdict.floor_nats:.4f} |")
    for row in rows:
        if row.verdict.fix:
            lines += ["", f"**{ENGINES[row.name][0]}**", f"- fix: {row.verdict.fix}", f"- next: `{row.verdict.next}`"]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """Four decimals, or two significant digits where those would say nothing; what rounding alone leaves is "< 1e-6"."""
    if abs(value) < 1e-6:
        return "< 1e-6"
    return f"{value:.4f}" if abs(value) >= 1e-3 else f"{value:.1e}"


def picture(rows: list[Row]) -> str:
    """SVG: each token's logprob, engine across, trainer up; tokens both call the same lie on the diagonal. Every second token is drawn."""
    width, height = len(rows) * (SIZE + GAP) + GAP, SIZE + 70
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="system-ui, sans-serif" font-size="11">',
             "<title>Logprob of each sampled token: engine across, trainer up, nats</title>", f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for number, row in enumerate(rows):
        parts += _panel(row, GAP + number * (SIZE + GAP), 34)
    parts.append(f'<text x="{GAP}" y="{height - 6}" fill="#555">across: engine, up: trainer; {DEEPEST:g} nats a side, 0 at the upper right; '
                 "off the diagonal, the policy ratio is wrong</text></svg>")
    return "\n".join(parts) + "\n"


def _panel(row: Row, left: int, top: int) -> list[str]:
    wrong = row.verdict.verdict != "healthy"
    inside_N = (row.engine_N > -DEEPEST) & (row.trainer_N > -DEEPEST)
    x_N = left + SIZE * (1 + row.engine_N[inside_N][::2] / DEEPEST)
    y_N = top - SIZE * row.trainer_N[inside_N][::2] / DEEPEST
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in zip(x_N, y_N, strict=True))
    colour = "#c0143c" if wrong else "#1a7f4b"
    said = row.verdict.verdict + ("" if row.verdict.confident else "?")
    return [f'<text x="{left}" y="14" font-weight="600">{ENGINES[row.name][0]}</text>',
            f'<text x="{left}" y="28" fill="{colour}">{said}, clip rate {row.sums["clip_rate"]:.1%}</text>',
            f'<rect x="{left}" y="{top}" width="{SIZE}" height="{SIZE}" fill="none" stroke="#ccc"/>',
            f'<path d="M{left} {top + SIZE}L{left + SIZE} {top}" stroke="#999" stroke-dasharray="3 3"/>',
            f'<path d="{dots}" stroke="{colour}" stroke-width="2" stroke-linecap="round" stroke-opacity=".45" fill="none"/>']


def page_with(text: str, page: str) -> str:
    """The page with what stands between the marks replaced. Raises ValueError where the marks are missing."""
    before, mark, rest = page.partition(BEGIN + "\n")
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{PAGE.name}: the marks {BEGIN!r} and {END!r} are missing")
    return f"{before}{BEGIN}\n{text}{END}{after}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="update the page and its picture")
    parser.add_argument("--model", type=Path, help="score with this model instead of reading kept scores")
    parser.add_argument("--body-dtype", default="bfloat16", help="of the scorer, with --model; float32 is faster on a CPU")
    options = parser.parse_args()
    if options.write and options.model:
        parser.error("--write takes the kept scores, so that the page can be checked without a model; leave --model out")
    judge = scoring(options.model, options.body_dtype) if options.model else from_kept_scores
    rows = [measured(name, judge) for name in ENGINES]
    print(tables(rows), end="")
    if options.write:
        PAGE.write_text(page_with(tables(rows), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        PICTURE.write_text(picture(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
