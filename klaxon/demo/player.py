"""Play the bundled recordings of real engines into a daemon, in their order in the migration story.

Real numbers, another clock: each rollout is re-stamped with the time it is sent; nothing else is changed. The trainer's
side is what a trainer recomputed for the same tokens (recordings/make_trainer_logprobs.py), so the replay is tier 1.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from collector.errors import Unavailable

RECORDINGS = Path(__file__).parent.parent / "recordings"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One recorded engine. times: how often its recording is played; being sure of a recovery takes more than 32 rollouts."""

    name: str
    file: str
    version: str
    logprobs_mode: str
    times: int = 1


PHASES = (
    Phase(name="V0 (vLLM 0.8.5)", file="v085_t07.jsonl", version="0.8.5", logprobs_mode="processed_logprobs"),
    Phase(name="V1 as upgraded (vLLM 0.18.1, default logprobs mode)", file="v0181_raw_t07.jsonl", version="0.18.1",
          logprobs_mode="raw_logprobs"),
    Phase(name="V1 as fixed (vLLM 0.18.1, processed_logprobs)", file="v0181_processed_t07.jsonl", version="0.18.1",
          logprobs_mode="processed_logprobs", times=2),
)


def recorded(phase: Phase) -> list[dict[str, Any]]:
    """The rollouts of one phase, with the trainer's logprobs joined by request id; a second playing has ids of its own."""
    trainer = json.loads((RECORDINGS / "trainer_logprobs.json").read_text(encoding="utf-8"))[phase.file]
    rows = [json.loads(line) for line in (RECORDINGS / phase.file).read_text(encoding="utf-8").splitlines()]
    return [{**row, "kind": "rollout", "engine": "recorded engine", "trainer_logprobs": trainer[row["request_id"]],
             "request_id": f"{phase.version}-{phase.logprobs_mode}-{row['request_id']}" + f"-{number}" * (number > 0)}
            for number in range(phase.times) for row in rows]


def play(url: str, *, seconds_a_recording: float, say: Callable[[Phase, int, int], None],
         stopping: Callable[[], bool]) -> Iterator[tuple[Phase, float]]:
    """Send every phase at an even pace; yields (phase, when it began) as each begins.

    Raises:
        Unavailable: the daemon does not take the rollouts.
    """
    with httpx.Client(base_url=url, timeout=10.0, trust_env=False) as client:
        for number, phase in enumerate(PHASES):
            rows = recorded(phase)
            yield phase, time.time()
            _send(client, [_heartbeat(phase, number)])
            for index, row in enumerate(rows):
                if stopping():
                    return
                _send(client, [{**row, "finished_at": time.time()}])
                if index % 8 == 0:
                    _send(client, [_heartbeat(phase, number)])
                say(phase, index + 1, len(rows))
                time.sleep(seconds_a_recording * phase.times / len(rows))


def _heartbeat(phase: Phase, number: int) -> dict[str, Any]:
    return {"kind": "heartbeat", "source": "replay", "engine": "recorded engine", "pid": 1000 + number, "at": time.time(),
            "sent": 0, "dropped": 0, "errors": 0, "vllm_version": phase.version,
            "config": {"logprobs_mode": phase.logprobs_mode, "vllm": phase.version}}


def _send(client: httpx.Client, messages: list[dict[str, Any]]) -> None:
    body = "\n".join(json.dumps(message) for message in messages).encode()
    try:
        answer = client.post("/v1/ingest", content=body, headers={"Content-Type": "application/x-ndjson"})
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise Unavailable(f"the daemon does not take the recording ({type(error).__name__}: {error})") from None
    if refused := answer.json()["refused"]:
        raise Unavailable(f"the daemon refused a recorded line: {refused[0]['reason']}")
