"""What trainers call the same metric: the standard name, and the others it may come under. The one table of it on this side of the API.

The daemon maps the names of a configured source itself; these are for what a trainer pushes under its own names.
"""

from __future__ import annotations

from collections.abc import Iterable

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "reward": ("critic/rewards/mean", "rl/reward", "reward_mean", "train/reward"),
    "kl": ("actor/ppo_kl", "rl/kl_new_old", "approx_kl"),
    "kl_ref": ("actor/kl_loss", "rl/kl"),
    "clip_rate": ("actor/pg_clipfrac", "clip_ratio/region_mean", "clip_ratio", "rl/clamp_log_ratio_new_old_indicator", "clip_fraction", "clipfrac"),
    "entropy": ("actor/entropy", "rl/entropy", "policy/entropy"),
    "response_length": ("response_length/mean", "completions/mean_length"),
    "grad_norm": ("actor/grad_norm",),
    "loss": ("actor/pg_loss",),
}
"""Standard name → what else it is called; where several have come, the first of them is shown."""


def names(standard: str) -> tuple[str, ...]:
    """Every name of a metric, the standard one first.

    >>> names("grad_norm"), names("a metric of one's own")
    (('grad_norm', 'actor/grad_norm'), ("a metric of one's own",))
    """
    return standard, *OTHER_NAMES.get(standard, ())


def first(standard: str, known: Iterable[str]) -> str | None:
    """Under which of its names a metric has come.

    >>> first("kl", {"approx_kl", "rl/kl_new_old"}), first("kl", {"reward"})
    ('rl/kl_new_old', None)
    """
    there = set(known)
    return next((name for name in names(standard) if name in there), None)
