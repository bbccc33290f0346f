"""Processed logprobs under any sampler setting, from the wide view of one forward pass (collector/shadow/candidates.py). No logits, no forward.

Order and rules are vLLM's: repetition penalty over prompt and completion, presence and frequency over the completion, temperature, min-p, top-k,
top-p, log-softmax over what is kept. N = tokens, M = kept candidates of a token, descending. Nats.

Exact while the kept set lies within the candidates. Beyond them only sums are known: a nucleus that ends there has the mass top-p, to within one
token that rare, and a penalty does not move what is rarer than the SEEN likeliest tokens that occurred.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.interpolate import CubicSpline

from collector.records import Rollout
from collector.shadow.candidates import POWERS, SEEN, UNSEEN, WIDTH
from collector.shadow.views import GREEDY_BELOW

OFF: Mapping[str, float] = {"temperature": 1.0, "top_k": 0.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
                            "frequency_penalty": 0.0}
"""Settings that change nothing."""

EDGE_MASS = 0.004
"""A token on whose side of the nucleus's edge less than this mass decides is scored apart: both sides' roundings decide it."""

EDGE_NATS = 0.02
"""The same for min-p, in nats around its threshold."""

OWN_MASS, OWN_NATS = 0.03, 0.15
"""A sampled token outside the kept set by less than this was inside the engine's: nobody samples what is not kept, so it is the roundings."""

