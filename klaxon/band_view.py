"""The band of the reference runs in the units the trainer logs, for the page."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from detectors.reference import Band
from detectors.trainer_metrics import logged, of


def band_view(band: Band | None) -> dict[str, Any]:
    """runs (their names), coverage, seed_variance_known, left_out and, per metric, steps, low, center, high, each at most reference.GRID long; {} without a band."""
    if band is None:
        return {}
    metrics = {}
    for name, one in band.metrics.items():
        scale = of(name).transform
        metrics[name] = {"steps": list(one.steps), "runs": one.runs,
                         **{edge: [logged(value, scale) for value in getattr(one, edge)] for edge in ("low", "center", "high")}}
    return {"runs": [PurePath(run).name for run in band.runs], "coverage": band.coverage, "seed_variance_known": band.seed_variance_known,
            "tolerance": band.tolerance, "left_out": dict(band.left_out), "metrics": metrics}
