"""Tier 1 in words: the engine's logprobs against the trainer's own, judged without a baseline.

A single file has no history, so the bands are absolute: what healthy engines of a dtype were measured to have (bf16 dense
models: mean |d| .01 to .03, k3 below .0015; float32: below 1e-3), with room. A mean counts as outside only when it is so by
three standard errors clustered by rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from collector import signals
from collector.records import Rollout, SliceStats
from diagnosis.exact_ids import compare_ids
from diagnosis.file_report import Finding

BANDS = {"float32": 0.002, "float16": 0.02, "bfloat16": 0.05}
"""Mean |d| a healthy dense engine of this dtype stays below, nats."""

UNKNOWN_BAND = 0.05
SHIFT_NATS = 0.02
K3_LIMIT = 0.01
STANDARD_ERRORS = 3.0
MIN_SLICE_TOKENS = 100
SLICE_RATIO = 2.0

_KEYS: dict[str, Callable[[SliceStats], str]] = {
    "replica": lambda s: s.replica, "position": lambda s: s.position, "weight version": lambda s: s.version or "unknown",
    "prefix cache": lambda s: {None: "unknown", True: "hit", False: "miss"}[s.cached],
}


def tier_one_findings(rollouts: Sequence[Rollout], slices: Sequence[SliceStats]) -> Iterator[Finding]:
    """Findings from the trainer's token ids and logprobs; nothing when the file carries none."""
    ids = compare_ids(rollouts)
    if ids is not None:
        yield Finding(state="wrong", topic="token ids", text=ids.texts[0], details=ids.texts[1:])
    if not slices:
        return
    values = signals.metrics(signals.total(slices))
    covered = sum(r.trainer_logprobs_T is not None for r in rollouts)
    if covered < len(rollouts):
        yield Finding(state="unknown", topic="trainer", text=f"{len(rollouts) - covered} of {len(rollouts)} rollouts carry no trainer logprobs")
    yield from _lagged(slices)
    if not values["n_tokens"]:
        yield Finding(state="unknown", topic="trainer", text="no token has a finite logprob on both sides at the same weight version")
        return
    dtype, band = band_of(rollouts)
    details = (
        f"mean d {values['mean_d']:+.4f}, mean |d| {values['mean_abs_d']:.4f}, k3 {values['k3']:.2g}, max {values['max_abs_d']:.2f} nats over {values['n_tokens']:,.0f} tokens",
        f"policy-ratio clip rate {values['clip_rate']:.1%}, ESS {values['ess']:.3f}", *_trained(slices, values), *_worst_slices(slices),
    )
    outside = list(problems(values, band))
    if outside:
        yield Finding(state="wrong", topic="mismatch", text=f"the trainer disagrees: {'; '.join(outside)}", details=details)
    else:
        text = f"the trainer agrees within the band of a healthy {dtype} engine (mean |d| ≤ {band:g} nats)"
        yield Finding(state="fine", topic="mismatch", text=text, details=details)
    if values["confident_disagreements"]:
        text = (f"{values['confident_disagreements']:.0f} tokens the engine gave p ≥ 0.5 are more than 2 nats less likely to the trainer: "
                "numerics cannot do that")
        yield Finding(state="wrong", topic="mismatch", text=text)
    if values["outside_kept"]:
        text = f"{values['outside_kept']:.0f} sampled tokens have probability 0 for the trainer: truncation differs"
        yield Finding(state="unknown", topic="trainer", text=text)


def _trained(slices: Sequence[SliceStats], served: dict[str, float]) -> Iterator[str]:
    """What is trained on, where that is less than what was served."""
    trained = signals.metrics(signals.total(slices, population="trained"))
    if trained["n_tokens"] and trained["n_tokens"] != served["n_tokens"]:
        yield (f"of these {trained['n_tokens']:,.0f} tokens are trained on: mean |d| {trained['mean_abs_d']:.4f}, k3 {trained['k3']:.2g}, "
               f"clip rate {trained['clip_rate']:.1%}")


def _lagged(slices: Sequence[SliceStats]) -> Iterator[Finding]:
    lagged = signals.metrics(signals.total(slices, population="lagged"))
    if lagged["n_tokens"]:
        yield Finding(state="unknown", topic="staleness", text=(
            f"{lagged['n_tokens']:,.0f} tokens were recomputed by the trainer with other weights than those that generated them "
            f"(mean |d| {lagged['mean_abs_d']:.4f}): mismatch and staleness are mixed there, so they are not judged"))


def band_of(rollouts: Sequence[Rollout]) -> tuple[str, float]:
    """(dtype, healthy mean |d| in nats) of the engine that the rollouts name."""
    dtypes = {str(r.engine_dtype).removeprefix("torch.") for r in rollouts if r.engine_dtype}
    if len(dtypes) == 1 and (dtype := dtypes.pop()) in BANDS:
        return dtype, BANDS[dtype]
    return "bfloat16 (dtype not named)", UNKNOWN_BAND


def problems(values: dict[str, float], band: float) -> Iterator[str]:
    """What is outside the band of a healthy engine, in words; nothing when all is well. `values`: signals.metrics."""
    if values["mean_abs_d"] - STANDARD_ERRORS * values["mean_abs_d_se"] > band:
        yield f"mean |d| {values['mean_abs_d']:.3f} nats is above {band:g}"
    if abs(values["mean_d"]) - STANDARD_ERRORS * values["mean_d_se"] > min(SHIFT_NATS, band):
        yield f"every token is shifted: mean d {values['mean_d']:+.3f} nats"
    if values["k3"] > K3_LIMIT:
        yield f"k3 {values['k3']:.3f} is above {K3_LIMIT:g}"


def _worst_slices(slices: Sequence[SliceStats]) -> Iterator[str]:
    for name, key in _KEYS.items():
        groups = {value: signals.metrics(signals.total(list(items))) for value, items in groupby(sorted(slices, key=key), key=key)}
        large = {value: m["mean_abs_d"] for value, m in groups.items() if m["n_tokens"] >= MIN_SLICE_TOKENS}
        if len(large) < 2:
            continue
        worst = max(large, key=lambda value: large[value])
        rest = min(large.values())
        if large[worst] > SLICE_RATIO * rest:
            yield f"largest for {name} {worst}: mean |d| {large[worst]:.3f}, smallest {rest:.3f}"
