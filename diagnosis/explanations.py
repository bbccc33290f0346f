"""One function per explanation: what would the engine have reported if this fault were true? [N] nats per token.

A fault with a free parameter is fitted on one fold of the rollouts and predicts the other, both ways round, so every token
is predicted by a parameter that never saw it. `EXPLANATIONS` is the registry: cause → function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from collector.errors import InputError
from collector.records import Rollout
from diagnosis.audit import transforms
from diagnosis.bench import Bench, Variant
from diagnosis.head_precision import head_precision
from diagnosis.heads import Heads
from diagnosis.prediction import Prediction
from diagnosis.profiles import OUTSIDE_SHARE, fitted
from diagnosis.projection import projection
from diagnosis.prompts import edits
from diagnosis.quantised import quantization
from diagnosis.screening import promising
from diagnosis.sheet import Sheet
from diagnosis.twins import beats
from diagnosis.updates import policy_lag

MAX_EDITS = 6
"""Prompt edits tried at most, those that concern most rollouts."""

MAX_FULL = 2
"""All of them on a few rollouts, the best on all."""


def healthy(bench: Bench) -> Prediction:
    """What the trainer assumes, under the version that generated each token."""
    return Prediction(cause="healthy", values_N=bench.view("expected"))


def raw_logprobs(bench: Heads) -> Prediction | None:
    """The other logprobs mode than the trainer assumes; None where both modes are the same thing."""
    if not any(transforms(rollout.sampling) for rollout in bench.sheet.rollouts):
        return None
    if _modes(bench.sheet) == {"raw_logprobs"}:
        return Prediction(cause="raw_logprobs", values_N=bench.view("processed"), parameters={"reports": "processed_logprobs"},
                          evidence=("the trainer expects raw logprobs, the engine reports processed ones",))
    return Prediction(cause="raw_logprobs", values_N=bench.view("raw"), parameters={"reports": "raw_logprobs"})


def _modes(sheet: Sheet) -> set[str]:
    return {rollout.expected_logprobs_mode for rollout in sheet.rollouts}


def temperature(bench: Heads) -> Prediction | None:
    """Processed logprobs at a fitted temperature.

    None where the trainer expects raw logprobs, which know no temperature, and the declared one tells the reports as well: then the mode alone is wrong.
    """
    sheet, grid_F = bench.sheet, bench.temperatures_F
    if bench.at_temperature(1.0) is None:
        return None
    error_FN = np.stack([np.abs(sheet.engine_N - bench.at_temperature(t)) for t in grid_F])
    chosen = [grid_F[int(error_FN[:, sheet.fold_N == fold].sum(axis=1).argmin())] for fold in (0, 1)]
    values_N = np.where(sheet.fold_N == 0, bench.at_temperature(chosen[1]), bench.at_temperature(chosen[0]))
    if _modes(sheet) == {"raw_logprobs"} and not beats(sheet.contrast(bench.view("processed"), values_N), bench.config):
        return None
    best = float(grid_F[int(error_FN.sum(axis=1).argmin())])
    stable = abs(np.log(chosen[0] / chosen[1])) < 0.1
    return Prediction(
        cause="temperature", values_N=values_N, parameters={"temperature": round(best, 3)}, stable=stable,
        evidence=(f"reports fit T = {best:.2f} best ({chosen[0]:.2f} and {chosen[1]:.2f} on the two halves); the trainer assumes {assumed(sheet, 'temperature')}",),
    )


def truncation(bench: Heads) -> Prediction | None:
    """A top-p, top-k or min-p the trainer does not know of, renormalised over the kept tokens; its strength is fitted."""
    found = _fitted("truncation", ("top_p", "top_k", "min_p"), bench)
    return found and replace(found, evidence=(*found.evidence, *_kept_set(bench, found)))


def penalties(bench: Heads) -> Prediction | None:
    """A repetition, presence or frequency penalty the trainer does not know of; its strength is fitted."""
    return _fitted("penalties", ("repetition_penalty", "presence_penalty", "frequency_penalty"), bench)


def _fitted(cause: str, names: tuple[str, ...], bench: Heads) -> Prediction | None:
    if bench.candidates is None:
        return None
    found = fitted(bench.sheet, names, bench.setting, assumed=lambda name: assumed(bench.sheet, name))  # type: ignore[arg-type]
    return found and Prediction(cause=cause, values_N=found.values_N, parameters=found.settings, stable=found.stable, evidence=(found.text,))


def _kept_set(bench: Heads, found: Prediction) -> tuple[str, ...]:
    """What the kept set's mass adds to the reports, and the tokens left out of the residual."""
    if bench.candidates is None:
        return ()
    sheet, kept, plain_N = bench.sheet, bench.candidates.under(found.parameters), bench.candidates.under({}).logprobs
    use_N = np.isfinite(kept.logprobs) & np.isfinite(plain_N)
    above = float((sheet.engine_N - plain_N)[use_N].mean()) if use_N.any() else math.nan
    texts = [f"reports lie {above:+.4f} nats above the whole distribution's; the kept set's mass S explains {-float(kept.log_mass[use_N].mean()):+.4f} (mean −ln S)"]
    if edge := int(np.isnan(found.values_N).sum()):
        left = sheet.residual(kept.logprobs, kept.edge)
        texts.append(f"{edge} tokens at the edge of the kept set are scored apart" + (f" ({left:.4f} nats)" if math.isfinite(left) else ""))
    if outside := int(np.isneginf(found.values_N).sum()):
        texts.append(f"{outside} sampled tokens lie outside the kept set and are left out of the residual")
    return tuple(texts)


