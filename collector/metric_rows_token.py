"""The metric table's rows over tokens: the log ratio, its divergences, clip rates, weights and probabilities.

p = rollout engine, q = trainer, d = log q − log p, w = e^d. Means are over tokens; see metric_rows_sequence.py for the rest.
"""

from __future__ import annotations

import math

from collector.metric_values import (
    Alias, Metric, beside_stale, clustered_error, count, effective_share, extreme, lag_share, largest_k3, minus_one, pearson, per_token,
    quantile_abs, quantile_signed, ratio, read, spread, unmasked_k3)
from collector.signal_sums import LOG_RATIO_CAP

Q_OVER_P, P_TO_Q, EVEN = "q relative to p", "KL(p‖q)", "symmetric"


def _exp(d: float) -> float:
    return math.exp(min(max(d, -LOG_RATIO_CAP), LOG_RATIO_CAP))


LOG_RATIO = (
    Metric(name="mean_d", formula="mean d", direction=Q_OVER_P, level="token", unit="nats", sums=("d",), value=per_token("d"),
           aliases=(Alias("AReaL", "behave_approx_kl", "prox − behave"),)),
    Metric(name="mean_d_se", formula="standard error of mean d, rollouts as clusters", direction=Q_OVER_P, level="token", unit="nats",
           sums=("d", "cluster_n2", "cluster_d2", "cluster_dn"), value=clustered_error("d", "d")),
    Metric(name="std_d", formula="sqrt(mean d² − (mean d)²)", direction=EVEN, level="token", unit="nats", sums=("d", "d2"), value=spread("d", "d2")),
    Metric(name="max_d", formula="max d", direction=Q_OVER_P, level="token", unit="nats", sums=("max_d", "later_tokens"), value=extreme("max_d")),
    Metric(name="min_d", formula="min d", direction=Q_OVER_P, level="token", unit="nats", sums=("min_d", "later_tokens"), value=extreme("min_d")),
    Metric(name="mean_abs_d", formula="mean |d|", direction=EVEN, level="token", unit="nats", sums=("abs_d",), value=per_token("abs_d"), aliases=(
        Alias("TRL", "sampling/sampling_logp_difference/mean", "mask: completion and not tool"),
        Alias("SkyRL", "policy/rollout_train_logprobs_abs_diff_mean", "full batch, old policy"),
        Alias("SkyRL", "policy/minibatch_rollout_logprobs_abs_diff_mean", "live policy: includes drift of the update"),
        Alias("open-instruct", "debug/vllm_vs_local_logprob_diff_mean", "tokens whose logprob is NaN are left out"),
        Alias("torchtitan", "bit_wise/logprob_diff/mean"))),
    Metric(name="mean_abs_d_se", formula="standard error of mean |d|, rollouts as clusters", direction=EVEN, level="token", unit="nats",
           sums=("abs_d", "cluster_n2", "cluster_a2", "cluster_an"), value=clustered_error("abs_d", "a")),
    Metric(name="std_abs_d", formula="sqrt(mean d² − (mean |d|)²)", direction=EVEN, level="token", unit="nats", sums=("abs_d", "d2"),
           value=spread("abs_d", "d2"), aliases=(Alias("SkyRL", "policy/rollout_train_logprobs_abs_diff_std", "divides by N − 1"),
                                                 Alias("open-instruct", "debug/vllm_vs_local_logprob_diff_std", "divides by N − 1"))),
    Metric(name="max_abs_d", formula="max |d|", direction=EVEN, level="token", unit="nats", sums=("max_abs_d",), value=count("max_abs_d"), aliases=(
        Alias("TRL", "sampling/sampling_logp_difference/max"), Alias("SkyRL", "policy/rollout_train_logprobs_abs_diff_max"),
        Alias("open-instruct", "debug/vllm_vs_local_logprob_diff_max"), Alias("torchtitan", "bit_wise/logprob_diff/max"))),
    Metric(name="min_abs_d", formula="min |d|", direction=EVEN, level="token", unit="nats", sums=("min_abs_d", "later_tokens"),
           value=extreme("min_abs_d"), aliases=(Alias("SkyRL", "policy/rollout_train_logprobs_abs_diff_min"),)),
    *(Metric(name=f"p{name}_abs_d", formula=f"{level:g} quantile of |d|, linear inside its histogram bin", direction=EVEN, level="token", unit="nats",
             sums=("hist",), value=quantile_abs(level)) for name, level in (("50", 0.5), ("90", 0.9), ("99", 0.99), ("999", 0.999))),
    *(Metric(name=f"p{name}_d", formula=f"{level:g} quantile of d, linear inside its histogram bin", direction=Q_OVER_P, level="token", unit="nats",
             sums=("hist",), value=quantile_signed(level)) for name, level in (("01", 0.01), ("50", 0.5), ("99", 0.99))),
    Metric(name="median_ratio", formula="e^(median d)", direction="w = q/p", level="token", unit="ratio", sums=("hist",),
           value=quantile_signed(0.5, _exp), aliases=(Alias("martingale", "median ratio"),)),
)

