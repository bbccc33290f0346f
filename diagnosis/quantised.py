"""quantization: does the engine's error point where a quantised model's error points?

Question.    Nothing cheaper explains the tokens. Are the engine's weights, the inputs of its linear layers or its KV cache quantised, and how?
Statistic.   β = ⟨y, x⟩ / |x|², clustered by rollout: y = e − h (engine, expected), x = q − h' (q: the shadow under a scheme of
             collector/shadow/quantised.py). h' is h for a float32 shadow. In 16 bits h' is the control: the same weights with other
             rounding errors, because an error of h itself is in y and in q − h, and would make β > 0 where nothing is quantised.
Prediction.  h + β x, β fitted on the other fold, within [0, 1]: 1 = the emulation is exact; kernels and scales that differ make it smaller.
Pinned.      β ≥ LEAST_BETA in both folds and z ≥ PINNED_Z against β = 0. Then what remains may be noise of the kernels.
             Schemes are screened by their correlation with y on a few rollouts; the best is judged on all of them.
When it lies. Calibrated scales, AWQ and GPTQ round otherwise: β falls towards 0 and the verdict stays engine_numerics.
Cost.        SCREENED_ROLLOUTS a scheme, a pass for the best, one for the next while none is pinned, and one for the control. No weights are
             held besides the scorer's; each layer is rounded when it runs.
Source.      Real fp8 and int8 kernels of torch on SmolLM2-135M (docs/diagnosis.md has the numbers).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from diagnosis.bench import Bench, Variant
from diagnosis.floor import LOW
from diagnosis.prediction import Prediction
from diagnosis.projection import slope

SCREENED_ROLLOUTS, MAX_FULL = 4, 2
LEAST_BETA = 0.3
PINNED_Z = 5.0


def quantization(bench: Bench) -> Prediction | None:
    """The scheme that explains most; None where the scorer cannot emulate one."""
    from collector.shadow.quantised import CONTROL, SCHEMES

    found: list[Prediction] = []
    low = getattr(getattr(bench.scorer, "config", None), "body_dtype", "bfloat16") in LOW
    control_N = _under(bench, CONTROL) if low else bench.view("expected")
    if control_N is None:
        return None
    screened = _screened(bench, SCHEMES, control_N)
    for name in sorted(screened, key=lambda name: -screened[name])[:MAX_FULL]:
        values_N = _under(bench, name)
        one = None if values_N is None else _prediction(bench, name, values_N - control_N)
        found += [] if one is None else [one]
        if one is not None and one.pinned:
            break
    return min(found, key=lambda one: bench.sheet.residual(one.values_N), default=None)


def _under(bench: Bench, scheme: str, rows: Iterable[int] | None = None) -> np.ndarray | None:
    """Logprobs under a scheme, [N]; of some rollouts only: the others as expected."""
    scorer = bench.quantised_scorer(scheme)
    if scorer is None:
        return None
    rollouts = {i: bench.sheet.rollouts[i] for i in (range(len(bench.sheet.rollouts)) if rows is None else rows)}
    return bench.under(Variant(cause="quantization", parameters={"scheme": scheme}, rollouts=rollouts, scorer=scorer), keep=False)


def _screened(bench: Bench, schemes: Iterable[str], control_N: np.ndarray) -> Mapping[str, float]:
    """Scheme → its correlation with the engine's error on a few rollouts of one fold."""
    sheet = bench.sheet
    few = np.unique(sheet.rollout_N[sheet.fold_N == 0])[:SCREENED_ROLLOUTS].tolist()
    within_N = np.isin(sheet.rollout_N, few)
    y_N = (sheet.engine_N - bench.view("expected"))[within_N]
    found = {}
    for name in schemes:
        values_N = _under(bench, name, few)
        if values_N is None:
            continue
        x_N = (values_N - control_N)[within_N]
        size = math.sqrt(float((x_N**2).sum()) * float((y_N**2).sum()))
        found[name] = float((x_N * y_N).sum()) / size if size > 0 and math.isfinite(size) else -math.inf
    return found


def _prediction(bench: Bench, name: str, x_N: np.ndarray) -> Prediction | None:
    sheet, healthy_N = bench.sheet, bench.view("expected")
    y_N = sheet.engine_N - healthy_N
    halves = [slope(x_N[own], y_N[own], sheet.rollout_N[own]) for fold in (0, 1) if (own := sheet.fold_N == fold).any()]
    whole = slope(x_N, y_N, sheet.rollout_N)
    if whole is None or len(halves) < 2 or None in halves:
        return None
    (beta, se), betas = whole, [half[0] for half in halves if half is not None]
    share_N = np.clip(np.where(sheet.fold_N == 0, betas[1], betas[0]), 0.0, 1.0)
    z = beta / se if se > 0 else math.copysign(math.inf, beta)
    text = (f"{name}: β = {beta:+.2f} ± {se:.2f} ({betas[0]:+.2f} and {betas[1]:+.2f} on the two halves; 0 = not quantised, 1 = exactly as emulated; "
            f"it moves logprobs by {float(np.abs(x_N).mean()):.4f} nats)")
    return Prediction(cause="quantization", values_N=healthy_N + share_N * x_N, parameters={"scheme": name}, evidence=(text,),
                      stable=min(betas) > 0, pinned=min(betas) >= LEAST_BETA and z >= PINNED_Z)
