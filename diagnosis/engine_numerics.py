"""Checks of what shapes the engine's numbers: kernels, dtypes, parallelism, drafts. Numbers in brackets are issues of vLLM and of trainers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectors.hardfacts import dtype_name
from diagnosis.engine_told import DEV_MODE, Assumed, Check, Told, said, untold

TIGHT_NATS = 1e-3
"""A healthy bf16 pair has mean |d| of .01 to .03 nats, float32 on both sides .002: a contract below this needs batch invariance."""

GRAPH_MODES = {"0": "NONE", "1": "PIECEWISE", "2": "FULL", "[2, 0]": "FULL_DECODE_ONLY", "[2, 1]": "FULL_AND_PIECEWISE"}
"""cudagraph_mode as /server_info writes it → its name (vllm/config/compilation.py, CUDAGraphMode)."""


def cascade(told: Told, assumed: Assumed) -> Check:
    """Risky unless disabled."""
    name, why = "cascade attention", "Its split-KV path gave wrong attention for grouped query heads with long shared prefixes on GPUs other than Hopper (vllm#22103)."
    disabled = told.flag("model_config", "disable_cascade_attn")
    if disabled is None:
        return untold(name, why, asked="disable_cascade_attn")
    return Check(name=name, state="ok" if disabled else "risky", seen=f"disable_cascade_attn = {disabled} (/server_info)", why=why,
                 do="" if disabled else "vllm serve … --disable-cascade-attn")


def chunked_prefill(told: Told, assumed: Assumed) -> Check:
    """Risky where layers keep a recurrent state across chunks."""
    name, why = "chunked prefill", "State of convolution and recurrent layers was lost or mixed at chunk edges (vllm#56196); plain attention is only rounded otherwise."
    found = told.get("scheduler_config", "enable_chunked_prefill")
    if not found or not isinstance(found[0], bool):
        return untold(name, why, asked="enable_chunked_prefill")
    seen = said(found, "enable_chunked_prefill")
    if not found[0]:
        return Check(name=name, state="ok", seen=seen, why=why)
    recurrent = told.get("cache_config", "mamba_block_size")
    if recurrent is None:
        return Check(name=name, state="unknown", seen=f"{seen}; mamba_block_size was not told", why=why, do=DEV_MODE)
    hybrid = recurrent[0] is not None
    return Check(name=name, state="risky" if hybrid else "ok", seen=f"{seen}; {'recurrent' if hybrid else 'no recurrent'} layers", why=why,
                 do="vllm serve … --no-enable-chunked-prefill" if hybrid else "")


def batch_invariance(told: Told, assumed: Assumed) -> Check:
    """Off is a floor, not a fault, unless the contract asks for less."""
    name, why = "batch invariance", "Without it a token's logprob depends on what else was in the batch, so some mismatch always remains."
    on = told.env.get("VLLM_BATCH_INVARIANT")
    if not isinstance(on, (bool, int, str)):
        return untold(name, why, asked="VLLM_BATCH_INVARIANT")
    on = str(on).lower() in ("1", "true")
    seen = f"VLLM_BATCH_INVARIANT = {int(on)} (/server_info)"
    if not on and assumed.floor_nats is not None and assumed.floor_nats < TIGHT_NATS:
        return Check(name=name, state="risky", seen=f"{seen}; [contract] floor_nats = {assumed.floor_nats:g}", why=why, do="VLLM_BATCH_INVARIANT=1 vllm serve …")
    return Check(name=name, state="ok", seen=seen, why=why)


def body_dtype(told: Told, assumed: Assumed) -> Check:
    """Wrong against the contract, and for a float32 trainer with a bf16 engine; risky for any other difference."""
    name, why = "body dtype", "Two precisions are a mismatch of their own; worst is a float32 trainer with a bf16 engine, whose small steps never reach the engine (mean |d| .45 to .78 was seen)."
    engine = told.dtype()
    if engine is None:
        return untold(name, why, asked="dtype")
    ours = dtype_name(assumed.body_dtype) if assumed.body_dtype else None
    declared = dtype_name(assumed.engine_dtype) if assumed.engine_dtype else None
    seen = f"engine {engine}, trainer {ours or 'not declared'}" + (f", [contract] {declared}" if declared else "")
    quantised = told.get("model_config", "quantization")
    if declared and declared != engine and not (quantised and quantised[0]):
        return Check(name=name, state="wrong", seen=seen, why=why, do=f"vllm serve … --dtype {declared}")
    if ours is None:
        return Check(name=name, state="unknown", seen=seen, why=why, do="--trainer FILE with [shadow] body_dtype")
    if ours == engine:
        return Check(name=name, state="ok", seen=seen, why=why)
    falls_behind = (ours, engine) == ("float32", "bfloat16")
    return Check(name=name, state="wrong" if falls_behind else "risky", seen=seen, why=why,
                 do="bf16 autocast in the trainer" if falls_behind else f"vllm serve … --dtype {ours}")


def kv_dtype(told: Told, assumed: Assumed) -> Check:
    """Risky when the cache is narrower than the body."""
    name, why = "KV-cache dtype", "With fp8 KV, decode and prefill disagree from absolute position 97 on (vllm#54035), and models without QK-norm can fail outright (verl#4435)."
    found = told.get("cache_config", "cache_dtype")
    if not found or not isinstance(found[0], str):
        return untold(name, why, asked="cache_dtype", do="curl ENGINE_URL/metrics | grep cache_config_info")
    same = found[0] == "auto" or dtype_name(found[0]) == told.dtype()
    return Check(name=name, state="ok" if same else "risky", seen=said(found, "cache_dtype"), why=why, do="" if same else "vllm serve … --kv-cache-dtype auto")


def quantization(told: Told, assumed: Assumed) -> Check:
    """Ok without; wrong when the contract names another; risky without a correction."""
    name, why = "quantization", "Quantised rollouts shift every logprob a little: 2 to 4 times the bf16 floor for fp8, so the trainer needs a correction such as TIS with cap 2."
    found = told.get("model_config", "quantization")
    if not found or not isinstance(found[0], (str, type(None))):
        return untold(name, why, asked="quantization")
    seen = said(found, "quantization")
    if not found[0]:
        return Check(name=name, state="ok", seen=seen, why=why)
    declared = dtype_name(assumed.engine_dtype) if assumed.engine_dtype else None
    if declared and not dtype_name(str(found[0])).startswith(declared):
        return Check(name=name, state="wrong", seen=f"{seen}; [contract] engine_dtype is {declared}", why=why, do=f"vllm serve … without --quantization, or [contract] engine_dtype = \"{found[0]}\"")
    corrected = declared and assumed.correction not in (None, "none")
    return Check(name=name, state="ok" if corrected else "risky", seen=f"{seen}; correction {assumed.correction or 'not declared'}", why=why,
                 do="" if corrected else "a correction in the trainer, declared in [contract] engine_dtype, correction and cap")


def attention_backend(told: Told, assumed: Assumed) -> Check:
    """Ok when named; vLLM does not tell what it chose by itself."""
    name, why = "attention backend", "Kernels sum in different orders and some have faults of their own (fp8 KV on FlashAttention 3: vllm#54035), and an upgrade may choose another one."
    found = told.get("attention_config", "backend")
    if not found or not isinstance(found[0], (str, type(None))):
        return untold(name, why, asked="attention backend")
    if not found[0] or str(found[0]).lower() == "auto":
        return Check(name=name, state="unknown", seen="chosen by vLLM itself (no --attention-backend); its start log names it", why=why,
                     do="vllm serve … --attention-backend NAME (the one of the start log)")
    return Check(name=name, state="ok", seen=said((found[0].rpartition(".")[2], found[1]), "--attention-backend"), why=why)


def graphs(told: Told, assumed: Assumed) -> Check:
    """Risky with experts or quantised weights: their derived tensors move at a reload and the graphs do not."""
    name, why = "CUDA graphs", "A captured graph keeps the old addresses when a reload moves expert, MLA or quantised tensors: decode then reads freed weights while prefill looks fine (vllm#40390, vllm#52626)."
    captured = told.graphs()
    if captured is None:
        return untold(name, why, asked="enforce_eager")
    mode = told.get("compilation_config", "cudagraph_mode")
    shown = GRAPH_MODES.get(str(mode[0]), mode[0]) if mode else "not told"
    seen = f"enforce_eager = {told.flag('model_config', 'enforce_eager')}, cudagraph_mode = {shown} (/server_info)"
    if not captured:
        return Check(name=name, state="ok", seen=seen, why=why)
    quantised = told.get("model_config", "quantization")
    moving = [word for word, there in (("experts", told.experts()), ("quantised weights", bool(quantised and quantised[0]))) if there]
    return Check(name=name, state="risky" if moving else "ok", seen=seen + (f"; {' and '.join(moving)}" if moving else ""), why=why,
                 do="vllm serve … --enforce-eager, or klaxon diagnose after the first weight update" if moving else "")


def parallel(told: Told, assumed: Assumed) -> Check:
    """Risky with pipeline stages (an update can overlap a forward) and with tensor parallelism (another order of sums)."""
    name, why = "TP / EP / DP / PP", "Updates that overlap a pipelined forward gave NaN logprobs on 2 % of steps (NeMo-RL#2180), and a tensor-parallel sum is rounded in another order than the trainer's."
    sizes = {word: told.get("parallel_config", key) for word, key in
             (("TP", "tensor_parallel_size"), ("DP", "data_parallel_size"), ("PP", "pipeline_parallel_size"))}
    expert = told.flag("parallel_config", "enable_expert_parallel")
    if expert is None or any(not found or not isinstance(found[0], int) for found in sizes.values()):
        return untold(name, why, asked="parallel_config")
    counts = {word: found[0] for word, found in sizes.items() if found}
    seen = ", ".join(f"{word} {count}" for word, count in counts.items()) + f", EP {'on' if expert else 'off'} (/server_info)"
    if counts["PP"] != 1:
        return Check(name=name, state="risky", seen=seen, why=why, do="POST /pause?mode=wait before every weight update")
    if counts["TP"] != 1:
        return Check(name=name, state="risky", seen=seen, why=why, do="klaxon diagnose on rollouts of TP 1 and of this, to know the floor")
    return Check(name=name, state="ok", seen=seen, why=why)


def experts(told: Told, assumed: Assumed) -> Check:
    """Ok without experts; risky where the routes are not replayed."""
    name, why = "MoE backend", "About a tenth of the router's choices differ between engine and trainer; replaying the engine's routes in the trainer halves the KL (prime-rl#2808)."
    there = told.experts()
    if there is None:
        return untold(name, why, asked="is_moe_model")
    if not there:
        return Check(name=name, state="ok", seen="no experts (/server_info)", why=why)
    backend, replay = told.get("kernel_config", "moe_backend"), told.flag("aux_output_config", "enable_return_routed_experts")
    seen = f"--moe-backend {backend[0] if backend else 'not told'}, enable_return_routed_experts = {replay} (/server_info)"
    return Check(name=name, state="ok" if replay else "risky", seen=seen, why=why,
                 do="" if replay else "vllm serve … --enable-return-routed-experts and route replay in the trainer")


def speculative(told: Told, assumed: Assumed) -> Check:
    """Risky whenever drafts are used."""
    name, why = "speculative decoding", "Drafts brought logprobs of exactly 0 or of another request (vllm#17876, #34497), and a drafter that weight updates forget (vllm#48296)."
    if told.config is None or "speculative_config" not in told.config:
        return untold(name, why, asked="speculative_config")
    config: Any = told.config["speculative_config"]
    if config is None:
        return Check(name=name, state="ok", seen="speculative_config = None (/server_info)", why=why)
    method = config.get("method", "not told") if isinstance(config, Mapping) else "not told"
    return Check(name=name, state="risky", seen=f"speculative_config: method {method} (/server_info)", why=why, do="vllm serve … without --speculative-config")
