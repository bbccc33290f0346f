"""The metric table's rows over sequences, and the counts.

A sequence is one rollout. A rollout over several slices (position bucket, weight version) counts in each by its share
of tokens, so slices add up to the whole. Products of ratios are taken at Σd capped to ±20.
"""

from __future__ import annotations

from collector.metric_values import Alias, Metric, count, effective_share, extreme, minus_one, per_sequence, sequences_behind

THEN_MEAN = "per-sequence-then-mean"

PER_SEQUENCE = (
    Metric(name="k1_per_sequence", formula="mean over sequences of (mean −d)", direction="KL(p‖q)", level=THEN_MEAN, unit="nats",
           sums=("seq_d", "later_sequences"), value=per_sequence("seq_d", sign=-1),
           aliases=(Alias("verl", "rollout_corr/log_ppl_diff"), Alias("slime", "train/mis_kl"), Alias("ms-swift", "rollout_correction/log_ppl_diff"))),
    Metric(name="k3_per_sequence", formula="mean over sequences of (mean k3)", direction="KL(p‖q)", level=THEN_MEAN, unit="nats", sums=("seq_k3", "later_sequences"),
           value=per_sequence("seq_k3"), aliases=(Alias("PipelineRL", "rl/kl_new_old", "no clamp; mixes lag of the live policy with the engine's mismatch"), Alias("slime", "train/mis_k3_kl"))),
    Metric(name="abs_d_per_sequence", formula="mean over sequences of (mean |d|)", direction="symmetric", level=THEN_MEAN, unit="nats", sums=("seq_abs_d", "later_sequences"),
           value=per_sequence("seq_abs_d"), aliases=(Alias("PipelineRL", "rl/mean_abs_log_ratio_new_old"), Alias("slime", "train/train_rollout_logprob_abs_diff"),
                                                     Alias("miles", "train/train_rollout_logprob_abs_diff"))),
    Metric(name="clip_rate_per_sequence", formula="mean over sequences of the share of clipped tokens", direction="w = q/p", level=THEN_MEAN, unit="fraction",
           sums=("seq_clip", "later_sequences"), value=per_sequence("seq_clip"),
           aliases=(Alias("PipelineRL", "rl/clamp_log_ratio_new_old_indicator", "the live policy; [signals] algorithm says which sides and level"),)),
    Metric(name="tme_per_sequence", formula="mean over sequences of (mean e^|d|)", direction="symmetric", level=THEN_MEAN, unit="ratio", sums=("seq_exp_abs_d", "later_sequences"),
           value=per_sequence("seq_exp_abs_d"), aliases=(Alias("NeMo-RL", "mean_seq_mult_prob_error"),)),
    Metric(name="max_seq_tme", formula="max over sequences of mean e^|d|", direction="symmetric", level="sequence", unit="ratio", sums=("max_seq_tme", "later_tokens"),
           value=extreme("max_seq_tme"), aliases=(Alias("NeMo-RL", "max_seq_mult_prob_error"),)),
    Metric(name="min_seq_tme", formula="min over sequences of mean e^|d|", direction="symmetric", level="sequence", unit="ratio", sums=("min_seq_tme", "later_tokens"),
           value=extreme("min_seq_tme"), aliases=(Alias("NeMo-RL", "min_seq_mult_prob_error"),)),
)

