"""What Klaxon says about itself, in words: streams, budget, losses by reason. Pure; nothing is escaped here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dashboard.words import LOSSES, number

KINDS = {
    "self_bet": ("Self-bets", "Does the engine sample from the probabilities it reports? No warm-up; needs the top-1 logprob (logprobs ≥ 1)."),
    "explain": ("Explanations", "Does a known fault predict the engine's report better than health does? No warm-up; needs the shadow scorer."),
    "battery": ("Battery", "Has a statistic of |d|, the clip rate or the tail moved, over all or in one slice? Learns what is normal first."),
    "requests": ("Single requests", "Are single requests off in a way numerics cannot be?"),
    "trainer_metrics": ("Trainer's metrics", "Has a metric the trainer logs left its own past? Learns for 170 logged steps first."),
    "reference": ("Reference band", "Has a metric left the band of the reference runs?"),
    "contract": ("Contract", "Is the accepted mismatch of [contract] exceeded?"),
}
"""Beginning of a stream's name → what it is called, and the question it asks."""


def kind_of(stream: object) -> str:
    """The kind of a stream, by the beginning of its name.

    >>> kind_of("explain:temperature:0.8:0.3"), kind_of("mean|replica=a")
    ('explain', 'battery')
    """
    kind = str(stream).partition(":")[0]
    return kind if kind in KINDS else "battery"


REASONS = {
    **LOSSES,
    "left_out_tokens_version_unknown": "tokens whose weight version is unknown", "left_out_tokens_version_missing": "tokens whose weight version was not loaded",
    "left_out_tokens_token_out_of_range": "tokens with ids beyond the model's vocabulary: another tokenizer or model",
    "skipped_by_stride": "rollouts of versions that [weights] every leaves out", "tokens_skipped_by_stride": "tokens of versions that [weights] every leaves out",
    "without_logprobs": "requests whose client asked for no logprobs (KLAXON_FORCE_LOGPROBS=1 on the tap asks for them)",
    "multimodal": "requests with pictures or sound, which cannot be scored from token ids", "trainer_unmatched": "words of the trainer about rollouts not known here",
    "trainer_refused": "words of the trainer that do not fit their rollout", "dropped_by_trainer": "rollouts the trainer dropped", "own_experiments": "requests of Klaxon's own experiments",
    "trainer_moved_on": "rollouts the trainer recomputed with newer weights", "suspect_rollouts": "rollouts far outside the healthy ones",
    "store_errors": "batches the store refused at first", "metrics_polls_failed": "polls of a metrics source that failed", "state_errors": "times the detectors' state was not saved",
    "chore_busy": "chores left out, the one before still at work", "chore_missed": "chores that came too late to be done",
    "token_rollouts_lost": "rollouts whose tokens could not be kept", "token_texts_missing": "rollouts whose text no tokenizer could tell",
    "metrics_repeated": "rows of the trainer's metrics that came twice", "metrics_out_of_order": "rows of the trainer's metrics out of order",
    "metrics_clock_skew": "rows of the trainer's metrics from the future", "pushed_clock_skew": "rollouts from the future (clocks differ)", "pushed_out_of_order": "rollouts that came out of order",
}
"""Name of a count → what it counts."""

_NO_LOSS = ("seen", "sampled", "scored", "tokens_seen", "tokens_scored", "joined", "trainer_joined", "trainer_repeated", "bet", "token_rollouts_kept")


def drops(counts: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """(name, in words, how many) of everything that was left out, refused or odd, the largest first; zeros are left out.

    >>> drops({"seen": 9, "refused": 2, "refused_not_json": 2, "late": 0})
    [('refused', 'rollouts or lines refused as bad data', 2), ('refused_not_json', 'of those: not json', 2)]
    """
    found = [(name, _words(name), int(value)) for name, value in counts.items()
             if name not in _NO_LOSS and "@" not in name and isinstance(value, (int, float)) and value]
    return sorted(found, key=lambda one: (-one[2], one[0]))


def _words(name: str) -> str:
    if name in REASONS:
        return REASONS[name]
    for start, text in (("refused_", "of those: "), ("unusable_", "generations behind the proxy that are unusable: "), ("left_out_tokens_", "tokens left out of the score: ")):
        if name.startswith(start):
            return text + name.removeprefix(start).replace("_", " ")
    return name.replace("_", " ")


def budget(honesty: Mapping[str, Any], *, batch_seconds: float, promise: str) -> str:
    """Promised against realised, as sentences.

    >>> print(budget({"batches": 720, "alarms": 1, "promised_false_alarms": 0.5}, batch_seconds=120, promise="1 per 30 days"))
    Promised: at most 1 per 30 days. Over the 720 batches (1 d) Klaxon has judged, a healthy run rings at most 0.5 times on average; it has rung once, rightly or wrongly.
    """
    from dashboard.words import duration

    batches, alarms = int(honesty.get("batches") or 0), int(honesty.get("alarms") or 0)
    rung = {0: "it has not rung", 1: "it has rung once"}.get(alarms, f"it has rung {alarms:,} times") + (", rightly or wrongly" if alarms else "")
    allowed = float(honesty.get("promised_false_alarms") or 0.0)
    at_most = "less than 0.001" if allowed < 0.001 else f"at most {number(allowed, digits=2)}"
    return (f"Promised: at most {promise}. Over the {batches:,} batches ({duration(batches * batch_seconds)}) Klaxon has judged, a healthy run rings "
            f"{at_most} times on average; {rung}.")


def state(log_share: float | None, *, ln_a: float | None, learning: bool) -> str:
    """What a stream says right now, from its share of the evidence against the alarm's threshold (natural logs).

    >>> [state(x, ln_a=10.0, learning=False) for x in (-5.0, 2.0, 7.0, 11.0)], state(None, ln_a=10.0, learning=True)
    (['quiet', 'some evidence', 'close to an alarm', 'alarm'], 'learning')
    """
    if log_share is None or not math.isfinite(log_share):
        return "learning" if learning else "quiet"
    if ln_a and log_share >= ln_a:
        return "alarm"
    if ln_a and log_share >= ln_a / 2:
        return "close to an alarm"
    return "some evidence" if log_share > 0 else "learning" if learning else "quiet"