DIVERGENCES = (
    Metric(name="k1", formula="mean −d", direction=P_TO_Q, level="token", unit="nats", sums=("d",), value=per_token("d", sign=-1), aliases=(
        Alias("verl", "rollout_corr/kl"), Alias("OpenRLHF", "vllm_kl", "only while its correction is on"),
        Alias("tinker-cookbook", "optim/kl_sample_train_v1"), Alias("ms-swift", "rollout_correction/kl"),
        Alias("AReaL", "compute_logp/kl_div_direct"))),
    Metric(name="k2", formula="mean d²/2", direction=P_TO_Q, level="token", unit="nats", sums=("d2",), value=lambda s: ratio(read(s, "d2") / 2, s.n_tokens),
           aliases=(Alias("tinker-cookbook", "optim/kl_sample_train_v2"), Alias("AReaL", "compute_logp/kl_div_taylor"))),
    Metric(name="k3", formula="mean e^d − 1 − d", direction=P_TO_Q, level="token", unit="nats", sums=("k3",), value=per_token("k3"), aliases=(
        Alias("verl", "rollout_corr/k3_kl"), Alias("prime-rl", "mismatch_kl/all/mean", "one mean an environment beside it"),
        Alias("NeMo-RL", "gen_kl_error", "no clamp: one token can overflow"), Alias("ms-swift", "rollout_correction/k3_kl"),
        Alias("AReaL", "compute_logp/kl_div_dual"))),
    Metric(name="k3_std", formula="standard deviation of k3 over tokens", direction=P_TO_Q, level="token", unit="nats", sums=("k3", "k3_squared"),
           value=spread("k3", "k3_squared"), aliases=(Alias("prime-rl", "mismatch_kl/all/std", "divides by N − 1"),)),
    Metric(name="k3_max", formula="max e^d − 1 − d", direction=P_TO_Q, level="token", unit="nats", sums=("max_d", "min_d", "later_tokens"),
           value=largest_k3, aliases=(Alias("prime-rl", "mismatch_kl/all/max"),)),
    Metric(name="k3_swapped", formula="mean e^−d − 1 + d", direction="roles swapped, but on samples of p: no estimate of KL(q‖p)", level="token", unit="nats",
           sums=("k3_swapped", "later_tokens"), value=per_token("k3_swapped"), aliases=(Alias("NeMo-RL", "policy_kl_error", "no clamp: one token can make it explode"),)),
    Metric(name="js", formula="½ k3(q − m) + ½ k3(p − m), m = log ½(e^p + e^q)", direction="symmetric, on samples of p", level="token", unit="nats",
           sums=("js", "later_tokens"), value=per_token("js"), aliases=(Alias("NeMo-RL", "js_divergence_error"),)),
    Metric(name="p_weighted_k1", formula="mean −e^p d", direction="KL(p‖q) weighted by p once more: biased low", level="token", unit="nats",
           sums=("p_k1", "later_tokens"), value=per_token("p_k1"), aliases=(Alias("open-instruct", "debug/vllm_local_reverse_kl"),)),
    Metric(name="tme", formula="mean e^|d|", direction=EVEN, level="token", unit="ratio", sums=("exp_abs_d",), value=per_token("exp_abs_d"),
           aliases=(Alias("NeMo-RL", "token_mult_prob_error"),)),
    Metric(name="chi2", formula="mean w² − 1", direction="χ²(q‖p)", level="token", unit="ratio", sums=("w2",), value=minus_one(per_token("w2")), aliases=(
        Alias("verl", "rollout_corr/chi2_token"), Alias("ms-swift", "rollout_correction/chi2_token"))),
)

