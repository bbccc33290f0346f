"""Two reports that look alike, raw logprobs and a hidden temperature of 1, are told apart by how the tokens were sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diagnosis.bench import Bench
from diagnosis.config import DiagnosisConfig
from diagnosis.prediction import Prediction
from diagnosis.sampling import sampled_at
from diagnosis.sheet import Contrast


def beats(contrast: Contrast, config: DiagnosisConfig) -> bool:
    """Better by the margin, and by enough standard errors."""
    return contrast.gain > config.margin_nats and contrast.z > config.confidence_z


@dataclass(frozen=True, slots=True, kw_only=True)
class Tie:
    """How raw logprobs and a hidden temperature were told apart."""

    settled: str = ""  # the twin that need not be beaten any more
    sure: bool = True
    why: tuple[str, ...] = ()


def settle_twins(bench: Bench, field: Sequence[Prediction], leader: Prediction) -> tuple[Prediction, Tie]:
    """The twin that leads, and how sure that is."""
    twins = {one.cause: one for one in field if one.cause in ("raw_logprobs", "temperature") and one.second == leader.second}
    if leader.cause not in twins or len(twins) < 2:
        return leader, Tie()
    if beats(bench.sheet.contrast(twins["raw_logprobs"].values_N, twins["temperature"].values_N), bench.config):
        return leader, Tie()
    if beats(bench.sheet.contrast(twins["temperature"].values_N, twins["raw_logprobs"].values_N), bench.config):
        return leader, Tie()
    sampled = sampled_at(leader.heads or bench, reported=float(twins["temperature"].parameters["temperature"]))
    if sampled is None:
        return leader, Tie(sure=False, why=("not sure: raw logprobs and a hidden temperature predict the same here",))
    cause = "raw_logprobs" if sampled.as_declared else "temperature"
    return twins[cause], Tie(settled=("temperature" if sampled.as_declared else "raw_logprobs") if sampled.clear else "", sure=sampled.clear, why=(sampled.text,))
