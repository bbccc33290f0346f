"""Checks of what requests silently get, of the label weights carry, and of the vLLM version itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collector.weights.ledger import known_version
from diagnosis.audit import OFF
from diagnosis.engine_told import DEV_MODE, Assumed, Check, Told, untold
from diagnosis.known_faults import faults_of

SAMPLERS = {**OFF, "temperature": 1.0}
"""What vLLM takes out of a generation_config, with the value at which it does nothing."""

ENOUGH_LOGPROBS = 5
"""The lattice test of the head's precision needs the top 5."""


def generation_config(told: Told, assumed: Assumed) -> Check:
    """Risky when requests that leave a parameter out get one the trainer does not declare."""
    name, why = "generation_config", "vLLM fills temperature, top_p, top_k and penalties of requests that omit them from the model's generation_config.json (prime-rl#886, verl#7270)."
    setting = told.get("model_config", "generation_config")
    overrides = told.get("model_config", "override_generation_config")
    extra = overrides[0] if overrides and isinstance(overrides[0], Mapping) else {}
    if setting and setting[0] == "vllm":
        filled, source = _active(extra), "--generation-config vllm"
    elif told.generation_config is None:
        return untold(name, why, asked="generation_config.json" + (f" (--generation-config {setting[0]})" if setting else ""), do="--model DIR, the folder the engine was started from")
    else:
        filled = _active({**told.generation_config, **extra})
        source = f"generation_config.json, --generation-config {setting[0] if setting else 'not told'}"
    traps = {key: value for key, value in filled.items() if not _declared(assumed, key, value)}
    seen = f"{source}: {_listed(filled) or 'no sampling parameters'}" + (f"; the trainer does not declare {', '.join(traps)} so" if traps else "")
    if traps:
        return Check(name=name, state="risky", seen=seen, why=why, do="vllm serve … --generation-config vllm, or every parameter in every request")
    if setting is None:
        return Check(name=name, state="unknown", seen=f"{seen}; --override-generation-config was not told", why=why, do=DEV_MODE)
    return Check(name=name, state="ok", seen=seen, why=why)


def weight_label(told: Told, assumed: Assumed) -> Check:
    """Risky while the label is vLLM's "default": then no rollout says which weights made it."""
    name, why = "weight version label", "Without a label per update staleness and mismatch cannot be told apart: \"default\" means unknown, never fresh."
    if told.weight_label is None:
        return untold(name, why, asked="the label (/weight_info)")
    known = known_version(told.weight_label)
    return Check(name=name, state="ok" if known else "risky", seen=f"weight_version = {told.weight_label!r} (/weight_info)", why=why,
                 do="" if known else "POST /update_weight_version {\"new_version\": \"STEP\"} after every weight update")


def max_logprobs(told: Told, assumed: Assumed) -> Check:
    """Wrong at 0, risky below what the lattice test needs and without a limit."""
    name, why = "max_logprobs", "It caps the logprobs a request may ask for: none leaves nothing to compare, the head's precision is read off the top 5."
    found = told.get("model_config", "max_logprobs")
    if not found or not isinstance(found[0], int):
        return untold(name, why, asked="max_logprobs")
    limit = found[0]
    state = "wrong" if limit == 0 else "ok" if limit >= ENOUGH_LOGPROBS else "risky"
    seen = f"max_logprobs = {limit} ({found[1]})" + ("; no limit: one request can ask for the whole vocabulary" if limit < 0 else "")
    return Check(name=name, state=state, seen=seen, why=why, do="" if state == "ok" else "vllm serve … --max-logprobs 20")


def known_faults(told: Told, assumed: Assumed) -> Check:
    """The table of faults by version, narrowed to what this engine is told to be."""
    name = "vLLM version"
    if told.version is None:
        return untold(name, "Some faults belong to one version.", asked="the version", do="curl ENGINE_URL/version")
    found = faults_of(told)
    if found is None:
        return Check(name=name, state="unknown", seen=f"{told.version} is no release Klaxon can compare", why="Some faults belong to one version.",
                     do="read diagnosis/known_faults.toml against it")
    if not found:
        return Check(name=name, state="ok", seen=f"{told.version}: no known fault applies", why="Some faults belong to one version.")
    sure = [fault for fault in found if fault.applies]
    worst = next((state for state in ("wrong", "risky") if any(fault.state == state for fault in sure)), "unknown")
    seen = f"{told.version}: " + "; ".join(f"{fault.what} ({fault.source})" + ("" if fault.applies else f", if {fault.open_question}") for fault in found)
    return Check(name=name, state=worst, seen=seen, why="Some faults belong to one version, and leave or come with an upgrade.",
                 do="; ".join(dict.fromkeys(fault.do for fault in (sure or found))))


def _active(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters that do something."""
    found = {key: values[key] for key in SAMPLERS if isinstance(values.get(key), (int, float)) and not isinstance(values[key], bool)}
    return {key: value for key, value in found.items() if value != SAMPLERS[key] and not (key == "top_k" and value <= 0)}


def _declared(assumed: Assumed, key: str, value: float) -> bool:
    ours = getattr(assumed.sampling, key)
    return ours is not None and abs(ours - value) < 1e-9


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value:g}" for key, value in values.items())
