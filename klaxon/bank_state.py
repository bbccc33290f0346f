"""The bank's state between two lives of the daemon: one file, replaced whole, so that kill -9 leaves the old or the new one.

A state of another schema, of another config, or one that cannot be read is dropped, and says so; the stored batches are then
replayed, and where they are gone too, learning starts again.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from collector.errors import InputError
from detectors.bank import Bank
from detectors.config import DetectorsConfig
from detectors.requests import Requests

EVERY_BATCHES = 30
NAME = "bank.json"


def save(bank: Bank, folder: Path, config: DetectorsConfig, *, requests: list[dict[str, Any]] | None = None) -> None:
    """Write the state beside its old version and put it in its place. Raises OSError (a full disk)."""
    path, fresh = folder / NAME, folder / f"{NAME}.new"
    with fresh.open("w", encoding="utf-8") as out:
        json.dump({"config": _digest(config), "bank": bank.to_state(), "requests": requests or []}, out, allow_nan=False)
        out.flush()
        os.fsync(out.fileno())
    os.replace(fresh, path)


def load(folder: Path, config: DetectorsConfig, *, batch_seconds: float) -> tuple[Bank | None, str]:
    """(the bank as it was or None, why it was dropped or "")."""
    try:
        found: Any = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if found["config"] != _digest(config):
            return None, "the detectors' config has changed; the stored batches are replayed under the new one"
        return Bank.from_state(found["bank"], config, batch_seconds=batch_seconds), ""
    except FileNotFoundError:
        return None, ""
    except InputError as error:
        return None, f"{NAME} was written by another Klaxon ({error}); the stored batches are replayed instead"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return None, f"{NAME} cannot be read ({type(error).__name__}); the stored batches are replayed instead"


def load_requests(folder: Path, requests: Requests) -> bool:
    """Take up what was learnt about single requests; False where nothing usable is kept, and they learn anew."""
    try:
        requests.restore(json.loads((folder / NAME).read_text(encoding="utf-8"))["requests"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def _digest(config: DetectorsConfig) -> str:
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()