PERPLEXITY = (
    Metric(name="ppl_ratio", formula="mean over sequences of exp(−mean d)", direction="p relative to q", level="sequence", unit="ratio", sums=("ppl_ratio",), value=per_sequence("ppl_ratio"),
           aliases=(Alias("verl", "rollout_corr/ppl_ratio"), Alias("ms-swift", "rollout_correction/ppl_ratio"), Alias("slime", "train/mis_ppl_ratio"))),
    Metric(name="rollout_ppl", formula="mean over sequences of exp(−mean p)", direction="p alone", level="sequence", unit="perplexity", sums=("rollout_ppl", "later_sequences"),
           value=per_sequence("rollout_ppl"), aliases=(Alias("verl", "rollout_corr/rollout_ppl"), Alias("ms-swift", "rollout_correction/rollout_ppl"))),
    Metric(name="training_ppl", formula="mean over sequences of exp(−mean q)", direction="q alone", level="sequence", unit="perplexity", sums=("training_ppl", "later_sequences"),
           value=per_sequence("training_ppl"), aliases=(Alias("verl", "rollout_corr/training_ppl"), Alias("ms-swift", "rollout_correction/training_ppl"))),
    Metric(name="rollout_log_ppl", formula="mean over sequences of −mean p", direction="p alone", level=THEN_MEAN, unit="nats", sums=("seq_engine_logprob", "later_sequences"),
           value=per_sequence("seq_engine_logprob", sign=-1), aliases=(Alias("verl", "rollout_corr/rollout_log_ppl"),)),
    Metric(name="training_log_ppl", formula="mean over sequences of −mean q", direction="q alone", level=THEN_MEAN, unit="nats", sums=("seq_engine_logprob", "seq_d", "later_sequences"),
           value=per_sequence("seq_engine_logprob", "seq_d", sign=-1), aliases=(Alias("verl", "rollout_corr/training_log_ppl"),)),
    Metric(name="log_ppl_abs_diff", formula="mean over sequences of |mean d|", direction="symmetric", level="sequence", unit="nats", sums=("seq_abs_mean_d", "later_sequences"),
           value=per_sequence("seq_abs_mean_d"), aliases=(Alias("verl", "rollout_corr/log_ppl_abs_diff"),)),
    Metric(name="log_ppl_diff_max", formula="max over sequences of −mean d", direction="p relative to q", level="sequence", unit="nats", sums=("min_seq_d", "later_tokens"),
           value=extreme("min_seq_d", lambda d: -d), aliases=(Alias("verl", "rollout_corr/log_ppl_diff_max"),)),
    Metric(name="log_ppl_diff_min", formula="min over sequences of −mean d", direction="p relative to q", level="sequence", unit="nats", sums=("max_seq_d", "later_tokens"),
           value=extreme("max_seq_d", lambda d: -d), aliases=(Alias("verl", "rollout_corr/log_ppl_diff_min"),)),
)

SEQUENCE_WEIGHTS = (
    Metric(name="gspo_clip_rate", formula="share of sequences with exp(mean d) outside [1 − ε_low, 1 + ε_high]", direction="w = q/p", level="sequence", unit="fraction",
           sums=("gspo_low", "gspo_high"), value=per_sequence("gspo_low", "gspo_high")),
    Metric(name="chi2_seq", formula="mean over sequences of (Π w)² − 1, Σd capped to ±20", direction="χ²(q‖p)", level="sequence", unit="ratio", sums=("seq_w2", "later_sequences"),
           value=minus_one(per_sequence("seq_w2")), aliases=(Alias("verl", "rollout_corr/chi2_seq", "saturates on long responses, as ours does"),)),
    Metric(name="chi2_geo", formula="mean over sequences of exp(2 mean d) − 1", direction="χ²(q‖p), geometric", level="sequence", unit="ratio", sums=("geo_w2", "later_sequences"),
           value=minus_one(per_sequence("geo_w2")), aliases=(Alias("ms-swift", "rollout_correction/chi2_seq"),)),
    Metric(name="seq_mean_w", formula="mean over sequences of Π w", direction="w = q/p", level="sequence", unit="ratio", sums=("seq_w", "later_sequences"), value=per_sequence("seq_w")),
    Metric(name="seq_ess", formula="(Σ Πw)² / (N Σ (Πw)²) on raw products", direction="w = q/p", level="sequence", unit="fraction", sums=("seq_w", "seq_w2", "later_sequences"),
           value=effective_share("seq_w", "seq_w2", sequences_behind), aliases=(Alias("verl", "rollout_corr/rollout_is_eff_sample_size", "sequence mode, its default; on truncated products"),)),
    Metric(name="seq_tis_mean", formula="mean over sequences of min(Π w, sequence_tis_cap)", direction="w = q/p", level="sequence", unit="ratio", sums=("seq_tis", "later_sequences"),
           value=per_sequence("seq_tis"), aliases=(Alias("verl", "rollout_corr/rollout_is_mean", "sequence mode, its default"), Alias("verl", "rollout_corr/rollout_is_seq_mean"), Alias("SkyRL", "seq TIS", "its cap is 5"))),
    Metric(name="seq_tis_truncated", formula="share of sequences with Π w above sequence_tis_cap", direction="w = q/p", level="sequence", unit="fraction", sums=("seq_truncated", "later_sequences"),
           value=per_sequence("seq_truncated"), aliases=(Alias("verl", "rollout_corr/rollout_is_ratio_fraction_high", "sequence mode, its default"), Alias("verl", "rollout_corr/rollout_is_seq_fraction_high"))),
    Metric(name="sequence_masked", formula="share of sequences with Π w above sequence_mask_cap", direction="w = q/p", level="sequence", unit="fraction", sums=("seq_masked", "later_sequences"),
           value=per_sequence("seq_masked")),
    Metric(name="sequence_masked_mean_w", formula="mean over sequences of Π w, 0 where it is above sequence_mask_cap", direction="w = q/p", level="sequence", unit="ratio",
           sums=("seq_kept_w", "later_sequences"), value=per_sequence("seq_kept_w"),
           aliases=(Alias("TRL", "sampling/importance_sampling_ratio/mean", "sequence_mask mode, its default: a falling mean may be masking, not bias"),)),
    Metric(name="geometric_masked", formula="share of sequences with exp(mean d) outside geometric", direction="w = q/p", level="sequence", unit="fraction", sums=("geo_masked", "later_sequences"),
           value=per_sequence("geo_masked"), aliases=(Alias("SkyRL", "geometric sequence mask"), Alias("NeMo-RL", "is_oob_ratio", "seq-mask-tis mode; its range is 0.999 to 1.002"))),
    Metric(name="product_masked", formula="share of sequences with Π w outside product", direction="w = q/p", level="sequence", unit="fraction", sums=("product_masked", "later_sequences"),
           value=per_sequence("product_masked"), aliases=(Alias("SkyRL", "product sequence mask"), Alias("verl", "rollout_corr/rollout_rs_seq_masked_fraction", "preset seq_sum_k1"))),
    Metric(name="veto_sequences", formula="share of sequences with any w < veto", direction="w = q/p", level="sequence", unit="fraction", sums=("seq_veto", "later_sequences"),
           value=per_sequence("seq_veto"), aliases=(Alias("slime", "train/mis_rs_catastrophic_seq_fraction"), Alias("verl", "rollout_corr/rollout_is_veto_fraction"))),
    Metric(name="outlier_sequences", formula="share of sequences with any w outside [veto, outlier_high]", direction="w = q/p", level="sequence", unit="fraction", sums=("seq_outlier", "later_sequences"),
           value=per_sequence("seq_outlier"), aliases=(Alias("SkyRL", "outlier token mask"),)),
    Metric(name="k3_sequences_masked", formula="share of sequences with mean k3 above sequence_k3", direction="KL(p‖q)", level="sequence", unit="fraction", sums=("seq_k3_masked", "later_sequences"),
           value=per_sequence("seq_k3_masked"), aliases=(Alias("verl", "rollout_corr/rollout_rs_seq_masked_fraction", "preset seq_mean_k3"),)),
    Metric(name="tme_sequences_masked", formula="share of sequences with mean e^|d| above sequence_tme", direction="symmetric", level="sequence", unit="fraction", sums=("seq_tme_masked", "later_sequences"),
           value=per_sequence("seq_tme_masked"), aliases=(Alias("NeMo-RL", "num_masked_seqs_by_logprob_error", "a number of sequences; off by default"),)),
)