def assumed(sheet: Sheet, name: str) -> str:
    """What the trainer declares of a setting, in words."""
    declared = sorted({value for r in sheet.rollouts if (value := getattr(r.sampling, name)) is not None})
    return ", ".join(f"{value:g}" for value in declared) or "undeclared"


def stale_weights(bench: Bench) -> Prediction | None:
    """The engine kept older weights than the label says."""
    variants = {name: (values_N, {"version": name}) for name, values_N in bench.older_weights().items()}
    found = _best_of("stale_weights", variants, bench)
    if found is None:
        return None
    where = {name: projection(bench.sheet, bench.view("expected"), values_N) for name, (values_N, _) in variants.items()}
    return replace(found, evidence=tuple(f"version {name}: {one.text}" for name, one in where.items() if one is not None))


def stale_prefix_cache(bench: Bench) -> Prediction | None:
    """Cached prompt tokens kept the KV of older weights; only requests that hit the cache are concerned."""
    variants = {name: (values_N, {"kv_version": name}) for name, values_N in bench.older_prefix().items()}
    found = _best_of("stale_prefix_cache", variants, bench)
    if found is None:
        return None
    sheet, healthy_N = bench.sheet, bench.view("expected")
    parts = [f"{label} {sheet.residual(healthy_N, mask_N):.4f} nats over {int(mask_N.sum()):,} tokens"
             for label, mask_N in (("with", sheet.cached_N), ("without", ~sheet.cached_N)) if mask_N.any()]
    evidence = (f"as healthy, requests {' and '.join(parts)} of a prefix-cache hit",)
    return replace(found, evidence=evidence)


def lora_not_applied(bench: Bench) -> Prediction | None:
    """The base model generated, not the adapter on it; only rollouts labelled with an adapter are concerned."""
    base = bench.base_scorer()
    if base is None:
        return None
    adapters = {i: rollout for i, rollout in enumerate(bench.sheet.rollouts) if bench.is_adapter(rollout)}
    values_N = bench.under(Variant(cause="lora_not_applied", parameters={"weights": "base model"}, rollouts=adapters, scorer=base))
    if values_N is None:
        return None
    share = projection(bench.sheet, bench.view("expected"), values_N)
    text = f"{len(adapters)} of {len(bench.sheet.rollouts)} rollouts are labelled with an adapter"
    where = () if share is None else (f"β = {share.beta:+.2f} ± {share.se:.2f} (0 = adapter applied, 1 = base model)",)
    return Prediction(cause="lora_not_applied", values_N=values_N, parameters={"weights": "base model"}, evidence=(text, *where))


