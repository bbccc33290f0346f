"""Every signal of the table against its formula, token by token in float64; merging; and what the table must say."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from collector import metric_table, signals
from collector.config import SignalsConfig
from collector.limits import PRESETS, Limits
from collector.metric_table import METRICS, by_alias
from collector.records import Rollout, Score, SliceStats, WeightSpan
from collector.signal_sums import FIRST_SUMS, SUMS, WEIGHTED

ROOT = Path(__file__).parent.parent
COUNTED = {"nonfinite", "zeros", "outside_kept", "unscored", "length_mismatch"}  # tested in test_collector_signals.py
LAG = {"lag_mismatch_abs_d", "lag_total_abs_d", "mismatch_share", "staleness_share"}  # of stale slices alone: tests/test_staleness_shares.py
QUANTILES = {"p50_abs_d": 0.5, "p90_abs_d": 0.9, "p99_abs_d": 0.99, "p999_abs_d": 0.999}
SIGNED = {"p01_d": 0.01, "p50_d": 0.5, "p99_d": 0.99}


def rollout(p, q, *, name="r", prompt=10, spans=(), entropy=None) -> tuple[Rollout, Score]:
    p, q = np.asarray(p, np.float32), np.asarray(q, np.float32)
    made = Rollout(request_id=name, engine="a", prompt_tokens_P=np.zeros(prompt, np.int32),
                   completion_tokens_T=np.zeros(p.size, np.int32), engine_logprobs_T=p, sampled_mask_T=np.ones(p.size, bool),
                   weight_versions=tuple(WeightSpan(start=s, end=e, version=v) for s, e, v in spans))
    return made, Score(request_id=name, views={"expected": q}, entropy_T=entropy)


def reference(pairs, limits: Limits, entropies=None) -> dict[str, float]:
    """Every signal by its formula, one token and one sequence at a time; `pairs`: (p, q) of each rollout, float64."""
    kept = [[(p, q) for p, q in zip(*pair, strict=True) if math.isfinite(p) and math.isfinite(q)] for pair in pairs]
    kept = [tokens for tokens in kept if tokens]
    flat = [token for tokens in kept for token in tokens]
    p, q = np.array([a for a, _ in flat]), np.array([b for _, b in flat])
    d, n, n_seq = q - p, len(flat), len(kept)
    cap = lambda x: max(-20.0, min(20.0, x))  # noqa: E731
    w = np.array([math.exp(cap(x)) for x in d])
    k3 = np.array([math.expm1(min(x, 20.0)) - x for x in d])
    out: dict[str, float] = {"n_tokens": n, "n_sequences": n_seq, "mean_d": d.mean(), "std_d": d.std(), "max_d": d.max(),
                             "min_d": d.min(), "mean_abs_d": abs(d).mean(), "std_abs_d": abs(d).std(),
                             "max_abs_d": abs(d).max(), "min_abs_d": abs(d).min()}
    for name, values in (("mean_d_se", d), ("mean_abs_d_se", abs(d))):
        clusters, at = [], 0
        for tokens in kept:
            clusters.append((values[at:at + len(tokens)] - values.mean()).sum())
            at += len(tokens)
        out[name] = math.sqrt(sum(c * c for c in clusters)) / n
    js = []
    for a, b in flat:
        m = max(a, b) + math.log((math.exp(a - max(a, b)) + math.exp(b - max(a, b))) / 2)
        js.append(0.5 * (math.expm1(b - m) - (b - m)) + 0.5 * (math.expm1(a - m) - (a - m)))
    out |= {"k1": -d.mean(), "k2": (d * d).mean() / 2, "k3": k3.mean(), "k3_std": k3.std(), "k3_max": k3.max(),
            "k3_swapped": np.mean([math.expm1(min(-x, 20.0)) + x for x in d]), "js": np.mean(js),
            "p_weighted_k1": np.mean([math.exp(a) * (a - b) for a, b in flat]),
            "tme": np.mean([math.exp(cap(abs(x))) for x in d]), "chi2": (w**2).mean() - 1}
    return out | _weights(w, d, k3, p, q, limits) | _sequences(kept, limits, n_seq) | _policy(p, q, entropies, pairs)


def _weights(w, d, k3, p, q, limits: Limits) -> dict[str, float]:
    low = w < 1 - limits.eps_low if limits.eps_low is not None else w < -1
    high = w > 1 + limits.eps_high if limits.eps_high is not None else w < -1
    tis = np.minimum(w, limits.tis_cap)
    dp = np.exp(q) - np.exp(p)
    masked = abs(dp) > limits.dppo
    return {
        "clip_rate_low": low.mean(), "clip_rate_high": high.mean(), "clip_rate": (low | high).mean(),
        "mean_w": w.mean(), "max_w": w.max(), "min_w": w.min(), "mean_abs_w1": abs(w - 1).mean(),
        "ess": w.sum()**2 / (w.size * (w**2).sum()), "tis_mean": tis.mean(), "tis_std": tis.std(),
        "tis_truncated": (w > limits.tis_cap).mean(), "tis_ess": tis.sum()**2 / (w.size * (tis**2).sum()),
        "icepop_low": (w < limits.icepop[0]).mean(), "icepop_high": (w > limits.icepop[1]).mean(),
        "icepop_masked": ((w < limits.icepop[0]) | (w > limits.icepop[1])).mean(),
        "mis_low": (w < limits.mis[0]).mean(), "mis_high": (w > limits.mis[1]).mean(),
        "mis_masked": ((w < limits.mis[0]) | (w > limits.mis[1])).mean(), "veto_tokens": (w < limits.veto).mean(),
        "dppo_low": (dp < -limits.dppo).mean(), "dppo_high": (dp > limits.dppo).mean(), "dppo_masked": masked.mean(),
        "masked_k3": k3[masked].mean() if masked.any() else math.nan,
        "unmasked_k3": k3[~masked].mean() if (~masked).any() else math.nan,
        "probs_diff_mean": abs(dp).mean(), "probs_diff_std": abs(dp).std(), "probs_diff_max": abs(dp).max(),
        "w_clipped": (abs(d) > 20).sum(), "confident_disagreements": ((p >= math.log(0.5)) & (d < -2)).sum(),
    }


def _sequences(kept, limits: Limits, n_seq: int) -> dict[str, float]:
    rows = []
    for tokens in kept:
        p, q = np.array([a for a, _ in tokens]), np.array([b for _, b in tokens])
        d = q - p
        w = np.exp(np.clip(d, -20, 20))
        geo, product = math.exp(np.clip(d.mean(), -20, 20)), math.exp(np.clip(d.sum(), -20, 20))
        k3 = (np.expm1(np.minimum(d, 20)) - d).mean()
        tme = np.exp(np.clip(abs(d), 0, 20)).mean()
        low = limits.eps_low is not None and geo < 1 - limits.eps_low
        high = limits.eps_high is not None and geo > 1 + limits.eps_high
        clip = ((w < 1 - limits.eps_low if limits.eps_low is not None else w < -1)
                | (w > 1 + limits.eps_high if limits.eps_high is not None else w < -1)).mean()
        outside = lambda x, pair: float(x < pair[0] or x > pair[1])  # noqa: E731
        veto = bool((w < limits.veto).any())
        rows.append({
            "k1_per_sequence": -d.mean(), "k3_per_sequence": k3, "abs_d_per_sequence": abs(d).mean(),
            "clip_rate_per_sequence": clip if limits.level == "token" else float(low or high), "tme_per_sequence": tme,
            "ppl_ratio": math.exp(np.clip(-d.mean(), -20, 20)), "rollout_ppl": math.exp(min(20, -p.mean())),
            "training_ppl": math.exp(min(20, -q.mean())), "rollout_log_ppl": -p.mean(), "training_log_ppl": -q.mean(),
            "log_ppl_abs_diff": abs(d.mean()), "gspo_clip_rate": float(low or high), "chi2_seq": product**2 - 1, "seq_mean_w": product,
            "chi2_geo": geo**2 - 1, "seq_tis_mean": min(product, limits.sequence_tis_cap),
            "seq_tis_truncated": float(product > limits.sequence_tis_cap),
            "sequence_masked": float(product > limits.sequence_mask_cap),
            "sequence_masked_mean_w": product if product <= limits.sequence_mask_cap else 0.0,
            "geometric_masked": outside(geo, limits.geometric), "product_masked": outside(product, limits.product),
            "veto_sequences": float(veto), "outlier_sequences": float(veto or bool((w > limits.outlier_high).any())),
            "k3_sequences_masked": float(k3 > limits.sequence_k3), "tme_sequences_masked": float(tme > limits.sequence_tme),
        })
    out = {name: sum(row[name] for row in rows) / n_seq for name in rows[0]}
    out["seq_ess"] = out["seq_mean_w"] ** 2 / (out["chi2_seq"] + 1)
    logs, tmes = [row["k1_per_sequence"] for row in rows], [row["tme_per_sequence"] for row in rows]
    return out | {"log_ppl_diff_max": max(logs), "log_ppl_diff_min": min(logs), "max_seq_tme": max(tmes), "min_seq_tme": min(tmes)}


def _policy(p, q, entropies, pairs) -> dict[str, float]:
    prob_p, prob_q = np.exp(p), np.exp(q)
    varies = prob_p.size > 1 and prob_p.std() > 0 and prob_q.std() > 0
    entropy = math.nan
    if entropies is not None:
        entropy = np.concatenate([e.astype(float)[np.isfinite(a) & np.isfinite(b)] for e, (a, b) in zip(entropies, pairs, strict=True)]).mean()
    return {"pearson": np.corrcoef(prob_p, prob_q)[0, 1] if varies else math.nan, "mean_engine_logprob": p.mean(),
            "mean_trainer_logprob": q.mean(), "mean_entropy": entropy}


def cases() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    rng = np.random.default_rng(11)

    def random(n: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
        p = -rng.exponential(1.0, n).astype(np.float32)
        return p, np.minimum(p + rng.normal(0, spread, n), -1e-7).astype(np.float32)

    nan, inf = math.nan, math.inf
    return {
        "healthy": [random(n, 0.02) for n in (400, 3, 57, 1)],
        "broken": [random(n, 1.5) for n in (200, 9, 120)],
        "huge": [(np.array([-900, -1, -2], np.float32), np.array([-1, -900, -2.5], np.float32)), random(20, 6.0)],
        "one token": [(np.array([-1], np.float32), np.array([-1.5], np.float32))],
        "equal": [(np.array([-1, -0.25], np.float32), np.array([-1, -0.25], np.float32))],
        "non-finite": [(np.array([nan, -1, -inf, -1, -2], np.float32), np.array([-1, nan, -1, -inf, -2.25], np.float32)),
                       (np.array([nan], np.float32), np.array([-1], np.float32)), random(30, 0.1)],
    }


LIMITS = {**PRESETS, "tight": Limits(eps_low=0.01, eps_high=0.02, tis_cap=1.05, icepop=(0.9, 1.1), mis=(0.95, 1.02), dppo=0.01,
                                     veto=0.8, outlier_high=1.3, geometric=(0.999, 1.001), product=(0.9, 1.1),
                                     sequence_tis_cap=1.1, sequence_mask_cap=1.2, sequence_k3=1e-4, sequence_tme=1.01)}
NAMES = ("healthy", "broken", "huge", "one token", "equal", "non-finite")


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("case", NAMES)
def test_every_signal_equals_a_token_by_token_reference(case: str, limits: Limits) -> None:
    pairs = cases()[case]
    entropies = [np.linspace(0.1, 2, p.size).astype(np.float32) for p, _ in pairs]
    slices = [item for i, ((p, q), e) in enumerate(zip(pairs, entropies, strict=True))
              for item in signals.slice_stats(*rollout(p, q, name=str(i), entropy=e), limits=limits)]
    got = signals.metrics(signals.total(slices))
    doubles = [(p.astype(np.float64), q.astype(np.float64)) for p, q in pairs]
    expected = reference(doubles, limits, entropies)
    if limits.level == "sequence":  # one flag a sequence, on all its tokens
        sizes = [int((np.isfinite(p) & np.isfinite(q)).sum()) for p, q in doubles]
        for name in ("clip_rate_low", "clip_rate_high", "clip_rate"):
            flags = [_flag(p, q, limits, name) for p, q in doubles]
            expected[name] = sum(f * n for f, n in zip(flags, sizes, strict=True)) / sum(sizes)
    assert set(expected) | COUNTED | set(QUANTILES) | set(SIGNED) | {"median_ratio"} | LAG == set(got)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-7, abs=1e-10, nan_ok=True), name


def _flag(p, q, limits: Limits, name: str) -> float:
    ok = np.isfinite(p) & np.isfinite(q)
    geo = math.exp(np.clip((q - p)[ok].mean(), -20, 20)) if ok.any() else 1.0
    low, high = geo < 1 - (limits.eps_low or 0), geo > 1 + (limits.eps_high or 0)
    return float({"clip_rate_low": low, "clip_rate_high": high, "clip_rate": low or high}[name])


@pytest.mark.parametrize("case", ["healthy", "broken"])
def test_quantiles_agree_with_the_data_within_a_bin(case: str) -> None:
    pairs = cases()[case]
    got = signals.metrics(signals.total(s for i, (p, q) in enumerate(pairs) for s in signals.slice_stats(*rollout(p, q, name=str(i)))))
    d = np.concatenate([q.astype(float) - p.astype(float) for p, q in pairs])
    for name, level in QUANTILES.items():
        assert got[name] == pytest.approx(np.quantile(abs(d), level), rel=0.35), name
    for name, level in SIGNED.items():
        assert got[name] == pytest.approx(np.quantile(d, level), rel=0.35, abs=0.005), name
    assert got["median_ratio"] == pytest.approx(math.exp(np.median(d)), rel=0.01)


def test_quantiles_of_one_sign_stay_on_that_side() -> None:
    for sign in (-1, 1):
        got = signals.metrics(signals.total(signals.slice_stats(*rollout([-5.0] * 9, [-5.0 + sign * 0.5] * 9))))
        assert all(got[name] * sign > 0.4 for name in SIGNED), sign


@pytest.mark.parametrize("case", NAMES)
def test_two_halves_merged_are_the_whole(case: str) -> None:
    """Rollouts dealt to two batches, and each cut into slices by position and version: the same sums and signals."""
    pairs = cases()[case] * 2
    whole = [s for i, (p, q) in enumerate(pairs) for s in signals.slice_stats(*rollout(p, q, name=str(i)))]
    cut = [list(signals.slice_stats(*rollout(p, q, name=str(i), prompt=1020, spans=[(0, p.size // 3, "1"), (p.size // 3, p.size, "2")])))
           for i, (p, q) in enumerate(pairs)]
    halves = [signals.total([s for part in cut[start::2] for s in part]) for start in (0, 1)]
    left, right = signals.metrics(signals.total(whole)), signals.metrics(signals.total(halves))
    for name in left:
        if not name.endswith("_se"):  # slices of one rollout are clusters of their own
            assert right[name] == pytest.approx(left[name], rel=1e-9, abs=1e-12, nan_ok=True), name


def test_halves_of_a_batch_merge_to_bitwise_equal_sums_in_any_order() -> None:
    slices = [s for i, (p, q) in enumerate(cases()["broken"]) for s in signals.slice_stats(*rollout(p, q, name=str(i)))]
    assert signals.total(slices).sums == signals.total(slices[::-1]).sums


def old(stats: SliceStats) -> SliceStats:
    """The record as it was stored before the later sums existed."""
    return replace(stats, sums={name: stats.sums[name] for name in FIRST_SUMS})


def test_an_old_record_keeps_its_signals_and_is_left_out_of_the_later_ones() -> None:
    (first,), (second,) = (signals.slice_stats(*rollout(p, q)) for p, q in cases()["broken"][:2])
    alone = signals.metrics(old(first))
    assert alone["k3"] == signals.metrics(first)["k3"] and alone["ess"] == signals.metrics(first)["ess"]
    assert all(math.isnan(alone[name]) for name in ("tis_mean", "js", "k3_per_sequence", "min_d", "max_w", "unmasked_k3"))
    mixed = signals.metrics(signals.total([signals.total([old(first)]), second]))
    both, newer = signals.metrics(signals.total([first, second])), signals.metrics(second)
    assert mixed["k3"] == both["k3"] and mixed["max_abs_d"] == both["max_abs_d"]
    assert all(mixed[name] == newer[name] for name in ("tis_mean", "js", "k3_per_sequence", "min_abs_d", "max_seq_tme"))


def test_nothing_scored_is_nan_and_never_a_number() -> None:
    empty = signals.metrics(signals.total(signals.slice_stats(*rollout([math.nan], [-1.0]))))
    numbers = {m.name for m in METRICS if m.level == "count"} | {"max_abs_d"}
    assert all(math.isnan(value) for name, value in empty.items() if name not in numbers)


def test_the_table_is_complete_and_every_sum_is_used() -> None:
    assert len({m.name for m in METRICS}) == len(METRICS)
    used = {name for m in METRICS for name in m.sums}
    assert used == set(SUMS) - set(WEIGHTED) | {"hist"}, "the weighted sums are read over two populations at once (signals.weighted)"
    assert all(m.formula and m.direction and m.unit and m.mask for m in METRICS)


@pytest.mark.parametrize("logged, ours", [
    ("rl/kl_new_old", "k3_per_sequence"), ("rl/ess", "ess"), ("rl/clamp_log_ratio_new_old_indicator", "clip_rate_per_sequence"),
    ("rollout_corr/k3_kl", "k3"), ("rollout_corr/chi2_seq", "chi2_seq"), ("training/rollout_probs_diff_mean", "probs_diff_mean"),
    ("sampling/sampling_logp_difference/mean", "mean_abs_d"), ("mismatch_kl/all/mean", "k3"), ("token_mult_prob_error", "tme"),
    ("policy_kl_error", "k3_swapped"), ("js_divergence_error", "js"), ("train/train_rollout_logprob_abs_diff", "abs_d_per_sequence"),
    ("debug/vllm_local_reverse_kl", "p_weighted_k1"), ("vllm_kl", "k1"), ("max_seq_mult_prob_error", "max_seq_tme"),
    ("policy/rollout_train_logprobs_abs_diff_mean", "mean_abs_d"), ("compute_logp/kl_div_taylor", "k2"), ("optim/kl_sample_train_v1", "k1"),
])
def test_a_name_a_framework_logs_is_found(logged: str, ours: str) -> None:
    assert [metric.name for metric in by_alias(logged)] == [ours]


def test_docs_metrics_md_is_generated_from_the_table() -> None:
    """`python -m collector.metric_table > docs/metrics.md`"""
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == metric_table.render()


def test_the_algorithm_sets_the_clip_range_and_explicit_keys_override_it() -> None:
    assert SignalsConfig().limits() == Limits()
    assert (SignalsConfig(algorithm="dapo").limits().eps_low, SignalsConfig(algorithm="dapo").limits().eps_high) == (0.2, 0.28)
    gspo = SignalsConfig(algorithm="gspo", eps_high=0.01).limits()
    assert (gspo.level, gspo.eps_low, gspo.eps_high) == ("sequence", 3e-4, 0.01)
    reinforce = SignalsConfig(algorithm="reinforce", eps_high=0.02, icepop=(0.2, 8.0)).limits()
    assert (reinforce.eps_low, reinforce.eps_high, reinforce.icepop) == (None, 0.02, (0.2, 8.0))
    dpo = signals.metrics(signals.total(signals.slice_stats(*rollout([-1, -1], [-9, -0.1]), limits=SignalsConfig(algorithm="dpo").limits())))
    assert dpo["clip_rate"] == dpo["gspo_clip_rate"] == 0.0 and dpo["mean_abs_d"] > 4


def test_a_range_that_leaves_out_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0 ≤ low < 1 < high"):
        SignalsConfig(geometric=(1.01, 0.99))
