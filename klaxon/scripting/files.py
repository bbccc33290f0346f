"""Rollouts in hand: read, looked at, scored with weights, diagnosed. The commands of the same names are these with words around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collector.errors import InputError
from collector.records import Diagnosis, Rollout, Score
from klaxon.commands.rollout_files import Contents, read_contents

if TYPE_CHECKING:
    import pyarrow as pa

    from collector.config import SignalsConfig
    from collector.limits import Limits
    from diagnosis.file_report import FileReport
    from klaxon.commands.shadow_setup import Setup

__all__ = ["Contents", "Diagnosed", "Scored", "diagnose", "look", "read_rollouts", "score"]
CHUNK = 8
SHOWN = ("mean_d", "mean_abs_d", "max_abs_d", "k1", "k2", "k3", "clip_rate", "gspo_clip_rate", "ess", "pearson", "ppl_ratio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Rollouts under the trainer's weights.

    signals: every signal of docs/metrics.md over all of them (nats where it is a logprob difference); NaN = cannot be said.
    problems: what lies outside a healthy engine's band, in words; empty = inside.
    """

    rollouts: tuple[Rollout, ...]
    scores: tuple[Score, ...]
    signals: Mapping[str, float]
    problems: tuple[str, ...]
    band_nats: float  # mean |d| a healthy engine of this precision stays below
    band_of: str  # the precision that band is of
    left_out: tuple[str, ...]  # why rollouts were not scored
    limits: Limits | None = None

    def table(self) -> pa.Table:
        """A row a rollout: request_id, tokens and its signals."""
        import pyarrow as pa

        return pa.Table.from_pylist(per_rollout(self.rollouts, self.scores, self.limits))


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosed:
    """A diagnosis, how many rollouts it rests on, and why others were not scored."""

    verdict: Diagnosis  # .verdict names the cause, .confident whether the data single it out, .causes ranks them all
    rollouts: int
    left_out: tuple[str, ...]


def read_rollouts(path: str | Path, *, format: str = "", tokenizer: str = "", allow_pickle: bool = False) -> Contents:
    """Every rollout of a file or folder, in any format of docs/sources.md; refused records and what was left out beside them.

    Raises:
        ConfigError: no such format, or a package it needs is missing.
        InputError: the path cannot be read at all.
    """
    return read_contents(str(path), format=format, tokenizer=tokenizer, allow_pickle=allow_pickle)


def look(rollouts: Sequence[Rollout] | str | Path, *, false_alarms: str = "1 per 30 days", batch_seconds: float = 120.0,
         signals: SignalsConfig | None = None) -> FileReport:
    """What rollouts say by themselves: no torch, no model. `batch_seconds` turns the budget into one for a file of batches.

    Raises:
        ConfigError: the budget cannot be read.
        InputError: nothing usable.
    """
    from collector.config import SignalsConfig
    from detectors.budget import parse_period_seconds
    from detectors.config import DetectorsConfig
    from diagnosis.look import look as examine
    from diagnosis.signatures import library_of

    parse_period_seconds(false_alarms)
    detectors = DetectorsConfig.model_validate({"false_alarms": false_alarms})
    return examine(_rollouts(rollouts), config=detectors, batch_seconds=batch_seconds, signals_config=signals or SignalsConfig(), library=library_of(""))


