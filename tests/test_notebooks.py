"""The example notebooks, run from the first cell to the last."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from test_python_api import stopped  # noqa: F401

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def said(book) -> str:
    return "\n".join(str(output.get("text") or output.get("data")) for cell in book.cells if cell.cell_type == "code" for output in cell.outputs)


def executed(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    return said(book)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel's own libraries
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_notebook_on_rollouts_finds_the_upgrade(monkeypatch):
    text = executed(ROOT / "examples/notebooks/rollouts.ipynb", monkeypatch)
    assert "32 rollouts before the upgrade, 32 after" in text and "V1 as upgraded: mismatch" in text and "V0: nothing_wrong_found" in text
    assert "alarm at t = 3" in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_notebook_on_a_run_reads_it(monkeypatch, stopped):  # noqa: F811
    monkeypatch.setenv("KLAXON_RUN", str(stopped))
    text = executed(ROOT / "examples/notebooks/run.ipynb", monkeypatch)
    assert "raw_logprobs" in text and "http://e1:8000" in text and "mean_abs_d" in text


def test_every_notebook_is_committed_without_output_and_is_run_here():
    assert [path.stem for path in NOTEBOOKS] == ["rollouts", "run"]
    for path in NOTEBOOKS:
        assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in nbformat.read(path, as_version=4).cells)
