"""Everything explanations ask the shadow scorer for, computed once: head views in one pass, the rest on demand.

N = tokens of the sheet. Head views of the labelled weights come from one forward (heads.py). A variant — another version's weights, an older
prefix KV, another prompt — costs a pass of the rollouts concerned; all are cached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from collector.errors import InputError, Unavailable
from collector.records import Rollout, Score
from collector.shadow.views import expected
from diagnosis.config import DiagnosisConfig
from diagnosis.heads import Heads, head_views
from diagnosis.prompts import Marks, marks_of
from diagnosis.sheet import Sheet


class Scorer(Protocol):
    """What diagnosis needs of collector.shadow.scorer.ShadowScorer."""

    def score(self, rollouts: Sequence[Rollout], *, views: Mapping[str, Any], version: str | None = None,
              prefix_version: str | None = None) -> list[Score]:
        """One Score a rollout, in order."""
        ...


FEW, FEW_TOKENS, LAGS, STEPS = 4, 120, (1, 2, 4, 8, 16, 32), 3
"""Which of many older versions is worth a pass over all rollouts: chosen on so many of them with so many tokens, at these distances, then so many steps from the best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Some rollouts of the sheet, scored otherwise: index → the rollout to score in its place, and how. The others stay as expected."""

    cause: str
    parameters: Mapping[str, Any]
    rollouts: Mapping[int, Rollout]
    arguments: Mapping[int, Mapping[str, str]] = field(default_factory=dict)  # version or prefix_version of Scorer.score
    scorer: Scorer | None = None  # None = the bench's own

    @property
    def name(self) -> str:
        """Cause and parameters in one line."""
        return f"{self.cause} ({', '.join(str(value) for value in self.parameters.values())})"


class Bench(Heads):
    """See the module. `versions` are weight versions the scorer can load, the newest last.

    Raises InputError or Unavailable when no token at all can be compared; the text says why.
    """

    def __init__(self, rollouts: Sequence[Rollout], scorer: Scorer, *, versions: Sequence[str], config: DiagnosisConfig,
                 marks: Marks | None = None) -> None:
        self.versions, self.scorer = list(versions), scorer
        self._marks = marks
        scores = scorer.score(rollouts, views=head_views(config))
        sheet = Sheet.of(rollouts, scores)
        if not sheet.tokens:
            raise _nothing_scored(rollouts, scorer)
        kept = {id(rollout) for rollout in sheet.rollouts}
        own = [score for rollout, score in zip(rollouts, scores, strict=True) if id(rollout) in kept]
        super().__init__(sheet, own, config=config)
        self.left_out_rollouts = len(rollouts) - len(sheet.rollouts)
        self.variants: dict[str, Variant] = {}
        """What was tried, in order, by `Variant.name`; pairs.py asks the sampler's explanations of them again."""
        self._rows: dict[tuple[Any, ...], np.ndarray] = {}
        self._quantised: dict[str, Scorer] = {}
        self._headed: dict[str, Scorer | None] = {}

    @property
    def compared(self) -> list[tuple[int, Rollout, Score]]:
        """(0, rollout, score) of what is on the sheet."""
        return [(0, rollout, score) for rollout, score in zip(self.sheet.rollouts, self._scores, strict=True)]

    @property
    def marks(self) -> Marks:
        """Where a prompt's parts begin: as given, else from the model folder of the newest version."""
        if self._marks is None:
            folder = folder_of(self.scorer, self.versions)
            self._marks = Marks() if folder is None else marks_of(folder)
        return self._marks

    def is_adapter(self, rollout: Rollout) -> bool:
        """Is one of the versions that generated the rollout a LoRA adapter?"""
        shelf = getattr(self.scorer, "shelf", None)
        known = [] if shelf is None else [shelf.know(span.version) for span in rollout.weight_versions]
        return any(one is not None and one.base for one in known)

    def base_scorer(self) -> Scorer | None:
        """A scorer of the base models alone; None without an adapter among the rollouts' versions."""
        if not any(self.is_adapter(rollout) for rollout in self.sheet.rollouts):
            return None
        from collector.shadow.siblings import without_adapter

        names = {span.version: None for rollout in self.sheet.rollouts for span in rollout.weight_versions}
        return without_adapter(self.scorer, list(names))  # type: ignore[arg-type]

    def quantised_scorer(self, scheme: str) -> Scorer | None:
        """The scorer as a quantised engine would compute (collector/shadow/quantised.py); None where it cannot emulate that."""
        if scheme not in self._quantised:
            make = getattr(self.scorer, "quantised", None)
            made = None if make is None else make(scheme)
            if made is None:
                return None
            self._quantised[scheme] = made
        return self._quantised[scheme]

    def scorer_with_head(self, version: str) -> Scorer | None:
        """The scorer with every version under this one's output head; None for a scorer without a shelf, where that version is gone, or has the head of the newest."""
        if version not in self._headed:
            if getattr(self.scorer, "shelf", None) is None:
                return None
            from collector.shadow.siblings import with_head_of

            try:
                self._headed[version] = with_head_of(self.scorer, version, instead_of=self.versions[-1])  # type: ignore[arg-type]
            except Unavailable:
                return None
        return self._headed[version]

    def under_scorer(self, scorer: Scorer | None) -> Bench | None:
        """The same tokens on a bench of another scorer; None where it cannot score all of them."""
        if scorer is None:
            return None
        other = Bench(self.sheet.rollouts, scorer, versions=self.versions, config=self.config, marks=self._marks)
        return other if np.array_equal(other.sheet.rollout_N, self.sheet.rollout_N) and np.array_equal(other.sheet.index_N, self.sheet.index_N) else None

    def newer_than(self, version: str) -> dict[int, Rollout]:
        """Rollouts with tokens that are labelled with a later version than this one."""
        later = set(self.versions[self.versions.index(version) + 1:])
        return {i: rollout for i, rollout in enumerate(self.sheet.rollouts) if later & {span.version for span in rollout.weight_versions}}

    def entropy(self) -> np.ndarray:
        """Entropy of the expected distribution, nats [N]; NaN where the scorer gives none."""
        rows = [s.entropy_T if s.entropy_T is not None else np.full(r.n_tokens, np.nan) for r, s in zip(self.sheet.rollouts, self._scores, strict=True)]
        return self.sheet.flat(rows)

    def older_weights(self) -> dict[str, np.ndarray]:
        """What the engine would report had it kept older weights: variant name → [N]. Rollouts without older weights: expected."""
        return self._older("stale_weights", "version", lambda rollout: True)

    def older_prefix(self) -> dict[str, np.ndarray]:
        """The same for the KV of the cached prompt prefix only; rollouts without cached tokens: expected."""
        return self._older("stale_prefix_cache", "prefix_version", lambda rollout: bool(rollout.cached_prompt_tokens))

    def under(self, variant: Variant, *, keep: bool = True) -> np.ndarray | None:
        """The expected view with the variant in place, float64 [N]; None when some token of it could not be scored. `keep`: for pairs."""
        rows = [score.views["expected"] for score in self._scores]
        for arguments, mine in _by_arguments(variant):
            keys = {i: (i, variant.rollouts[i].prompt_tokens_P.tobytes(), variant.rollouts[i].weight_versions, tuple(sorted(arguments.items())), id(variant.scorer)) for i in mine}
            missing = [i for i in mine if keys[i] not in self._rows]
            if missing:
                scores = self._ask(variant, missing, {"expected": expected}, arguments)
                self._rows.update({keys[i]: score.views["expected"] for i, score in zip(missing, scores, strict=True)})
            for i in mine:
                rows[i] = self._rows[keys[i]]
        flat_N = self.sheet.flat(rows)
        if not variant.rollouts or np.isnan(flat_N).any():
            return None
        if keep:
            self.variants.setdefault(variant.name, variant)
        return flat_N

    def heads_under(self, variant: Variant) -> Heads:
        """Every sampler setting with the variant in place; costs one more pass of its rollouts."""
        scores = dict(enumerate(self._scores)) | self._scores_of(variant, head_views(self.config))
        return Heads(self.sheet, [score for _, score in sorted(scores.items())], config=self.config)

    def heads_of(self, variant: Variant) -> Heads | None:
        """The same of the variant's own rollouts alone; None when some token of them could not be scored."""
        scores = self._scores_of(variant, head_views(self.config))
        own = sorted(scores)
        heads = Heads(self.sheet.part(own), [scores[i] for i in own], config=self.config)
        return None if not own or np.isnan(heads.view("expected")).any() else heads

    def _scores_of(self, variant: Variant, views: Mapping[str, Any]) -> dict[int, Score]:
        found: dict[int, Score] = {}
        for arguments, mine in _by_arguments(variant):
            found |= dict(zip(mine, self._ask(variant, mine, views, arguments), strict=True))
        return found

    def _ask(self, variant: Variant, mine: Sequence[int], views: Mapping[str, Any], arguments: Mapping[str, str]) -> list[Score]:
        return (variant.scorer or self.scorer).score([variant.rollouts[i] for i in mine], views=views, **arguments)

    def _older(self, cause: str, argument: str, concerns: Callable[[Rollout], bool]) -> dict[str, np.ndarray]:
        places = [self._place(rollout) if concerns(rollout) else None for rollout in self.sheet.rollouts]
        older = max((place for place in places if place is not None), default=0)
        named = {self.versions[index]: self._newer(places, index) for index in self._wanted(places, older, argument)}
        if len({place for place in places if place}) > 1:
            named["the one before"] = {i: self.versions[place - 1] for i, place in enumerate(places) if place}
        found = {}
        for name, version_of in named.items():
            values_N = self.under(Variant(
                cause=cause, parameters={"version" if argument == "version" else "kv_version": name},
                rollouts={i: self.sheet.rollouts[i] for i in version_of}, arguments={i: {argument: version} for i, version in version_of.items()}))
            if values_N is not None:
                found[name] = values_N
        return found

    def _newer(self, places: Sequence[int | None], index: int) -> dict[int, str]:
        """Rollout → versions[index], for rollouts of later versions."""
        return {i: self.versions[index] for i, place in enumerate(places) if place is not None and place > index}

    def _wanted(self, places: Sequence[int | None], older: int, argument: str) -> list[int]:
        """Indices of older versions worth a pass: all where they are few; else the last one, the oldest, and the one a few rollouts fit best.

        That one is looked for at doubling distances, and from the best of those by single steps.
        """
        count = self.config.max_versions
        if count == 0 or older == 0:
            return []
        if count >= older:
            return list(range(older))
        left: dict[int, float] = {}
        for lag in LAGS[:count]:
            if lag < older:
                left[older - lag] = self._few_leave(places, older - lag, argument)
        for _ in range(STEPS):
            best = min(left, key=lambda index: left[index])
            fresh = [index for index in (best + 1, best - 1) if 0 <= index < older and index not in left]
            if not fresh:
                break
            left[fresh[0]] = self._few_leave(places, fresh[0], argument)
        return sorted({0, older - 1, min(left, key=lambda index: left[index])})[-count:]

    def _few_leave(self, places: Sequence[int | None], index: int, argument: str) -> float:
        """What version `index` leaves on a few of the newest rollouts, nats; inf where it cannot be scored."""
        newer = self._newer(places, index)
        newest = sorted(newer, key=lambda i: -(places[i] or 0))
        tokens = np.cumsum([self.sheet.rollouts[i].n_tokens for i in newest])
        few = newest[:max(FEW, int((tokens < FEW_TOKENS).sum()) + 1)]
        scores = self.scorer.score([self.sheet.rollouts[i] for i in few], views={"expected": expected}, **{argument: self.versions[index]}) if few else []
        rows = [score.views["expected"] for score in self._scores]
        for i, score in zip(few, scores, strict=True):
            rows[i] = score.views["expected"]
        return self.sheet.residual(self.sheet.flat(rows), np.isin(self.sheet.rollout_N, few))

    def _place(self, rollout: Rollout) -> int | None:
        """Index of the oldest version that generated the rollout; None when unknown."""
        places = [self.versions.index(span.version) for span in rollout.weight_versions if span.version in self.versions]
        return min(places, default=None)


def folder_of(scorer: Scorer, versions: Sequence[str]) -> str | None:
    """The model folder of the newest version, of an adapter its base; None for a scorer without a shelf."""
    shelf = getattr(scorer, "shelf", None)
    known = shelf.know(versions[-1]) if shelf is not None and versions else None
    return None if known is None else known.base or known.path


def _by_arguments(variant: Variant) -> list[tuple[dict[str, str], list[int]]]:
    """Indices that are scored by one call, with its arguments."""
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for i in variant.rollouts:
        groups.setdefault(tuple(sorted(variant.arguments.get(i, {}).items())), []).append(i)
    return [(dict(arguments), mine) for arguments, mine in groups.items()]


def _nothing_scored(rollouts: Sequence[Rollout], scorer: Scorer) -> Exception:
    refusals = list(getattr(scorer, "refusals", ()))
    if refusals:
        last = refusals[-1]
        kind = Unavailable if last.kind == "version_unavailable" else InputError
        return kind(f"no token could be scored; request {last.request_id}: {last.text}")
    return InputError(f"no token of {len(rollouts)} rollouts has a finite logprob on both sides")
