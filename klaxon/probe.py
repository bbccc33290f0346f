"""Ask the engine about itself: reads only, short timeouts, never in the way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import httpx

from collector.weights.ledger import known_version

Say = Callable[[str, str, dict[str, Any]], None]
TIMEOUT_SECONDS = 3.0


class EngineProbe:
    """Health and version of the engine behind `url`. Without a url nothing is probed and nothing is claimed."""

    def __init__(self, url: str, say: Say) -> None:
        self.url = url.rstrip("/")
        self.reachable_at: float | None = None  # its last answer
        self.reachable_since: float | None = None  # it has answered without a break since then
        self.facts: dict[str, Any] = {}
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
                info = _json(client, "/server_info", config_format="json") if not self.facts else {}
        except httpx.HTTPError as error:
            if not self._down and self.reachable_at is not None:
                self._say("engine_down", f"engine {self.url} does not answer ({type(error).__name__})", {})
            self._down, self.facts, self.reachable_since = True, {}, None
            return False
        with self._lock:
            if self._down:
                self._say("engine_up", f"engine {self.url} answers again (vLLM {version})", {})
            self._down, self.reachable_at = False, now
            self.reachable_since = self.reachable_since or now
            self.facts = {**self.facts, **_settings(info), "version": version, "weight_version": label}
        return True


def _json(client: httpx.Client, path: str, **params: str) -> dict[str, Any]:
    """A JSON object, or {} where the engine has no such route (dev mode off)."""
    response = client.get(path, params=params)
    if response.status_code != 200:
        return {}
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _settings(info: dict[str, Any]) -> dict[str, Any]:
    """The settings that matter for RL out of vLLM's /server_info?config_format=json (dev mode only)."""
    config = info.get("vllm_config") or {}
    if not isinstance(config, dict):
        return {}
    model, cache = config.get("model_config") or {}, config.get("cache_config") or {}
    found = {"logprobs_mode": model.get("logprobs_mode"), "dtype": model.get("dtype"),
             "quantization": model.get("quantization"), "enable_prefix_caching": cache.get("enable_prefix_caching"),
             "block_size": cache.get("block_size"), "kv_cache_dtype": cache.get("cache_dtype")}
    return {key: value for key, value in found.items() if value is not None}
