"""What residuals cannot tell: the head's lattice, the engine against itself, experts. Evidence first, a verdict only in place of a vaguer one."""

from __future__ import annotations

from dataclasses import replace

from collector.records import Cause
from diagnosis.bench import Bench
from diagnosis.head_precision import head_fact
from diagnosis.noise import noise_shape
from diagnosis.repeats import find_repeats
from diagnosis.routing import find_routing
from diagnosis.ruling import Ruling

VAGUE = ("engine_numerics", "unexplained")


def hinted(bench: Bench, ruling: Ruling, floor_nats: float) -> tuple[Ruling, tuple[Cause, ...]]:
    """The ruling, made more precise where it was vague, and the hints as causes with evidence.

    head_precision replaces healthy where the trainer's head was declared: a head alone stays within twice the floor of a bfloat16 body.
    batch_variance and routing replace engine_numerics and unexplained, never confidently.
    """
    found = [_head(bench), *_of_noise(bench, floor_nats)]
    hints = [one for one in found if one is not None]
    for hint, replaces in hints:
        if ruling.cause in replaces:
            doubts = tuple(text for text in ruling.why if text.startswith("not sure")) if hint.cause == "head_precision" else (
                "not sure: other faults can look like this",)
            why = (*hint.evidence, *(text for text in ruling.why if text not in doubts), *doubts)
            return replace(ruling, cause=hint.cause, why=why, confident=not doubts, parameters=hint.parameters), tuple(one for one, _ in hints)
    return ruling, tuple(one for one, _ in hints)


def _head(bench: Bench) -> tuple[Cause, tuple[str, ...]] | None:
    fact = head_fact(bench)
    if fact is None:
        return None
    cause = Cause(cause="head_precision", residual_nats=None, tokens=bench.sheet.tokens, evidence=(fact.text,),
                  parameters={"engine_head": fact.engine, "trainer_head": fact.trainer})
    return cause, ("healthy",) if fact.sure else ()


def _of_noise(bench: Bench, floor_nats: float) -> list[tuple[Cause, tuple[str, ...]]]:
    """Only where the tokens as expected are not at the floor."""
    limit, expected_N = bench.config.at_floor_ratio * floor_nats, bench.view("expected")
    if bench.sheet.residual(expected_N) <= limit:
        return []
    found = []
    repeats = find_repeats(bench)
    if repeats is not None and repeats.explains(limit, bench.config.confidence_z):
        found.append((Cause(cause="batch_variance", residual_nats=None, tokens=repeats.tokens, evidence=(repeats.text,)), VAGUE))
    routing = find_routing(bench, noise_shape(bench.sheet, expected_N, floor_nats=floor_nats), limit=limit)
    if routing is not None:
        found.append((Cause(cause="routing", residual_nats=None, tokens=bench.sheet.tokens, evidence=(routing.text,),
                            parameters={"experts": routing.experts}), VAGUE))
    return found
