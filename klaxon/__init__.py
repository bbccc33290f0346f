"""Klaxon for people who script.

    import klaxon

    with klaxon.open_run("runs/grpo-7b") as run:            # a stopped run's folder, or the address of a daemon
        run.incidents()                                      # typed records
        run.series().to_pandas()                             # Arrow; polars.from_arrow(run.series())

    rollouts = klaxon.read_rollouts("rollouts.jsonl").rollouts   # any format of docs/sources.md
    klaxon.look(rollouts)                                    # what the file says by itself: no torch, no model
    klaxon.score(rollouts, model="weights/step_41")          # needs klaxon-rl[scorer]
    klaxon.diagnose(rollouts, model="weights/step_41")       # which fault explains it
    klaxon.detect(lines, cadence_seconds=120)                # evidence and alarms over a stream of batches or a plain series

Everything raises klaxon.KlaxonError, whose text says what to do. Klaxon's rooms have plain names (alerts, collector, …), so this
belongs into an environment of its own; next to an engine or a trainer install klaxon-tap instead. See docs/python.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collector.errors import KlaxonError
    from collector.records import Diagnosis, Rollout, Score
    from diagnosis.file_report import FileReport
    from klaxon.scripting.detection import Detected, detect
    from klaxon.scripting.files import Contents, Diagnosed, Scored, diagnose, look, read_rollouts, score
    from klaxon.scripting.runs import IncidentSummary, Run, open_run

_FOUND_IN = {
    "KlaxonError": "collector.errors", "Rollout": "collector.records", "Score": "collector.records", "Diagnosis": "collector.records",
    "FileReport": "diagnosis.file_report", "Detected": "klaxon.scripting.detection", "detect": "klaxon.scripting.detection",
    "Contents": "klaxon.scripting.files", "Diagnosed": "klaxon.scripting.files", "Scored": "klaxon.scripting.files", "diagnose": "klaxon.scripting.files", "look": "klaxon.scripting.files",
    "read_rollouts": "klaxon.scripting.files", "score": "klaxon.scripting.files", "IncidentSummary": "klaxon.scripting.runs", "Run": "klaxon.scripting.runs",
    "open_run": "klaxon.scripting.runs",
}
__all__ = ["Contents", "Detected", "Diagnosed", "Diagnosis", "FileReport", "IncidentSummary", "KlaxonError", "Rollout", "Run", "Score", "Scored", "detect", "diagnose",
           "look", "open_run", "read_rollouts", "score"]


def __getattr__(name: str) -> Any:
    """Each name is imported when it is first used: `import klaxon` is quick, and only score and diagnose need torch."""
    if name not in _FOUND_IN:
        raise AttributeError(f"module 'klaxon' has no attribute {name!r}")
    return getattr(importlib.import_module(_FOUND_IN[name]), name)


def __dir__() -> list[str]:
    return __all__
