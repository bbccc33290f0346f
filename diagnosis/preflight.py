"""What a preflight's probes say, as rows: passed, failed, unknown, or a measurement that is neither. Pure.

A failed row is a fault that shows in the numbers or a setting that contradicts the trainer's declaration. What was not told
or could not be measured is unknown: shown, and no failure. klaxon/preflight/ asks the engine and the scorer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from collector.records import Diagnosis, Rollout, Score
from diagnosis.causes import CAUSE_TEXTS
from diagnosis.config import DiagnosisConfig
from diagnosis.engine_told import Check
from diagnosis.sheet import clustered_mean
from diagnosis.top_one import SURPRISING_Z, TopOne

State = Literal["passed", "failed", "unknown", "measured"]

NEEDED_TOP_ONE = 200
"""Tokens the frequency of the top-1 token is judged from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    >>> Row(name="prefix cache", state="unknown", seen="the engine does not tell cached tokens").cause
    ''
    """

    name: str
    state: State
    seen: str  # what was measured or told, with its numbers
    do: str = ""  # what to type; "" when there is nothing to do
    cause: str = ""  # one of CAUSES, where the row names one


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """One canary, scored."""

    rollout: Rollout
    score: Score
    group: str  # of the probe
    sent_before: bool = False  # the same prompt was already sent in this preflight
    kept: bool = False  # its prefix was in the cache before this preflight began

    @property
    def abs_d_T(self) -> np.ndarray:
        """|expected − engine|, nats, of the tokens both sides know (at most T of them)."""
        d_T = self.score.views["expected"].astype(np.float64) - self.rollout.engine_logprobs_T
        return np.abs(d_T[self.rollout.sampled_mask_T & np.isfinite(d_T)])


def nats(value: float) -> str:
    """Four decimals, or the power of ten where they would say nothing.

    >>> nats(0.02511), nats(5.3e-6), nats(0.0)
    ('0.0251', '5.3e-06', '0')
    """
    return "0" if value == 0 else f"{value:.4f}" if abs(value) >= 5e-4 or not math.isfinite(value) else f"{value:.1e}"


def exit_code(rows: Sequence[Row]) -> int:
    """0 when nothing failed (unknowns are allowed), else 1."""
    return int(any(row.state == "failed" for row in rows))


def settings_row(checks: Sequence[Check]) -> Row:
    """The audit in one line: failed on a wrong setting, unknown while nobody told what logprobs mean."""
    counts = Counter(check.state for check in checks)
    wrong = [check for check in checks if check.state == "wrong"]
    said = ", ".join(f"{counts[state]} {state}" for state in ("ok", "wrong", "risky", "unknown"))
    if wrong:
        return Row(name="settings", state="failed", seen=f"{said}; " + "; ".join(f"{one.name}: {one.seen}" for one in wrong),
                   do="; ".join(one.do for one in wrong if one.do), cause="raw_logprobs" if wrong[0].name == "logprobs mode" and "logprobs_mode = raw_logprobs" in wrong[0].seen else "")
    risky = ", ".join(check.name for check in checks if check.state == "risky")
    said += f"; risky: {risky}" if risky else ""
    if checks and checks[0].state == "unknown":
        return Row(name="settings", state="unknown", seen=f"{said}; {checks[0].seen}", do=checks[0].do)
    return Row(name="settings", state="passed", seen=said, do="klaxon audit ENGINE_URL" if risky else "")


def tokenizer_row(differing: Sequence[str] | str, texts: int) -> Row:
    """Does the engine cut text into the ids the trainer's tokenizer gives? `differing`: texts it does not, or why that is unknown."""
    if isinstance(differing, str):
        return Row(name="tokenizer", state="unknown", seen=differing)
    if differing:
        return Row(name="tokenizer", state="failed", seen=f"{len(differing)} of {texts} texts have other ids in the engine, e.g. {differing[0]!r}",
                   do="start the engine with --tokenizer MODEL_DIR, or send token ids", cause="prompt_mismatch")
    return Row(name="tokenizer", state="passed", seen=f"{texts} of {texts} texts have the same ids in the engine and in the model folder")


def canaries_row(rollouts: Sequence[Rollout], refused: Mapping[str, int]) -> Row:
    """Were all probes answered, with ids and finite logprobs? `refused`: reason → how many probes."""
    tokens = sum(int(one.sampled_mask_T.sum()) for one in rollouts)
    nonfinite = sum(int((~np.isfinite(one.engine_logprobs_T) & one.sampled_mask_T).sum()) for one in rollouts)
    furthest = max((one.prompt_tokens_P.size + one.n_tokens for one in rollouts), default=0)
    said = f"{len(rollouts)} of {len(rollouts) + sum(refused.values())} probes answered, {tokens:,} tokens, positions up to {furthest:,}"
    if refused:
        reason, count = max(refused.items(), key=lambda item: item[1])
        return Row(name="canaries", state="failed", seen=f"{said}; {count} unusable: {reason}", do="vllm serve … --max-logprobs 20" if "logprobs" in reason else "")
    if nonfinite:
        return Row(name="canaries", state="failed", seen=f"{said}; {nonfinite} logprobs are NaN, infinite or missing", do=CAUSE_TEXTS["non_finite"].fix, cause="non_finite")
    return Row(name="canaries", state="passed", seen=said)