CLIPPING = (
    Metric(name="clip_rate_low", formula="share of w < 1 − ε_low", direction="w = q/p", level="token", unit="fraction", sums=("clip_low",), value=per_token("clip_low")),
    Metric(name="clip_rate_high", formula="share of w > 1 + ε_high", direction="w = q/p", level="token", unit="fraction", sums=("clip_high",), value=per_token("clip_high")),
    Metric(name="clip_rate", formula="share of w outside [1 − ε_low, 1 + ε_high]; a sequence algorithm flags all tokens of a rollout by exp(mean d)",
           direction="w = q/p", level="token", unit="fraction", sums=("clip_low", "clip_high"), value=per_token("clip_low", "clip_high")),
)

CORRECTIONS = (
    Metric(name="mean_w", formula="mean w", direction="w = q/p", level="token", unit="ratio", sums=("w",), value=per_token("w"), aliases=(
        Alias("PipelineRL", "rl/ratio_new_old", "mean per sequence first"), Alias("slime", "train/ois", "mean per sample first"),
        Alias("slime", "train/tis", "raw weight, mean per sample first"), Alias("NeMo-RL", "sampling_importance_ratio", "after truncation or mask where one is on"),
        Alias("AReaL", "behave_imp_weight", "tokens above its cap are left out"))),
    Metric(name="max_w", formula="max w", direction="w = q/p", level="token", unit="ratio", sums=("max_d", "later_tokens"), value=extreme("max_d", _exp), aliases=(
        Alias("verl", "rollout_corr/rollout_is_max", "token mode; truncated"), Alias("TRL", "sampling/importance_sampling_ratio/max", "token mode; after clip and mask"))),
    Metric(name="min_w", formula="min w", direction="w = q/p", level="token", unit="ratio", sums=("min_d", "later_tokens"), value=extreme("min_d", _exp), aliases=(
        Alias("verl", "rollout_corr/rollout_is_min", "token mode; truncated"), Alias("TRL", "sampling/importance_sampling_ratio/min", "token mode; a masked token counts as 0"))),
    Metric(name="mean_abs_w1", formula="mean |w − 1|", direction=EVEN, level="token", unit="ratio", sums=("abs_w1", "later_tokens"), value=per_token("abs_w1"),
           aliases=(Alias("slime", "train/tis_abs", "mean per sample first"),)),
    Metric(name="ess", formula="(Σw)² / (N Σw²) on raw w", direction="w = q/p", level="token", unit="fraction", sums=("w", "w2"), value=effective_share("w", "w2"), aliases=(
        Alias("PipelineRL", "rl/ess", "over the optimizer step, from rl/ratio_new_old_sum and _squared_sum"), Alias("verl", "rollout_corr/rollout_is_eff_sample_size", "token mode; on truncated weights: hides the tail, cannot fall below 0.64 at cap 2 in the 2026-01 code"),
        Alias("ms-swift", "rollout_correction/ess"), Alias("martingale", "ESS/n"))),
    Metric(name="tis_mean", formula="mean min(w, C), C = tis_cap", direction="w = q/p", level="token", unit="ratio", sums=("tis", "later_tokens"), value=per_token("tis"), aliases=(
        Alias("verl", "rollout_corr/rollout_is_mean", "token mode"), Alias("open-instruct", "val/rho_mean", "log ratio clamped to ±10"),
        Alias("ms-swift", "rollout_correction/is_weight_mean"), Alias("TRL", "sampling/importance_sampling_ratio/mean", "token_truncate mode"))),
    Metric(name="tis_std", formula="standard deviation of min(w, C)", direction="w = q/p", level="token", unit="ratio", sums=("tis", "tis2", "later_tokens"),
           value=spread("tis", "tis2"), aliases=(Alias("verl", "rollout_corr/rollout_is_std", "token mode"),)),
    Metric(name="tis_truncated", formula="share of w > C", direction="w = q/p", level="token", unit="fraction", sums=("tis_truncated", "later_tokens"), value=per_token("tis_truncated"), aliases=(
        Alias("slime", "train/tis_clipfrac", "mean per sample first; counts its lower bound too where that is not 0"), Alias("verl", "rollout_corr/rollout_is_ratio_fraction_high", "token mode"),
        Alias("ms-swift", "rollout_correction/clipped_frac"))),
    Metric(name="tis_ess", formula="(Σ min(w, C))² / (N Σ min(w, C)²)", direction="w = q/p", level="token", unit="fraction", sums=("tis", "tis2", "later_tokens"), value=effective_share("tis", "tis2")),
    Metric(name="icepop_low", formula="share of w below the IcePop range", direction="w = q/p", level="token", unit="fraction", sums=("icepop_low", "later_tokens"), value=per_token("icepop_low")),
    Metric(name="icepop_high", formula="share of w above the IcePop range", direction="w = q/p", level="token", unit="fraction", sums=("icepop_high", "later_tokens"), value=per_token("icepop_high"),
           aliases=(Alias("AReaL", "rs_filtered_fraction", "its upper bound is 5 too"),)),
    Metric(name="icepop_masked", formula="share of w outside icepop", direction="w = q/p", level="token", unit="fraction", sums=("icepop_low", "icepop_high", "later_tokens"),
           value=per_token("icepop_low", "icepop_high"), aliases=(Alias("NeMo-RL", "is_oob_ratio", "icepop mode"),)),
    Metric(name="mis_low", formula="share of w below the MIS range", direction="w = q/p", level="token", unit="fraction", sums=("mis_low", "later_tokens"), value=per_token("mis_low"),
           aliases=(Alias("verl", "rollout_corr/rollout_is_ratio_fraction_low", "token mode; its bound is 1/C"), Alias("slime", "train/mis_rs_mask_fraction_low", "mean per sample first"))),
    Metric(name="mis_high", formula="share of w above the MIS range", direction="w = q/p", level="token", unit="fraction", sums=("mis_high", "later_tokens"), value=per_token("mis_high"),
           aliases=(Alias("slime", "train/mis_rs_mask_fraction_high", "mean per sample first"),)),
    Metric(name="mis_masked", formula="share of w outside mis", direction="w = q/p", level="token", unit="fraction", sums=("mis_low", "mis_high", "later_tokens"),
           value=per_token("mis_low", "mis_high"), aliases=(Alias("verl", "rollout_corr/rollout_rs_masked_fraction", "token_k1 bounds act on 1/w"),)),
    Metric(name="veto_tokens", formula="share of w < veto", direction="w = q/p", level="token", unit="fraction", sums=("veto", "later_tokens"), value=per_token("veto"),
           aliases=(Alias("slime", "train/mis_rs_catastrophic_token_fraction", "mean per sample first"), Alias("verl", "rollout_corr/rollout_is_catastrophic_token_fraction"))),
    Metric(name="dppo_low", formula="share of e^q − e^p < −dppo", direction=Q_OVER_P, level="token", unit="fraction", sums=("dppo_low", "later_tokens"), value=per_token("dppo_low"),
           aliases=(Alias("prime-rl", "is_masked_low", "only where the advantage is negative"),)),
    Metric(name="dppo_high", formula="share of e^q − e^p > dppo", direction=Q_OVER_P, level="token", unit="fraction", sums=("dppo_high", "later_tokens"), value=per_token("dppo_high"),
           aliases=(Alias("prime-rl", "is_masked_high", "only where the advantage is positive"),)),
    Metric(name="dppo_masked", formula="share of |e^q − e^p| > dppo", direction=EVEN, level="token", unit="fraction", sums=("dppo_low", "dppo_high", "later_tokens"),
           value=per_token("dppo_low", "dppo_high"), aliases=(Alias("prime-rl", "is_masked", "conditioned on the advantage's sign"),)),
    Metric(name="masked_k3", formula="mean k3 of tokens with |e^q − e^p| > dppo", direction=P_TO_Q, level="token", unit="nats", sums=("dppo_k3", "dppo_low", "dppo_high"),
           value=lambda s: ratio(read(s, "dppo_k3"), read(s, "dppo_low") + read(s, "dppo_high")), aliases=(Alias("prime-rl", "masked_mismatch_kl", "conditioned on the advantage's sign"),)),
    Metric(name="unmasked_k3", formula="mean k3 of the other tokens", direction=P_TO_Q, level="token", unit="nats", sums=("k3", "dppo_k3", "dppo_low", "dppo_high", "later_tokens"),
           value=unmasked_k3, aliases=(Alias("prime-rl", "unmasked_mismatch_kl", "conditioned on the advantage's sign"),)),
)

