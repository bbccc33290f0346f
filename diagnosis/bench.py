"""Everything explanations ask the shadow scorer for, computed once: head views in one pass, the rest on demand.

N = tokens of the sheet. The views every diagnosis needs share one forward; truncation and penalties (dear views) share a
second one, only where they are asked for; another version's weights or an older prefix KV cost a pass of the rollouts
concerned. All are cached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from scipy.interpolate import CubicSpline

from collector.errors import InputError, Unavailable
from collector.records import Rollout, Score
from collector.shadow.views import expected, processed, raw
from diagnosis.config import DiagnosisConfig
from diagnosis.sheet import Sheet

TRUNCATIONS: tuple[dict[str, float], ...] = ({"top_p": 0.8}, {"top_p": 0.9}, {"top_p": 0.95}, {"top_k": 20}, {"top_k": 50}, {"min_p": 0.05}, {"min_p": 0.1})
PENALTIES: tuple[dict[str, float], ...] = tuple({"repetition_penalty": value} for value in (1.05, 1.1, 1.2))
TEMPERATURE_NODES = 9
FINE_TEMPERATURES = 241


class Scorer(Protocol):
    """What diagnosis needs of collector.shadow.scorer.ShadowScorer."""

    def score(self, rollouts: Sequence[Rollout], *, views: Mapping[str, Any], version: str | None = None,
              prefix_version: str | None = None) -> list[Score]:
        """One Score a rollout, in order."""
        ...


class Bench:
    """See the module. `versions` are weight versions the scorer can load, the newest last.

    Raises InputError or Unavailable when no token at all can be compared; the text says why.
    """

    def __init__(self, rollouts: Sequence[Rollout], scorer: Scorer, *, versions: Sequence[str], config: DiagnosisConfig) -> None:
        self.config, self.versions = config, list(versions)
        self._scorer = scorer
        nodes = np.geomspace(config.temperature_min, config.temperature_max, TEMPERATURE_NODES)
        views: dict[str, Any] = {"expected": expected, "raw": raw, "processed": processed()}
        views |= {f"temperature:{i}": processed(temperature=float(t)) for i, t in enumerate(nodes)}
        scores = scorer.score(rollouts, views=views)
        self.sheet = Sheet.of(rollouts, scores)
        if not self.sheet.tokens:
            raise _nothing_scored(rollouts, scorer)
        kept = {id(rollout) for rollout in self.sheet.rollouts}
        self._scores = [score for rollout, score in zip(rollouts, scores, strict=True) if id(rollout) in kept]
        self.left_out_rollouts = len(rollouts) - len(self.sheet.rollouts)
        self.temperatures_F = np.geomspace(config.temperature_min, config.temperature_max, FINE_TEMPERATURES)
        nodes_KN = np.stack([self.view(f"temperature:{i}") for i in range(nodes.size)])
        self._spline = CubicSpline(np.log(nodes), nodes_KN, axis=0) if np.isfinite(nodes_KN).all() else None
        self._rows: dict[tuple[str, str, int], np.ndarray] = {}
        self._settings: dict[str, np.ndarray] | None = None

    @property
    def compared(self) -> list[tuple[int, Rollout, Score]]:
        """(0, rollout, score) of what is on the sheet."""
        return [(0, rollout, score) for rollout, score in zip(self.sheet.rollouts, self._scores, strict=True)]

    def view(self, name: str) -> np.ndarray:
        """A head view, float64 [N] nats."""
        return self.sheet.flat([score.views[name] for score in self._scores])

    def setting(self, settings: Mapping[str, float]) -> np.ndarray:
        """Processed logprobs with one of TRUNCATIONS or PENALTIES in place of the trainer's, float64 [N]."""
        if self._settings is None:
            views = {name_of(one): processed(**one) for one in (*TRUNCATIONS, *PENALTIES)}
            scores = self._scorer.score(self.sheet.rollouts, views=views)
            self._settings = {name: self.sheet.flat([score.views[name] for score in scores]) for name in views}
        return self._settings[name_of(settings)]

    def at_temperature(self, temperature: float) -> np.ndarray | None:
        """Processed logprobs at any temperature in range, float64 [N], interpolated in ln T; None under truncation."""
        return None if self._spline is None else self._spline(np.log(temperature))

    def entropy(self) -> np.ndarray:
        """Entropy of the expected distribution, nats [N]; NaN where the scorer gives none."""
        rows = [s.entropy_T if s.entropy_T is not None else np.full(r.n_tokens, np.nan) for r, s in zip(self.sheet.rollouts, self._scores, strict=True)]
        return self.sheet.flat(rows)

    def older_weights(self) -> dict[str, np.ndarray]:
        """What the engine would report had it kept older weights: variant name → [N]. Rollouts without older weights: expected."""
        return self._older("version", lambda rollout: True)

    def older_prefix(self) -> dict[str, np.ndarray]:
        """The same for the KV of the cached prompt prefix only; rollouts without cached tokens: expected."""
        return self._older("prefix_version", lambda rollout: bool(rollout.cached_prompt_tokens))

    def _older(self, argument: str, concerns: Callable[[Rollout], bool]) -> dict[str, np.ndarray]:
        places = [self._place(rollout) if concerns(rollout) else None for rollout in self.sheet.rollouts]
        older = max((place for place in places if place is not None), default=0)
        wanted = self._wanted(older)
        found = {}
        for index in wanted:
            version = self.versions[index]
            rows = self._variant(argument, {i: version for i, place in enumerate(places) if place is not None and place > index})
            if rows is not None:
                found[version] = rows
        if len({place for place in places if place}) > 1:
            previous = {i: self.versions[place - 1] for i, place in enumerate(places) if place}
            rows = self._variant(argument, previous)
            if rows is not None:
                found["the one before"] = rows
        return found

    def _wanted(self, older: int) -> list[int]:
        """Indices of older versions to try: the newest ones, and the oldest of all."""
        count = self.config.max_versions
        if count == 0 or older == 0:
            return []
        newest = list(range(max(0, older - count), older))
        return newest if 0 in newest else [0, *newest[1:]]

    def _place(self, rollout: Rollout) -> int | None:
        """Index of the oldest version that generated the rollout; None when unknown."""
        places = [self.versions.index(span.version) for span in rollout.weight_versions if span.version in self.versions]
        return min(places, default=None)

    def _variant(self, argument: str, version_of: Mapping[int, str]) -> np.ndarray | None:
        rows = [score.views["expected"] for score in self._scores]
        for version in dict.fromkeys(version_of.values()):
            mine = [i for i, name in version_of.items() if name == version]
            missing = [i for i in mine if (argument, version, i) not in self._rows]
            if missing:
                scores = self._scorer.score([self.sheet.rollouts[i] for i in missing], views={"expected": expected}, **{argument: version})
                self._rows.update({(argument, version, i): score.views["expected"] for i, score in zip(missing, scores, strict=True)})
            for i in mine:
                rows[i] = self._rows[argument, version, i]
        flat_N = self.sheet.flat(rows)
        return flat_N if version_of and not np.isnan(flat_N).any() else None


def name_of(settings: Mapping[str, float]) -> str:
    """The view name of overridden settings.

    >>> name_of({"top_p": 0.9})
    'top_p:0.9'
    """
    return ",".join(f"{name}:{value:g}" for name, value in settings.items())


def _nothing_scored(rollouts: Sequence[Rollout], scorer: Scorer) -> Exception:
    refusals = list(getattr(scorer, "refusals", ()))
    if refusals:
        last = refusals[-1]
        kind = Unavailable if last.kind == "version_unavailable" else InputError
        return kind(f"no token could be scored; request {last.request_id}: {last.text}")
    return InputError(f"no token of {len(rollouts)} rollouts has a finite logprob on both sides")
