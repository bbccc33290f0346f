"""What each engine answers, read as rollouts. "Documented layout" says where a layout is written down; "live" was really run."""

import gzip
import json
import math
import zlib
from pathlib import Path

import pytest

from collector.errors import ConfigError
from collector.sources.proxy import body, dialects
from collector.sources.proxy.exchange import Exchange
from collector.sources.rollout_json import parse_rollout

LIVE = Path(__file__).parent / "fixtures" / "proxy"
PROMPT = [504, 3575, 282, 4649, 314]


def read(path, asked, answer, *, whole=True, tokenizer=None, headers=None, only="auto"):
    """(rollouts, counts) of one answer: a JSON value, a list of events, or bytes."""
    if isinstance(answer, bytes):
        documents, streamed = body.documents(answer, "")
    else:
        documents, streamed = (answer, True) if isinstance(answer, list) else ([answer], False)
    exchange = Exchange(asked=asked, documents=documents, streamed=streamed, whole=whole, headers=headers or {})
    found = dialects.read(dialects.choose(path, asked, only=only), exchange, fallback_id="p-1", tokenizer=tokenizer)
    for rollout in found.rollouts:
        parse_rollout(rollout, where="proxy")  # what the proxy sends is what the daemon reads
    return found.rollouts, dict(found.counts)


def events(*documents):
    return list(documents)


# ---- OpenAI routes -----------------------------------------------------------------------------------------------

# documented layout: vllm 0.32 entrypoints/openai/completion/protocol.py (CompletionResponse), return_token_ids
VLLM_COMPLETION = {"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": [
    {"index": 0, "text": " a b", "prompt_token_ids": [1, 2], "token_ids": [3, 4], "finish_reason": "stop",
     "logprobs": {"text_offset": [0, 2], "token_logprobs": [-0.5, -9999.0], "tokens": [" a", " b"],
                  "top_logprobs": [{" a": -0.5}, None]}},
    {"index": 1, "text": " c", "prompt_token_ids": [1, 2], "token_ids": [5], "finish_reason": "length",
     "logprobs": {"text_offset": [0], "token_logprobs": [-0.1], "tokens": [" c"], "top_logprobs": [{" c": -0.1}]}}],
    "usage": {"prompt_tokens": 2, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}}


def test_vllm_completions_give_one_rollout_a_choice():
    (first, second), counts = read("/v1/completions", {"prompt": "x", "n": 2, "temperature": 0.7, "top_k": 5}, VLLM_COMPLETION)
    assert counts == {"rollouts": 2}
    assert (first["request_id"], second["request_id"]) == ("cmpl-1-0", "cmpl-1-1")
    assert first["token_ids"] == [3, 4] and first["prompt_token_ids"] == [1, 2] and second["token_ids"] == [5]
    assert first["logprobs"] == [-0.5, None]  # −9999 is vLLM's −inf
    assert first["engine_sampling"] == {"temperature": 0.7, "top_k": 5} and "sampling" not in first
    assert "labels" not in first and "logprobs_mode" not in first and "top_logprobs" not in first


def test_vllm_tokens_named_by_id_are_ids():
    # documented layout: vllm 0.32, return_tokens_as_token_ids ("token_id:N")
    answer = {"id": "c", "choices": [{"index": 0, "finish_reason": "stop", "logprobs": {
        "tokens": ["token_id:3", "token_id:4"], "token_logprobs": [-0.5, -1.5],
        "top_logprobs": [{"token_id:3": -0.5, "token_id:8": -0.25}, {"token_id:4": -1.5}]}}]}
    (rollout,), _ = read("/v1/completions", {"prompt": [9, 8]}, answer)
    assert rollout["token_ids"] == [3, 4] and rollout["prompt_token_ids"] == [9, 8]
    assert rollout["top_logprobs"] == [[[8, -0.25], [3, -0.5]], [[4, -1.5]]]


