"""What frameworks call the same thing: a logged name → Klaxon's standard name. The framework is told by the names that appear.

Three KL divergences are kept apart: `kl` is the update's (current policy against the one that generated, or against the
step's old policy), `kl_ref` is against the reference model, `mismatch_kl` is engine against trainer as the trainer logs it.
Effective sample sizes of truncated weights are not mapped to `ess`: they hide the tail (docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

STANDARD = ("clip_rate", "kl", "kl_ref", "mismatch_kl", "mismatch_abs_d", "ess", "entropy", "reward", "loss", "value_loss",
            "critic_value", "grad_norm", "learning_rate", "response_length", "lag", "reward_std", "zero_std_share", "advantage_std")
"""Klaxon's names of trainer metrics; every other metric keeps the name it was logged under."""


@dataclass(frozen=True, slots=True)
class Framework:
    """`signs`: names (or, ending in "/", prefixes) only this framework logs. `names`: standard → logged, the first present wins."""

    signs: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    prefixes: tuple[str, ...] = ("",)  # what a logger may put before every name


FRAMEWORKS: dict[str, Framework] = {
    "verl": Framework(("actor/pg_clipfrac", "actor/ppo_kl", "actor/pg_loss", "critic/rewards/mean", "rollout_corr/", "training/rollout_probs_diff_mean"), {
        "clip_rate": ("actor/pg_clipfrac",), "kl": ("actor/ppo_kl",), "kl_ref": ("actor/kl_loss", "actor/reward_kl_penalty"),
        "mismatch_kl": ("rollout_corr/k3_kl", "mismatch/mismatch_k3_kl"), "entropy": ("actor/entropy", "actor/entropy_loss"),
        "reward": ("critic/rewards/mean", "critic/score/mean"), "loss": ("actor/pg_loss",), "value_loss": ("critic/vf_loss",),
        "critic_value": ("critic/values/mean",), "grad_norm": ("actor/grad_norm",), "learning_rate": ("actor/lr",),
        "response_length": ("response_length/mean",), "lag": ("training/off_policy/trajectory_staleness",)}),
    "TRL": Framework(("clip_ratio/", "sampling/", "completions/mean_length", "frac_reward_zero_std"), {
        "clip_rate": ("clip_ratio/region_mean", "clip_ratio"), "kl_ref": ("kl",), "mismatch_abs_d": ("sampling/sampling_logp_difference/mean",),
        "entropy": ("entropy",), "reward": ("reward",), "loss": ("loss",), "grad_norm": ("grad_norm",), "learning_rate": ("learning_rate",),
        "response_length": ("completions/mean_length", "completion_length"), "reward_std": ("reward_std",), "zero_std_share": ("frac_reward_zero_std",)}, ("", "train/")),
    "OpenRLHF": Framework(("ppo_clip_ratio", "vllm_kl", "ppo_kl"), {
        "clip_rate": ("ppo_clip_ratio",), "kl": ("ppo_kl",), "kl_ref": ("kl",), "mismatch_kl": ("vllm_kl",), "entropy": ("entropy_loss",),
        "reward": ("reward",), "loss": ("policy_loss",), "value_loss": ("critic_loss",), "critic_value": ("values",),
        "grad_norm": ("actor_grad_norm",), "learning_rate": ("actor_lr",), "response_length": ("response_length",)}, ("", "train/")),
    "NeMo-RL": Framework(("token_mult_prob_error", "gen_kl_error", "probs_ratio_clamped", "approx_entropy"), {
        "kl_ref": ("kl_penalty",), "mismatch_kl": ("gen_kl_error",), "entropy": ("approx_entropy",), "reward": ("reward",), "loss": ("loss",),
        "value_loss": ("critic/loss",), "critic_value": ("critic/values_mean",), "grad_norm": ("grad_norm",), "learning_rate": ("lr",),
        "response_length": ("mean_gen_tokens_per_sample",)}, ("", "train/")),
    "PipelineRL": Framework(("rl/kl_new_old", "rl/clamp_log_ratio_new_old_indicator", "rl/ratio_new_old", "rl/ess"), {
        "clip_rate": ("rl/clamp_log_ratio_new_old_indicator",), "kl": ("rl/kl_new_old",), "kl_ref": ("rl/kl",), "ess": ("rl/ess",),
        "entropy": ("rl/entropy",), "reward": ("rl/reward",), "loss": ("rl/loss",), "value_loss": ("rl/value_loss",),
        "critic_value": ("rl/value_mean",), "grad_norm": ("stats/grad_norm",), "learning_rate": ("stats/lr",), "lag": ("stats/lag",)}),
    "prime-rl": Framework(("mismatch_kl/", "optim/zero_grad_ratio", "entropy/all/mean", "off_policy_level/"), {
        "clip_rate": ("is_masked/mean", "is_masked/all/mean"), "mismatch_kl": ("mismatch_kl/all/mean",), "entropy": ("entropy/all/mean",),
        "reward": ("reward/all/mean", "reward/mean"), "loss": ("loss/mean",), "grad_norm": ("optim/grad_norm",), "learning_rate": ("optim/lr",),
        "lag": ("off_policy/mean", "off_policy_level/all/mean")}),
    "SkyRL": Framework(("policy/ppo_clip_ratio", "policy/rollout_train_logprobs_abs_diff_mean", "policy/policy_entropy", "reward/avg_raw_reward"), {
        "clip_rate": ("policy/ppo_clip_ratio",), "kl_ref": ("policy/policy_kl",), "mismatch_abs_d": ("policy/rollout_train_logprobs_abs_diff_mean",),
        "entropy": ("policy/policy_entropy",), "reward": ("reward/avg_raw_reward",), "loss": ("policy/policy_loss", "policy/final_loss"),
        "value_loss": ("critic/critic_loss",), "critic_value": ("critic/values_mean",), "grad_norm": ("policy/raw_grad_norm",),
        "learning_rate": ("policy/policy_lr",), "lag": ("async/staleness_mean",)}),
    "slime": Framework(("train/train_rollout_logprob_abs_diff", "train/pg_clipfrac", "rollout/raw_reward", "train/tis"), {
        "clip_rate": ("train/pg_clipfrac",), "kl": ("train/ppo_kl",), "kl_ref": ("train/kl_loss",), "mismatch_kl": ("train/mis_k3_kl",),
        "mismatch_abs_d": ("train/train_rollout_logprob_abs_diff",), "entropy": ("train/entropy_loss",), "reward": ("rollout/raw_reward",),
        "loss": ("train/loss",), "value_loss": ("train/value_loss", "train/critic-value_loss"), "grad_norm": ("train/grad_norm",),
        "learning_rate": ("train/lr-pg_0",), "response_length": ("rollout/response_lengths", "rollout/response_len/mean")}),
    "open-instruct": Framework(("policy/clipfrac_avg", "objective/kl_avg", "loss/policy_avg", "debug/vllm_vs_local_logprob_diff_mean"), {
        "clip_rate": ("policy/clipfrac_avg",), "kl": ("policy/approxkl_avg",), "kl_ref": ("objective/kl_avg",),
        "mismatch_abs_d": ("debug/vllm_vs_local_logprob_diff_mean",), "entropy": ("policy/entropy_avg",), "reward": ("scores", "objective/scores"),
        "loss": ("loss/policy_avg", "loss/total_avg"), "value_loss": ("loss/value_avg",), "grad_norm": ("optim/grad_norm", "policy/policy_grad_norm"),
        "learning_rate": ("lr",), "response_length": ("val/sequence_lengths",), "lag": ("num_steps_off_policy",)}),
    "AReaL": Framework(("ppo_actor/",), {
        "clip_rate": ("ppo_actor/update/clip_ratio/avg",), "kl": ("ppo_actor/update/approx_kl/avg",), "kl_ref": ("ppo_actor/kl_rewards/avg",),
        "entropy": ("ppo_actor/update/entropy/avg",), "reward": ("ppo_actor/task_reward/avg",), "loss": ("ppo_actor/update/actor_loss/avg",),
        "value_loss": ("ppo_critic/update/critic_loss/avg",), "grad_norm": ("ppo_actor/update/grad_norm",), "learning_rate": ("ppo_actor/update/lr",),
        "response_length": ("ppo_actor/seq_len/avg",), "lag": ("ppo_actor/update/version_stats/sample_staleness_theta/avg",)}),
}


