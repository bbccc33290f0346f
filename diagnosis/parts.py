"""Healthy but for a part: the verdicts corrupted_requests and position_dependent, from breaks.py and donors.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diagnosis.bench import Bench
from diagnosis.donors import find_donors
from diagnosis.breaks import REMARK, Break, Strays, find_break, find_strays


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part beside which the healthy prediction explains every token."""

    cause: str
    why: tuple[str, ...]
    doubts: tuple[str, ...]  # "not sure: …"; empty = the part itself is sure
    parameters: Mapping[str, Any]
    residual_nats: float  # of the rest
    evidence: tuple[str, ...] = ()


def find_part(bench: Bench, floor_nats: float) -> Part | None:
    """A few rollouts, or everything from a position on; None when the healthy prediction fails elsewhere too, or nowhere."""
    sheet, expected_N = bench.sheet, bench.view("expected")
    limit = bench.config.at_floor_ratio * floor_nats
    strays = find_strays(sheet, expected_N, floor_nats=floor_nats, limit=limit)
    if strays is not None:
        return _corrupted(bench, strays, limit)
    broken = find_break(sheet, expected_N, floor_nats=floor_nats, limit=limit, z=bench.config.confidence_z)
    return None if broken is None else _from_position(broken, bench.config.confidence_z)


ASKED, FOREIGN_NATS = 6, 0.5
"""Rollouts whose donors are sought where every one of them is off, by so much at least: answers to other prompts are off by more than a nat."""


def find_swapped(bench: Bench, floor_nats: float) -> Part | None:
    """Every rollout holds the answer to another one's prompt, by the donors of a few; None when fewer than half of those have one."""
    limit = bench.config.at_floor_ratio * floor_nats
    if bench.sheet.residual(bench.view("expected")) < FOREIGN_NATS:
        return None
    asked = list(range(0, len(bench.sheet.rollouts), max(1, len(bench.sheet.rollouts) // ASKED)))[:ASKED]
    donors = find_donors(bench, asked, limit=limit)
    if 2 * len(donors) < max(len(asked), 2):
        return None
    alone = len(asked) - len(donors)
    why = f"of {len(asked)} rollouts looked at, all of them off, {len(donors)} are explained by another request's prompt"
    return Part(cause="corrupted_requests", why=(why, *(donor.text for donor in donors)), doubts=() if not alone else (f"not sure: no other rollout's prompt explains {alone} of them",),
                parameters={"requests": [donor.taker for donor in donors], "donors": {donor.taker: donor.giver for donor in donors}},
                residual_nats=sum(donor.after for donor in donors) / len(donors))


def _corrupted(bench: Bench, strays: Strays, limit: float) -> Part:
    """Sure only where every stray rollout has a donor: else any fault that strikes few requests looks the same."""
    donors = find_donors(bench, strays.rollouts, limit=limit)
    ids = [bench.sheet.rollouts[i].request_id for i in strays.rollouts]
    alone = len(ids) - len(donors)
    doubts = () if not alone else (f"not sure: no other rollout's prompt explains {alone} of them; a stale cache, another replica or setting can strike few requests too",)
    return Part(cause="corrupted_requests", why=(strays.text(len(bench.sheet.rollouts)), *(donor.text for donor in donors)), doubts=doubts,
                parameters={"requests": ids, "donors": {donor.taker: donor.giver for donor in donors}}, residual_nats=strays.rest)


def _from_position(broken: Break, z: float) -> Part:
    doubts = [] if broken.stable else ["not sure: the two halves of the rollouts disagree about the position"]
    if broken.by_position_z <= z:
        doubts.append(f"not sure: an index in the completion tells it as well (z {broken.by_position_z:.1f}), as an update in mid-rollout or a frequency "
                      "penalty would; prompts of different lengths would tell")
    return Part(cause="position_dependent", why=(broken.text,), doubts=tuple(doubts), parameters={"position": broken.position},
                residual_nats=broken.before, evidence=(REMARK,))