def test_vllm_streamed_chat_is_put_together():
    # documented layout: vllm 0.32 entrypoints/openai/chat_completion/protocol.py (ChatCompletionStreamResponse)
    def piece(token, finish=None):
        return {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": "x"}, "token_ids": [token],
                "logprobs": {"content": [{"token": "x", "logprob": -0.1 * token, "bytes": [120], "top_logprobs": []}]},
                "finish_reason": finish}]}
    first = {"id": "chatcmpl-1", "prompt_token_ids": [7, 7], "choices": [{"index": 0, "delta": {"role": "assistant"}}]}
    usage = {"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 2, "prompt_tokens_details": {"cached_tokens": 2}}}
    (rollout,), _ = read("/v1/chat/completions", {"messages": [], "stream": True},
                         events(first, piece(1), piece(2), piece(3, "stop"), usage))
    assert rollout["token_ids"] == [1, 2, 3] and rollout["prompt_token_ids"] == [7, 7]
    assert rollout["logprobs"] == pytest.approx([-0.1, -0.2, -0.3]) and rollout["cached_prompt_tokens"] == 2


def test_sglang_chat_tells_ids_and_weight_version():
    # documented layout: sglang 0.5.23 srt/entrypoints/openai/protocol.py (ChatCompletionResponse, SglExt), serving_chat.py
    choice = {"index": 0, "message": {"role": "assistant", "content": "ab"}, "finish_reason": "stop", "matched_stop": None,
              "logprobs": {"content": [{"token": "a", "logprob": -0.2, "bytes": [97], "top_logprobs": []},
                                       {"token": "b", "logprob": -0.3, "bytes": [98], "top_logprobs": []}]}}
    document = {"id": "s1", "choices": [{**choice, "prompt_token_ids": [1], "response_token_ids": [5, 6]}],
                "usage": {"prompt_tokens": 1}, "metadata": {"weight_version": "12"}}
    (rollout,), _ = read("/v1/chat/completions", {"messages": []}, document)
    assert rollout["token_ids"] == [5, 6] and rollout["weight_versions"] == [[0, 2, "12"]]
    extended = {**document, "choices": [choice], "sglext": {"input_ids": [1, 2], "output_ids": [[5, 6]]},
                "metadata": {"weight_version": "default"}}
    (rollout,), _ = read("/v1/chat/completions", {"messages": []}, extended)
    assert rollout["prompt_token_ids"] == [1, 2] and rollout["token_ids"] == [5, 6] and "weight_versions" not in rollout


def test_tensorrt_llm_completions_tell_prompts_in_a_list_of_lists():
    # documented layout: TensorRT-LLM tensorrt_llm/serve/openai_protocol.py (CompletionResponse), pull request 5382
    def choice(index, token):
        return {"index": index, "text": "", "token_ids": [token], "finish_reason": "length", "stop_reason": None,
                "logprobs": {"text_offset": [0], "token_logprobs": [-1.0], "tokens": [""], "top_logprobs": [None]}}
    answer = {"id": "cmpl-t", "choices": [choice(0, 14), choice(1, 15)], "usage": {"prompt_tokens": 3},
              "prompt_token_ids": [[0, 33310], [7]]}
    (first, second), _ = read("/v1/completions", {"prompt": ["hello", "x"], "detokenize": False, "logprobs": 0}, answer)
    assert first["prompt_token_ids"] == [0, 33310] and second["prompt_token_ids"] == [7]
    assert (first["token_ids"], second["token_ids"]) == ([14], [15])


@pytest.mark.parametrize("entry", [
    {"token": " Paris", "logprob": -0.3, "bytes": None, "top_logprobs": []},  # documented layout: mlc-llm python/mlc_llm/protocol/openai_api_protocol.py
    {"token": " Paris", "logprob": -0.3, "top_logprobs": [{"token": " Paris", "logprob": -0.3}]},  # documented layout: TGI router/src/lib.rs
])
def test_mlc_and_tgi_chats_tell_no_ids_and_cannot_be_used(entry):
    answer = {"id": "", "choices": [{"index": 0, "message": {"content": " Paris"}, "logprobs": {"content": [entry]},
                                     "finish_reason": "stop"}], "usage": {"prompt_tokens": 9}}
    assert read("/v1/chat/completions", {"messages": []}, answer) == ([], {"unusable_no_token_ids": 1})


def test_llama_cpp_v1_completions_live():
    (rollout,), counts = read("/v1/completions", {"prompt": PROMPT, "logprobs": 1}, (LIVE / "llamacpp_v1_completions.json").read_bytes())
    assert counts == {"rollouts": 1} and rollout["token_ids"] == [260, 3575, 282] and rollout["prompt_token_ids"] == PROMPT
    assert rollout["logprobs"][0] == -2.6702301502227783 and rollout["top_logprobs"][0] == [[7042, -0.2705480754375458]]
    assert rollout["logprobs_mode"] == "raw_logprobs" and rollout["finish_reason"] == "length"


def test_llama_cpp_chat_stream_live_lacks_only_the_prompt():
    asked = {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True, "stream": True}
    answer = (LIVE / "llamacpp_v1_chat_stream.txt").read_bytes()
    assert read("/v1/chat/completions", asked, answer) == ([], {"unusable_no_prompt_ids": 1})


# ---- engines' own routes -----------------------------------------------------------------------------------------

def sglang_event(rows, total, finish=None, **meta):
    # documented layout: sglang 0.5.23 srt/managers/tokenizer_manager.py (meta_info), srt/utils/weight_versions.py
    return {"text": "…", "output_ids": [row[1] for row in rows], "meta_info": {
        "id": "r1", "finish_reason": finish, "prompt_tokens": 2, "completion_tokens": total, "cached_tokens": 1,
        "weight_version": "default", "output_token_logprobs": rows, **meta}}


ROWS = [[-0.1, 11, None], [-0.2, 12, None], [-0.3, 13, None]]
END = {"type": "length", "length": 3}


def test_sglang_generate_is_read_with_its_spans_and_top_logprobs():
    meta = {"weight_version": "7", "weight_versions": [{"version": "6", "start": 0, "end": 1}, {"version": "7", "start": 1, "end": 3}],
            "output_top_logprobs": [[[-0.1, 11, None], [-2.5, 4, None]], None, [[-0.3, 13, None]]], "dp_rank": 1}
    asked = {"input_ids": [1, 2], "sampling_params": {"temperature": 0.6, "max_new_tokens": 3}, "return_logprob": True}
    (rollout,), _ = read("/generate", asked, sglang_event(ROWS, 3, END, **meta))
    assert rollout["token_ids"] == [11, 12, 13] and rollout["logprobs"] == [-0.1, -0.2, -0.3]
    assert rollout["weight_versions"] == [[0, 1, "6"], [1, 3, "7"]] and rollout["dp_rank"] == 1
    assert rollout["top_logprobs"] == [[[11, -0.1], [4, -2.5]], None, [[13, -0.3]]]
    assert rollout["engine_sampling"] == {"temperature": 0.6} and rollout["cached_prompt_tokens"] == 1
    assert rollout["finish_reason"] == "length" and rollout["request_id"] == "r1"


def test_sglang_streams_are_read_whether_cumulative_or_incremental():
    cumulative = events(sglang_event(ROWS[:1], 1), sglang_event(ROWS[:2], 2), sglang_event(ROWS, 3, END))
    incremental = events(sglang_event(ROWS[:2], 2), sglang_event(ROWS[2:], 3), sglang_event([], 3, END))
    for stream in (cumulative, incremental):
        (rollout,), _ = read("/generate", {"input_ids": [1, 2], "stream": True}, stream)
        assert rollout["token_ids"] == [11, 12, 13]
    lost = events(sglang_event(ROWS[:1], 1), sglang_event(ROWS[2:], 3, END))
    assert read("/generate", {"input_ids": [1, 2], "stream": True}, lost) == ([], {"unusable_length_mismatch": 1})


def test_sglang_prompt_ids_come_from_the_answer_or_from_input_logprobs_or_from_the_request():
    told = {**sglang_event(ROWS, 3, END), "prompt_token_ids": [8, 9]}
    assert read("/generate", {"text": "x"}, told)[0][0]["prompt_token_ids"] == [8, 9]
    scored = sglang_event(ROWS, 3, END, input_token_logprobs=[[None, 5, None], [-1.0, 6, None]])
    assert read("/generate", {"text": "x", "logprob_start_len": 0}, scored)[0][0]["prompt_token_ids"] == [5, 6]
    part = sglang_event(ROWS, 3, END, input_token_logprobs=[[-1.0, 6, None]])
    assert read("/generate", {"text": "x"}, part)[1] == {"unusable_no_prompt_ids": 1}
    assert read("/generate", {"input_ids": [1, 2, 3]}, sglang_event(ROWS, 3, END))[1] == {"unusable_no_prompt_ids": 1}


def test_sglang_batches_with_several_samples_keep_each_with_its_prompt():
    asked = {"input_ids": [[1, 2], [3, 4]], "sampling_params": {"n": 2}}
    answer = json.dumps([sglang_event(ROWS, 3, END)] * 4).encode()
    rollouts, _ = read("/generate", asked, answer)
    assert [rollout["prompt_token_ids"] for rollout in rollouts] == [[1, 2], [1, 2], [3, 4], [3, 4]]


def test_an_aborted_generation_is_counted_and_not_reported():
    assert read("/generate", {"input_ids": [1, 2]}, sglang_event(ROWS, 3, {"type": "abort"})) == ([], {"aborted": 1})
    assert read("/generate", {"input_ids": [1, 2]}, events(sglang_event(ROWS[:1], 1)), whole=False) == ([], {"aborted": 1})
    assert read("/generate", {"input_ids": [1, 2]}, events(), whole=False) == ([], {"aborted": 1})


def test_a_choice_that_had_finished_before_the_break_still_counts():
    stream = events({"id": "c", "choices": [{"index": 0, "token_ids": [3], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "stop"}]},
                    {"id": "c", "choices": [{"index": 1, "token_ids": [4], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": None}]})
    rollouts, counts = read("/v1/completions", {"prompt": [1], "n": 2}, stream, whole=False)
    assert counts == {"rollouts": 1, "aborted": 1} and rollouts[0]["request_id"] == "c-0"


# documented layout: TGI router/src/lib.rs (GenerateResponse, Details, BestOfSequence, StreamResponse); text-generation 0.7.0 types.py
TGI_TOKENS = [{"id": 5, "text": " a", "logprob": -0.4, "special": False}, {"id": 2, "text": "</s>", "logprob": -0.01, "special": True}]
TGI_DETAILS = {"finish_reason": "eos_token", "generated_tokens": 2, "seed": 1, "tokens": TGI_TOKENS,
               "prefill": [{"id": 1, "text": "<s>", "logprob": None}, {"id": 7, "text": "x", "logprob": -3.0}],
               "top_tokens": [[{"id": 9, "text": " b", "logprob": -0.3, "special": False}], []]}


def test_tgi_generate_reports_every_sequence_of_best_of():
    asked = {"inputs": "x", "parameters": {"details": True, "decoder_input_details": True, "temperature": 0.5, "best_of": 2}}
    details = {**TGI_DETAILS, "best_of_sequences": [{**TGI_DETAILS, "tokens": TGI_TOKENS[:1], "finish_reason": "length"}]}
    (first, second), _ = read("/generate", asked, {"generated_text": "a", "details": details})
    assert first["token_ids"] == [5, 2] and first["logprobs"] == [-0.4, -0.01] and first["prompt_token_ids"] == [1, 7]
    assert first["top_logprobs"] == [[[9, -0.3]], None] and first["engine_sampling"] == {"temperature": 0.5}
    assert second["token_ids"] == [5] and (first["request_id"], second["request_id"]) == ("p-1", "p-1-1")
    (compat,), _ = read("/", asked, json.dumps([{"generated_text": "a", "details": TGI_DETAILS}]).encode())
    assert compat["token_ids"] == [5, 2]


def test_tgi_streams_tell_tokens_but_never_the_prompt():
    stream = [{"index": at + 1, "token": token, "generated_text": None, "details": None} for at, token in enumerate(TGI_TOKENS)]
    stream[-1] |= {"generated_text": "a", "details": {"finish_reason": "eos_token", "generated_tokens": 2, "input_length": 2}}
    assert read("/generate_stream", {"inputs": "x"}, stream) == ([], {"unusable_no_prompt_ids": 1})


def test_tgi_without_details_is_counted():
    assert read("/generate", {"inputs": "x"}, {"generated_text": "a"}) == ([], {"unusable_no_logprobs": 1})


def test_llama_cpp_completion_live():
    (rollout,), _ = read("/completion", {"prompt": PROMPT, "temperature": 0.7}, (LIVE / "llamacpp_completion.json").read_bytes())
    assert rollout["token_ids"] == [260, 3575, 282, 260] and rollout["prompt_token_ids"] == PROMPT
    assert rollout["logprobs"][0] == -2.6702301502227783 and rollout["logprobs_mode"] == "raw_logprobs"
    assert rollout["engine_sampling"]["top_k"] == 40  # what it resolved, not only what was asked
    assert rollout["cached_prompt_tokens"] == 0 and rollout["finish_reason"] == "limit"


def test_llama_cpp_stream_live():
    (rollout,), _ = read("/completion", {"prompt": PROMPT, "stream": True}, (LIVE / "llamacpp_completion_stream.txt").read_bytes())
    assert rollout["token_ids"] == [260, 3575, 282] and rollout["cached_prompt_tokens"] == 4


def test_llama_cpp_probabilities_after_the_samplers_live():
    (rollout,), _ = read("/completion", {"prompt": PROMPT}, (LIVE / "llamacpp_completion_post_sampling.json").read_bytes())
    first = json.loads((LIVE / "llamacpp_completion_post_sampling.json").read_bytes())["completion_probabilities"][0]
    assert rollout["logprobs"][0] == pytest.approx(math.log(first["prob"])) and rollout["logprobs_mode"] == "processed_logprobs"
    assert [token_id for token_id, _ in rollout["top_logprobs"][0]] == [top["id"] for top in first["top_probs"]]


def test_llama_cpp_prompt_as_text_is_unknown():
    answer = (LIVE / "llamacpp_completion.json").read_bytes()
    assert read("/completion", {"prompt": "The capital of France is"}, answer) == ([], {"unusable_no_prompt_ids": 1})
    assert read("/completion", {"prompt": PROMPT[1:]}, answer) == ([], {"unusable_no_prompt_ids": 1})  # the engine counted 5


def test_vllm_generate_is_read_with_its_weight_spans():
    # documented layout: vllm 0.32 entrypoints/scale_out/token_in_token_out/protocol.py
    answer = {"request_id": "g", "choices": [{"index": 0, "token_ids": [3, 4], "finish_reason": "length",
              "logprobs": {"content": [{"token_id": 3, "logprob": -0.1}, {"token_id": 4, "logprob": -0.2}]},
              "weight_versions": [{"version": "default", "start": 0, "end": 1}, {"version": "7", "start": 1, "end": 2}]}]}
    (rollout,), _ = read("/inference/v1/generate", {"token_ids": [1, 2], "sampling_params": {"temperature": 0.5}}, answer)
    assert rollout["prompt_token_ids"] == [1, 2] and rollout["weight_versions"] == [[1, 2, "7"]]


# ---- what cannot be used, and why --------------------------------------------------------------------------------

@pytest.mark.parametrize(("asked", "change", "reason"), [
    ({"prompt": [1, 2]}, {"logprobs": None}, "no_logprobs"),
    ({"prompt": [1, 2]}, {"token_ids": [3]}, "length_mismatch"),
    ({"prompt": [1, 2], "echo": True}, {}, "echo"),
    ({"prompt": [1, 2], "best_of": 4}, {}, "not_sampled"),
    ({"prompt": [1, 2], "use_beam_search": True}, {}, "not_sampled"),
    ({"prompt": [1, 2]}, {"token_ids": None}, "no_token_ids"),
    ({"prompt": "x"}, {"prompt_token_ids": None}, "no_prompt_ids"),
    ({"prompt": [1, 2, 3]}, {"prompt_token_ids": None}, "no_prompt_ids"),  # the engine counted two: it truncated
])
def test_each_reason_is_counted_by_name(asked, change, reason):
    answer = {**VLLM_COMPLETION, "choices": [{**VLLM_COMPLETION["choices"][0], **change}]}
    assert read("/v1/completions", asked, answer) == ([], {f"unusable_{reason}": 1})
    assert reason in dialects.UNUSABLE


def test_a_whole_answer_without_generations_is_unreadable():
    assert read("/v1/completions", {"prompt": "x"}, {"hello": 1}) == ([], {"unusable_unreadable": 1})


def test_generate_belongs_to_sglang_or_tgi_by_its_request_unless_the_operator_says():
    assert dialects.choose("/generate", {"inputs": "x"}) == "tgi"
    assert dialects.choose("/generate", {"text": "x"}) == dialects.choose("/generate", {"input_ids": [1]}) == "sglang"
    assert dialects.choose("/generate", {"inputs": "x"}, only="sglang") is None
    assert dialects.choose("/v1/completions", {}, only="sglang") == "openai"
    assert dialects.choose("/v1/embeddings", {}) is None and not dialects.watched("/v1/models")


def test_the_command_offers_every_dialect():
    from klaxon.commands.proxy import DialectName

    assert set(DialectName) == {"auto", *dialects.DIALECTS}


# ---- token texts back to ids -------------------------------------------------------------------------------------

@pytest.fixture
def tokenizer(tmp_path):
    """A byte-level BPE of a few tokens, with a beginning-of-sequence token; two tokens spell " dup"."""
    tokenizers = pytest.importorskip("tokenizers")
    from collector.sources.proxy.retokenise import TokenizerIds

    vocab = {letter: at for at, letter in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {"Ġa": 256, "ab": 257, "Ġdup": 258}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[("Ġ", "a"), ("a", "b")]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<s>"])
    made.add_tokens([" dup"])
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    (tmp_path / "tokenizer.json").write_text(made.to_str())
    return TokenizerIds(tmp_path)


def test_token_texts_are_mapped_to_ids_where_that_is_exact(tokenizer):
    content = [{"token": " a", "logprob": -0.5, "bytes": [32, 97], "top_logprobs": [{"token": "ab", "logprob": -1.0}]},
               {"token": "ab", "logprob": -0.6, "top_logprobs": []}]
    answer = {"id": "m", "choices": [{"index": 0, "logprobs": {"content": content}, "finish_reason": "stop"}],
              "usage": {"prompt_tokens": 3}}
    (rollout,), _ = read("/v1/completions", {"prompt": "ab a"}, answer, tokenizer=tokenizer)
    assert rollout["token_ids"] == [256, 257] and rollout["labels"] == {"ids": "retokenised"}
    assert rollout["prompt_token_ids"] == [tokenizer._tokenizer.token_to_id("<s>"), 257, 256]  # three: with <s>
    assert rollout["top_logprobs"] == [[[257, -1.0]], None]
    for lost in ("\ufffd", "never a token", "", " dup"):
        broken = {**answer, "choices": [{**answer["choices"][0], "logprobs": {"content": [{**content[1], "token": lost}]}}]}
        assert read("/v1/completions", {"prompt": "ab a"}, broken, tokenizer=tokenizer)[1] == {"unusable_no_token_ids": 1}


def test_a_prompt_whose_length_the_engine_counts_otherwise_stays_unknown(tokenizer):
    assert tokenizer.of_prompt("ab", 1) == [257] and len(tokenizer.of_prompt("ab", 2)) == 2
    assert tokenizer.of_prompt("ab", 3) is None


def test_a_tgi_prompt_is_mapped_by_the_count_in_the_answer(tokenizer):
    # documented layout: TGI router/src/server.rs (header x-prompt-tokens; input_length in a stream's last event)
    stream = [{"index": 1, "token": TGI_TOKENS[0], "details": {"finish_reason": "length", "generated_tokens": 1, "input_length": 2}}]
    plain = {"generated_text": "a", "details": {**TGI_DETAILS, "prefill": []}}
    for answer, headers in ((stream, {}), (plain, {"x-prompt-tokens": "2"})):
        (rollout,), _ = read("/generate", {"inputs": "ab"}, answer, tokenizer=tokenizer, headers=headers)
        assert rollout["prompt_token_ids"][1:] == [257] and rollout["labels"] == {"ids": "retokenised"}
    assert read("/generate", {"inputs": "ab"}, plain, tokenizer=tokenizer)[1] == {"unusable_no_prompt_ids": 1}


def test_a_chat_prompt_is_never_guessed(tokenizer):
    answer = {"id": "m", "choices": [{"index": 0, "logprobs": {"content": [{"token": "ab", "logprob": -0.6}]}, "finish_reason": "stop"}],
              "usage": {"prompt_tokens": 2}}
    asked = {"messages": [{"role": "user", "content": "ab"}]}
    assert read("/v1/chat/completions", asked, answer, tokenizer=tokenizer)[1] == {"unusable_no_prompt_ids": 1}


def test_ids_the_engine_told_are_not_labelled(tokenizer):
    (rollout,), _ = read("/v1/completions", {"prompt": "x"}, {**VLLM_COMPLETION, "choices": VLLM_COMPLETION["choices"][:1]}, tokenizer=tokenizer)
    assert "labels" not in rollout


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), ("{}", "no tokenizer file"),
                                               ("metaspace", "not a byte-level tokenizer")])
def test_a_tokenizer_that_cannot_map_exactly_is_refused_in_words(tmp_path, content, said):
    tokenizers = pytest.importorskip("tokenizers")
    from collector.sources.proxy.retokenise import TokenizerIds

    if content == "metaspace":
        made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
        made.decoder = tokenizers.decoders.Metaspace()
        content = made.to_str()
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=said):
        TokenizerIds(tmp_path)


# ---- bodies ------------------------------------------------------------------------------------------------------

def test_events_are_read_as_the_standard_writes_them():
    stream = b': ping\r\n\r\ndata: {"a":\r\ndata: 1}\r\nid: 7\r\n\r\ndata:{"b": 2}\n\ndata: [DONE]\n\ndata: {"c": 3'
    assert body.documents(stream, "text/event-stream; charset=utf-8") == ([{"a": 1}, {"b": 2}], True)


def test_compressed_bodies_are_read_and_bombs_are_not(monkeypatch):
    for packed, name in ((gzip.compress(b'{"a": 1}'), "gzip"), (zlib.compress(b'{"a": 1}'), "deflate"),
                         (zlib.compress(b'{"a": 1}')[2:-4], "deflate"), (b'{"a": 1}', "")):
        assert body.plain([packed[:5], packed[5:]], name) == b'{"a": 1}', name
    assert body.plain([b"x"], "br") is None
    monkeypatch.setattr(body, "MAX_PLAIN_BYTES", 1000)
    assert body.plain([gzip.compress(b"0" * 100_000)], "gzip") is None