def detect(names: Iterable[str]) -> str | None:
    """The framework that logs these names: the most signs, None without one or at a tie.

    >>> detect(["actor/pg_clipfrac", "actor/entropy"])
    'verl'
    """
    seen = set(names)
    found = {framework: sum(_present(sign, seen, entry.prefixes) for sign in entry.signs) for framework, entry in FRAMEWORKS.items()}
    best = max(found, key=lambda framework: found[framework])
    tied = sum(count == found[best] for count in found.values()) > 1
    return None if not found[best] or tied else best


def _present(sign: str, seen: set[str], prefixes: tuple[str, ...]) -> bool:
    if sign.endswith("/"):
        return any(name.startswith(prefix + sign) for prefix in prefixes for name in seen)
    return any(prefix + sign in seen for prefix in prefixes)


@dataclass(slots=True)
class NameMap:
    """Logged names → standard names for one trainer: the config's first, then the framework's, told by what has appeared so far."""

    own: Mapping[str, str] = field(default_factory=dict)  # [metrics.names]: standard → logged
    framework: str | None = None  # None = not told yet
    _seen: set[str] = field(default_factory=set)

    def standard(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values under standard names where they have one, else under their own."""
        if self.framework is None and not self._seen.issuperset(values):
            self._seen.update(values)
            self.framework = detect(self._seen)
        chosen = self._chosen(values)
        kept = {name: value for name, value in values.items() if name not in chosen}
        return kept | {standard: values[name] for name, standard in chosen.items()}

    def _chosen(self, values: Mapping[str, float]) -> dict[str, str]:
        """logged → standard for the names at hand; a standard name that is logged itself is never covered by another."""
        chosen = {logged: standard for standard, logged in self.own.items() if logged in values}
        entry = FRAMEWORKS.get(self.framework or "")
        for standard, candidates in (entry.names if entry else {}).items():
            logged = next((prefix + name for name in candidates for prefix in entry.prefixes if prefix + name in values), None)
            covered = standard in values and logged != standard and standard not in self._renamed(values, entry)
            if logged is not None and logged not in chosen and standard not in self.own and not covered:
                chosen[logged] = standard
        return chosen

    @staticmethod
    def _renamed(values: Mapping[str, float], entry: Framework) -> set[str]:
        """Logged names that themselves become another standard name (TRL's `kl` is `kl_ref`)."""
        return {prefix + name for standard, candidates in entry.names.items() for name in candidates
                for prefix in entry.prefixes if prefix + name in values and prefix + name != standard}
