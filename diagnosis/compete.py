"""Why: explanations compete on the same tokens, out of fold, clustered by rollout. The residual decides.

1. Every explanation predicts what the engine would have reported. Residual = mean |engine − predicted|, nats.
2. The least residual leads; it must beat healthy by `margin_nats` and `confidence_z` standard errors, else healthy leads.
3. Explained means: residual ≤ `at_floor_ratio` × floor. The floor is what the declared precision alone makes of the same
   tokens (shadow in bf16 against float32), √2 times that when both sides compute in bf16.
   Older weights are asked only while no head view explains the tokens: each costs a pass of its own.
   Passes with other prompts, pairs of faults and donors run only while nothing cheaper explains the tokens.
4. Another leads and is not explained: a part (a position on, a few rollouts) beside which healthy explains the rest goes before it
   (breaks.py, parts.py); else it is named, never confident, when it removes half of the excess over the floor; else healthy leads.
   Healthy leads and is not explained: noise on every token is engine_numerics, the rest unexplained.
5. Confident means: enough held-out tokens and rollouts, explained, parameters agree between the folds, and every other
   cause that predicts something else is beaten by the margin. Two reports that look alike (raw logprobs, and a hidden
   temperature of 1) are told apart by how the tokens were sampled (sampling.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from collector.records import Cause, Diagnosis, Rollout
from diagnosis.audit import engine_facts, rollout_facts
from diagnosis.bench import Bench, Scorer
from diagnosis.causes import CAUSE_TEXTS
from diagnosis.config import DiagnosisConfig
from diagnosis.explanations import DEAR, EXPLANATIONS, OLDER, PASSES, UPDATES, Prediction, predictions
from diagnosis.floor import FloorOf, expected_floor
from diagnosis.hints import hinted
from diagnosis.noise import noise_shape
from diagnosis.pairs import pairs
from diagnosis.parts import Part, find_part
from diagnosis.projection import SMALLEST_DIFFERENCE_NATS, projection
from diagnosis.prompts import Marks
from diagnosis.ruling import Ruling
from diagnosis.shape import shape_of
from diagnosis.sheet import Contrast
from diagnosis.signatures import Signature, with_signatures
from diagnosis.twins import beats as _beats
from diagnosis.twins import settle_twins as _settle_twins

CHEAP = tuple(cause for cause in EXPLANATIONS if cause not in (*OLDER, *DEAR, *UPDATES, *PASSES))
SHIFT_NATS = 0.004


def diagnose(rollouts: Sequence[Rollout], scorer: Scorer, *, versions: Sequence[str], config: DiagnosisConfig,
             engine_config: Mapping[str, Any] | None = None, floor: FloorOf | None = None, marks: Marks | None = None,
             signatures: Sequence[Signature] = (), deep: bool = True) -> Diagnosis:
    """The verdict on these rollouts.

    Args:
        rollouts: labelled with weight versions the scorer knows; others are left out.
        scorer: a collector.shadow.scorer.ShadowScorer, or anything with its `score`.
        versions: weight versions the scorer can load, the newest last.
        engine_config: the engine's own settings from its tap, for evidence.
        floor: measures the intrinsic floor, nats, of some rollouts; None = from the scorer's own weights.
        marks: where a prompt's parts begin; None = from the newest version's folder.
        signatures: known faults whose resemblance is put beside the evidence.
        deep: while nothing explains the tokens, spend up to some thirty forward passes on parts, other prompts, adapters and pairs.

    Raises:
        InputError: no token can be compared (the text names a request and why).
        Unavailable: the weights cannot be loaded.
    """
    nonfinite = sum(int((~np.isfinite(r.engine_logprobs_T) & r.sampled_mask_T).sum()) for r in rollouts)
    if nonfinite and not any((np.isfinite(r.engine_logprobs_T) & r.sampled_mask_T).any() for r in rollouts):
        return _diagnosis(_non_finite(nonfinite, rollouts), [], floor_nats=None, tokens=0)
    bench = Bench(rollouts, scorer, versions=versions, config=config, marks=marks)
    floor_nats = expected_floor(bench, scorer, floor)
    field = predictions(bench, CHEAP)
    if not _explained(bench, field, floor_nats):
        field += predictions(bench, OLDER)
    if _needs_more(bench, field, floor_nats):
        field += predictions(bench, DEAR)
    if not _explained(bench, field, floor_nats) and not _healthy(bench, field, floor_nats):
        field += predictions(bench, UPDATES)
    part = find_part(bench, floor_nats) if deep and not _explained(bench, field, floor_nats) else None
    if deep and part is None and not _explained(bench, field, floor_nats) and not _healthy(bench, field, floor_nats):
        field += predictions(bench, PASSES)
        if not _explained(bench, field, floor_nats):
            field += pairs(bench)
    ruling, hints = hinted(bench, decide(bench, field, floor_nats, part), floor_nats)
    if nonfinite and ruling.cause in ("healthy", "engine_numerics"):
        ruling = _non_finite(nonfinite, rollouts)
    facts = [fact for fact in rollout_facts(bench.sheet.rollouts) if fact.cause]
    facts += [fact for fact in engine_facts(engine_config or {}, expected_mode=_mode(rollouts)) if fact.cause]
    causes = [_cause(bench, one, [fact.text for fact in facts if fact.cause == one.cause]) for one in field]
    causes += [*_unpredicted(bench, ruling, nonfinite, part), *hints]
    found = _diagnosis(ruling, causes, floor_nats=floor_nats, tokens=bench.sheet.tokens)
    return with_signatures(found, shape_of(bench.compared), signatures) if signatures else found


def decide(bench: Bench, field: Sequence[Prediction], floor_nats: float, part: Part | None = None) -> Ruling:
    """Which prediction explains the tokens, and how sure that is. `field` starts with healthy; `part`: healthy but for that."""
    sheet, config = bench.sheet, bench.config
    healthy = field[0]
    leader = min(field, key=lambda one: sheet.residual(one.values_N))
    over_healthy = sheet.contrast(healthy.values_N, leader.values_N)
    if not _beats(over_healthy, config):
        leader = healthy
    limit = config.at_floor_ratio * floor_nats
    if not _worth_naming(bench, healthy, leader, limit, floor_nats):
        leader = healthy
    residual = _worst_residual(bench, healthy, leader)
    if part is not None and (leader is healthy or residual > limit):
        doubts = [*_too_little(bench, None), *part.doubts]
        return Ruling(cause=part.cause, confident=not doubts, why=(*part.why, *doubts), parameters=part.parameters)
    if leader is healthy:
        return _rule_healthy(bench, field, residual, limit, floor_nats)
    leader, tie = _settle_twins(bench, field, leader)
    why = [f"residual {sheet.residual(leader.values_N):.4f} nats against {sheet.residual(healthy.values_N):.4f} as healthy", *tie.why]
    if residual > limit and leader.pinned:
        why.append(f"{residual:.4f} nats remain, more than {config.at_floor_ratio:g} times the floor of {floor_nats:.4f}: kernels and scales that were not emulated")
    elif residual > limit:
        why.append(f"not sure: {residual:.4f} nats remain, more than {config.at_floor_ratio:g} times the floor of {floor_nats:.4f}")
    doubts = [*_too_little(bench, over_healthy), *_rivals(bench, field, leader, tie.settled)]
    if not leader.stable:
        doubts.append("not sure: the two halves of the rollouts disagree about the parameter")
    sure = (residual <= limit or leader.pinned) and not doubts and tie.sure and not _undeclared(bench, leader)
    return Ruling(cause=leader.cause, confident=sure, why=(*why, *doubts, *_undeclared(bench, leader)), parameters=leader.parameters)


def _rule_healthy(bench: Bench, field: Sequence[Prediction], residual: float, limit: float, floor_nats: float) -> Ruling:
    sheet, config, healthy = bench.sheet, bench.config, field[0]
    doubts = _too_little(bench, None)
    noise = noise_shape(sheet, healthy.values_N, floor_nats=floor_nats)
    if residual <= limit:
        small = _small_staleness(bench, healthy, doubts)
        if small is not None:
            return small
        better = [one.cause for one in field[1:] if (c := sheet.contrast(healthy.values_N, one.values_N)).gain > 0 and c.z > config.confidence_z
                  and c.gain > config.margin_nats / 2]
        doubts += [f"not sure: {cause} fits slightly better" for cause in better]
        why = f"residual {residual:.4f} nats is within {config.at_floor_ratio:g} times the floor of {floor_nats:.4f}"
        return Ruling(cause="healthy", confident=not doubts, why=(why, *doubts), parameters={})
    why = f"residual {residual:.4f} nats is above {config.at_floor_ratio:g} times the floor of {floor_nats:.4f}, and no explanation lowers it"
    if not noise.everywhere:
        return Ruling(cause="unexplained", confident=False, why=(why, noise.text), parameters={})
    refuted = any(one.cause == "stale_weights" for one in field)
    if not refuted:
        doubts.append("older weights were not tested (pass them with --previous): a small unseen update scatters logprobs too")
    return Ruling(cause="engine_numerics", confident=refuted and not doubts, why=(why, noise.text, *doubts), parameters={})


def _small_staleness(bench: Bench, healthy: Prediction, doubts: Sequence[str]) -> Ruling | None:
    """The projection's verdict, where residuals cannot tell an older version from the labelled one."""
    for version, older_N in bench.older_weights().items():
        found = projection(bench.sheet, healthy.values_N, older_N)
        if found is None or found.difference_nats < SMALLEST_DIFFERENCE_NATS or found.z < bench.config.confidence_z:
            continue
        return Ruling(cause="stale_weights", confident=not doubts and found.beta < 1.5, why=(found.text, *doubts), parameters={"version": version})
    return None


