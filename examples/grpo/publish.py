"""Publish weight versions the way Klaxon (or anybody) can trust them: whole, marked, never half-written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

MARKER = "COMPLETE"
KEEP = 16


def publish(out: Path, version: int, save: Callable[[Path], None]) -> Path:
    """Let `save` write version's folder, mark it COMPLETE, move it in place at once, and drop old versions.

    Returns `<out>/weights/<version>`. The newest KEEP versions and version 0 stay on disk.
    """
    weights, staging = out / "weights", out / "staging" / str(version)
    weights.mkdir(parents=True, exist_ok=True)
    staging.parent.mkdir(parents=True, exist_ok=True)
    if staging.exists():
        shutil.rmtree(staging)
    save(staging)
    (staging / MARKER).write_text(f"{version}\n", encoding="utf-8")
    staging.rename(weights / str(version))
    for old in range(1, version - KEEP + 1):
        if (weights / str(old)).is_dir():
            shutil.rmtree(weights / str(old))
    return weights / str(version)
