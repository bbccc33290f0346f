"""What an engine and a trainer told of themselves, and the line a check makes of it. Nothing here is guessed: untold is None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from collector.records import Sampling
from detectors.hardfacts import dtype_name

State = Literal["ok", "wrong", "risky", "unknown"]

DEV_MODE = "VLLM_SERVER_DEV_MODE=1 vllm serve …   (opens /server_info; keep the server on loopback)"
"""What to type where only /server_info tells."""

TAP_KEYS = {("model_config", "logprobs_mode"): "logprobs_mode", ("model_config", "dtype"): "dtype",
            ("model_config", "quantization"): "quantization", ("cache_config", "cache_dtype"): "kv_cache_dtype",
            ("cache_config", "block_size"): "block_size", ("cache_config", "enable_prefix_caching"): "enable_prefix_caching",
            ("scheduler_config", "async_scheduling"): "async_scheduling",
            ("scheduler_config", "enable_chunked_prefill"): "enable_chunked_prefill"}
"""vLLM's section and key → what the tap's heartbeat calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the checklist."""

    name: str
    state: State
    seen: str  # what was told, by whom; or what was not
    why: str  # one sentence
    do: str = ""  # what to type; "" when there is nothing to do


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The engine's own answers. A None or an empty mapping was not told; a key that is there with None was told to be off."""

    version: str | None = None  # vLLM's
    config: Mapping[str, Any] | None = None  # vllm_config of /server_info?config_format=json
    env: Mapping[str, Any] = field(default_factory=dict)  # vllm_env of the same
    cache_info: Mapping[str, str] = field(default_factory=dict)  # labels of vllm:cache_config_info
    prefix_queries: float | None = None  # tokens looked up in the prefix cache since the start
    prefix_hits: float | None = None  # tokens found there
    weight_label: str | None = None  # /weight_info, verbatim: "default" until somebody sets it
    tap: Mapping[str, Any] = field(default_factory=dict)  # the tap's account out of GET /v1/status
    calls: Sequence[tuple[str, str]] = ()  # (path, query) of the weight-update calls the tap saw succeed, oldest first
    generation_config: Mapping[str, Any] | None = None  # the model folder's generation_config.json; {} = it has none; None = not readable
    model_config: Mapping[str, Any] | None = None  # its config.json; None = not readable

    def get(self, section: str, key: str) -> tuple[Any, str] | None:
        """One setting with the one who told it: /server_info, else /metrics (caching alone), else the tap; None = nobody.

        >>> Told(tap={"dtype": "bfloat16"}).get("model_config", "dtype")
        ('bfloat16', 'tap')
        """
        part = (self.config or {}).get(section)
        if isinstance(part, Mapping) and key in part:
            return part[key], "/server_info"
        if section == "cache_config" and key in self.cache_info:
            return _plain(self.cache_info[key]), "/metrics"
        name = TAP_KEYS.get((section, key))
        return (self.tap[name], "tap") if name in self.tap else None

    def flag(self, section: str, key: str) -> bool | None:
        """A yes or no; None when nobody told, or told something else."""
        found = self.get(section, key)
        return found[0] if found and isinstance(found[0], bool) else None

    def dtype(self) -> str | None:
        """The body's dtype in one spelling; None while unknown or "auto"."""
        found = self.get("model_config", "dtype")
        return dtype_name(found[0]) if found and isinstance(found[0], str) and found[0] != "auto" else None

    def graphs(self) -> bool | None:
        """Does decoding replay captured CUDA graphs? --enforce-eager or cudagraph_mode NONE (0 in JSON) means no."""
        eager, mode = self.flag("model_config", "enforce_eager"), self.get("compilation_config", "cudagraph_mode")
        if eager or (mode and mode[0] == 0):
            return False
        return None if eager is None else True

    def experts(self) -> bool | None:
        """Does the model route to experts?"""
        return self.flag("parallel_config", "is_moe_model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What the trainer's side declares. None was not declared: a default of Klaxon's is no declaration."""

    logprobs_mode: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    body_dtype: str | None = None  # [shadow] body_dtype
    head_dtype: str | None = None  # [shadow] head_dtype
    engine_dtype: str | None = None  # [contract]: what the engine is meant to run in
    floor_nats: float | None = None  # [contract]
    correction: str | None = None  # [contract]


def said(found: tuple[Any, str], name: str) -> str:
    """The words of `seen` for one setting.

    >>> said((True, "/metrics"), "enable_prefix_caching")
    'enable_prefix_caching = True (/metrics)'
    """
    return f"{name} = {found[0]} ({found[1]})"


def untold(name: str, why: str, *, asked: str, do: str = DEV_MODE) -> Check:
    """The line of a fact nobody told."""
    return Check(name=name, state="unknown", seen=f"{asked} was not told", why=why, do=do)


def _plain(text: str) -> Any:
    return {"True": True, "False": False, "None": None}.get(text, text)