def mismatch_row(found: Diagnosis, values: Mapping[str, float]) -> Row:
    """The diagnosis in one line. `values`: collector.signals.metrics of the same canaries."""
    floor = "unknown" if found.floor_nats is None else f"{found.floor_nats:.4f}"
    numbers = (f"mean |d| {nats(values['mean_abs_d'])} of {found.tokens:,} tokens (floor {floor}), k3 {values['k3']:.2g}, "
               f"clip rate {values['clip_rate']:.1%}, ESS {values['ess']:.3f}")
    sure = "" if found.confident else ", not sure"
    if found.verdict == "healthy":
        doubt = "" if found.confident or not found.causes else next((f"; {text}" for text in found.causes[0].evidence if text.startswith("not sure")), "")
        return Row(name="logprobs", state="passed", seen=f"healthy{sure}: {numbers}{doubt}")
    settings = ", ".join(f"{name} {value}" for name, value in (found.causes[0].parameters if found.causes else {}).items())
    return Row(name="logprobs", state="failed", seen=f"{found.verdict}{f' ({settings})' if settings else ''}{sure}: {numbers}", do=found.fix, cause=found.verdict)


def sampler_row(found: TopOne | None) -> Row:
    """Is the top-1 token sampled as often as reported? Sees a sampler that the reported logprobs do not describe; needs no weights."""
    name = "sampler"
    if found is None:
        return Row(name=name, state="unknown", seen="the engine reports no top logprobs, or the trainer expects raw ones")
    said = f"top-1 token sampled in {found.observed:.1%} of {found.tokens:,} tokens, reported {found.reported:.1%} (z {found.z_reported:+.1f})"
    if abs(found.z_reported) >= SURPRISING_Z:
        return Row(name=name, state="failed", seen=f"{said}: tokens are not sampled as reported", cause="raw_logprobs" if found.looks_raw else "",
                   do=CAUSE_TEXTS["raw_logprobs"].fix if found.looks_raw else "")
    return Row(name=name, state="passed" if found.tokens >= NEEDED_TOP_ONE else "unknown", seen=said)


def cache_rows(probed: Sequence[Probed], config: DiagnosisConfig, *, caching: bool | None, limit_nats: float) -> list[Row]:
    """Do answers out of the prefix cache differ from computed ones? One row for this preflight's own cache, one for what it found there."""
    shared = [one for one in probed if one.group in ("fixed", "fresh")]
    if caching is False:
        return [Row(name="prefix cache", state="passed", seen="off: nothing can go stale")]
    if not shared or any(one.rollout.cached_prompt_tokens is None for one in shared):
        return [Row(name="prefix cache", state="unknown", seen="the engine does not tell how many prompt tokens were cached", do="vllm serve … --enable-prompt-tokens-details")]
    cold = [one for one in shared if not one.rollout.cached_prompt_tokens]
    warm = [one for one in shared if one.rollout.cached_prompt_tokens and not one.kept]
    kept = [one for one in shared if one.kept]
    rows = [_cache_row("prefix cache", "cached", warm, cold, config, limit_nats)]
    if kept:
        rows.append(_cache_row("older cache", "cached before this preflight", kept, cold or warm, config, limit_nats))
    else:
        rows.append(Row(name="older cache", state="measured", seen="nothing of these prompts was cached before; run preflight again after a weight update to test its reset"))
    return rows


def _cache_row(name: str, what: str, cached: Sequence[Probed], cold: Sequence[Probed], config: DiagnosisConfig, limit_nats: float) -> Row:
    if not cached or not cold:
        return Row(name=name, state="unknown", seen=f"{len(cached)} requests {what}, {len(cold)} not: nothing to compare")
    (mean, se), (other, other_se) = mean_abs(cached), mean_abs(cold)
    gap, error = mean - other, math.hypot(se, other_se)
    said = f"mean |d| {nats(mean)} {what} ({len(cached)} requests), {nats(other)} computed ({len(cold)}): {nats(gap)} ± {nats(error)} nats apart"
    if gap > max(config.margin_nats, config.confidence_z * error) and mean > limit_nats:
        return Row(name=name, state="failed", seen=said, do=CAUSE_TEXTS["stale_prefix_cache"].fix, cause="stale_prefix_cache")
    return Row(name=name, state="passed" if math.isfinite(error) else "unknown", seen=said)


def mean_abs(probed: Sequence[Probed]) -> tuple[float, float]:
    """(mean |d|, its standard error clustered by rollout), nats."""
    rows = [one.abs_d_T for one in probed]
    mean, se, _ = clustered_mean(np.concatenate(rows), np.repeat(np.arange(len(rows)), [row.size for row in rows]))
    return mean, se


def batch_row(alone: Sequence[Rollout], beside: Sequence[Rollout], *, promised: bool) -> Row:
    """The same greedy request alone and among others: how far apart, until the first token that differs. A measurement,
    unless the engine promises batch invariance."""
    if len(alone) < 2 or not beside:
        return Row(name="batch", state="unknown", seen="the greedy reference was not answered every time")
    again, _ = _apart(alone[0], alone[1])
    pairs = [_apart(alone[0], one) for one in beside]
    gap, same = max(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    said = f"one greedy request: largest difference {nats(again)} nats alone twice, {nats(gap)} beside others; the first {same} of {alone[0].n_tokens} tokens are the same"
    if promised:
        return Row(name="batch", state="failed" if gap > 0 else "passed", seen=f"{said} (VLLM_BATCH_INVARIANT is on)", cause="batch_variance" if gap > 0 else "")
    return Row(name="batch", state="measured", seen=said)


def _apart(one: Rollout, other: Rollout) -> tuple[float, int]:
    """(largest |difference| of logprobs, nats; tokens that are the same), up to the first token that differs."""
    n = min(one.n_tokens, other.n_tokens)
    differs = np.flatnonzero(one.completion_tokens_T[:n] != other.completion_tokens_T[:n])
    same = int(differs[0]) if differs.size else n
    gap_T = np.abs(one.engine_logprobs_T[:same].astype(np.float64) - other.engine_logprobs_T[:same])
    gap_T = gap_T[np.isfinite(gap_T)]
    return (float(gap_T.max()) if gap_T.size else 0.0), same