def _worth_naming(bench: Bench, healthy: Prediction, leader: Prediction, limit: float, floor_nats: float) -> bool:
    """Explained, or at least half of what healthy leaves above the floor is gone in the rollouts it concerns."""
    residual = _worst_residual(bench, healthy, leader)
    if leader.pinned:
        return True
    before = bench.sheet.residual(healthy.values_N, bench.sheet.differs(healthy.values_N, leader.values_N))
    return residual <= limit or before - residual >= 0.5 * (before - floor_nats)


def _worst_residual(bench: Bench, healthy: Prediction, leader: Prediction) -> float:
    """The leader's residual over all tokens, or over the rollouts its fault concerns, whichever is larger."""
    sheet = bench.sheet
    concerned_N = sheet.differs(healthy.values_N, leader.values_N)
    overall = sheet.residual(leader.values_N)
    return max(overall, sheet.residual(leader.values_N, concerned_N)) if concerned_N.any() else overall


def _explained(bench: Bench, field: Sequence[Prediction], floor_nats: float) -> bool:
    """Does something else than health bring the residual to the floor, clearly better than health?"""
    best = min(field, key=lambda one: bench.sheet.residual(one.values_N))
    return (_beats(bench.sheet.contrast(field[0].values_N, best.values_N), bench.config)
            and (best.pinned or _worst_residual(bench, field[0], best) <= bench.config.at_floor_ratio * floor_nats))


