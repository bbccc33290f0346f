"""The numbers at the head of Now, each with its definition. Pure: no Streamlit."""

from __future__ import annotations

from typing import Any

from dashboard.client import Snapshot
from dashboard.words import number, percent


def cells(shot: Snapshot) -> list[tuple[str, str, str, str]]:
    """(label, value, note, definition), of the newest batch in which tokens were compared."""
    status = shot.status
    scored = shot.series[shot.series["n_tokens"] > 0]
    last = scored.iloc[-1] if len(scored) else {}
    floor, mean, k3 = status.get("floor_nats"), _value(last, "mean_abs_d"), _value(last, "k3")
    return [
        ("Mean |d|", "–" if mean is None else f"{number(mean)} nats", f"{number(mean / floor, digits=2)}× the floor" if mean and floor else "floor not known yet",
         "Mean |log q − log p| of the sampled tokens in the newest compared batch: q is the trainer's probability, p the engine's. The floor is the median of healthy batches."),
        ("p50 and p99 of |d|", "–" if mean is None else f"{number(_value(last, 'p50_abs_d'))} · {number(_value(last, 'p99_abs_d'))}", "nats, newest batch",
         "Half of the tokens differ by less than the first number, one in a hundred by more than the second. Of a few rotten requests only the second grows."),
        ("k3", "–" if k3 is None else f"{number(k3)} nats", "KL(p‖q) a token", "Mean of e^d − 1 − d with d = log q − log p: an estimate of the KL divergence between engine and trainer."),
        _clip(shot, _value(last, "clip_rate")), _evidence(status), _lag(status.get("weights") or {}),
    ]


def _clip(shot: Snapshot, own: float | None) -> tuple[str, str, str, str]:
    trainer, reference = shot.metrics.get("clip_rate"), (shot.band.get("metrics") or {}).get("clip_rate")
    beside = []
    if trainer is not None and len(trainer):
        beside.append(f"trainer's own {percent(float(trainer['value'].iloc[-1]))}")
    if reference and reference.get("center"):
        beside.append(f"reference runs {percent(_nearest(reference, trainer))}")
    return ("Clip rate", percent(own), ", ".join(beside) or "tokens, newest batch",
            "Share of tokens whose ratio q/p leaves the trust region through mismatch alone; beside it the clip rate the trainer logs, and the reference runs' at the same step.")


def _nearest(reference: dict[str, Any], trainer: Any) -> float:
    """The middle of the reference runs at the trainer's newest step, or at their step nearest to it."""
    step = float(trainer["step"].iloc[-1]) if trainer is not None and len(trainer) else float(reference["steps"][-1])
    place = min(range(len(reference["steps"])), key=lambda at: abs(reference["steps"][at] - step))
    return float(reference["center"][place])


def _evidence(status: dict[str, Any]) -> tuple[str, str, str, str]:
    ln_m, ln_a = status.get("ln_m"), status.get("ln_a")
    share = None if ln_m is None or not ln_a else max(0.0, min(1.0, ln_m / ln_a))
    road = "nothing against the run" if share is None else "past the alarm threshold" if share >= 1 else f"{percent(share)} of the way to an alarm"
    return "Evidence", "–" if share is None else f"{number(ln_m)} of {number(ln_a)}", road, "ln M against its alarm threshold ln A: a healthy run reaches A no more often than promised."


def _lag(weights: dict[str, Any]) -> tuple[str, str, str, str]:
    lag = weights.get("lag")
    return ("Weight lag", "–" if lag is None else f"{lag} version{'' if lag == 1 else 's'}",
            f"trainer {weights.get('trainer_version') or '–'}, engine {weights.get('engine_version') or '–'}", "How many published versions the engine is behind the trainer.")


def _value(row: Any, name: str) -> float | None:
    value = row.get(name)
    return None if value is None or value != value else float(value)
