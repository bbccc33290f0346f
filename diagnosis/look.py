"""The findings of `klaxon look`: what is wrong, what is fine, what cannot be seen, in plain words."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from collector import populations, signals
from collector.config import SignalsConfig
from collector.errors import InputError
from collector.records import Rollout
from detectors.config import DetectorsConfig
from diagnosis.audit import rollout_facts, transforms
from diagnosis.causes import CAUSE_TEXTS
from diagnosis.file_report import BankRun, FileReport, Finding, can_bet, ordered, run_bank, slices_of
from diagnosis.lattice import Lattice, lattice_test
from diagnosis.shape import shape_of
from diagnosis.signatures import SHOWN, Signature, match
from diagnosis.tier_one import band_of, tier_one_findings
from diagnosis.top_one import TopOne, top_one_test

BLIND = {
    0: (
        "hidden temperature or top-p (the engine samples from what it reports, only not from what the trainer assumes)",
        "stale weights, stale prefix cache, adapters not applied",
        "head or body precision, quantisation, wrong prompts: anything in which the engine agrees with itself",
    ),
    1: (
        "which fault it is, beyond its shape: that needs the weights (klaxon diagnose FILE --model DIR)",
        "what the trainer's own recomputation gets wrong",
        "stale weights apart from staleness, unless the trainer recomputed at the version that generated the tokens",
    ),
}
"""What each tier cannot see, from the three-tier table of the design."""

FEW_UNCERTAIN = 40.0
"""Σ p(1 − p) that a self-bet needs: raw logprobs at T = .7 shift the log-odds by about .8, and 40 make that five standard errors."""

DOUBTFUL_Z = 3.0
SHAPE_BATCHES = 24  # a file with finish times is cut into so many, to see growth and periods


def look(rollouts: Sequence[Rollout], *, config: DetectorsConfig, batch_seconds: float,
         signals_config: SignalsConfig | None = None, library: Sequence[Signature] | None = None) -> FileReport:
    """The report on a non-empty list of rollouts; `signals_config`: what the trainer clips and masks (default: GRPO's).

    `library`: known faults to compare a mismatch's shape with; None = Klaxon's own.

    Raises:
        InputError: no rollout was given.
    """
    if not rollouts:
        raise InputError("no usable rollout")
    rollouts = ordered(rollouts)
    bank = run_bank(rollouts, config=config, batch_seconds=batch_seconds, signals_config=signals_config)
    top_one = top_one_test(rollout for rollout in rollouts if can_bet(rollout) is None)
    lattices = _lattices(rollouts)
    slices = slices_of(rollouts, signals_config)
    tier = 1 if slices else 0
    findings = [
        *_self_bet_findings(bank, top_one), *_lattice_findings(lattices), *_audit_findings(rollouts),
        *_logprob_findings(rollouts, bank), *tier_one_findings(rollouts, slices),
        *(Finding(state="blind", topic="cannot see", text=text) for text in _blind_spots(tier, lattices)),
    ]
    wrong = [finding for finding in findings if finding.state == "wrong"]
    findings += _resemblances(rollouts, library) if wrong else ()
    tested = tier == 1 or (top_one is not None and top_one.uncertain >= FEW_UNCERTAIN)
    looks_like = _looks_like(wrong)
    return FileReport(
        tier=tier, rollouts=len(rollouts), tokens=sum(int(r.sampled_mask_T.sum()) for r in rollouts),
        engines=len({r.replica for r in rollouts}),
        verdict="mismatch" if wrong else "nothing_wrong_found" if tested else "untested",
        looks_like=looks_like, findings=tuple(findings), bank=bank, next=_next(bool(wrong), looks_like, tested),
        signals=signals.metrics(signals.total(slices)) if slices else {}, numbers=_numbers(bank, top_one, lattices),
    )


def _blind_spots(tier: int, lattices: dict[float | None, Lattice]) -> tuple[str, ...]:
    """The tier's blind spots; a lattice at the declared temperature leaves only truncation of the first one."""
    confirmed = lattices and all(declared is not None and test.report_temperature == declared for declared, test in lattices.items())
    if tier == 0 and confirmed:
        return (BLIND[0][0].replace("hidden temperature or top-p", "hidden top-p or penalties"), *BLIND[0][1:])
    return BLIND[tier]


def _resemblances(rollouts: Sequence[Rollout], library: Sequence[Signature] | None) -> Iterator[Finding]:
    """Known faults of this shape. They point to no cause and change no verdict."""
    timed = all(rollout.finished_at is not None for rollout in rollouts)
    seen = [(index * SHAPE_BATCHES // len(rollouts) if timed else 0, rollout, populations.primary(rollout, None))
            for index, rollout in enumerate(rollouts)]
    for one in match(shape_of(seen, band_nats=band_of(rollouts)[1]), library)[:SHOWN]:
        yield Finding(state="unknown", topic="resembles", text=one.text)


def _self_bet_findings(bank: BankRun, test: TopOne | None) -> Iterator[Finding]:
    if not bank.betting_rollouts or test is None:
        reason = bank.why_not or "no rollout qualifies"
        yield Finding(state="unknown", topic="self-bets", text=f"not possible: {reason}")
        return
    evidence = f"ln M = {bank.ln_m:.1f} against ln A = {bank.ln_a:.1f}"
    rates = (f"the most likely token: reported {test.reported:.3f}, sampled {test.observed:.3f} of the time "
             f"({test.z_reported:+.1f} standard errors, {test.tokens:,} tokens)")
    if bank.alarm_rollout is None:
        if abs(test.z_reported) >= DOUBTFUL_Z:
            text = f"sampled tokens may not follow the reported probabilities; not enough evidence for an alarm ({evidence})"
            yield Finding(state="unknown", topic="self-bets", text=text, details=(rates,))
        elif test.uncertain < FEW_UNCERTAIN:
            yield Finding(state="unknown", topic="self-bets", text=f"nothing wrong so far ({evidence})", details=(rates, _too_little(test)))
        else:
            text = f"sampled tokens follow the reported probabilities ({evidence}, highest of the file)"
            yield Finding(state="fine", topic="self-bets", text=text, details=(rates,))
        return
    if bank.leading is None or not bank.leading.startswith("self_bet"):
        return  # the battery alarmed: tier one says it
    cause, guess = _guess(test)
    yield Finding(
        state="wrong", topic="self-bets", cause=cause, details=(rates, *guess),
        text=f"sampled tokens do not follow the reported probabilities: {evidence}, crossed after {bank.alarm_rollout} rollouts",
    )


def _guess(test: TopOne) -> tuple[str, tuple[str, ...]]:
    if test.if_raw is None or test.temperature in (None, 1.0):
        fit = f"; raw reports of a sampler at T = {test.fits_raw_at:g} would fit" if test.fits_raw_at else ""
        return "", (f"the declared temperature is {test.temperature or 'unknown'}, so raw logprobs cannot be tested for{fit}",)
    low, high = test.if_raw
    would = f"if the report were raw at T = {test.temperature:g} it would be {low:.3f} to {high:.3f} (upper bound: only the reported top tokens are known)"
    if test.looks_raw:
        return "raw_logprobs", (would, "looks like raw_logprobs: the report leaves out the temperature (a guess, not a verdict)")
    fit = f"; raw reports at T = {test.fits_raw_at:g} would fit" if test.fits_raw_at else ""
    return "", (would, f"does not look like raw_logprobs: a hidden temperature, truncation or penalty after the report{fit}")


def _too_little(test: TopOne) -> str:
    return (f"too little to bet on: the file is short or the policy is nearly sure (Σ p(1 − p) = {test.uncertain:.1f}, "
            f"{FEW_UNCERTAIN:g} are needed to see raw logprobs at T = 0.7)")


def _lattices(rollouts: Sequence[Rollout]) -> dict[float | None, Lattice]:
    """One test for each temperature the report ought to carry; None = undeclared."""
    groups: dict[float | None, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        groups[_report_temperature(rollout)].append(rollout)
    tests = {t: lattice_test(group, temperature=t) for t, group in groups.items()}
    return {t: test for t, test in tests.items() if test is not None}


def _report_temperature(rollout: Rollout) -> float | None:
    temperature = rollout.sampling.temperature
    if temperature is None:
        return None
    return 1.0 if temperature == 0 or rollout.expected_logprobs_mode == "raw_logprobs" else temperature


def _lattice_findings(lattices: dict[float | None, Lattice]) -> Iterator[Finding]:
    for declared, test in lattices.items():
        found = test.report_temperature
        if declared is None or found is None:
            continue
        share = f"{test.differences:,} differences of reported logprobs, {test.share_at_declared or 0:.0%} on the engine's bf16 grid at T = {declared:g}"
        if found == declared:
            yield Finding(state="fine", topic="temperature", text=f"reports carry the declared temperature ({share})")
        else:
            raw = found == 1.0
            text = (f"reports are raw: they carry T = 1, not the declared {declared:g}" if raw
                    else f"reports carry T = {found:g}, not the declared {declared:g}")
            yield Finding(state="wrong", topic="temperature", text=f"{text} ({share}, the coarsest grid at T = {found:g})",
                          cause="raw_logprobs" if raw else "temperature")


def _audit_findings(rollouts: Sequence[Rollout]) -> Iterator[Finding]:
    for fact in rollout_facts(rollouts):
        yield Finding(state="wrong", topic="settings", text=f"{fact.text} ({fact.rollouts} of {len(rollouts)} rollouts)", cause=fact.cause)
    undeclared = sum(rollout.sampling.temperature is None for rollout in rollouts)
    if undeclared:
        text = f"{undeclared} of {len(rollouts)} rollouts do not say which temperature the trainer assumes (`sampling`)"
        yield Finding(state="unknown", topic="settings", text=text)
    elif not any(transforms(rollout.sampling) for rollout in rollouts):
        yield Finding(state="fine", topic="settings", text="T = 1 without truncation: raw and processed logprobs are the same thing")


def _logprob_findings(rollouts: Sequence[Rollout], bank: BankRun) -> Iterator[Finding]:
    for name, text in zip(bank.fact_names, bank.facts, strict=True):
        yield Finding(state="wrong", topic="logprobs", text=text, cause="non_finite" if name == "nonfinite_logprobs" else "corrupted_requests")
    heavy = _overfull(rollouts)
    if heavy:
        text = f"the reported probabilities of one token add up to more than 1 for {heavy:,} tokens: these are not logprobs"
        yield Finding(state="wrong", topic="logprobs", text=text)
    sampled = np.concatenate([r.engine_logprobs_T[r.sampled_mask_T] for r in rollouts])
    zeros = int((sampled == 0).sum())
    if sampled.size and zeros > sampled.size / 2:
        text = f"{zeros:,} of {sampled.size:,} logprobs are exactly 0: filled in, or greedy or one-token truncated sampling"
        yield Finding(state="unknown", topic="logprobs", text=text)
    repeats = sum(count - 1 for name, count in Counter(r.request_id for r in rollouts).items() if name != "unknown")
    if repeats:
        yield Finding(state="unknown", topic="requests", text=f"{repeats} request ids occur more than once: counted as separate rollouts")
    if not bank.facts and not heavy:
        yield Finding(state="fine", topic="logprobs", text=f"all {sampled.size:,} logprobs are finite and not above 0")


def _overfull(rollouts: Sequence[Rollout]) -> int:
    return sum(
        1 for rollout in rollouts for row in rollout.top_logprobs if row is not None and np.exp(row.astype(np.float64)).sum() > 1.01
    )


def _looks_like(wrong: Sequence[Finding]) -> str:
    named = Counter(finding.cause for finding in wrong if finding.cause)
    return named.most_common(1)[0][0] if named else ""


def _next(wrong: bool, cause: str, tested: bool) -> str:
    if wrong:
        fix = CAUSE_TEXTS[cause].fix if cause in CAUSE_TEXTS else ""
        return " ".join(part for part in (fix, "Confirm with: klaxon diagnose FILE --model DIR") if part)
    if not tested:
        return "record rollouts with logprobs >= 1 (top logprobs), or add trainer_logprobs; then look again"
    return "klaxon diagnose FILE --model DIR re-scores the file with the weights and sees what this tier cannot"


def _numbers(bank: BankRun, test: TopOne | None, lattices: dict[float | None, Lattice]) -> dict[str, object]:
    found: dict[str, object] = {
        "ln_m": bank.ln_m if math.isfinite(bank.ln_m) else None, "ln_a": bank.ln_a, "alarm": bank.alarm_rollout is not None,
        "rollouts_to_alarm": bank.alarm_rollout, "leading_stream": bank.leading, "betting_rollouts": bank.betting_rollouts,
        "false_alarm_chance": bank.false_alarm_chance,
    }
    if test is not None:
        found["top_one"] = {
            "tokens": test.tokens, "reported": test.reported, "observed": test.observed, "z": test.z_reported,
            "if_raw": test.if_raw, "declared_temperature": test.temperature, "fits_raw_at": test.fits_raw_at, "looks_raw": test.looks_raw,
        }
    found["lattice"] = [
        {"declared": t, "report_temperature": test.report_temperature, "share_at_declared": test.share_at_declared,
         "share_at_one": test.share_at_one, "differences": test.differences} for t, test in lattices.items()
    ]
    return found
