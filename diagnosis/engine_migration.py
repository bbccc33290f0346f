"""The four checks of the V0-to-V1 migration, in its order: processed logprobs, prefix cache, async scheduling, fp32 head.

Sources: the PipelineRL migration to vLLM V1 (PipelineRL#137, Fast-LLM#525), vllm#46125, vllm#27878, NeMo-RL#3936, NeMo-RL#4018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from collector.records import Sampling
from detectors.hardfacts import dtype_name
from diagnosis.audit import OFF
from diagnosis.engine_told import Assumed, Check, Told, said, untold

UPDATES = ("/update_weights", "/finish_weight_update", "/update_weight_version")
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


def logprobs_mode(told: Told, assumed: Assumed) -> Check:
    """Wrong when the reported logprobs mean something else than the trainer takes them for."""
    name, why = "logprobs mode", ("Raw logprobs leave out temperature, penalties and truncation, so every policy ratio is off from the first step; "
                                  "V0 reported processed ones, V1 reports raw ones unless told.")
    found = told.get("model_config", "logprobs_mode")
    if not found or not isinstance(found[0], str):
        return untold(name, why, asked="logprobs_mode")
    expected = assumed.logprobs_mode or "processed_logprobs"
    seen = f"{said(found, 'logprobs_mode')}; the trainer takes them for {expected}{'' if assumed.logprobs_mode else ' (not declared)'}"
    if found[0] == expected:
        return Check(name=name, state="ok", seen=seen, why=why)
    alike = {found[0], expected} <= {"raw_logprobs", "processed_logprobs"} and _neutral(assumed.sampling)
    if alike:
        seen += "; the same while the declared sampling stays T = 1 without truncation or penalties"
    return Check(name=name, state="risky" if alike else "wrong", seen=seen, why=why, do=f"vllm serve … --logprobs-mode {expected}")


def prefix_cache(told: Told, assumed: Assumed) -> Check:
    """Risky while it is on and nobody saw it reset; wrong when updates were seen without a reset."""
    name, why = "prefix cache", "vLLM does not reset the prefix cache at a weight update: KV of old weights goes on serving shared prompts until the caller resets it."
    found = told.get("cache_config", "enable_prefix_caching")
    if not found or not isinstance(found[0], bool):
        return untold(name, why, asked="enable_prefix_caching", do="curl ENGINE_URL/metrics | grep cache_config_info")
    seen, do = said(found, "enable_prefix_caching"), "POST /reset_prefix_cache after every weight update, or vllm serve … --no-enable-prefix-caching"
    if not found[0]:
        return Check(name=name, state="ok", seen=seen, why=why)
    if told.prefix_hits is not None and told.prefix_queries:
        seen += f"; {told.prefix_hits:,.0f} of {told.prefix_queries:,.0f} prompt tokens came from it"
    updates, reset = resets(told.calls)
    if not updates:
        return Check(name=name, state="risky", seen=f"{seen}; no weight update was seen, so no reset either (a daemon with --klaxon sees them)", why=why, do=do)
    seen += f"; {reset} of {updates} weight updates seen came with a reset"
    return Check(name=name, state="ok" if reset == updates else "wrong", seen=seen, why=why, do="" if reset == updates else do)


def async_scheduling(told: Told, assumed: Assumed) -> Check:
    """Wrong with declared penalties; else risky while it is on."""
    name, why = "async scheduling", ("Overlapped scheduling leaves placeholder ids where penalties and logits processors look (vllm#27878, vllm#52461), "
                                     "and an update then lands between steps V0 ran one after the other.")
    found = told.get("scheduler_config", "async_scheduling")
    if not found or not isinstance(found[0], bool):
        return untold(name, why, asked="async_scheduling")
    seen = said(found, "async_scheduling")
    transfer = (told.config or {}).get("weight_transfer_config")
    if isinstance(transfer, Mapping):
        seen += f"; weights arrive by --weight-transfer-config backend {transfer.get('backend', 'not told')}"
    elif told.config is not None and "weight_transfer_config" in told.config:
        seen += "; no --weight-transfer-config: weights arrive by reload or by a worker extension"
    if not found[0]:
        return Check(name=name, state="ok", seen=seen, why=why)
    used = [key for key in PENALTIES if _active(assumed.sampling, key)]
    if used:
        seen += f"; the trainer declares {', '.join(used)}"
    return Check(name=name, state="wrong" if used else "risky", seen=seen, why=why, do="vllm serve … --no-async-scheduling")


def head(told: Told, assumed: Assumed) -> Check:
    """Ok with float32 on both sides; risky with one lower precision on both; wrong when the two differ."""
    name, why = "logits head dtype", "A bf16 head rounds every logit; one-sided precision is worse than the same precision twice (NeMo-RL#3936), float32 on both sides is best."
    engine = engine_head(told)
    ours = dtype_name(assumed.head_dtype) if assumed.head_dtype else None
    if engine is None:
        return untold(name, why, asked="hf_overrides with head_dtype")
    seen = f"engine {engine[0]} ({engine[1]}), trainer {ours or 'not declared'}"
    if ours is None:
        return Check(name=name, state="unknown", seen=seen, why=why, do="--trainer FILE with [shadow] head_dtype = \"float32\" or what the trainer computes its logits in")
    if ours != engine[0]:
        return Check(name=name, state="wrong", seen=seen, why=why,
                     do=f"vllm serve … --hf-overrides '{{\"head_dtype\": \"{ours}\"}}'" + ("" if ours == "float32" else ", or better float32 on both sides"))
    if ours in ("float32", "float64"):
        return Check(name=name, state="ok", seen=seen, why=why)
    return Check(name=name, state="risky", seen=seen, why=why, do="vllm serve … --hf-overrides '{\"head_dtype\": \"float32\"}' and a float32 head in the trainer")


def engine_head(told: Told) -> tuple[str, str] | None:
    """The engine's head dtype and how it is known: hf_overrides, else the model's config.json, else vLLM's default (the body's)."""
    overrides = told.get("model_config", "hf_overrides")
    if not overrides or not isinstance(overrides[0], Mapping):
        return None  # a function, or not told
    value, source = overrides[0].get("head_dtype"), "--hf-overrides"
    if value is None and told.model_config:
        value, source = told.model_config.get("head_dtype"), "config.json"
    if value in (None, "model"):
        value, source = told.dtype(), "as the body: no head_dtype in --hf-overrides"
    return (dtype_name(value), source) if isinstance(value, str) else None


def resets(calls: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """(weight updates, those with a reset of the prefix cache between the resume before and the resume after).

    /pause resets unless it says clear_cache=false: true is vLLM 0.32's default (vllm/entrypoints/rl/online/api_router.py).

    >>> resets([("/pause", "mode=wait"), ("/update_weight_version", ""), ("/resume", ""), ("/update_weights", "")])
    (2, 1)
    """
    updates = covered = 0
    updated = reset = False
    for path, query in [*calls, ("/resume", "")]:
        updated |= path in UPDATES
        reset |= path == "/reset_prefix_cache" or (path == "/pause" and "clear_cache=false" not in query.lower())
        if path == "/resume":
            updates, covered = updates + updated, covered + (updated and reset)
            updated = reset = False
    return updates, covered


def _neutral(sampling: Sampling) -> bool:
    """Declared to be T = 1 and without truncation: only then raw and processed are one."""
    return sampling.temperature == 1.0 and sampling.top_p == 1.0 and sampling.top_k in (-1, 0) and not any(_active(sampling, key) for key in OFF)


def _active(sampling: Sampling, name: str) -> bool:
    value = getattr(sampling, name)
    return value is not None and value != OFF[name] and not (name == "top_k" and value <= 0)
