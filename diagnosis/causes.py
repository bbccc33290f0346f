"""What each cause means, how to mend it in the engine's own words, and the one command that confirms it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseText:
    """`fix` is what the operator changes, `next` one command a human can run to confirm."""

    meaning: str
    fix: str
    next: str


CAUSE_TEXTS = {
    "healthy": CauseText(
        meaning="the engine's logprobs mean what the trainer thinks they mean",
        fix="", next="klaxon status"),
    "raw_logprobs": CauseText(
        meaning="the engine reports logprobs before temperature, penalties and truncation; the trainer takes them for those after",
        fix="Restart the engine with --logprobs-mode processed_logprobs.",
        next="curl -s 'ENGINE_URL/server_info?config_format=json' | grep -o '\"logprobs_mode\": *\"[a-z_]*\"'"),
    "temperature": CauseText(
        meaning="the engine samples at another temperature than the trainer assumes",
        fix="Send the trainer's temperature with every request and start the engine with --generation-config vllm, "
            "so that the model's generation_config.json cannot fill it in.",
        next="grep temperature MODEL_DIR/generation_config.json"),
    "stale_weights": CauseText(
        meaning="the engine generates with older weights than its version label says",
        fix="Send the weights again and check that the update call succeeded before the label moves "
            "(/pause, /update_weights or reload_weights, /reset_prefix_cache, /update_weight_version, /resume).",
        next="curl -s ENGINE_URL/weight_info"),
    "stale_prefix_cache": CauseText(
        meaning="requests that hit the prefix cache read keys and values computed with older weights",
        fix="Reset the prefix cache with every weight update (POST /reset_prefix_cache), or start the engine with --no-enable-prefix-caching.",
        next="curl -X POST ENGINE_URL/reset_prefix_cache"),
    "engine_numerics": CauseText(
        meaning="zero-mean noise on every token above what the declared precision explains, with no sampler or weight explanation",
        fix="Compare one engine with --dtype float32 (or another attention backend, --enforce-eager) on the same prompts; upgrade the engine if that cures it.",
        next="klaxon diagnose FILE_FROM_THE_FLOAT32_ENGINE --model DIR --body-dtype float32"),
    "non_finite": CauseText(
        meaning="the engine reports logprobs that are NaN, infinite or missing for tokens it sampled",
        fix="Do not train on these requests; serialise weight updates with generation and look at the engine's log for overflow.",
        next="klaxon look FILE"),
    "prompt_mismatch": CauseText(
        meaning="the engine saw another prompt than the one recorded for the trainer (BOS, chat template, system prompt)",
        fix="Send token ids (`prompt` as a list of ids in /v1/completions) instead of text, or add_special_tokens=false for text that a chat template "
            "has already rendered; give engine and trainer the same --chat-template, and train on the engine's own prompt_token_ids (return_token_ids=true).",
        next="curl -s ENGINE_URL/tokenize -H 'Content-Type: application/json' -d '{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}'"),
    "corrupted_requests": CauseText(
        meaning="a few requests are wrong while the rest are at the floor",
        fix="Do not train on these requests. Try the engine with --no-enable-prefix-caching, --no-async-scheduling and --enforce-eager in turn, and upgrade it: "
            "answers mixed up between requests are a scheduler or state-slot fault.",
        next="klaxon score FILE --model DIR"),
    "position_dependent": CauseText(
        meaning="the two sides agree up to a position in the sequence and differ from there on",
        fix="Compare rope_scaling (YaRN factor, original_max_position_embeddings; --hf-overrides) of both sides, then try the engine with --kv-cache-dtype auto, "
            "another --block-size and --attention-backend, and --max-model-len below the position.",
        next="grep -E -A8 'rope_(scaling|parameters|theta)' MODEL_DIR/config.json"),
    "lora_not_applied": CauseText(
        meaning="the engine generates with the base model: the adapter is not applied",
        fix="Name the adapter in every request (`model`: its name under --enable-lora --lora-modules NAME=PATH, or after POST /v1/load_lora_adapter), and check that "
            "its module names match the engine's.",
        next="curl -s ENGINE_URL/v1/models"),
    "quantization": CauseText(
        meaning="the engine computes with quantised weights, inputs or KV cache, and the trainer does not",
        fix="Restart the engine without --quantization and with --kv-cache-dtype auto, with the trainer's weights; or declare the mismatch under [contract] and "
            "correct for it (truncated importance sampling).",
        next="curl -s 'ENGINE_URL/server_info?config_format=json' | grep -oE '\"(quantization|cache_dtype)\": *[^,]*'"),
    "head_precision": CauseText(
        meaning="the engine computes its output head in another precision than the trainer",
        fix="Give both sides one head: --hf-overrides '{\"head_dtype\": \"float32\"}' for the engine, or the engine's dtype for the trainer's head.",
        next="curl -s 'ENGINE_URL/server_info?config_format=json' | grep -o 'head_dtype[^,}]*'"),
    "policy_lag": CauseText(
        meaning="the weights changed in the middle of rollouts that are labelled with one version",
        fix="Pass the engine's weight_versions spans on with every rollout (--enable-scale-out, /inference/v1/generate), or let requests end before an update "
            "(/pause?mode=wait); declare [shadow] kv_on_update = \"keep\" where running requests keep their KV on purpose.",
        next="curl -s ENGINE_URL/weight_info"),
    "batch_variance": CauseText(
        meaning="the engine reports different logprobs for the same tokens: its numbers depend on what else is in its batch",
        fix="Start the engine with VLLM_BATCH_INVARIANT=1, or with --enforce-eager and one attention backend, where this noise matters more than speed.",
        next="curl -s 'ENGINE_URL/server_info?config_format=json' | grep -o 'VLLM_BATCH_INVARIANT[^,}]*'"),
    "routing": CauseText(
        meaning="single tokens are off while most are at the floor, in a model with experts: engine and trainer may route them to other experts",
        fix="Let the engine return its routes (--enable-return-routed-experts) and replay them in the trainer; run the router in float32 on both sides.",
        next="grep -E 'num_(local_)?experts|n_routed_experts' MODEL_DIR/config.json"),
    "unexplained": CauseText(
        meaning="the two sides differ and no explanation Klaxon can test predicts the engine's logprobs",
        fix="Check what Klaxon cannot test: attention backend, expert routing, adapters it was not told of, and the weights passed as --model.",
        next="klaxon diagnose FILE --model DIR --previous OLDER_DIR"),
    "truncation": CauseText(
        meaning="the engine truncates (top-p, top-k, min-p) otherwise than the trainer assumes",
        fix="Send the trainer's top_p, top_k and min_p with every request; start the engine with --generation-config vllm.",
        next="grep -E 'top_[pk]|min_p' MODEL_DIR/generation_config.json"),
    "penalties": CauseText(
        meaning="the engine applies penalties the trainer does not know of",
        fix="Send repetition_penalty=1.0 with every request; start the engine with --generation-config vllm.",
        next="grep penalty MODEL_DIR/generation_config.json"),
}
"""Cause → text, for every cause a verdict of this version can name."""
