"""Faults made on a real vLLM V1 engine (fixtures/diagnosis/record.py): verdicts on short cuts of them, from the scorer's kept answers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from collector.records import Diagnosis
from diagnosis.compete import diagnose
from diagnosis.config import DiagnosisConfig
from diagnosis.prompts import Marks
from klaxon.commands.look import read_file

ROOT = Path(__file__).parent.parent
MADE = ROOT / "tests" / "fixtures" / "diagnosis"


def loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


faults, kept = loaded("klaxon_real_faults", MADE / "faults.py"), loaded("klaxon_kept_real_scores", MADE / "scores.py")
CASES = sorted(path.name.removesuffix(".scores.npz") for path in (MADE / "real").glob("*.scores.npz"))
SMOL = Marks(bos=1, openers=frozenset({1}), system_role=(9690,), default_system=(
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198))
"""As prompts.marks_of reads them from the model's folder."""


def judged(name: str, count: int | None = None) -> Diagnosis:
    rollouts, refused = read_file(str(MADE / "real" / f"{name}.jsonl.gz"))
    assert rollouts and not refused
    scorer = kept.KeptScores(MADE / "real" / f"{name}.scores.npz")
    return diagnose(rollouts[:count], scorer, versions=faults.REAL[name].versions, config=DiagnosisConfig(), floor=lambda _: scorer.floor_nats, marks=SMOL)


NOT_NAMED: tuple[str, ...] = ()
"""Faults the diagnosis misses or is not sure of on these few tokens; docs/diagnosis-matrix.md lists them. What it says must then not be confident."""


def test_the_cuts_of_real_faults_are_there_and_small() -> None:
    assert len(CASES) >= 4
    assert sum(path.stat().st_size for path in (MADE / "real").iterdir()) < 700_000


@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_NAMED])
def test_the_verdict_names_the_fault_that_was_made_on_the_real_engine(name: str) -> None:
    verdict = judged(name)
    assert verdict.verdict in faults.REAL[name].truth, verdict.causes[0].evidence
    assert verdict.confident, verdict.causes[0].evidence


@pytest.mark.parametrize("name", CASES)
def test_no_verdict_on_a_real_fault_is_confident_and_wrong(name: str) -> None:
    verdict = judged(name)
    assert verdict.verdict in faults.REAL[name].truth or not verdict.confident, verdict.causes[0].evidence


def test_the_page_holds_what_the_benchmark_prints_from_its_results() -> None:
    """`PYTHONPATH=. python benchmarks/verdicts.py FOLDER --work WORK --page`"""
    import json

    benchmark = loaded("klaxon_diagnosis_matrix", ROOT / "benchmarks" / "verdicts.py")
    rows = [json.loads(line) for line in benchmark.RESULTS.read_text(encoding="utf-8").splitlines()]
    page = benchmark.PAGE.read_text(encoding="utf-8")
    assert rows and benchmark.page_with(rows, page) == page


def test_every_recording_of_the_matrix_is_in_the_registry() -> None:
    page = (ROOT / "docs" / "diagnosis-matrix.md").read_text(encoding="utf-8")
    missing = [name for name in faults.REAL if f"| {name} |" not in page]
    assert not missing
