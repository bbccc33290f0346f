"""Ask the engine about itself: reads only, short timeouts, never in the way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import httpx

from collector.weights.ledger import known_version
from klaxon.taps import AUDITED

Say = Callable[[str, str, dict[str, Any]], None]
TIMEOUT_SECONDS = 3.0
SETTINGS_SECONDS = 30.0  # the first /server_info runs vLLM's collect_env, seconds even on an idle machine


class EngineProbe:
    """Health and version of the engine behind `url`. Without a url nothing is probed and nothing is claimed."""

    def __init__(self, url: str, say: Say) -> None:
        self.url = url.rstrip("/")
        self.reachable_at: float | None = None  # its last answer
        self.reachable_since: float | None = None  # it has answered without a break since then
        self.facts: dict[str, Any] = {}
        self.trouble: str | None = None  # why it did not answer, the last time; None = it answers
        self._settings: dict[str, Any] = {}  # of the engine as it answers now; {} = not told yet
        self._before: dict[str, Any] = {}  # the last ones told, over restarts
        self._down = False
        self._say = say
        self._lock = threading.Lock()

    def probe(self, now: float) -> bool:
        """One round; True when the engine answered."""
        if not self.url:
            return False
        try:
            with httpx.Client(base_url=self.url, timeout=TIMEOUT_SECONDS, trust_env=False) as client:
                client.get("/health").raise_for_status()
                version = _json(client, "/version").get("version")
                label = known_version(_json(client, "/weight_info").get("weight_version"))  # dev mode: a label, not the weights
                settings = self._settings or _ask_settings(client)
        except httpx.HTTPError as error:
            self.trouble = f"{type(error).__name__}: {error}"[:200]
            if not self._down and self.reachable_at is not None:
                self._say("engine_down", f"engine {self.url} does not answer ({type(error).__name__})", {})
            self._down, self.facts, self._settings, self.reachable_since = True, {}, {}, None
            return False
        with self._lock:
            if self._down:
                self._say("engine_up", f"engine {self.url} answers again (vLLM {version})", {})
            self._down, self.reachable_at, self.trouble = False, now, None
            self.reachable_since = self.reachable_since or now
            self._settings = settings
            self.facts = {**settings, "version": version, "weight_version": label}
            self._compare(settings if version is None else {**settings, "version": version})
        return True

    def _compare(self, settings: dict[str, Any]) -> None:
        """A setting the tap does not tell, changed by a restart, is an event; what the tap tells it says itself."""
        for key in sorted((settings.keys() & self._before.keys()) - set(AUDITED)):
            if settings[key] != self._before[key]:
                self._say("engine_config", f"engine {self.url}: {key} changed from {self._before[key]} to {settings[key]}",
                          {"key": key, "before": self._before[key], "after": settings[key]})
        self._before = self._before | settings


def _json(client: httpx.Client, path: str, **params: str) -> dict[str, Any]:
    """A JSON object, or {} where the engine has no such route (dev mode off)."""
    return _body(client.get(path, params=params))


def _body(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != 200:
        return {}
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _ask_settings(client: httpx.Client) -> dict[str, Any]:
    """Settings out of /server_info; {} when it does not tell: it is slow and hidden, so its silence is no engine down."""
    try:
        response = client.get("/server_info", params={"config_format": "json"}, timeout=SETTINGS_SECONDS)
    except httpx.HTTPError:
        return {}
    return settings_of(_body(response).get("vllm_config"))


SETTINGS = {"logprobs_mode": ("model_config", "logprobs_mode"), "dtype": ("model_config", "dtype"), "quantization": ("model_config", "quantization"),
            "enable_prefix_caching": ("cache_config", "enable_prefix_caching"), "block_size": ("cache_config", "block_size"),
            "kv_cache_dtype": ("cache_config", "cache_dtype"), "async_scheduling": ("scheduler_config", "async_scheduling"),
            "enable_chunked_prefill": ("scheduler_config", "enable_chunked_prefill"), "disable_cascade_attn": ("model_config", "disable_cascade_attn"),
            "enforce_eager": ("model_config", "enforce_eager"), "max_logprobs": ("model_config", "max_logprobs"),
            "generation_config": ("model_config", "generation_config"), "attention_backend": ("attention_config", "backend"),
            "tensor_parallel_size": ("parallel_config", "tensor_parallel_size"), "pipeline_parallel_size": ("parallel_config", "pipeline_parallel_size")}
"""Name in the status → where it stands in vLLM's /server_info?config_format=json (dev mode only)."""


def settings_of(config: Any) -> dict[str, Any]:
    """The settings that matter for RL out of `vllm_config`; what was not told is left out."""
    parts = {name: part for name, part in config.items() if isinstance(part, dict)} if isinstance(config, dict) else {}
    found = {name: parts.get(section, {}).get(key) for name, (section, key) in SETTINGS.items()}
    return {name: value for name, value in found.items() if value is not None}