def _healthy(bench: Bench, field: Sequence[Prediction], floor_nats: float) -> bool:
    """Is the healthy prediction at the floor, so that nothing calls for dear passes?"""
    return bench.sheet.residual(field[0].values_N) <= bench.config.at_floor_ratio * floor_nats


def _needs_more(bench: Bench, field: Sequence[Prediction], floor_nats: float) -> bool:
    """Are truncation and penalties worth a pass: something is unexplained, or every token is shifted a little."""
    sheet = bench.sheet
    best = min(field, key=lambda one: sheet.residual(one.values_N))
    if not _beats(sheet.contrast(field[0].values_N, best.values_N), bench.config):
        best = field[0]
    if sheet.residual(best.values_N) > bench.config.at_floor_ratio * floor_nats or best.cause == "temperature":
        return True
    noise = noise_shape(sheet, best.values_N, floor_nats=floor_nats)
    return abs(noise.mean_d) > max(SHIFT_NATS, bench.config.confidence_z * noise.mean_d_se)


def _too_little(bench: Bench, contrast: Contrast | None) -> list[str]:
    config = bench.config
    tokens, rollouts = (bench.sheet.tokens, len(bench.sheet.rollouts)) if contrast is None else (contrast.tokens, contrast.rollouts)
    if tokens >= config.min_tokens and rollouts >= config.min_rollouts:
        return []
    return [f"not sure: {tokens} tokens of {rollouts} rollouts; at least {max(0, config.min_tokens - tokens)} more tokens "
            f"and {max(0, config.min_rollouts - rollouts)} more rollouts are needed"]


