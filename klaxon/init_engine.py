"""What `klaxon init` finds at the engine's address, in one sentence and as facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from collector.errors import KlaxonError
from klaxon.engine_facts import ask
from klaxon.probe import settings_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """`answers`: a vLLM engine; `silent`: nobody, or something else; `none`: no address was given."""

    state: Literal["answers", "silent", "none"]
    text: str
    advice: tuple[str, ...] = ()


def look_at(url: str, *, expected_mode: str = "processed_logprobs") -> Found:
    """Ask the engine behind `url`. Reads only; may take some seconds where dev mode is on."""
    if not url:
        return Found(state="none", text="no engine address given: its health and settings are known from the tap alone")
    try:
        told = ask(url).told
    except KlaxonError as error:
        hint = "the config is written all the same; start the engine, then `klaxon check`" if "no engine answers" in str(error) else (
            "an engine that is not vLLM is watched through `klaxon proxy` (docs/proxy.md)")
        return Found(state="silent", text=str(error), advice=(hint,))
    settings = settings_of(told.config)
    if not settings:
        return Found(state="answers", text=f"vLLM {told.version} answers at {url}; its settings are hidden (no dev mode)",
                     advice=(f"make sure it was started with --logprobs-mode {expected_mode} (vLLM's default is raw_logprobs)",))
    shown = ", ".join(f"{name} {settings[name]}" for name in ("logprobs_mode", "dtype", "quantization", "enable_prefix_caching") if name in settings)
    mode = settings.get("logprobs_mode")
    advice = () if mode in (None, expected_mode) else (
        f"it reports {mode}, the trainer takes them for {expected_mode}: start it with --logprobs-mode {expected_mode}",)
    return Found(state="answers", text=f"vLLM {told.version} answers at {url}: {shown}", advice=advice)
