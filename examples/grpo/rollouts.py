"""The engine as the trainer sees it: sample groups, push weights, wait while it is away.

Speaks vLLM's token-in-token-out route (/inference/v1/generate, `--enable-scale-out`) and its weight-update routes
(`VLLM_SERVER_DEV_MODE=1`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from task import Question

T = TypeVar("T")
AWAY_SECONDS = 600.0
"""How long the trainer waits for an engine that does not answer."""


class EngineAway(Exception):
    """The engine did not answer for AWAY_SECONDS, or refused; the text says what to do."""


@dataclass(slots=True, kw_only=True)
class Rollout:
    """One completion. `logprobs`: what the engine reported for the sampled tokens, nats."""

    question: Question
    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    finished: bool
    version: str
    reward: float = 0.0
    advantage: float = 0.0
    trainer_logprobs: list[float] = field(default_factory=list)


class EngineClient:
    """HTTP client of one engine; every call is repeated until the engine answers or AWAY_SECONDS have passed."""

    def __init__(self, url: str, *, temperature: float, max_tokens: int) -> None:
        self.url = url.rstrip("/")
        self._sampling = {"temperature": temperature, "top_p": 1.0, "top_k": 0, "max_tokens": max_tokens, "logprobs": 5}
        self._http = httpx.Client(timeout=httpx.Timeout(300.0, connect=5.0), trust_env=False)

    def sample(self, questions: list[Question], completions: int) -> list[Rollout]:
        """`completions` rollouts for each question, all groups at once."""
        with ThreadPoolExecutor(len(questions)) as pool:
            groups = list(pool.map(lambda question: self._group(question, completions), questions))
        return [rollout for group in groups for rollout in group]

    def version(self) -> str:
        """The engine's weight label; "default" after a fresh start."""
        return str(self._call("GET", "/weight_info")["weight_version"])

    def push(self, folder: Path, version: str, *, keep_cache: bool = False) -> None:
        """Load published weights into the engine: pause, reload, forget the prefix cache, label, resume.

        `keep_cache` leaves out the forgetting: keys and values computed with older weights stay in use.
        """
        self._call("POST", "/pause", params={"mode": "wait", "clear_cache": "false" if keep_cache else "true"})
        try:
            self._call("POST", "/collective_rpc",
                       json={"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}})
            if not keep_cache:
                self._call("POST", "/reset_prefix_cache")
            self._call("POST", "/update_weight_version", json={"new_version": version})
        finally:
            self._call("POST", "/resume")

    def _group(self, question: Question, completions: int) -> list[Rollout]:
        body = {"token_ids": question.tokens_P, "sampling_params": {**self._sampling, "n": completions}}
        answer = self._call("POST", "/inference/v1/generate", json=body)
        return [_rollout(question, choice) for choice in answer["choices"]]

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        return self._patiently(lambda: self._once(method, path, **arguments), path)

    def _once(self, method: str, path: str, **arguments: Any) -> Any:
        response = self._http.request(method, self.url + path, **arguments)
        if 400 <= response.status_code < 500:
            raise EngineAway(f"{self.url}{path} answered {response.status_code}: {response.text[:300]}\nIs it vLLM with "
                             "--enable-scale-out and VLLM_SERVER_DEV_MODE=1?")
        response.raise_for_status()
        return response.json() if response.content else None

    def _patiently(self, call: Callable[[], T], path: str) -> T:
        began, told = time.monotonic(), 0.0
        while True:
            try:
                return call()
            except httpx.HTTPError as error:
                waited = time.monotonic() - began
                if waited > AWAY_SECONDS:
                    raise EngineAway(f"the engine at {self.url} has not answered {path} for {waited:.0f} s ({error}); "
                                     "start it again, then start the trainer") from None
                if waited >= told:
                    print(f"engine at {self.url} does not answer {path} ({type(error).__name__}); trying again for up to "
                          f"{AWAY_SECONDS - waited:.0f} s", file=sys.stderr, flush=True)
                    told = waited + 15.0
                time.sleep(1.0)


def _rollout(question: Question, choice: dict[str, Any]) -> Rollout:
    spans = choice.get("weight_versions") or []
    return Rollout(question=question, prompt=question.tokens_P, tokens=choice["token_ids"],
                   logprobs=[entry["logprob"] for entry in choice["logprobs"]["content"]],
                   finished=choice["finish_reason"] == "stop", version=spans[-1]["version"] if spans else "unknown")
