"""A vLLM engine inside this very process, told what to do by lines of JSON on stdin; answers go to a file, a line each.

    python tests/tap_inprocess.py llm|async MODEL ANSWERS [RANKS]

`{"prompts": [[ids], …], "n": 1, …sampling}` generates, `{"reload": folder}` changes the weights in place, the end of stdin
ends the process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from pathlib import Path
from typing import Any

COMMON = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 8, "block_size": 32,
          "logprobs_mode": "processed_logprobs", "disable_log_stats": True}


def plain(request: Any) -> list[dict[str, Any]]:
    """What the caller got: one object a completion."""
    return [{"request_id": request.request_id, "prompt": list(request.prompt_token_ids), "token_ids": list(one.token_ids),
             "logprobs": [row[token].logprob for token, row in zip(one.token_ids, one.logprobs, strict=True)] if one.logprobs else None,
             "finish_reason": one.finish_reason, "text": one.text} for one in request.outputs]


def answer(file: Path, found: Any) -> None:
    """One more line, whole at once."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(found) + "\n")


def run_llm(model: str, file: Path) -> None:
    """`vllm.LLM`; VLLM_ENABLE_V1_MULTIPROCESSING says whether its core has a process of its own."""
    from vllm import LLM, SamplingParams

    llm = LLM(model, **COMMON)
    answer(file, "ready")
    for line in sys.stdin:
        asked = json.loads(line)
        if folder := asked.pop("reload", None):
            llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
            llm.reset_prefix_cache()
            answer(file, "reloaded")
            continue
        prompts = [{"prompt_token_ids": ids} for ids in asked.pop("prompts")]
        answer(file, [one for request in llm.generate(prompts, SamplingParams(**asked), use_tqdm=False) for one in plain(request)])


async def run_async(model: str, file: Path, ranks: int) -> None:
    """`AsyncLLM` with so many data-parallel ranks."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, data_parallel_size=ranks, **COMMON))

    async def one(ids: list[int], asked: dict[str, Any]) -> list[dict[str, Any]]:
        params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **asked)
        made = [out async for out in engine.generate({"prompt_token_ids": ids}, params, request_id=uuid.uuid4().hex)]
        return plain(made[-1])

    answer(file, "ready")
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            prompts = asked.pop("prompts")
            answer(file, [found for several in await asyncio.gather(*(one(ids, asked) for ids in prompts)) for found in several])
    finally:
        engine.shutdown()


if __name__ == "__main__":
    kind, folder, answers, *more = sys.argv[1:]
    if kind == "llm":
        run_llm(folder, Path(answers))
    else:
        asyncio.run(run_async(folder, Path(answers), int(more[0]) if more else 1))
