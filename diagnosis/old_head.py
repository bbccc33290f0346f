"""stale_weights of the output head alone: the body moved to the labelled version, the head did not; alone, and beside every other fault.

Question.    Is the engine's head still the first one it loaded, or that of the version before?
Prediction.  Every token under the labelled body and the older head. An engine with this flaw has it beside every other fault, so whatever else is asked
             is asked once more of a scorer with that head.
Source.      prime-rl#2438 (a float32 copy of the head that updates do not refresh). Measured on vLLM 0.32 on a CPU, where the head is packed once and
             embeddings are tied: after reload_weights rollouts are off by .004 to .023 nats, by 0.0000 from the label's body under the first head.
When it lies. It needs an older version at hand, and two that differ in their heads.
Cost.        Asked when nothing cheaper explains the tokens: a few rollouts for each head, then one pass and the whole search again where one helps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from diagnosis.bench import Bench, Variant
from diagnosis.prediction import Prediction
from diagnosis.screening import promising

HELPS = 0.95
"""A head is worth the search where a few rollouts leave less than this share of what is left without it: beside another fault it helps little by itself."""

MUST_LEAVE = 0.8
"""The old head, and something beside it, are offered only where they leave less than this share of what is left without."""

KNOWN = ("a copy of the head that an update does not refresh: vLLM on a CPU packs it once where head and embeddings are tied; a float32 copy of it (prime-rl#2438); "
         "an update that leaves lm_head out. Restart the engine on the new weights")


def old_heads(bench: Bench, search: Callable[[Bench], list[Prediction]], *, best_single: float) -> list[Prediction]:
    """The older head alone and the best prediction beside it; none where neither leaves clearly less than everything without it.

    Args:
        search: what competes on a bench, healthy first.
        best_single: the residual of the best explanation so far, nats.
    """
    variants = [Variant(cause="stale_weights", parameters={"head": version}, rollouts=bench.newer_than(version), scorer=scorer)
                for version in _versions(bench) if (scorer := bench.scorer_with_head(version)) is not None]
    for variant in promising(bench, variants, 1, least=HELPS):
        headed = bench.under_scorer(variant.scorer)
        if headed is not None:
            alone, *others = search(headed)
            best, version = min(others, key=lambda one: bench.sheet.residual(one.values_N), default=alone), variant.parameters["head"]
            left, more = (bench.sheet.residual(one.values_N) for one in (alone, best))
            found = [_alone(alone, headed, version)] if left < MUST_LEAVE * best_single else []
            return found + ([_beside(best, headed, version)] if more < MUST_LEAVE * min(left, best_single) else [])
    return []


def _versions(bench: Bench) -> list[str]:
    """Whose head it may be: the first version's, and the one's before the newest label."""
    before = [version for version in bench.versions if bench.newer_than(version)]
    return list(dict.fromkeys([before[0], before[-1]])) if before else []


def _alone(one: Prediction, headed: Bench, version: str) -> Prediction:
    return replace(one, cause="stale_weights", heads=headed, parameters={"head": version, "weights": "output head"},
                   evidence=(f"the body is the labelled version's, the output head version {version}'s", KNOWN))


def _beside(one: Prediction, headed: Bench, version: str) -> Prediction:
    return replace(one, second=one.second or "stale_weights", heads=one.heads or headed, parameters={**one.parameters, "with": one.second or "stale_weights", "head": version},
                   evidence=(f"together with the output head of version {version}", *one.evidence, KNOWN))