COUNTS = (
    Metric(name="n_tokens", formula="tokens in every mean", direction="none", level="count", unit="tokens", sums=(), value=lambda s: float(s.n_tokens)),
    Metric(name="n_sequences", formula="rollouts, each by its share of tokens", direction="none", level="count", unit="sequences", sums=(), value=lambda s: float(s.n_sequences)),
    Metric(name="confident_disagreements", formula="tokens with p ≥ ln 0.5 and d < −2", direction="q relative to p", level="count", unit="tokens", sums=("confident",), value=count("confident"),
           aliases=(Alias("martingale", "confident-disagreement count"),)),
    Metric(name="nonfinite", formula="tokens whose p is NaN or infinite", direction="p alone", level="count", unit="tokens", sums=("nonfinite",), value=count("nonfinite"), mask="sampled tokens"),
    Metric(name="zeros", formula="tokens with p = 0 and q < −0.05", direction="p alone", level="count", unit="tokens", sums=("zeros",), value=count("zeros"), mask="sampled tokens, scored"),
    Metric(name="outside_kept", formula="tokens with q = −∞ and finite p", direction="q alone", level="count", unit="tokens", sums=("outside_kept",), value=count("outside_kept"), mask="sampled tokens, scored"),
    Metric(name="unscored", formula="tokens without q", direction="q alone", level="count", unit="tokens", sums=("unscored",), value=count("unscored"), mask="sampled tokens"),
    Metric(name="w_clipped", formula="tokens with |d| > 20, whose w is taken at ±20", direction="symmetric", level="count", unit="tokens", sums=("w_clipped",), value=count("w_clipped")),
    Metric(name="length_mismatch", formula="rollouts whose arrays differ in length", direction="none", level="count", unit="rollouts", sums=("length_mismatch",), value=count("length_mismatch"), mask="every rollout"),
)

SEQUENCE_ROWS = (*PER_SEQUENCE, *PERPLEXITY, *SEQUENCE_WEIGHTS, *COUNTS)
