"""The plain words for causes, facts, statistics, slices and times: what a tired engineer reads at three in the morning."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime

CAUSES_IN_WORDS = {
    "healthy": "engine and trainer agree within the floor",
    "raw_logprobs": "the engine reports logprobs from before temperature and truncation, the trainer expects them after",
    "temperature": "the engine samples at another temperature than the trainer assumes",
    "truncation": "the engine keeps another top-p, top-k or min-p set than the trainer assumes",
    "penalties": "the engine applies repetition or presence penalties the trainer does not know of",
    "head_precision": "the output head is computed in another precision on one side",
    "engine_numerics": "the engine's arithmetic (kernels, bf16 body) differs more than the declared precision explains",
    "quantization": "the engine runs quantised weights or cache",
    "stale_weights": "the engine still generates with older weights than it says",
    "stale_prefix_cache": "cached prompts were computed with older weights and are still reused",
    "policy_lag": "the rollouts are older than the policy being trained: staleness, not a mismatch",
    "lora_not_applied": "the engine generates without the adapter the trainer trains",
    "prompt_mismatch": "engine and trainer see different prompts (template, truncation, special tokens)",
    "corrupted_requests": "some requests came back corrupted while the rest are fine",
    "position_dependent": "the mismatch starts at a position in the sequence",
    "batch_variance": "the engine's numbers depend on what else is in its batch",
    "routing": "the experts chosen by the engine and the trainer differ",
    "non_finite": "NaN or infinite logprobs",
    "unexplained": "no known fault explains the numbers",
}
"""One clause a cause of collector.records.CAUSES."""

MISMATCH_TITLE = "Rollout logprobs no longer match the trainer"
FACT_TITLES = {
    "nonfinite_logprobs": "The engine reports NaN or infinite logprobs",
    "zero_logprobs": "The engine reports logprobs of exactly 0 where it cannot be certain",
    "length_mismatch": "The engine reports fewer or more logprobs than tokens",
    "label_moved_weights_same": "The weight version moves on but the weights stay the same",
    "weights_never_move": "An engine keeps generating with old weights",
    "engine_unreachable": "A rollout engine does not answer",
    "no_rollouts": "No rollouts arrive",
    "tap_silent": "Klaxon is blind: an engine answers but its tap is silent",
    "scorer_behind": "Klaxon is blind: rollouts wait to be scored",
    "store_refusing": "Klaxon cannot write: its store refuses",
    "disk_low": "The disk of Klaxon's store is nearly full",
    "trainer_nonfinite": "The trainer's loss or gradient is NaN or infinite",
    "trainer_learns_nothing": "The trainer learns nothing: equal rewards or a gradient of 0",
    "contract_dtype": "The engine runs in another dtype than the contract declares",
}
"""Titles of detectors.hardfacts.FACTS; a fact without one is titled by its name."""

FACT_NEXT = {
    "nonfinite_logprobs": "klaxon status   # which replica; then its log for NaN, overflow, or an update that overlapped a forward pass",
    "zero_logprobs": "klaxon status   # which replica; zeros are what a filled-in or dropped logprob looks like",
    "length_mismatch": "klaxon check   # compares what the tap saves with what the client receives",
    "label_moved_weights_same": "klaxon status   # then the trainer's log: did the export write new tensors?",
    "weights_never_move": "klaxon status   # then the engine's log: was the weight update refused?",
    "engine_unreachable": "klaxon status   # then the engine's own log: is it up, out of memory, restarting?",
    "no_rollouts": "klaxon status   # is the trainer paused, the engine up, the tap sending?",
    "tap_silent": "klaxon check   # says whether the tap is loaded in the engine and where it sends",
    "store_refusing": "df -h   # then free space where [store] path lies; waiting batches are written as soon as it takes them",
    "disk_low": "df -h   # free space, or shorten the [store] TTLs",
    "trainer_nonfinite": "klaxon status   # then the trainer's log of that step: learning rate, a bad batch, overflow",
    "trainer_learns_nothing": "klaxon status   # then the rewards: does the verifier answer, are the prompts all solved or all failed?",
    "contract_dtype": "klaxon check   # then the engine's --dtype and --quantization, or [contract] engine_dtype",
    "scorer_behind": "klaxon status   # lower sampler.tokens_per_minute or give the scorer a faster device",
}
"""What to type after a hard fact."""
DEFAULT_NEXT = "klaxon status"

STREAMS_IN_WORDS = {
    "self_bet": "The sampled tokens do not follow the probabilities the engine itself reports",
    "explain": "The engine's logprobs fit this explanation better than they fit the trainer's own",
    "battery": "The mismatch changed beyond what its own past and the policy's certainty explain",
    "trainer_metrics": "A metric the trainer reports left its own past",
    "requests": "Single rollouts are wrong in a way healthy ones never are, while the rest are fine",
    "reference": "A metric of the trainer left the band of the reference runs",
    "contract": "The mismatch left what [contract] declares as accepted",
}
"""What an alarm of each kind of stream says."""

SLICE_KEYS = {"replica": "replica", "engine": "engine", "position": "tokens", "pos": "tokens", "version": "weight version", "cached": "prefix cache hit", "requests": "rollouts"}

_SECRETS = (
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE), r"\1"),
    (re.compile(r"(https://hooks\.slack\.com/)\S+", re.IGNORECASE), r"\1…"),
    (re.compile(r"\b(whsec_|xox[a-z]-|sk-|hf_|ghp_)[\w+/=-]{6,}"), r"\1…"),
    (re.compile(r"\b(bearer)\s+\S{6,}", re.IGNORECASE), r"\1 …"),
)


def clean(text: object, *, limit: int = 300) -> str:
    """One line fit for a message: no control characters, no credentials, at most `limit` characters.

    >>> clean("http://me:secret@engine:8000/health\\n")
    'http://engine:8000/health'
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    for pattern, shown in _SECRETS:
        line = pattern.sub(shown, line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def number(value: float) -> str:
    """Three significant digits, no exponent where a human would not write one.

    >>> number(0.21433), number(12.0), number(51234.0)
    ('0.214', '12', '51,234')
    """
    if not math.isfinite(value):
        return "beyond counting"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def amount(value: float, unit: str) -> str:
    """A value in its unit; fractions are shown in percent.

    >>> amount(0.2143, "nats"), amount(0.123, "fraction")
    ('0.214 nats', '12.3 %')
    """
    return f"{number(100 * value)} %" if unit == "fraction" else f"{number(value)} {clean(unit, limit=30)}"


def where(slice_: Mapping[str, str]) -> str:
    """A slice in words.

    >>> where({"replica": "http://10.0.0.3:8000", "position": "4k-16k"})
    'replica http://10.0.0.3:8000, tokens 4k-16k'
    """
    named = {key: value for key, value in slice_.items() if value not in (None, "")}
    if not named:
        return "the whole run; no replica or position was singled out"
    return ", ".join(f"{SLICE_KEYS.get(key, clean(key, limit=30))} {clean(value, limit=80)}" for key, value in named.items())


def clock(at: float) -> str:
    """UTC time of day and date.

    >>> clock(1768953600.25)
    '00:00:00 UTC, 21 Jan 2026'
    """
    moment = datetime.fromtimestamp(at, UTC)
    return f"{moment:%H:%M:%S} UTC, {moment.day} {moment:%b %Y}"


def interval(lo: float, hi: float) -> str:
    """When a change began, as an interval in UTC.

    >>> interval(1768953600.0, 1768953720.0)
    'between 00:00:00 and 00:02:00 UTC, 21 Jan 2026'
    """
    first, last = datetime.fromtimestamp(lo, UTC), datetime.fromtimestamp(hi, UTC)
    if hi - lo < 1:
        return f"at {clock(lo)}"
    if first.date() == last.date():
        return f"between {first:%H:%M:%S} and {clock(hi)}"
    return f"between {clock(lo)} and {clock(hi)}"


def duration(seconds: float) -> str:
    """A length of time, two units at most.

    >>> duration(42), duration(150), duration(7500)
    ('42 s', '2 min 30 s', '2 h 5 min')
    """
    whole = max(0, round(seconds))
    for size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"
