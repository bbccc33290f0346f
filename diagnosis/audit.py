"""Config facts: what the engine says about itself against what the trainer assumes. Evidence, never a proof by itself.

The engine's claims come from its tap's heartbeat (logprobs_mode, dtype, enable_prefix_caching, …) and from the rollouts
(engine_sampling, logprobs_mode, engine_dtype). A missing claim is unknown and yields no fact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collector.records import Rollout, Sampling

OFF = {"top_p": 1.0, "top_k": -1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Value at which a sampling parameter does nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFact:
    """One observed setting. `cause` is what it would explain if the numbers agree; "" when it explains nothing."""

    text: str  # one plain sentence with the values
    cause: str = ""
    contradicts: bool = False  # engine and trainer cannot both be right
    rollouts: int = 0  # how many rollouts carry it; 0 = from the engine's configuration


def engine_facts(engine_config: Mapping[str, Any], *, expected_mode: str) -> tuple[ConfigFact, ...]:
    """Facts of a tap heartbeat's `config`. The last 'observed, not guessed' source for a live engine."""
    found = []
    mode = engine_config.get("logprobs_mode")
    if mode:
        differs = mode != expected_mode
        text = f"the engine runs with logprobs_mode = {mode}; the trainer takes them for {expected_mode}"
        found.append(ConfigFact(text=text, cause="raw_logprobs" if differs and mode == "raw_logprobs" else "", contradicts=differs))
    caching = engine_config.get("enable_prefix_caching")
    if caching is not None:
        text = f"prefix caching is {'on: a weight update must reset it' if caching else 'off'}"
        found.append(ConfigFact(text=text, cause="stale_prefix_cache" if caching else ""))
    if dtype := engine_config.get("dtype"):
        found.append(ConfigFact(text=f"the engine computes in {str(dtype).removeprefix('torch.')}"))
    return tuple(found)


def rollout_facts(rollouts: Sequence[Rollout]) -> tuple[ConfigFact, ...]:
    """Contradictions between what the engine claims and what the trainer assumes, counted over rollouts."""
    texts: Counter[tuple[str, str]] = Counter()
    for rollout in rollouts:
        texts.update(_contradictions(rollout))
    return tuple(
        ConfigFact(text=text, cause=cause, contradicts=True, rollouts=count)
        for (text, cause), count in sorted(texts.items(), key=lambda item: -item[1])
    )


def transforms(sampling: Sampling) -> bool:
    """Do processed logprobs differ from raw ones under these parameters? Unknown counts as no."""
    switched = any(_active(sampling, name) for name in OFF)
    return switched or sampling.temperature not in (None, 1.0, 0.0)


def _contradictions(rollout: Rollout) -> list[tuple[str, str]]:
    found = []
    mode, expected = rollout.logprobs_mode, rollout.expected_logprobs_mode
    if "unknown" not in (mode, expected) and mode != expected and transforms(rollout.sampling):
        text = f"the engine says it reports {mode}, the trainer expects {expected}"
        found.append((text, "raw_logprobs" if mode == "raw_logprobs" else ""))
    for name, cause in _SAMPLING_CAUSES.items():
        ours, theirs = _value(rollout.sampling, name), _value(rollout.engine_sampling, name)
        if ours is not None and theirs is not None and abs(ours - theirs) > 1e-9:
            found.append((f"the engine sampled with {name} = {theirs:g}, the trainer assumes {ours:g}", cause))
    if masks := rollout.labels.get("masks"):
        found.append((f"requests use {masks}: the engine leaves out or reweights tokens the trainer counts", "truncation"))
    return found


_SAMPLING_CAUSES = {
    "temperature": "temperature", "top_p": "truncation", "top_k": "truncation", "min_p": "truncation",
    "repetition_penalty": "penalties", "presence_penalty": "penalties", "frequency_penalty": "penalties",
}


def _value(sampling: Sampling, name: str) -> float | None:
    value = getattr(sampling, name)
    if value is None:
        return None
    return -1.0 if name == "top_k" and value <= 0 else float(value)


def _active(sampling: Sampling, name: str) -> bool:
    value = _value(sampling, name)
    return value is not None and value != OFF[name]
