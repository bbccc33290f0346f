"""Why: explanations compete on the same tokens, out of fold, clustered by rollout. The residual decides.

0. Where the trainer's own token ids are known and differ from the engine's in most rollouts, that is the verdict (exact_ids.py): no score is asked.
1. Every explanation predicts what the engine would have reported. Residual = mean |engine − predicted|, nats.
2. The least residual leads; it must beat healthy by `margin_nats` and `confidence_z` standard errors, else healthy leads.
3. Explained means: residual ≤ `at_floor_ratio` × floor. The floor is what the declared precision alone makes of the same
   tokens (shadow in bf16 against float32), √2 times that when both sides compute in bf16.
   One pass answers every sampler setting; two of them at once are asked only while no single one explains the tokens.
   Older weights are asked only while no head view explains the tokens: each costs a pass of its own.
   Passes with other prompts, pairs of faults and donors run only while nothing cheaper explains the tokens.
4. Another leads and is not explained: a part (a position on, a few rollouts) beside which healthy explains the rest goes before it
   (breaks.py, parts.py); else it is named, never confident, when it removes half of the excess over the floor; else healthy leads.
   Healthy leads and is not explained: noise on every token is engine_numerics, the rest unexplained. Noise follows no prediction:
   engine_numerics is not confident while another fits clearly better than healthy.
5. Confident means: enough held-out tokens and rollouts, explained, parameters agree between the folds, and every other
   cause that predicts something else is beaten by the margin. Two reports that look alike (raw logprobs, and a hidden
   temperature of 1) are told apart by how the tokens were sampled (sampling.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from collector.records import Cause, Diagnosis, Rollout
from diagnosis.audit import engine_facts, rollout_facts
from diagnosis.bench import Bench, Scorer, folder_of
from diagnosis.causes import CAUSE_TEXTS
from diagnosis.config import DiagnosisConfig
from diagnosis.exact_ids import ENOUGH_SHARE, IdMismatch, compare_ids, decoder_of
from diagnosis.explanations import DEAR, EXPLANATIONS, OLDER, PASSES, UPDATES, Prediction, predictions
from diagnosis.floor import FloorOf, expected_floor
from diagnosis.hints import hinted
from diagnosis.old_head import old_heads
from diagnosis.pairs import pairs
from diagnosis.parts import Part, find_part, find_swapped
from diagnosis.prompts import Marks, marks_of
from diagnosis.ruling import Ruling, at_floor, decide, explained, needs_more
from diagnosis.sampler_pairs import sampler_pairs
from diagnosis.shape import shape_of
from diagnosis.signatures import Signature, with_signatures

CHEAP = tuple(cause for cause in EXPLANATIONS if cause not in (*OLDER, *DEAR, *UPDATES, *PASSES))


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
    ids = _ids(rollouts, scorer, versions, marks)
    if ids is not None and ids.share >= ENOUGH_SHARE:
        return ids.verdict()
    nonfinite = sum(int((~np.isfinite(r.engine_logprobs_T) & r.sampled_mask_T).sum()) for r in rollouts)
    if nonfinite and not any((np.isfinite(r.engine_logprobs_T) & r.sampled_mask_T).any() for r in rollouts):
        return _diagnosis(_non_finite(nonfinite, rollouts), [], floor_nats=None, tokens=0)
    chosen = capped(rollouts, config)
    bench = Bench(chosen, scorer, versions=versions, config=config, marks=marks)
    floor_nats = expected_floor(bench, scorer, floor)
    field, part = searched(bench, floor_nats, deep=deep)
    ruling, hints = hinted(bench, decide(bench, field, floor_nats, part), floor_nats)
    if nonfinite and ruling.cause in ("healthy", "engine_numerics"):
        ruling = _non_finite(nonfinite, rollouts)
    facts = [fact for fact in rollout_facts(bench.sheet.rollouts) if fact.cause]
    facts += [fact for fact in engine_facts(engine_config or {}, expected_mode=_mode(rollouts)) if fact.cause]
    causes = [_cause(bench, one, [fact.text for fact in facts if fact.cause == one.cause]) for one in field]
    causes += [*_unpredicted(bench, ruling, nonfinite, part), *hints]
    found = _diagnosis(ruling, causes, floor_nats=floor_nats, tokens=bench.sheet.tokens)
    if ids is not None:
        found = replace(ids.verdict(), causes=(ids.cause, *found.causes), floor_nats=floor_nats) if ruling.cause == "healthy" else replace(
            found, causes=(*found.causes, ids.cause))
    if len(chosen) < len(rollouts):
        found = _said_of_first(found, f"judged on {len(chosen)} of {len(rollouts)} rollouts, evenly spread: max_tokens = {config.max_tokens:,}")
    return with_signatures(found, shape_of(bench.compared), signatures) if signatures else found


def _ids(rollouts: Sequence[Rollout], scorer: Scorer, versions: Sequence[str], marks: Marks | None) -> IdMismatch | None:
    """Where trainer and engine have different token ids; the tokenizer is read only where some differ."""
    if compare_ids(rollouts) is None:
        return None
    folder = folder_of(scorer, versions)
    return compare_ids(rollouts, marks=marks or (marks_of(folder) if folder else None), decode=decoder_of(folder) if folder else None)


def searched(bench: Bench, floor_nats: float, *, deep: bool) -> tuple[list[Prediction], Part | None]:
    """What competes, in the order of its price, each step only while nothing before it explains the tokens; and a part, where one was found."""
    field = _without_parts(bench, floor_nats)
    unwell = not at_floor(bench, field, floor_nats)
    if unwell and not explained(bench, field, floor_nats):
        best = min(bench.sheet.residual(one.values_N) for one in field)
        field += old_heads(bench, lambda headed: _without_parts(headed, floor_nats), best_single=best)
    if explained(bench, field, floor_nats):
        return field, None
    part = find_part(bench, floor_nats) if deep else None
    if deep and part is None and unwell:
        field += predictions(bench, PASSES)
        if not explained(bench, field, floor_nats):
            field += pairs(bench)
        if not explained(bench, field, floor_nats):
            part = find_swapped(bench, floor_nats)
    return field, part


def _without_parts(bench: Bench, floor_nats: float) -> list[Prediction]:
    """Explanations of all tokens at once: views of one pass, older weights, two settings together, updates in mid-rollout."""
    field = predictions(bench, CHEAP)
    if not explained(bench, field, floor_nats):
        field += predictions(bench, OLDER)
    if needs_more(bench, field, floor_nats):
        field += predictions(bench, DEAR)
    if explained(bench, field, floor_nats) or at_floor(bench, field, floor_nats):
        return field
    field += sampler_pairs(bench, best_single=min(bench.sheet.residual(one.values_N) for one in field))
    return field if explained(bench, field, floor_nats) else [*field, *predictions(bench, UPDATES)]


def capped(rollouts: Sequence[Rollout], config: DiagnosisConfig) -> list[Rollout]:
    """Evenly spread rollouts of at most `max_tokens` completion tokens, but no fewer rollouts than a confident verdict wants twice over."""
    tokens = sum(rollout.n_tokens for rollout in rollouts)
    count = min(len(rollouts), max(2 * config.min_rollouts, math.floor(len(rollouts) * config.max_tokens / max(1, tokens))))
    return list(rollouts) if count == len(rollouts) else [rollouts[i * len(rollouts) // count] for i in range(count)]


def _said_of_first(found: Diagnosis, text: str) -> Diagnosis:
    first = found.causes[0]
    return replace(found, causes=(replace(first, evidence=(*first.evidence, text)), *found.causes[1:]))


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
