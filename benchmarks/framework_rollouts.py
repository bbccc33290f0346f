"""Recorded rollouts of a real engine, written the way three frameworks write theirs. For benchmarks/first_verdict.py and its tests.

The tokens, the engine's and the trainer's logprobs are real (klaxon/recordings); the frameworks did not run.
Standard library and klaxon_tap only: it runs in the environment of whoever plays the trainer.
`python framework_rollouts.py verl RECORDINGS NAME` plays verl's side: KLAXON_URL names the daemon.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HEALTHY, RAW = "v0181_processed_t07.jsonl", "v0181_raw_t07.jsonl"
GROUP = 8


def rows(recordings: Path, name: str = HEALTHY) -> list[dict[str, Any]]:
    """Recorded rollouts with the trainer's logprobs of the same tokens."""
    trainer = json.loads((recordings / "trainer_logprobs.json").read_text(encoding="utf-8"))[name]
    found = [json.loads(line) for line in (recordings / name).read_text(encoding="utf-8").splitlines()]
    return [{**row, "trainer_logprobs": trainer[row["request_id"]]} for row in found]


def write_pipelinerl(exp: Path, rollouts: list[dict[str, Any]], *, again: int = 0) -> Path:
    """Append groups to the actor stream, a line a group, flushed a line; returns the stream's path."""
    path = exp / "streams/actor/0/0/0.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        for start in range(0, len(rollouts), GROUP):
            group = [{"text": "…", "n_predicted": len(row["token_ids"]), "reward": 1.0, "logprobs": row["logprobs"], "ref_logprobs": [],
                      "input_ids": row["prompt_token_ids"] + row["token_ids"], "labels": [-100] * len(row["prompt_token_ids"]) + row["token_ids"],
                      "group_id": f"train {again}_{start}", "finished": True, "prompt_tokens": len(row["prompt_token_ids"]),
                      "output_tokens": len(row["token_ids"]), "visual_features": None,
                      "metadata": {"model_version": 0, "rollout_index": index, "step_index": 0}}
                     for index, row in enumerate(rollouts[start:start + GROUP])]
            stream.write(json.dumps(group) + "\n")
            stream.flush()
    return path


def write_nemo_rl(logs: Path, rollouts: list[dict[str, Any]], *, step: int) -> Path:
    """One step's train_data file: padded columns, both sides per token."""
    logs.mkdir(parents=True, exist_ok=True)
    longest = max(len(row["prompt_token_ids"]) + len(row["token_ids"]) for row in rollouts)

    def column(row: dict[str, Any], values: list[float], fill: float) -> list[float]:
        before = [fill] * len(row["prompt_token_ids"])
        return (before + values + [fill] * longest)[:longest]

    path = logs / f"train_data_step{step}.jsonl"
    lines = [json.dumps({
        "idx": index, "input_lengths": len(row["prompt_token_ids"]) + len(row["token_ids"]),
        "token_ids": (row["prompt_token_ids"] + row["token_ids"] + [0] * longest)[:longest], "token_loss_mask": column(row, [1] * len(row["token_ids"]), 0),
        "sample_loss_mask": 1.0, "advantages": column(row, [0.5] * len(row["token_ids"]), 0.0), "rewards": 1.0,
        "generation_logprobs": column(row, row["logprobs"], 0.0), "prev_logprobs": column(row, row["trainer_logprobs"], 0.0)})
        for index, row in enumerate(rollouts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def play_verl(rollouts: list[dict[str, Any]], *, name: str = "verl-engine", again: int = 0) -> None:
    """What the tap in verl's engine and one push a rollout in its trainer send, by klaxon_tap itself; KLAXON_URL names the daemon."""
    import klaxon_tap
    from klaxon_tap.sender import Sender

    config = {"logprobs_mode": "processed_logprobs", "dtype": "bfloat16"}
    tap = Sender(os.environ["KLAXON_URL"], token=None, source="plugin", about=lambda: {"engine": name, "vllm_version": "0.18.1", "config": config})
    for row in rollouts:
        ids = {"prompt_token_ids": row["prompt_token_ids"], "token_ids": row["token_ids"]}
        tap.put({"kind": "rollout", "schema": 1, "engine": name, "request_id": f"{again}-{row['request_id']}", "finished_at": time.time(), **ids,
                 "logprobs": row["logprobs"], "top_logprobs": row["top_logprobs"], "finish_reason": row["finish_reason"], "engine_sampling": row["sampling"]})
        klaxon_tap.push_logprobs(row["trainer_logprobs"], request_id=f"{again}-{row['request_id']}", loss_mask=[1] * len(row["token_ids"]), version=again, **ids)
    tap.close(10.0)


if __name__ == "__main__":
    play_verl(rows(Path(sys.argv[2]), *sys.argv[3:4]), again=int(sys.argv[4]) if len(sys.argv) > 4 else 0)
