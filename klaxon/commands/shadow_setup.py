"""What `klaxon score` and `klaxon diagnose` share: weights from folders, rollouts labelled with them, a shadow scorer."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from collector.config import ShadowConfig
from collector.errors import ConfigError, InputError
from collector.records import Rollout, WeightSpan

if TYPE_CHECKING:
    from collector.shadow.scorer import ShadowScorer

BODY_DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A scorer and its weight versions, the newest last; the last one is --model."""

    scorer: ShadowScorer
    versions: tuple[str, ...]


def open_scorer(model: Path, previous: Sequence[Path], *, body_dtype: str, head_dtype: str, head_declared: bool = True) -> Setup:
    """Check the folders and build the scorer; weights load when they are first needed. `previous`: newest first; `head_declared`: somebody
    said what the trainer's head is (a default is no declaration: the diagnosis accuses no engine of it).

    Raises:
        ConfigError: an unknown dtype, or torch and transformers are not installed.
        Unavailable: a folder is missing, half-written or no model.
    """
    for option, value in (("--body-dtype", body_dtype), ("--head-dtype", head_dtype)):
        if value not in BODY_DTYPES:
            raise ConfigError(f"{option} {value!r} is none of {', '.join(BODY_DTYPES)}")
    try:
        from collector.shadow.model import model_shelf
        from collector.shadow.scorer import ShadowScorer
        from collector.weights.checkpoint import inspect
    except ModuleNotFoundError as error:
        raise ConfigError(f"this command needs {error.name}: pip install 'klaxon-rl[scorer]'") from None
    said = {"head_dtype": head_dtype} if head_declared else {}
    config = ShadowConfig(body_dtype=body_dtype, threads=len(os.sched_getaffinity(0)), **said)
    folders = [*reversed(previous), model]
    names = [folder.resolve().name for folder in folders]
    names = [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
    known = [inspect(folder, version=name) for name, folder in zip(names, folders, strict=True)]
    return Setup(scorer=ShadowScorer(config, model_shelf(config, known)), versions=tuple(names))


def labelled(rollouts: Sequence[Rollout], versions: Sequence[str], *, temperature: float | None) -> list[Rollout]:
    """Rollouts whose labels are unknown here belong to the last version; an undeclared temperature becomes `temperature`."""
    return [_declared(_label(rollout, versions), temperature) for rollout in rollouts]


def left_out(setup: Setup, rollouts: Sequence[Rollout]) -> list[str]:
    """Reasons why rollouts were not scored, most frequent first, each with one example."""
    ids = {rollout.request_id for rollout in rollouts}
    seen = {(one.request_id, one.kind): one for one in setup.scorer.refusals if one.request_id in ids}
    counts = Counter(kind for _, kind in seen)
    examples = {one.kind: one for one in seen.values()}
    return [f"{count} rollout{'s' if count > 1 else ''}: {examples[kind].text} (request {examples[kind].request_id})" for kind, count in counts.most_common()]


def nothing_scored(setup: Setup, rollouts: Sequence[Rollout], *, file: str) -> InputError:
    """The error when no token could be scored."""
    reasons = left_out(setup, rollouts)
    return InputError(f"no token could be scored: {reasons[0] if reasons else 'no finite logprob on both sides'}", where=file)


def _label(rollout: Rollout, versions: Sequence[str]) -> Rollout:
    if rollout.weight_versions and all(span.version in versions for span in rollout.weight_versions):
        return rollout
    return replace(rollout, weight_versions=(WeightSpan(start=0, end=rollout.n_tokens, version=versions[-1]),))


def _declared(rollout: Rollout, temperature: float | None) -> Rollout:
    if temperature is None or rollout.sampling.temperature is not None:
        return rollout
    return replace(rollout, sampling=replace(rollout.sampling, temperature=temperature))
