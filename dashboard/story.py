"""An incident as words: what, where, since when, why, what it costs. Pure; text from outside is escaped by whoever writes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dashboard.words import clock, duration, number, percent, since

STREAMS = {
    "self_bet": "sampled tokens against the probabilities the engine itself reports", "explain": "a bet that this explanation fits better than the healthy one",
    "battery": "statistics of the mismatch against their own past", "trainer": "what the trainer logs", "reference": "the band of the reference runs"}
"""What a stream of evidence compares, by the word before its colon."""
_STATES = {"firing": "fires, and nobody has taken it", "acknowledged": "somebody has it", "resolved": "is over"}


def where(incident: Mapping[str, Any]) -> str:
    """The slices its alarms name, or that there is none."""
    places = dict.fromkeys(", ".join(f"{key} {value}" for key, value in (drift.get("slice") or {}).items()) for drift in incident.get("drifts") or ())
    named = [place for place in places if place]
    return "; ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "") if named else "the whole run"


def when(incident: Mapping[str, Any], *, now: float) -> str:
    """When the fault began, as an interval where it is one, and how long ago."""
    began = since(incident)
    if began is None:
        return "since an unknown time"
    span = incident.get("since") or [began, began]
    over = incident.get("resolved_at")
    length = f"it lasted {duration(over - began)}" if over else f"{duration(now - began)} ago"
    if incident.get("fault") not in (None, "mismatch") or round(span[0]) == round(span[1]):
        return f"since {clock(began, now=now)} ({length})"
    return f"began between {clock(span[0], now=now).removesuffix(' UTC')} and {clock(span[1], now=now)} ({length})"


def owner(incident: Mapping[str, Any]) -> str | None:
    """Who has it, if somebody does: the author of the newest acknowledgement."""
    if not incident.get("acknowledgement"):
        return None
    taken = [step for step in incident.get("history") or () if step.get("to_state") == "acknowledged"]
    return str(taken[-1].get("author") or "somebody") if taken else "somebody"


def state(incident: Mapping[str, Any], *, now: float) -> str:
    """State, age and owner in a sentence."""
    found, has = str(incident.get("state") or "firing"), owner(incident)
    opened, over = incident.get("opened_at"), incident.get("resolved_at")
    if over:
        return f"Resolved {duration(now - over)} ago, after {duration(over - (opened or over))}" + (f"; {has} had it." if has else "; nobody had taken it.")
    age = f"for {duration(now - opened)}" if opened else ""
    return f"Taken by {has}, open {age}." if has else f"Open {age}: it {_STATES.get(found, found)}."


def size(incident: Mapping[str, Any]) -> str | None:
    """How large the effect is, in its unit, and beside the floor."""
    sized = next((drift for drift in incident.get("drifts") or () if isinstance(drift.get("effect"), (int, float))), None)
    if sized is None:
        return None
    if sized.get("effect_unit") == "fraction":
        return percent(sized["effect"])
    floor = (incident.get("diagnosis") or {}).get("floor_nats")
    times = f", {number(sized['effect'] / floor, digits=2)} times the floor" if floor else ""
    return f"{number(sized['effect'])} {sized.get('effect_unit') or 'nats'} a token{times}"


def evidence(incident: Mapping[str, Any]) -> list[str]:
    """What speaks for the leading cause: the numbers, shapes and audit facts the diagnosis names."""
    diagnosis = incident.get("diagnosis") or {}
    return [str(line) for cause in diagnosis.get("causes") or () if cause.get("cause") == diagnosis.get("verdict") for line in cause.get("evidence") or ()]


AUDIT = {"vllm_version": "vLLM", "logprobs_mode": "logprobs mode", "dtype": "dtype", "quantization": "quantisation", "kv_cache_dtype": "KV cache dtype",
         "head_dtype": "head dtype", "enable_prefix_caching": "prefix caching", "weight_version": "weight version", "attention_backend": "attention backend"}


def audit(engine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the engine says about itself now, as far as it may explain a mismatch."""
    return [(label, str(engine[name])) for name, label in AUDIT.items() if engine.get(name) not in (None, "")]


def impact(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, definition) of what the fault costs, as far as it is known."""
    shown: list[tuple[str, str, str]] = []
    for key, label, meaning in (
            ("last_clean_version", "Last clean version", "The newest weight version whose rollouts came before the change: what to go back to."),
            ("first_tainted_version", "First tainted version", "The oldest weight version with rollouts since the change.")):
        if found.get(key) is not None:
            shown.append((label, str(found[key]), meaning))
    tainted = found.get("tainted_requests")
    count = len(tainted) if isinstance(tainted, (list, tuple)) else tainted
    if isinstance(count, (int, float)):
        share = found.get("token_share")
        shown.append(("Tainted", f"{count:,.0f} rollouts" + (f", {percent(share)} of tokens" if isinstance(share, (int, float)) else ""),
                      "Scored rollouts of the slices concerned since the change; the share is of all tokens scored around it. `klaxon quarantine` lists them."))
    for key, label, meaning in (
            ("ess", "Effective sample size", "ESS: (Σw)² / (n Σw²) with w = q/p. The share of the data that is left after reweighting; 100 % is no loss."),
            ("clip_rate", "Clip rate", "Share of tokens that the mismatch alone pushes out of the trust region."),
            ("mean_abs_d", "Mean |d|", "Mean |log q − log p| a token, in nats.")):
        before, after = found.get(f"{key}_before"), found.get(f"{key}_after")
        if after is not None:
            form = number if key == "mean_abs_d" else percent
            shown.append((label, f"{form(before)} → {form(after)}" + (" nats" if key == "mean_abs_d" else ""), f"{meaning} Before the change → since."))
    shown += _gradient(found)
    return shown


def _gradient(found: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    bias = (found.get("gradient_after") or {}).get("uncorrected") or {}
    if bias.get("relative_bias") is not None:
        angle = bias.get("angle_degrees")
        yield ("Gradient bias", percent(bias["relative_bias"]) + (f", {number(angle)}°" if angle is not None else ""),
               "By how much the policy gradient is off, as a share of its length, and by what angle, if the trainer corrects nothing.")


def stream_meaning(name: str) -> str:
    """What a stream of evidence compares.

    >>> stream_meaning("self_bet:+0.6"), stream_meaning("unheard:of")
    ('sampled tokens against the probabilities the engine itself reports', 'a test of its own')
    """
    return STREAMS.get(name.partition(":")[0].partition("/")[0], "a test of its own")
