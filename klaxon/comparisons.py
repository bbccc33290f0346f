"""Reports of `klaxon compare --json` kept in the run's folder as compare*.json, for the page: V0 against V1 beside the run they speak of."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

MOST_FILES = 5
MOST_BYTES = 500_000
MOST_METRICS = 60
NUMBERS = ("difference", "low", "high", "margin", "effect", "steps", "times_more")


def comparisons(folder: Path) -> list[dict[str, Any]]:
    """Newest first: file, at (UTC seconds), a and b (names of runs), alpha, verdict, notes, metrics (metric, answer, words, ratio and
    NUMBERS, null where unknown); or file, problem."""
    try:
        files = sorted(folder.glob("compare*.json"), key=lambda path: path.stat().st_mtime, reverse=True)[:MOST_FILES]
    except OSError:
        return []
    return [_one(path) for path in files]


def _one(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            return {"file": path.name, "problem": f"is larger than {MOST_BYTES:,} bytes and is not shown"}
        body = json.loads(path.read_text(encoding="utf-8"))
        return {"file": path.name, "at": path.stat().st_mtime, "alpha": float(body["alpha"]), "verdict": _short(body["verdict"]),
                **{side: [PurePath(str(run)).name[:100] for run in body[side]] for side in ("a", "b")},
                "notes": [_short(note) for note in body.get("notes") or ()], "metrics": [_metric(row) for row in body["metrics"][:MOST_METRICS]]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {"file": path.name, "problem": f"is no report of klaxon compare --json ({type(error).__name__})"}


def _metric(row: dict[str, Any]) -> dict[str, Any]:
    ratio = row.get("ratio")
    return {**{name: _short(row[name]) for name in ("metric", "answer", "words")}, **{name: _number(row.get(name)) for name in NUMBERS},
            "ratio": [_number(value) for value in ratio] if ratio else None}


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _short(value: Any) -> str:
    return str(value)[:300]
