"""Do engine, trainer, file server and daemon agree what time it is? A rollout is filed by the time it says it finished."""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

from klaxon.checks.finding import Finding
from klaxon.config import Config
from klaxon.probe import TIMEOUT_SECONDS

SKEW_SECONDS = 5.0  # less than this moves no rollout that matters; an HTTP date has whole seconds
NEXT = "timedatectl status   # there and here; chrony or systemd-timesyncd must run on both"


def clocks(config: Config, status: dict[str, Any] | None) -> Iterator[Finding]:
    """One finding a clock that is off, or one that all seen are right; nothing where no other clock can be read."""
    seen = {f"the engine {config.engine.url}": engine_ahead(config.engine.url)} if config.engine.url else {}
    for tap in (status or {}).get("taps", []):
        seen[f"the {tap['source']} of {tap['engine']}"] = tap.get("clock_ahead_seconds")
    for path in (*(source.path for source in config.sources.tailed), config.weights.dir):
        if (ahead := written_ahead(path)) is not None and ahead > SKEW_SECONDS:
            seen[f"whoever writes {path}"] = ahead
    off = {name: ahead for name, ahead in seen.items() if ahead is not None and abs(ahead) > SKEW_SECONDS}
    for name, ahead in off.items():
        yield Finding(part="clocks", state="warn", next=NEXT, text=f"the clock of {name} is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's: its rollouts "
                      f"are filed {'under now, in the wrong batch' if ahead > 0 else 'too early, or as late'}")
    counts = (status or {}).get("counts") or {}
    future = sum(count for name, count in counts.items() if name.endswith("clock_skew"))
    if future and not off:
        yield Finding(part="clocks", state="warn", text=f"{future} rollouts or metrics came from the future (over a minute): a clock is or was wrong", next=NEXT)
    elif not off and any(ahead is not None for ahead in seen.values()):
        yield Finding(part="clocks", state="ok", text=f"{', '.join(name for name, ahead in seen.items() if ahead is not None)}: within {SKEW_SECONDS:.0f} s of this machine's")


def engine_ahead(url: str) -> float | None:
    """Seconds the engine's clock is ahead of ours, by the Date of an answer (± 1 s); None where it says none."""
    try:
        asked = time.time()
        response = httpx.get(url.rstrip("/") + "/health", timeout=TIMEOUT_SECONDS, trust_env=False)
        answered = time.time()
        said = parsedate_to_datetime(response.headers["date"]).timestamp()
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, ValueError, TypeError):
        return None
    return said + 0.5 - (asked + answered) / 2


def written_ahead(path: str) -> float | None:
    """Seconds the newest change at a path lies in our future; None where nothing is there."""
    if not path or "://" in path:
        return None
    try:
        return Path(path).stat().st_mtime - time.time()
    except OSError:
        return None