PROBABILITIES = (
    Metric(name="probs_diff_mean", formula="mean |e^q − e^p|", direction=EVEN, level="token", unit="probability", sums=("abs_dp", "later_tokens"), value=per_token("abs_dp"),
           aliases=(Alias("verl", "training/rollout_probs_diff_mean", "blind to unlikely tokens"),)),
    Metric(name="probs_diff_std", formula="standard deviation of |e^q − e^p|", direction=EVEN, level="token", unit="probability", sums=("abs_dp", "dp2", "later_tokens"),
           value=spread("abs_dp", "dp2"), aliases=(Alias("verl", "training/rollout_probs_diff_std", "divides by N − 1"),)),
    Metric(name="probs_diff_max", formula="max |e^q − e^p|", direction=EVEN, level="token", unit="probability", sums=("max_abs_dp", "later_tokens"), value=extreme("max_abs_dp"),
           aliases=(Alias("verl", "training/rollout_probs_diff_max"),)),
    Metric(name="pearson", formula="Pearson correlation of e^p and e^q", direction=EVEN, level="token", unit="correlation", sums=("p", "q", "pp", "qq", "pq"), value=pearson,
           aliases=(Alias("verl", "training/rollout_actor_probs_pearson_corr"),)),
    Metric(name="mean_engine_logprob", formula="mean p", direction="p alone", level="token", unit="nats", sums=("engine_logprob",), value=per_token("engine_logprob"),
           aliases=(Alias("PipelineRL", "rl/old_logprobs", "mean per sequence first"),)),
    Metric(name="mean_trainer_logprob", formula="mean q", direction="q alone", level="token", unit="nats", sums=("engine_logprob", "d"), value=per_token("engine_logprob", "d"),
           aliases=(Alias("PipelineRL", "rl/new_logprobs", "mean per sequence first; the live policy"),)),
    Metric(name="mean_entropy", formula="mean entropy of q over the whole vocabulary", direction="q alone", level="token", unit="nats", sums=("entropy", "entropy_tokens"),
           value=lambda s: ratio(read(s, "entropy"), read(s, "entropy_tokens")), mask="as above, where the scorer gives an entropy",
           aliases=(Alias("PipelineRL", "rl/entropy", "mean per sequence first"), Alias("verl", "actor/entropy"), Alias("TRL", "entropy"))),
)