def prompt_mismatch(bench: Bench) -> Prediction | None:
    """The engine saw another prompt: BOS, system turn or generation prompt more or less than recorded."""
    edited: dict[str, dict[int, Rollout]] = {}
    for i, rollout in enumerate(bench.sheet.rollouts):
        for name, ids_P in edits(rollout.prompt_tokens_P, bench.marks).items():
            edited.setdefault(name, {})[i] = replace(rollout, prompt_tokens_P=ids_P)
    variants = [Variant(cause="prompt_mismatch", parameters={"engine_prompt": name}, rollouts=rollouts)
                for name, rollouts in sorted(edited.items(), key=lambda item: -len(item[1]))[:MAX_EDITS]]
    found = {}
    for variant in promising(bench, variants, MAX_FULL):
        values_N = bench.under(variant)
        if values_N is not None:
            found[str(variant.parameters["engine_prompt"])] = (values_N, variant.parameters)
    best = _best_of("prompt_mismatch", found, bench)
    if best is None:
        return None
    tried = ", ".join(f"{name} {bench.sheet.residual(values_N):.4f}" for name, (values_N, _) in found.items())
    first_N = bench.sheet.index_N == 0
    first = bench.sheet.residual(bench.view("expected"), first_N)
    return replace(best, evidence=(*best.evidence, f"residual if the engine's prompt had, nats: {tried}",
                                   f"as recorded, the first completion tokens are off by {first:.4f} nats on average"))


def _best_of(cause: str, variants: Mapping[str, tuple[np.ndarray, Mapping[str, Any]]], bench: Heads) -> Prediction | None:
    """The variant with the least residual on the other fold; None without an admissible one."""
    sheet = bench.sheet
    usable = {name: item for name, item in variants.items() if np.isneginf(item[0]).mean() <= OUTSIDE_SHARE}
    if not usable:
        return None
    chosen = [min(usable, key=lambda name: sheet.residual(usable[name][0], sheet.fold_N == fold)) for fold in (0, 1)]
    values_N = np.where(sheet.fold_N == 0, usable[chosen[1]][0], usable[chosen[0]][0])
    best = min(usable, key=lambda name: sheet.residual(usable[name][0]))
    outside = int(np.isneginf(values_N).sum())
    evidence = (f"{outside} sampled tokens lie outside the kept set and are left out of the residual",) if outside else ()
    return Prediction(cause=cause, values_N=values_N, parameters=dict(usable[best][1]), stable=chosen[0] == chosen[1], evidence=evidence)


EXPLANATIONS: dict[str, Callable[[Bench], Prediction | None]] = {
    "healthy": healthy,
    "raw_logprobs": raw_logprobs,
    "temperature": temperature,
    "stale_weights": stale_weights,
    "stale_prefix_cache": stale_prefix_cache,
    "lora_not_applied": lora_not_applied,
    "truncation": truncation,
    "penalties": penalties,
    "prompt_mismatch": prompt_mismatch,
    "policy_lag": policy_lag,
    "head_precision": head_precision,
    "quantization": quantization,
}
"""Cause → what the engine would have reported. What predicts nothing (engine_numerics, position_dependent, …): see compete.py and breaks.py."""

OLDER = ("stale_weights", "stale_prefix_cache", "lora_not_applied")
"""Each older version, and the base model of adapters, costs a pass through its own weights: not asked once a head view explains the tokens."""

DEAR = ("truncation", "penalties")
"""Asked only when the others leave something unexplained: no pass, but a fit of six settings."""

UPDATES = ("policy_lag",)
"""Asked while the tokens are off and none of the above explains them, before their parts are looked at: an update in mid-rollout begins late too."""

PASSES = ("prompt_mismatch", "head_precision", "quantization")
"""Asked only when all of these explain nothing: a pass over all rollouts for each variant."""


def predictions(bench: Bench, causes: Iterable[str]) -> list[Prediction]:
    """Every one of these explanations that has something to say about these rollouts, in order.

    Raises:
        InputError: an explanation returned the wrong number of tokens.
    """
    found = [EXPLANATIONS[cause](bench) for cause in causes]
    for one in found:
        if one is not None and one.values_N.shape != bench.sheet.engine_N.shape:
            raise InputError(f"{one.values_N.shape} predictions for {bench.sheet.tokens} tokens", field=one.cause, where="diagnosis")
    return [one for one in found if one is not None]
