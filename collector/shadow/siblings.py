"""Scorers beside the scorer: the same versions, computed otherwise."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from collector.records import WeightVersion
from collector.shadow.head import Head
from collector.shadow.model import ShadowModel, model_shelf
from collector.shadow.scorer import ShadowScorer


def without_adapter(scorer: ShadowScorer, versions: Sequence[str]) -> ShadowScorer | None:
    """A scorer whose adapter versions are their base models alone, with one model of its own; None where no version is an adapter."""
    known = [one for name in versions if (one := scorer.shelf.know(name)) is not None]
    if not any(one.base for one in known):
        return None
    config = scorer.config.model_copy(update={"versions_held": 1})
    return ShadowScorer(config, model_shelf(config, [_base_of(one) for one in known]))


def _base_of(known: WeightVersion) -> WeightVersion:
    """The base under the adapter's name; versions of one base share its weights."""
    return replace(known, path=known.base, base="", digest=f"base {known.base}") if known.base else known


class _OtherHead:
    """A ShadowModel whose logits come from another version's head; the body is the model's own."""

    def __init__(self, model: ShadowModel, heads: Sequence[Head], replica: int = 0) -> None:
        self._model, self._heads, self.head = model, heads, heads[replica]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def replica(self, index: int) -> _OtherHead:
        return _OtherHead(self._model.replica(index), self._heads, index)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        return self.head.logits(hidden_NH)


class _OtherHeadShelf:
    """The scorer's own shelf, its models under one version's head."""

    def __init__(self, shelf: Any, heads: Sequence[Head]) -> None:
        self._shelf, self._heads = shelf, heads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shelf, name)

    def get(self, version: str) -> _OtherHead:
        return _OtherHead(self._shelf.get(version), self._heads)


def with_head_of(scorer: ShadowScorer, version: str, *, instead_of: str) -> ShadowScorer | None:
    """A scorer on the same loaded bodies, all under `version`'s output head, of which it holds a copy (the shelf refills its models in place).

    None where `instead_of` has the very same head.

    Raises:
        Unavailable: one of the two versions cannot be loaded.
    """
    model = scorer.shelf.get(version)
    heads = [_copied(one.head) for one in (model, *model.twins)]
    if all(torch.equal(mine, other) for mine, other in zip(heads[0].weight, scorer.shelf.get(instead_of).head.weight, strict=True)):
        return None
    return ShadowScorer(scorer.config, _OtherHeadShelf(scorer.shelf, heads))  # type: ignore[arg-type]


def _copied(head: Head) -> Head:
    mine = copy.copy(head)
    mine.weight = tuple(part.clone() for part in head.weight)
    mine.bias_V = None if head.bias_V is None else head.bias_V.clone()
    return mine