def _rivals(bench: Bench, field: Sequence[Prediction], leader: Prediction, settled: str) -> list[str]:
    """Causes the data do not tell from the leader. `settled`: a twin already told apart by how tokens were sampled."""
    doubts = []
    for one in field:
        if one.cause in (leader.cause, settled) and one.second == leader.second:
            continue
        contrast = bench.sheet.contrast(one.values_N, leader.values_N)
        if not _beats(contrast, bench.config):
            factor = (bench.config.confidence_z / contrast.z) ** 2 if contrast.z > 0 else math.inf
            more = f"; about {math.ceil(contrast.rollouts * (factor - 1))} more rollouts would tell" if 1 < factor < 20 else ""
            doubts.append(f"not sure: {one.cause} fits nearly as well ({contrast.gain:+.4f} ± {contrast.se:.4f} nats){more}")
    return doubts


def _undeclared(bench: Bench, leader: Prediction) -> list[str]:
    if leader.cause in ("temperature", "raw_logprobs") and any(r.sampling.temperature is None for r in bench.sheet.rollouts):
        return ["not sure: the temperature the trainer assumes is not declared for every rollout ([trainer.sampling] or `sampling`)"]
    return []


def _non_finite(count: int, rollouts: Sequence[Rollout]) -> Ruling:
    tokens = sum(int(r.sampled_mask_T.sum()) for r in rollouts)
    hit = sum(bool((~np.isfinite(r.engine_logprobs_T) & r.sampled_mask_T).any()) for r in rollouts)
    text = f"{count} of {tokens} sampled tokens, in {hit} of {len(rollouts)} rollouts, have a NaN, infinite or missing logprob"
    return Ruling(cause="non_finite", confident=True, why=(text,), parameters={})


def _unpredicted(bench: Bench, ruling: Ruling, nonfinite: int, part: Part | None) -> list[Cause]:
    """Causes without a prediction of their own: shown when they are the verdict, or hold besides it."""
    residual = bench.sheet.residual(bench.view("expected"))
    found = []
    if part is not None:
        found.append(Cause(cause=part.cause, residual_nats=part.residual_nats, tokens=bench.sheet.tokens, evidence=part.evidence, parameters=part.parameters))
    if ruling.cause in ("engine_numerics", "unexplained"):
        found.append(Cause(cause=ruling.cause, residual_nats=residual, tokens=bench.sheet.tokens, evidence=()))
    if nonfinite:
        found.append(Cause(cause="non_finite", residual_nats=None, tokens=nonfinite, evidence=(f"{nonfinite} sampled tokens have no finite logprob",)))
    return found


def _cause(bench: Bench, one: Prediction, facts: list[str]) -> Cause:
    residual = bench.sheet.residual(one.values_N)
    return Cause(cause=one.cause, residual_nats=residual if math.isfinite(residual) else None,
                 tokens=int(np.isfinite(one.values_N).sum()), evidence=(*one.evidence, *facts), parameters=dict(one.parameters))


def _mode(rollouts: Sequence[Rollout]) -> str:
    return rollouts[0].expected_logprobs_mode if rollouts else "processed_logprobs"


def _diagnosis(ruling: Ruling, causes: list[Cause], *, floor_nats: float | None, tokens: int) -> Diagnosis:
    same = [one for one in causes if one.cause == ruling.cause]  # a cause alone, and with a second one
    mine = next((one for one in same if dict(one.parameters) == dict(ruling.parameters)),
                same[0] if same else Cause(cause=ruling.cause, residual_nats=None, tokens=tokens))
    first = Cause(cause=mine.cause, residual_nats=mine.residual_nats, tokens=mine.tokens, evidence=(*ruling.why, *mine.evidence),
                  parameters=dict(ruling.parameters) or dict(mine.parameters))
    rest = sorted((one for one in causes if one is not mine), key=lambda one: math.inf if one.residual_nats is None else one.residual_nats)
    text = CAUSE_TEXTS[ruling.cause]
    return Diagnosis(verdict=ruling.cause, confident=ruling.confident, causes=(first, *rest), floor_nats=floor_nats, next=text.next,
                     fix=text.fix, tokens=tokens)
