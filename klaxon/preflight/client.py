"""HTTP to one engine: sample probes, force tokens through it, ask its tokenizer. Nothing here changes the engine."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from collector.errors import InputError, Unavailable
from collector.records import LogprobsMode, Rollout, Sampling
from collector.sources.proxy import dialects
from collector.sources.proxy.exchange import Exchange
from collector.sources.rollout_json import rollout_or_error, rollout_to_json
from klaxon.canary import completion_request
from klaxon.preflight.prompts import Probe

TIMEOUT_SECONDS = 120.0
GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What rollouts of this engine carry besides what it answers: the trainer's assumptions, and the engine's claims as evidence."""

    sampling: Sampling = field(default_factory=Sampling)
    expected_logprobs_mode: LogprobsMode = "processed_logprobs"
    logprobs_mode: str | None = None
    engine_dtype: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of one probe: a rollout, or why there is none."""

    probe: Probe
    rollout: Rollout | None = None
    why_not: str = ""


class Client:
    """One engine. `model` is the id it serves, `root` the folder it says it came from, `max_model_len` its limit; `mark` begins the id of every request.

    Raises:
        InputError: the URL is no address.
        Unavailable: nobody answers, or it serves no model.
    """

    def __init__(self, url: str, *, timeout: float = TIMEOUT_SECONDS, mark: str = "") -> None:
        self.url, self._timeout, self._mark = url.rstrip("/"), timeout, mark
        card = self._card()
        self.model = str(card["id"])
        limit, root = card.get("max_model_len"), card.get("root")
        self.max_model_len = limit if isinstance(limit, int) and limit > 0 else None
        self.root = root if isinstance(root, str) else ""

    def sample(self, probes: Sequence[Probe], told: Told, *, logprobs: int, concurrency: int, tag: str = "",
               heard: Callable[[], None] = lambda: None) -> list[Answer]:
        """One answer a probe, in order; at most `concurrency` at a time. `tag` goes into the request ids; `heard` is called after each."""
        bodies = []
        for probe in probes:
            sampling = GREEDY if probe.greedy else told.sampling
            body = completion_request(self.model, list(probe.prompt), sampling, max_tokens=probe.max_tokens, logprobs=logprobs)
            bodies.append(body | {"return_tokens_as_token_ids": True} | ({} if probe.seed is None else {"seed": probe.seed}))
        answers = self.post_all("/v1/completions", bodies, concurrency=concurrency, heard=heard)
        return [self._answer(probe, body, found, told, f"{probe.name}{tag}") for probe, body, found in zip(probes, bodies, answers, strict=True)]

    def tokenize(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]] | None:
        """Ids of texts by the engine's own tokenizer, with its special tokens or without; None where it has no such route."""
        bodies = [{"model": self.model, "prompt": text, "add_special_tokens": special} for text in texts]
        found = [answer.get("tokens") if isinstance(answer, dict) else None for answer in self.post_all("/tokenize", bodies, concurrency=4)]
        return found if all(isinstance(one, list) for one in found) else None  # type: ignore[return-value]

    def post_all(self, path: str, bodies: Sequence[dict[str, Any]], *, concurrency: int, heard: Callable[[], None] = lambda: None) -> list[dict[str, Any] | str]:
        """The JSON object each body got, or in words why none. Ctrl-C cancels what is under way."""
        return asyncio.run(self._post_all(path, bodies, concurrency, heard))

    async def _post_all(self, path: str, bodies: Sequence[dict[str, Any]], concurrency: int, heard: Callable[[], None]) -> list[dict[str, Any] | str]:
        gate = asyncio.Semaphore(concurrency)
        async with httpx.AsyncClient(base_url=self.url, timeout=self._timeout, trust_env=False) as client:

            async def one(body: dict[str, Any]) -> dict[str, Any] | str:
                async with gate:
                    found = await _post(client, path, body, {"X-Request-Id": f"{self._mark}{uuid.uuid4().hex[:12]}"} if self._mark else {})
                heard()
                return found

            return list(await asyncio.gather(*(one(body) for body in bodies)))

    def _answer(self, probe: Probe, body: dict[str, Any], found: dict[str, Any] | str, told: Told, name: str) -> Answer:
        """The collector's own reading of an OpenAI answer, completed by what is assumed and claimed."""
        if isinstance(found, str):
            return Answer(probe=probe, why_not=found)
        read = dialects.read("openai", Exchange(asked=body, documents=[found]), fallback_id=name)
        if not read.rollouts:
            reason = next(iter(read.counts), "unusable_unreadable").removeprefix("unusable_")
            return Answer(probe=probe, why_not=dialects.UNUSABLE.get(reason, reason))
        assumed = GREEDY if probe.greedy else told.sampling
        extra: dict[str, Any] = {
            "request_id": name, "engine": self.url, "traffic": "canary", "finished_at": time.time(), "expected_logprobs_mode": told.expected_logprobs_mode,
            "sampling": {key: value for key in Sampling.__dataclass_fields__ if (value := getattr(assumed, key)) is not None},
            "logprobs_mode": told.logprobs_mode, "engine_dtype": told.engine_dtype, "labels": {"group": probe.group}}
        rollout = rollout_or_error(read.rollouts[0] | {key: value for key, value in extra.items() if value is not None}, where=f"the answer to {name}")
        if isinstance(rollout, InputError):
            return Answer(probe=probe, why_not=str(rollout))
        return Answer(probe=probe, rollout=rollout)

    def _card(self) -> dict[str, Any]:
        try:
            answer = httpx.get(f"{self.url}/v1/models", timeout=30.0, trust_env=False)
            cards = answer.raise_for_status().json()["data"]
            return cards[0] if isinstance(cards[0]["id"], str) else {}["id"]
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise InputError("is no address of an engine; write e.g. http://127.0.0.1:8000", where=self.url) from None
        except httpx.HTTPStatusError as error:
            hint = "; it wants an API key, which this command cannot send" if error.response.status_code == 401 else ""
            raise Unavailable(f"{self.url}/v1/models answered {error.response.status_code}{hint}: is that a vLLM engine?") from None
        except httpx.HTTPError as error:
            raise Unavailable(f"no engine answers at {self.url} ({type(error).__name__}): is `vllm serve` up, and are host and port right? "
                              f"Try `curl -i {self.url}/v1/models`") from None
        except (ValueError, LookupError, TypeError):
            raise Unavailable(f"{self.url}/v1/models does not list a model: is that a vLLM engine?") from None


def saved(rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    """The rollouts as public JSON objects, for `klaxon diagnose` and friends."""
    return [rollout_to_json(rollout) for rollout in rollouts]


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any] | str:
    try:
        try:
            answer = await client.post(path, json=body, headers=headers)
        except (httpx.NetworkError, httpx.RemoteProtocolError):  # a connection was reset; asking again changes nothing in the engine
            answer = await client.post(path, json=body, headers=headers)
    except httpx.HTTPError as error:
        return f"no answer ({type(error).__name__})"
    try:
        found = answer.json()
    except ValueError:
        return f"{answer.status_code}: its answer is no JSON"
    if answer.status_code == 200 and isinstance(found, dict):
        return found
    error = found.get("error", found) if isinstance(found, dict) else found
    text = error.get("message", error) if isinstance(error, dict) else error
    return f"{answer.status_code}: {str(text)[:200]}"
