"""What a trainer would have recomputed for the recordings: fp32 transformers forward, fp32 head, T = 0.7.

`python klaxon/recordings/make_trainer_logprobs.py MODEL_DIR` writes trainer_logprobs.json beside the recordings:
{file: {request_id: [logprob, …]}}, nats. The replay sends them with each rollout, as a trainer's push would (tier 1).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from collector.sources.rollout_json import read_rollouts

HERE = Path(__file__).parent


@torch.inference_mode()
def main(model_dir: str) -> None:
    """Score every recording and write the file."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    found: dict[str, dict[str, list[float]]] = {}
    for path in sorted(HERE.glob("*.jsonl")):
        found[path.name] = {}
        for rollout in read_rollouts(path):
            ids = torch.tensor([[*rollout.prompt_tokens_P.tolist(), *rollout.completion_tokens_T.tolist()]])
            first = rollout.prompt_tokens_P.size - 1
            logits_T_V = model(ids).logits[0, first:-1].float() / rollout.sampling.temperature
            picked = logits_T_V.log_softmax(-1).gather(1, ids[0, first + 1:, None])[:, 0]
            found[path.name][rollout.request_id] = [round(value, 6) for value in picked.tolist()]
    (HERE / "trainer_logprobs.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
