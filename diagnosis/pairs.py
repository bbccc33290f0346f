"""Two faults at once: a sampler explanation read from the head of another pass (older weights, another prompt).

Searched only while no single explanation brings the tokens to the floor. A pair is named by its sampler cause; the other one is its `second`.
"""

from __future__ import annotations

from dataclasses import replace

from diagnosis.bench import Bench, Variant
from diagnosis.explanations import EXPLANATIONS, Prediction
from diagnosis.screening import promising

SAMPLER = ("raw_logprobs", "temperature", "truncation", "penalties")
PASS_CAUSES = ("stale_weights", "stale_prefix_cache", "lora_not_applied", "prompt_mismatch")
MAX_PASSES = 3


def pairs(bench: Bench) -> list[Prediction]:
    """The best pair of every (sampler cause, pass cause) over the passes that leave least by themselves, if a few rollouts are promising.

    Each pass costs one more forward for its sampler settings.
    """
    tried = [variant for variant in bench.variants.values() if variant.cause in PASS_CAUSES]
    found = []
    for variant in promising(bench, tried, MAX_PASSES):
        head = bench.heads_under(variant)
        found += [_pair(EXPLANATIONS[cause](head), variant, head) for cause in SAMPLER]  # type: ignore[arg-type]
    return _best_of_each(bench, [one for one in found if one is not None])


def _pair(one: Prediction | None, variant: Variant, head: object) -> Prediction | None:
    if one is None:
        return None
    return replace(one, second=variant.cause, heads=head, parameters={**one.parameters, "with": variant.cause, **variant.parameters},
                   evidence=(f"together with {variant.name}", *one.evidence))


def _best_of_each(bench: Bench, found: list[Prediction]) -> list[Prediction]:
    """One prediction a pair of causes. Which variant it is was chosen on all tokens: not stable unless both folds choose the same."""
    groups: dict[tuple[str, str], list[Prediction]] = {}
    for one in found:
        groups.setdefault((one.cause, one.second), []).append(one)
    kept = []
    for group in groups.values():
        halves = [min(group, key=lambda one: bench.sheet.residual(one.values_N, bench.sheet.fold_N == fold)) for fold in (0, 1)]
        best = min(group, key=lambda one: bench.sheet.residual(one.values_N))
        kept.append(replace(best, stable=best.stable and halves[0] is best and halves[1] is best))
    return kept