EDGE_MATTERS = 0.02
"""Only where the token at the edge carries more than this probability: rarer ones move ln S by less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Sampler settings of each token [N]; off: temperature 1, top_k 0, top_p 1, min_p 0, penalties 1, 0, 0."""

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    repetition_penalty: np.ndarray
    presence_penalty: np.ndarray
    frequency_penalty: np.ndarray

    @classmethod
    def of(cls, rollouts: Sequence[Rollout], rollout_of_N: np.ndarray) -> Rules:
        """What the trainer declares, of each token's rollout; undeclared = off."""
        def column(name: str, off: float) -> np.ndarray:
            said = [getattr(rollout.sampling, name) for rollout in rollouts]
            return np.array([off if value is None else value for value in said], dtype=np.float64)[rollout_of_N]

        return cls(top_k=np.maximum(column("top_k", 0), 0), **{name: column(name, off) for name, off in OFF.items() if name != "top_k"})

    def with_(self, settings: Mapping[str, float]) -> Rules:
        """The same with some settings the same for every token."""
        columns = {one.name: getattr(self, one.name) for one in fields(self)}
        return Rules(**{name: np.full_like(column, settings[name]) if name in settings else column for name, column in columns.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a setting makes of each token [N]."""

    logprobs: np.ndarray  # float64 nats; −inf = outside the kept set
    log_mass: np.ndarray  # ln of the kept set's mass before renormalising: what truncation adds to each logprob, negated
    edge: np.ndarray  # bool: roundings decide what the kept set is; scored apart


class Candidates:
    """Rows of the wide view, split into its parts."""

    def __init__(self, wide_ND: np.ndarray, declared: Rules) -> None:
        """`declared`: what the trainer assumes; `settings` replace some of it."""
        self.declared = declared
        parts = np.split(np.asarray(wide_ND, dtype=np.float64), np.cumsum([UNSEEN, SEEN, SEEN, len(POWERS), 1]), axis=1)
        self._unseen_NC, self._seen_NS, self._count_NS, tail_NK, token_N1, kind_N1 = parts
        self._token_N, self._kind_N = token_N1[:, 0], kind_N1[:, 0]
        self._tail = CubicSpline([power / 2 for power in POWERS], tail_NK, axis=1)
        self._top_N = np.maximum(self._unseen_NC[:, 0], self._seen_NS[:, 0])
        self._trim()
        self._plain_NM = -np.sort(-np.concatenate([self._unseen_NC, self._seen_NS], axis=1), axis=1)

    @classmethod
    def fits(cls, wide: np.ndarray) -> bool:
        """Is this the wide view, and not a row of logprobs?"""
        return wide.ndim == 2 and wide.shape[1] == WIDTH

    def raw(self) -> np.ndarray:
        """Plain log-softmax [N]."""
        values_NM = self._plain_NM - self._top_N[:, None]
        return self._token_N - self._top_N - np.log(np.exp(values_NM).sum(axis=1) + np.exp(self._tail(1.0)))

    def under(self, settings: Mapping[str, float]) -> Kept:
        """What the engine reports with these settings in place of the trainer's."""
        rules = self.declared.with_(settings)
        values_NM, token_N = self._penalised(rules)
        plain = values_NM is self._plain_NM
        greedy_N = rules.temperature < GREEDY_BELOW
        scale_N = np.where(greedy_N, 1.0, rules.temperature)
        values_NM = (values_NM - self._top_N[:, None]) / scale_N[:, None]
        token_N = (token_N - self._top_N) / scale_N
        tail_N = np.exp(_at_own(self._tail, 1 / scale_N))
        highest_N = values_NM.max(axis=1)
        weights_NM = np.exp(values_NM - highest_N[:, None])
        tail_N = tail_N * np.exp(-highest_N)
        whole_N = weights_NM.sum(axis=1) + tail_N
        logprobs_N = token_N - highest_N - np.log(whole_N)
        cut = ~greedy_N & ((rules.top_p < 1) | (rules.min_p > 0) | (rules.top_k > 0))
        log_mass_N, edge_N = np.zeros_like(logprobs_N), np.zeros(logprobs_N.size, dtype=bool)
        if cut.any():
            rows = np.flatnonzero(cut)
            kept, log_mass_N[rows], edge_N[rows] = _truncated(
                _sorted(weights_NM[rows] / whole_N[rows, None], already=plain), tail_N[rows] / whole_N[rows], np.exp(logprobs_N[rows]),
                least_N=np.exp((self._unseen_NC[rows, -1] - self._top_N[rows]) / scale_N[rows] - highest_N[rows]) / whole_N[rows],
                top_k_N=rules.top_k[rows], top_p_N=rules.top_p[rows], min_p_N=rules.min_p[rows])
            logprobs_N[rows] = np.where(kept, logprobs_N[rows] - log_mass_N[rows], -np.inf)
        return Kept(logprobs=logprobs_N, log_mass=log_mass_N, edge=edge_N)

    def _penalised(self, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
        """(candidates [N, M], the sampled token [N]) after the penalties; sorted where there are none."""
        factor_N, presence_N, frequency_N = rules.repetition_penalty, rules.presence_penalty, rules.frequency_penalty
        if (factor_N == 1).all() and (presence_N == 0).all() and (frequency_N == 0).all():
            return self._plain_NM, self._token_N

        def after(values: np.ndarray, counts: np.ndarray, factor: np.ndarray, presence: np.ndarray, frequency: np.ndarray) -> np.ndarray:
            values = np.where(values > 0, values / factor, values * factor)
            return values - frequency * counts - presence * (counts > 0)

        seen_NS = after(self._seen_NS, self._count_NS, factor_N[:, None], presence_N[:, None], frequency_N[:, None])
        own_N = after(self._token_N, np.maximum(self._kind_N, 0), factor_N, presence_N, frequency_N)
        return np.concatenate([self._unseen_NC, seen_NS], axis=1), np.where(self._kind_N >= 0, own_N, self._token_N)

    def _trim(self) -> None:
        """Leave out columns nobody fills."""
        filled = max(1, int(np.isfinite(self._seen_NS).any(axis=0).sum()))
        self._seen_NS, self._count_NS = self._seen_NS[:, :filled], self._count_NS[:, :filled]
        self._unseen_NC = self._unseen_NC[:, : max(1, int(np.isfinite(self._unseen_NC).any(axis=0).sum()))]


def _sorted(values_NM: np.ndarray, *, already: bool) -> np.ndarray:
    return values_NM if already else -np.sort(-values_NM, axis=1)


def _at_own(spline: CubicSpline, beta_N: np.ndarray) -> np.ndarray:
    """Each row's spline at its own inverse temperature [N], held at the ends of the range."""
    beta_N = np.clip(beta_N, spline.x[0], spline.x[-1])
    out_N = np.empty(beta_N.size)
    for beta in np.unique(beta_N):
        rows = np.flatnonzero(beta_N == beta)
        out_N[rows] = spline(beta)[rows]
    return out_N


def _truncated(mass_NM: np.ndarray, tail_N: np.ndarray, own_N: np.ndarray, *, least_N: np.ndarray, top_k_N: np.ndarray,
               top_p_N: np.ndarray, min_p_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(is the sampled token kept, ln of the kept mass, is the edge undecided) [N]. `mass_NM`: probabilities, descending; `own_N`: the sampled token's; `least_N`: below it
    candidates are missing."""
    width, rank_M = mass_NM.shape[1], np.arange(mass_NM.shape[1])
    keep_NM = mass_NM >= (min_p_N * mass_NM[:, 0])[:, None]
    k_N = np.where(top_k_N > 0, top_k_N, width + 1)
    keep_NM &= rank_M < k_N[:, None]
    open_N = (min_p_N <= 0) & (k_N > width)  # nothing has cut the tail yet
    left_N = np.where(keep_NM, mass_NM, 0.0).sum(axis=1) + np.where(open_N, tail_N, 0.0)
    above_NM = np.cumsum(np.where(keep_NM, mass_NM, 0.0), axis=1)
    before_NM = (above_NM - mass_NM) / left_N[:, None]
    keep_open_NM = keep_NM
    if (top_p_N < 1).any():
        keep_NM = keep_NM & (before_NM < top_p_N[:, None]) | (rank_M == 0)
    last_N = keep_NM.sum(axis=1) - 1
    rows = np.arange(last_N.size)
    kept_N = above_NM[rows, last_N]
    short_N = (last_N == width - 1) & (kept_N < top_p_N * left_N)
    beyond_N = open_N & (short_N | (mass_NM[rows, last_N] < least_N))  # the nucleus ends in the tail
    total_N = np.where(beyond_N, np.minimum(top_p_N, 1.0) * left_N, kept_N)
    inside_N = (own_N >= mass_NM[rows, last_N] * (1 - 1e-6)) | beyond_N
    above_own_N = np.where(keep_open_NM & (mass_NM > own_N[:, None]), mass_NM, 0.0).sum(axis=1) / left_N
    nearly_N = (above_own_N < top_p_N + OWN_MASS) & (own_N > min_p_N * mass_NM[:, 0] * math.exp(-OWN_NATS)) & (top_k_N <= 0)
    edge_N = _edges(mass_NM, before_NM, last_N, top_p_N=top_p_N, min_p_N=min_p_N) | (~inside_N & nearly_N)
    return inside_N, np.log(total_N), edge_N


def _edges(mass_NM: np.ndarray, before_NM: np.ndarray, last_N: np.ndarray, *, top_p_N: np.ndarray, min_p_N: np.ndarray) -> np.ndarray:
    """bool [N]: would roundings move the edge of the kept set, by a token that matters?"""
    rows, next_N = np.arange(last_N.size), np.minimum(last_N + 1, mass_NM.shape[1] - 1)
    undecided_N = np.zeros(last_N.size, dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        threshold_N = np.log(min_p_N * mass_NM[:, 0])
        for at_N in (last_N, next_N):
            matters_N = mass_NM[rows, at_N] > EDGE_MATTERS
            near_N = np.abs(before_NM[rows, at_N] - top_p_N) < EDGE_MASS
            undecided_N |= matters_N & (at_N > 0) & (top_p_N < 1) & near_N
            undecided_N |= matters_N & (at_N > 0) & (min_p_N > 0) & (np.abs(np.log(mass_NM[rows, at_N]) - threshold_N) < EDGE_NATS)
    return undecided_N
