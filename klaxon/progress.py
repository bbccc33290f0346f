"""The verdict while nothing fires: what has come, what of it was judged, and how long until the first batch says so. Pure.

Health is said from closed batches alone, and only of what was judged in them; until then the words say what is being
compared and how many seconds are left, so that a start never looks like silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STALE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the daemon knows of its own progress. Times in UTC seconds."""

    now: float
    last_rollout_at: float | None
    batch_seconds: float
    seconds_left: float  # until the open batch is closed and judged
    taken: Mapping[str, int]  # since the start: seen, tokens_seen, scored, tokens_scored, bet
    closed: Mapping[str, int]  # of closed batches: seen, scored, bet
    tap: bool = True  # is a tap expected


def not_firing(at: Progress) -> tuple[str, str]:
    """(verdict, one sentence) where no incident is open."""
    if at.last_rollout_at is None:
        how = "is the tap loaded in the engine, and does it know KLAXON_URL?" if at.tap else "does anything new stand in [sources] files?"
        return "starting", f"No rollout has arrived yet: {how} The first one is judged when its batch closes ({at.batch_seconds:.0f} s a batch)."
    if at.now - at.last_rollout_at > max(STALE_SECONDS, 3 * at.batch_seconds):
        return "blind", f"No rollout for {at.now - at.last_rollout_at:.0f} s: Klaxon cannot see the engine."
    if not at.closed.get("seen"):
        return "starting", f"{comparing(at.taken)} The first batch closes in {at.seconds_left:.0f} s."
    if at.closed.get("scored"):
        return "healthy", "Engine and trainer agree about the probability of the sampled tokens."
    if at.closed.get("bet"):
        more = f" {comparing(at.taken)} The batch closes in {at.seconds_left:.0f} s." if at.taken.get("scored") else " Tier 0 sees no more than that."
        return "healthy", f"Sampled tokens follow the reported probabilities.{more}"
    if at.taken.get("scored"):
        return "starting", f"{comparing(at.taken)} The batch closes in {at.seconds_left:.0f} s."
    return "blind", (f"{at.taken.get('seen', 0):,} rollouts came, and no hard fact is wrong; nothing else could be judged: they carry no top logprobs and nobody "
                     "said what the trainer thinks. Give [weights] dir, the trainer's logprobs, or the tap with logprobs >= 1.")


def comparing(taken: Mapping[str, int]) -> str:
    """What is compared with what, and how much of it there is.

    >>> comparing({"seen": 12, "tokens_seen": 700, "scored": 10, "tokens_scored": 640})
    "Comparing the engine's logprobs with the trainer's: 640 tokens of 10 rollouts so far (12 arrived)."
    """
    if taken.get("scored"):
        return (f"Comparing the engine's logprobs with the trainer's: {taken.get('tokens_scored', 0):,} tokens of {taken['scored']:,} rollouts so far "
                f"({taken.get('seen', 0):,} arrived).")
    if taken.get("bet"):
        return f"Comparing what was sampled with the probabilities the engine reports: {taken['bet']:,} rollouts so far ({taken.get('seen', 0):,} arrived)."
    return (f"{taken.get('seen', 0):,} rollouts with {taken.get('tokens_seen', 0):,} tokens arrived; hard facts are looked for, nothing in them can be compared yet.")


def first_batch(closed: Mapping[str, int], taken: Mapping[str, int], *, seconds_left: float) -> dict[str, Any] | None:
    """For the status: what the first batch with rollouts is gathering; None once one has closed."""
    if closed.get("seen"):
        return None
    return {"closes_in_seconds": round(seconds_left, 1), "comparing": comparing(taken) if taken.get("seen") else "",
            "rollouts": taken.get("seen", 0), "tokens_compared": taken.get("tokens_scored", 0), "rollouts_bet_on": taken.get("bet", 0)}
