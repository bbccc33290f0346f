"""The decision among predictions, before it is put into words. compete.py has the rules in order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diagnosis.bench import Bench
from diagnosis.explanations import OLDER
from diagnosis.noise import noise_shape
from diagnosis.parts import Part
from diagnosis.prediction import Prediction
from diagnosis.projection import SMALLEST_DIFFERENCE_NATS, projection
from diagnosis.sheet import Contrast
from diagnosis.twins import beats, settle_twins

SHIFT_NATS = 0.004
TIE_Z = 1.0
NAMED = 1 / 2
"""Named, never confident, from this share of the excess on: a second fault, or an engine's own flaw, may hide the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """The decision before it is put into words."""

    cause: str
    confident: bool
    why: tuple[str, ...]  # reasons, and what is missing for confidence
    parameters: Mapping[str, Any]


def decide(bench: Bench, field: Sequence[Prediction], floor_nats: float, part: Part | None = None) -> Ruling:
    """Which prediction explains the tokens, and how sure that is. `field` starts with healthy; `part`: healthy but for that."""
    sheet, config = bench.sheet, bench.config
    healthy = field[0]
    leader = _one_where_two_add_nothing(bench, field, min(field, key=lambda one: sheet.residual(one.values_N)))
    over_healthy = sheet.contrast(healthy.values_N, leader.values_N)
    if not beats(over_healthy, config):
        leader = healthy
    limit = config.at_floor_ratio * floor_nats
    if not _worth_naming(bench, healthy, leader, limit, floor_nats):
        leader = healthy
    residual = _worst_residual(bench, healthy, leader)
    older = None if part is None else _older_instead(bench, field, part)
    tied: list[str] = []
    if older is not None and part is not None and (leader is healthy or residual > limit):
        leader, residual, over_healthy = older, _worst_residual(bench, healthy, older), sheet.contrast(healthy.values_N, older.values_N)
        tied = [f"not sure: {part.cause} would tell the tokens too: {part.why[0]}"]
    elif part is not None and (leader is healthy or residual > limit):
        doubts = [*_too_little(bench, None), *part.doubts]
        return Ruling(cause=part.cause, confident=not doubts, why=(*part.why, *doubts), parameters=part.parameters)
    if leader is healthy:
        return _rule_healthy(bench, field, residual, limit, floor_nats)
    leader, tie = settle_twins(bench, field, leader)
    why = [f"residual {sheet.residual(leader.values_N):.4f} nats against {sheet.residual(healthy.values_N):.4f} as healthy", *tie.why]
    if residual > limit and leader.pinned:
        why.append(f"{residual:.4f} nats remain, more than {config.at_floor_ratio:g} times the floor of {floor_nats:.4f}: kernels and scales that were not emulated")
    elif residual > limit:
        why.append(f"not sure: {residual:.4f} nats remain, more than {config.at_floor_ratio:g} times the floor of {floor_nats:.4f}")
    doubts = [*tied, *_too_little(bench, over_healthy), *_rivals(bench, field, leader, tie.settled)]
    if not leader.stable:
        doubts.append("not sure: the two halves of the rollouts disagree about the parameter")
    sure = (residual <= limit or leader.pinned) and not doubts and tie.sure and not _undeclared(bench, leader)
    return Ruling(cause=leader.cause, confident=sure, why=(*why, *doubts, *_undeclared(bench, leader)), parameters=leader.parameters)


def _one_where_two_add_nothing(bench: Bench, field: Sequence[Prediction], leader: Prediction) -> Prediction:
    """Of a pair that leads, the fault that tells the tokens as well alone, if one does."""
    alone = [one for one in field if leader.second and not one.second and one.cause in (leader.cause, leader.second)]
    best = min(alone, key=lambda one: bench.sheet.residual(one.values_N), default=leader)
    return leader if beats(bench.sheet.contrast(best.values_N, leader.values_N), bench.config) else best


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
        return Ruling(cause="unexplained", confident=False, why=(why, noise.text, *doubts), parameters={})
    if not any(one.cause == "stale_weights" for one in field):
        doubts.append("older weights were not tested (pass them with --previous): a small unseen update scatters logprobs too")
    better = min(field, key=lambda one: sheet.residual(one.values_N))
    if beats(sheet.contrast(healthy.values_N, better.values_N), config):  # noise would follow no prediction
        doubts.append(f"not sure: {better.cause} fits better ({sheet.residual(better.values_N):.4f} nats), but leaves more than half of what is above the floor")
    return Ruling(cause="engine_numerics", confident=not doubts, why=(why, noise.text, *doubts), parameters={})


