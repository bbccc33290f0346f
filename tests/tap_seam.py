"""vLLM's own output processor with the tap in it, fed by hand: what no small engine does on a CPU. Prints what the caller got and
stays until its stdin ends.

    KLAXON_URL=… python tests/tap_seam.py MODEL
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from klaxon_tap import plugin

plugin.register()

from vllm.lora.request import LoRARequest  # noqa: E402
from vllm.sampling_params import RequestOutputKind, SamplingParams  # noqa: E402
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason  # noqa: E402
from vllm.v1.engine.core_client import DPLBAsyncMPClient  # noqa: E402
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector  # noqa: E402
from vllm.v1.outputs import LogprobsLists  # noqa: E402

PROMPT = [1, 300, 301]


def request(name: str, *, lora: str | None = None, pictures: Any = None, **sampling: Any) -> EngineCoreRequest:
    params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **{"logprobs": 1, "temperature": 0.7, "max_tokens": 8, **sampling})
    return EngineCoreRequest(
        request_id=f"{name}-internal", external_req_id=name, prompt_token_ids=PROMPT, mm_features=pictures, sampling_params=params,
        pooling_params=None, arrival_time=0.0, cache_salt=None, data_parallel_rank=None,
        lora_request=LoRARequest(lora, 1, "/adapters/one") if lora else None)


def step(name: str, tokens: list[int], reason: FinishReason | None = None) -> EngineCoreOutput:
    """One step of the engine: several tokens at once, as speculative decoding gives them."""
    rows = np.array([[token, 7] for token in tokens])
    values = np.array([[-0.5 - at, -0.25] for at in range(len(tokens))], dtype=np.float32)
    return EngineCoreOutput(request_id=f"{name}-internal", new_token_ids=list(tokens), finish_reason=reason,
                            new_logprobs=LogprobsLists(rows, values, np.full(len(tokens), 2)))


def ranks(requests: list[EngineCoreRequest]) -> None:
    """vLLM's own load balancer over two ranks, without the ranks."""
    client = DPLBAsyncMPClient.__new__(DPLBAsyncMPClient)
    client.reqs_in_flight, client.engine_inflight, client.lb_engines = {}, Counter(), [[0, 0, 0.0], [0, 0, 0.0]]
    client.core_engines, client.client_count, client.client_index, client.eng_start_index = [b"\x00\x00", b"\x01\x00"], 1, 0, 0
    for one in requests:
        client.get_core_engine_for_request(one)


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    processor = OutputProcessor(tokenizer, log_stats=False)
    got: dict[str, Any] = {}

    def feed(*outputs: EngineCoreOutput, **more: Any) -> None:
        for output in processor.process_outputs(list(outputs), **more).request_outputs:
            one = output.outputs[0]
            got[output.request_id] = {"token_ids": list(one.token_ids), "text": one.text, "finish_reason": one.finish_reason,
                                      "logprobs": [row[token].logprob for token, row in zip(one.token_ids, one.logprobs)] if one.logprobs else None}

    words = tokenizer.encode(" one two three four five")
    asked = [request("stopped", stop=[" three"]), request("adapter", lora="poet"), request("picture", pictures=[SimpleNamespace()]),
             request("aborted"), request("labelled")]
    for one in asked:  # only a request whose caller listens, as AsyncLLM's do, hears of its abort
        listener = RequestOutputCollector(RequestOutputKind.FINAL_ONLY, one.request_id) if one.external_req_id == "aborted" else None
        processor.add_request(one, prompt=None, queue=listener)
    ranks(asked)
    feed(step("stopped", words))
    feed(step("adapter", words[:2], FinishReason.LENGTH), step("picture", words[:2], FinishReason.LENGTH))
    feed(step("aborted", words[:3]))
    processor.abort_requests(["aborted"], internal=False)
    feed(step("labelled", words[:2]), weight_version="default")
    feed(step("labelled", words[2:], FinishReason.STOP), weight_version="41")
    assert plugin._active is not None
    print(json.dumps({"got": got, "words": words, "about": plugin._active._about()}), flush=True)
    sys.stdin.read()  # stay until all has been heard


if __name__ == "__main__":
    main()