def score(rollouts: Sequence[Rollout] | str | Path, *, model: str | Path, body_dtype: str = "bfloat16", head_dtype: str = "float32",
          temperature: float | None = None, limits: Limits | None = None, progress: Callable[[range], Any] = iter, name: str = "rollouts") -> Scored:
    """Score rollouts with the weights that should have generated them.

    Args:
        model: Hugging Face folder of the weights.
        body_dtype, head_dtype: the trainer's precision, not the engine's.
        temperature: what the trainer assumes where a rollout does not say.
        limits: what counts as clipped; default: GRPO's.
        progress: wraps the steps, e.g. tqdm.
        name: what errors call these rollouts, where no path was given.

    Raises:
        ConfigError: an unknown dtype, or klaxon-rl[scorer] is not installed.
        Unavailable: the folder is missing, half-written or no model.
        InputError: no token could be scored.
    """
    from diagnosis.tier_one import band_of, problems
    from klaxon.commands.shadow_setup import labelled, left_out, nothing_scored, open_scorer

    setup = open_scorer(Path(model), (), body_dtype=body_dtype, head_dtype=head_dtype)
    mine = labelled(_rollouts(rollouts), setup.versions, temperature=temperature)
    scores = _scores(setup, mine, progress)
    total = _total(mine, scores, limits)
    if not total["n_tokens"]:
        raise nothing_scored(setup, mine, file=str(rollouts) if isinstance(rollouts, (str, Path)) else name)
    dtype, band = band_of(mine)
    return Scored(rollouts=tuple(mine), scores=tuple(scores), signals=total, problems=tuple(problems(total, band)), band_nats=band, band_of=dtype,
                  left_out=tuple(left_out(setup, mine)), limits=limits)


def diagnose(rollouts: Sequence[Rollout] | str | Path, *, model: str | Path, previous: Sequence[str | Path] = (), body_dtype: str = "bfloat16",
             head_dtype: str | None = None, temperature: float | None = None, max_rollouts: int = 64) -> Diagnosed:
    """Which known fault explains the engine's logprobs: every explanation predicts them, the best prediction wins (docs/diagnosis.md).

    Args:
        previous: folders of older weights, newest first, for staleness.
        head_dtype: the trainer's head; None = float32 and not declared, so no engine is accused of its own.
        max_rollouts: at most so many are scored again, evenly spread.

    Raises:
        As `score`.
    """
    from klaxon.commands.shadow_setup import labelled, left_out, open_scorer

    found = _rollouts(rollouts)
    setup = open_scorer(Path(model), [Path(one) for one in previous], body_dtype=body_dtype, head_dtype=head_dtype or "float32", head_declared=head_dtype is not None)
    from diagnosis.compete import diagnose as compete
    from diagnosis.config import DiagnosisConfig
    from diagnosis.signatures import builtin

    chosen = labelled(found[:: max(1, -(-len(found) // max_rollouts))], setup.versions, temperature=temperature)
    verdict = compete(chosen, setup.scorer, versions=setup.versions, config=DiagnosisConfig(), signatures=builtin())
    return Diagnosed(verdict=verdict, rollouts=len(chosen), left_out=tuple(left_out(setup, chosen)))


def _rollouts(given: Sequence[Rollout] | str | Path) -> list[Rollout]:
    if isinstance(given, (str, Path)):
        from klaxon.commands.rollout_files import usable

        return usable(str(given), strict=False).rollouts
    if not given:
        raise InputError("no rollout was given", where="rollouts")
    return list(given)


def _scores(setup: Setup, rollouts: Sequence[Rollout], progress: Callable[[range], Any]) -> list[Score]:
    scores: list[Score] = []
    for start in progress(range(0, len(rollouts), CHUNK)):
        scores += setup.scorer.score(rollouts[start : start + CHUNK])
    return scores


def _total(rollouts: Sequence[Rollout], scores: Sequence[Score], limits: Limits | None) -> dict[str, float]:
    from collector import signals

    return signals.metrics(signals.total([part for rollout, one in zip(rollouts, scores, strict=True) for part in signals.slice_stats(rollout, one, limits=limits)]))


def per_rollout(rollouts: Sequence[Rollout], scores: Sequence[Score], limits: Limits | None = None) -> list[dict[str, Any]]:
    """The signals of each rollout."""
    from collector import signals

    rows = []
    for rollout, one in zip(rollouts, scores, strict=True):
        values = finite(signals.metrics(signals.total(signals.slice_stats(rollout, one, limits=limits))))
        rows.append({"request_id": rollout.request_id, "tokens": int(values["n_tokens"] or 0), **{name: values[name] for name in SHOWN}})
    return rows


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """The values, None where one is no number: JSON and tables know no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