STALE = "slices of population stale: tokens with a finite logprob of the engine, the generating and the newest weights"

LAG = (
    Metric(name="lag_mismatch_abs_d", formula="mean |m|, m = log q − log p at the generating version", direction=EVEN, level="token", unit="nats",
           sums=("lag_mismatch", "lag_total2"), value=beside_stale("lag_mismatch"), mask=STALE),
    Metric(name="lag_total_abs_d", formula="mean |t|, t = log q_newest − log p = m + d, d the staleness", direction=EVEN, level="token", unit="nats",
           sums=("lag_total", "lag_total2"), value=beside_stale("lag_total"), mask=STALE),
    Metric(name="mismatch_share", formula="mean(m t) / mean(t²)", direction=EVEN, level="token", unit="fraction",
           sums=("d2", "lag_mismatch2", "lag_total2"), value=lag_share("lag_mismatch2", "d2"), mask=STALE),
    Metric(name="staleness_share", formula="mean(d t) / mean(t²) = 1 − mismatch_share", direction=EVEN, level="token", unit="fraction",
           sums=("d2", "lag_mismatch2", "lag_total2"), value=lag_share("d2", "lag_mismatch2"), mask=STALE),
)
"""Mismatch and staleness in the difference a trainer that has moved on sees; by lag, since stale slices carry it as their version."""

TOKEN_ROWS = (*LOG_RATIO, *DIVERGENCES, *CLIPPING, *CORRECTIONS, *PROBABILITIES, *LAG)
