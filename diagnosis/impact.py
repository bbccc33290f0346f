"""What an alarm is worth: last clean version, tainted rollouts, share of tokens and groups, and what it does to the gradient.

Pure over what is passed: (batch number, rollout, score or None) of recent rollouts. "Tainted" starts at the earliest
plausible changed batch, "clean" ends just before it. A policy ratio outside [1 − ε, 1 + ε] on data that should be on
policy is a token whose gradient the trainer's clip removes or bends: the clip rate's rise is the share of the policy
gradient that is biased. Size and angle of the whole gradient's bias, and what TIS and IcePop leave of it: gradient_bias.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from collector import signals
from collector.limits import Limits
from collector.records import Rollout, Score
from diagnosis.gradient_bias import gradient_bias, group_of

Seen = tuple[int, Rollout, Score | None]
MEASURED = ("mean_abs_d", "clip_rate", "ess")


def impact(records: Sequence[Seen], *, change_t: tuple[int, int], limits: Limits | None = None, correction: str = "none") -> dict[str, Any]:
    """JSON-able facts; None where the records at hand cannot tell. `correction`: what the trainer declares, [contract] correction.

    Keys: last_clean_version, last_clean_step, first_tainted_version, tainted_requests, tainted_tokens, token_share and
    group_share (of all at hand), mean_abs_d_before, mean_abs_d_after (nats), clip_rate_before, clip_rate_after, ess_before,
    ess_after, gradient_bias_share, gradient_before, gradient_after (gradient_bias.gradient_bias), correction.
    """
    clean = [record for record in records if record[0] < change_t[0]]
    tainted = [record for record in records if record[0] >= change_t[0]]
    before, after = _metrics(clean, limits), _metrics(tainted, limits)
    tokens, groups = _tokens(tainted), _groups(tainted)
    everything, all_groups = tokens + _tokens(clean), groups | _groups(clean)
    rise = None if None in (before["clip_rate"], after["clip_rate"]) else max(0.0, after["clip_rate"] - before["clip_rate"])
    return {
        "last_clean_version": _version(clean[::-1]), "last_clean_step": _step(clean[::-1]), "first_tainted_version": _version(tainted),
        "tainted_requests": len(tainted), "tainted_tokens": tokens, "token_share": tokens / everything if everything else None,
        "group_share": len(groups) / len(all_groups) if all_groups else None,
        "mean_abs_d_before": before["mean_abs_d"], "mean_abs_d_after": after["mean_abs_d"],
        "clip_rate_before": before["clip_rate"], "clip_rate_after": after["clip_rate"], "ess_before": before["ess"], "ess_after": after["ess"],
        "gradient_bias_share": after["clip_rate"] if rise is None else rise,
        "gradient_before": _gradient(clean, limits), "gradient_after": _gradient(tainted, limits), "correction": correction,
    }


def _metrics(records: Iterable[Seen], limits: Limits | None) -> dict[str, float | None]:
    slices = [item for _, rollout, score in records if score is not None
              for item in signals.slice_stats(rollout, score, limits=limits)]
    if not slices:
        return dict.fromkeys(MEASURED)
    values = signals.metrics(signals.total(slices))
    return {name: values[name] if values["n_tokens"] else None for name in MEASURED}


def _gradient(records: Iterable[Seen], limits: Limits | None) -> dict[str, Any] | None:
    return gradient_bias([(rollout, score) for _, rollout, score in records if score is not None], limits=limits)


def _tokens(records: Iterable[Seen]) -> int:
    return sum(int(rollout.sampled_mask_T.sum()) for _, rollout, _ in records)


def _groups(records: Iterable[Seen]) -> set[tuple[str, bytes]]:
    return {group_of(rollout) for _, rollout, _ in records}


def _version(records: Iterable[Seen]) -> str | None:
    """Version label of the first of these records that has one."""
    return next((rollout.weight_versions[-1].version for _, rollout, _ in records if rollout.weight_versions), None)


def _step(records: Iterable[Seen]) -> str | None:
    """Step label of the first of these records that has one."""
    return next((rollout.labels["step"] for _, rollout, _ in records if rollout.labels.get("step")), None)