def _small_staleness(bench: Bench, healthy: Prediction, doubts: Sequence[str]) -> Ruling | None:
    """The projection's verdict, where residuals cannot tell an older version from the labelled one."""
    for version, older_N in bench.older_weights().items():
        found = projection(bench.sheet, healthy.values_N, older_N)
        if found is None or found.difference_nats < SMALLEST_DIFFERENCE_NATS or found.z < bench.config.confidence_z:
            continue
        return Ruling(cause="stale_weights", confident=not doubts and found.beta < 1.5, why=(found.text, *doubts), parameters={"version": version})
    return None


def _older_instead(bench: Bench, field: Sequence[Prediction], part: Part) -> Prediction | None:
    """Older weights or an older prefix KV that help where a part has no prediction at all: they go before a position, and before doubtful strays.

    On few noisy tokens neither reaches the floor; a true break of the position makes older weights fit worse, not better.
    """
    if part.cause != "position_dependent" and not part.doubts:
        return None
    helps = [one for one in field if one.cause in OLDER and not one.second and (c := bench.sheet.contrast(field[0].values_N, one.values_N)).gain > 0
             and c.z > TIE_Z]
    return min(helps, key=lambda one: bench.sheet.residual(one.values_N), default=None)


def _worth_naming(bench: Bench, healthy: Prediction, leader: Prediction, limit: float, floor_nats: float) -> bool:
    """Explained, or at least NAMED of what healthy leaves above the floor is gone in the rollouts it concerns."""
    residual = _worst_residual(bench, healthy, leader)
    if leader.pinned:
        return True
    before = bench.sheet.residual(healthy.values_N, bench.sheet.differs(healthy.values_N, leader.values_N))
    return residual <= limit or before - residual >= NAMED * (before - floor_nats)


def _worst_residual(bench: Bench, healthy: Prediction, leader: Prediction) -> float:
    """The leader's residual over all tokens, or over the rollouts its fault concerns, whichever is larger."""
    sheet = bench.sheet
    concerned_N = sheet.differs(healthy.values_N, leader.values_N)
    overall = sheet.residual(leader.values_N)
    return max(overall, sheet.residual(leader.values_N, concerned_N)) if concerned_N.any() else overall


def explained(bench: Bench, field: Sequence[Prediction], floor_nats: float) -> bool:
    """Does something else than health bring the residual to the floor, clearly better than health?"""
    best = min(field, key=lambda one: bench.sheet.residual(one.values_N))
    return (beats(bench.sheet.contrast(field[0].values_N, best.values_N), bench.config)
            and (best.pinned or _worst_residual(bench, field[0], best) <= bench.config.at_floor_ratio * floor_nats))


def at_floor(bench: Bench, field: Sequence[Prediction], floor_nats: float) -> bool:
    """Is the healthy prediction at the floor, so that nothing calls for dear passes?"""
    return bench.sheet.residual(field[0].values_N) <= bench.config.at_floor_ratio * floor_nats


def needs_more(bench: Bench, field: Sequence[Prediction], floor_nats: float) -> bool:
    """Are truncation and penalties worth a pass: something is unexplained, or every token is shifted a little."""
    sheet = bench.sheet
    best = min(field, key=lambda one: sheet.residual(one.values_N))
    if not beats(sheet.contrast(field[0].values_N, best.values_N), bench.config):
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
        if not leader.second and one.second and leader.cause in (one.cause, one.second):
            continue  # the leader and something smaller than the margin beside it
        contrast = bench.sheet.contrast(one.values_N, leader.values_N)
        if not beats(contrast, bench.config):
            factor = (bench.config.confidence_z / contrast.z) ** 2 if contrast.z > 0 else math.inf
            more = f"; about {math.ceil(contrast.rollouts * (factor - 1))} more rollouts would tell" if 1 < factor < 20 else ""
            doubts.append(f"not sure: {one.cause} fits nearly as well ({contrast.gain:+.4f} ± {contrast.se:.4f} nats){more}")
    return doubts


def _undeclared(bench: Bench, leader: Prediction) -> list[str]:
    if leader.cause in ("temperature", "raw_logprobs") and any(r.sampling.temperature is None for r in bench.sheet.rollouts):
        return ["not sure: the temperature the trainer assumes is not declared for every rollout ([trainer.sampling] or `sampling`)"]
    return []
