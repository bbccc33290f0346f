"""Scorers beside the scorer: the same versions, computed otherwise. Each holds one model of its own while it lives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from collector.records import WeightVersion
from collector.shadow.model import model_shelf
from collector.shadow.scorer import ShadowScorer


def without_adapter(scorer: ShadowScorer, versions: Sequence[str]) -> ShadowScorer | None:
    """A scorer whose adapter versions are their base models alone; None where no version is an adapter."""
    known = [one for name in versions if (one := scorer.shelf.know(name)) is not None]
    if not any(one.base for one in known):
        return None
    config = scorer.config.model_copy(update={"versions_held": 1})
    return ShadowScorer(config, model_shelf(config, [_base_of(one) for one in known]))


def _base_of(known: WeightVersion) -> WeightVersion:
    """The base under the adapter's name; versions of one base share its weights."""
    return replace(known, path=known.base, base="", digest=f"base {known.base}") if known.base else known
