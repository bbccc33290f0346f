"""known_faults.toml: faults that belong to versions of vLLM, and whether one engine has what they need."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from diagnosis.engine_told import Told


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFault:
    """One fault in range. `applies` is False while something it needs was not told; `open_question` then names it."""

    what: str
    source: str  # issue, or who measured it
    state: Literal["wrong", "risky"]
    do: str
    applies: bool
    open_question: str = ""


def faults_of(told: Told) -> list[KnownFault] | None:
    """Faults of this engine's version, without those it is told not to have; None when the version is no PEP 440 one."""
    try:
        version = Version(told.version or "")
    except InvalidVersion:
        return None
    found = []
    for entry in table():
        needs = {need: NEEDS[need](told) for need in entry["needs"]}
        if not SpecifierSet(entry["versions"]).contains(version, prereleases=True) or False in needs.values():
            continue
        untold = [need for need, holds in needs.items() if holds is None]
        found.append(KnownFault(what=entry["what"], source=entry["source"], state=entry["state"], do=entry["do"],
                                applies=not untold, open_question=", ".join(untold)))
    return found


@functools.cache
def table() -> tuple[dict[str, Any], ...]:
    """Every entry of known_faults.toml."""
    return tuple(tomllib.loads(resources.files("diagnosis").joinpath("known_faults.toml").read_text(encoding="utf-8"))["fault"])


def _equals(section: str, key: str, value: Any) -> Callable[[Told], bool | None]:
    def holds(told: Told) -> bool | None:
        found = told.get(section, key)
        return None if found is None else found[0] == value
    return holds


def _recurrent(told: Told) -> bool | None:
    found = told.get("cache_config", "mamba_block_size")
    return None if found is None else found[0] is not None


NEEDS: dict[str, Callable[[Told], bool | None]] = {
    "caching": _equals("cache_config", "enable_prefix_caching", True),
    "chunked": _equals("scheduler_config", "enable_chunked_prefill", True),
    "cpu": _equals("device_config", "device", "cpu"),
    "experts": Told.experts,
    "graphs": Told.graphs,
    "processed": _equals("model_config", "logprobs_mode", "processed_logprobs"),
    "recurrent": _recurrent,
    "unquantised": _equals("model_config", "quantization", None),
}
"""What a fault may need; None = nobody told."""
