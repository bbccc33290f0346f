"""Canary probes: fixed prompts at the run's own sampling parameters, sent only while the run is quiet.

A fault that begins while nobody samples (an engine restarted overnight, weights pushed between two phases) is then seen
before the next rollout is trained on. The probe is an ordinary request; the engine's tap reports it like any other, and
the worker knows it by its id and files it as canary traffic: judged as served, never as trained on.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx

from collector.records import Sampling
from klaxon.spine_config import CanaryConfig

MARK = "klaxon-canary-"
EXPERIMENT = "klaxon-experiment-"
"""Of requests that test the engine after an alarm (experiments.py): at settings of their own, so no statistic takes them."""
TIMEOUT_SECONDS = 60.0


class Canary:
    """Sends one probe a call of `sing`, at most one at a time. `counts`: canaries_sent, canary_errors, canaries_not_needed."""

    def __init__(self, url: str, config: CanaryConfig, sampling: Sampling, *, last_rollout_at: Callable[[], float | None],
                 say: Callable[[str, str, dict[str, Any]], None], clock: Callable[[], float] = time.time) -> None:
        self.url, self.config = url.rstrip("/"), config
        self._sampling, self._last_rollout_at, self._say, self._clock = sampling, last_rollout_at, say, clock
        self._next = 0  # which prompt
        self._model = ""
        self._failing = False
        self.counts: Counter[str] = Counter()

    def sing(self) -> bool:
        """One probe if the run is quiet; True when the engine answered it."""
        last = self._last_rollout_at()
        if last is not None and self._clock() - last < self.config.quiet_seconds:
            self.counts["canaries_not_needed"] += 1
            return False
        prompt = self.config.prompts[self._next % len(self.config.prompts)]
        self._next += 1
        try:
            self._ask(prompt)
        except (httpx.HTTPError, ValueError, LookupError) as error:
            self.counts["canary_errors"] += 1
            if not self._failing:
                self._say("canary_failed", f"a canary probe was not answered by {self.url} ({type(error).__name__}: {error})", {})
            self._failing = True
            return False
        self._failing = False
        self.counts["canaries_sent"] += 1
        return True

    def _ask(self, prompt: str | list[int]) -> None:
        with httpx.Client(base_url=self.url, timeout=TIMEOUT_SECONDS, trust_env=False) as client:
            if not self._model:
                self._model = str(client.get("/v1/models").raise_for_status().json()["data"][0]["id"])
            client.post("/v1/completions", json=self._body(prompt), headers={"X-Request-Id": f"{MARK}{uuid.uuid4().hex[:12]}"}).raise_for_status()

    def _body(self, prompt: str | list[int]) -> dict[str, Any]:
        return completion_request(self._model, prompt, self._sampling, max_tokens=self.config.max_tokens, logprobs=self.config.logprobs)


def completion_request(model: str, prompt: str | list[int], sampling: Sampling, *, max_tokens: int, logprobs: int) -> dict[str, Any]:
    """Body of POST /v1/completions. A sampling parameter nobody declared is left out, as the run's own requests leave it out."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    given = {name: value for name in names if (value := getattr(sampling, name)) is not None}
    return {"model": model, "prompt": prompt, "max_tokens": max_tokens, "logprobs": logprobs, "return_token_ids": True, **given}
