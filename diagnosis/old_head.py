"""stale_weights of the output head alone: the body moved to the labelled version, the head did not. And that beside an older body or prefix KV.

Question.    Is the engine's head still the first one it loaded, or that of the version before?
Prediction.  Every token under the labelled body and the older head; and, for what was tried before (bench.variants), an older body or an older
             prefix KV under that head: an engine with this flaw has it beside every other fault.
Source.      Measured on vLLM 0.32 on a CPU, where the head is packed once and embeddings are tied: after reload_weights rollouts are off by .004 to
             .023 nats from the labelled version, by 0.0000 from its body with the first head (docs/diagnosis-matrix.md).
When it lies. It needs an older version at hand, and two that differ in their heads.
Cost.        Asked when nothing cheaper explains the tokens: a screening of a few rollouts for each variant, a pass for the best two.
"""

from __future__ import annotations

from dataclasses import replace

from diagnosis.bench import Bench, Variant
from diagnosis.prediction import Prediction
from diagnosis.screening import promising

MAX_PASSES = 2
BESIDE = ("stale_weights", "stale_prefix_cache")
PART = "output head"
KNOWN = ("a copy of the head that an update does not refresh: vLLM on a CPU packs it once where head and embeddings are tied; a float32 copy of it (prime-rl#2438); "
         "an update that leaves lm_head out. Restart the engine on the new weights")


def old_heads(bench: Bench) -> list[Prediction]:
    """The best of these variants, where one is worth a pass over every rollout."""
    variants = [variant for version in _versions(bench) for variant in _under_head(bench, version)]
    scored = [(variant, values_N) for variant in promising(bench, variants, MAX_PASSES) if (values_N := bench.under(variant)) is not None]
    if not scored:
        return []
    sheet = bench.sheet
    halves = [min(scored, key=lambda one: sheet.residual(one[1], sheet.fold_N == fold))[0] for fold in (0, 1)]
    variant, values_N = min(scored, key=lambda one: sheet.residual(one[1]))
    second = "" if variant.parameters.get("weights") == PART else "stale_weights"
    beside = "together with" if second else "the body is the labelled version's,"
    texts = (f"{beside} the output head of version {variant.parameters['head']}", KNOWN)
    parameters = dict(variant.parameters) | ({"with": second} if second else {})
    return [Prediction(cause=variant.cause, second=second, values_N=values_N, parameters=parameters, evidence=texts, stable=halves[0] is halves[1])]


def _versions(bench: Bench) -> list[str]:
    """Whose head it may be: the first version's, and the one's before the newest label."""
    before = [version for version in bench.versions if bench.newer_than(version)]
    return list(dict.fromkeys([before[0], before[-1]])) if before else []


def _under_head(bench: Bench, version: str) -> list[Variant]:
    scorer, rollouts = bench.scorer_with_head(version), bench.newer_than(version)
    if scorer is None or not rollouts:
        return []
    alone = Variant(cause="stale_weights", parameters={"head": version, "weights": PART}, rollouts=rollouts, scorer=scorer)
    if version != bench.versions[0]:
        return [alone]
    beside = [replace(variant, parameters={**variant.parameters, "head": version}, rollouts={**rollouts, **variant.rollouts}, scorer=scorer)
              for variant in bench.variants.values() if variant.cause in BESIDE and variant.scorer is None]
    return [alone, *beside]
