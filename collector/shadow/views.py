"""Views: what the logprob of the sampled token would be under one reading of the head's logits.

A view is a pure function (logits [N, V] float32 nats, token ids [N], sampling of each row) → logprobs [N]; a wide one
(candidates.py) gives [N, D]. One forward pass serves all of them. The sampling is what the TRAINER assumes; order and rules are those of vLLM's processed
logprobs: penalties, temperature, min-p, top-k, top-p, log-softmax over what is kept. Greedy (temperature below 1e-5)
has no temperature and no truncation. −inf = the token lies outside the kept set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from collector.records import Rollout

GREEDY_BELOW = 1e-5
TEMPERATURES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
_CANDIDATES = 1024  # top-p looks here first: sorting a whole vocabulary costs eight times as much


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSampling:
    """Per row of a logits chunk: what the trainer assumes. Neutral values mean off."""

    raw_N: Tensor  # bool: the trainer expects raw logprobs
    temperature_N: Tensor  # float32, > 0; 0 = greedy
    top_k_N: Tensor  # int64, 0 = off
    top_p_N: Tensor  # float32, 1 = off
    min_p_N: Tensor  # float32, 0 = off
    repetition_N: Tensor  # float32, 1 = off
    presence_N: Tensor  # float32, 0 = off
    frequency_N: Tensor  # float32, 0 = off
    rollouts: tuple[Rollout, ...]  # for penalties: the row's rollout …
    rollout_of_N: Tensor  # int64, … its index in `rollouts` …
    index_N: Tensor  # int64, … and the row's index in its completion


View = Callable[[Tensor, Tensor, TokenSampling], Tensor]


def sampling_rows(rollouts: tuple[Rollout, ...], rollout_of_N: np.ndarray, index_N: np.ndarray,
                  device: torch.device) -> TokenSampling:
    """The TokenSampling of chunk rows; fields the trainer left undeclared (None) are off."""
    def column(name: str, off: float, dtype: torch.dtype) -> Tensor:
        declared = [getattr(rollout.sampling, name) for rollout in rollouts]
        values = np.array([off if value is None else value for value in declared], dtype=np.float64)[rollout_of_N]
        return torch.as_tensor(values, dtype=dtype, device=device)

    raw = np.array([rollout.expected_logprobs_mode == "raw_logprobs" for rollout in rollouts])[rollout_of_N]
    return TokenSampling(
        raw_N=torch.as_tensor(raw, device=device), temperature_N=column("temperature", 1.0, torch.float32),
        top_k_N=column("top_k", 0, torch.int64).clamp(min=0), top_p_N=column("top_p", 1.0, torch.float32),
        min_p_N=column("min_p", 0.0, torch.float32), repetition_N=column("repetition_penalty", 1.0, torch.float32),
        presence_N=column("presence_penalty", 0.0, torch.float32),
        frequency_N=column("frequency_penalty", 0.0, torch.float32), rollouts=rollouts,
        rollout_of_N=torch.as_tensor(rollout_of_N), index_N=torch.as_tensor(index_N))


def expected_distribution(logits_NV: Tensor, sampling: TokenSampling) -> Tensor:
    """The whole distribution the trainer assumes the engine reported, nats [N, V]."""
    raw_N = sampling.raw_N
    if raw_N.all():
        return log_softmax(logits_NV)
    processed_NV = log_softmax(_process(logits_NV, sampling))
    if raw_N.any():
        processed_NV[raw_N] = log_softmax(logits_NV[raw_N])
    return processed_NV


def log_softmax(logits_NV: Tensor) -> Tensor:
    """Log-softmax over the last axis. torch's own adds up a whole row in a few running sums, which at 152k entries is off by 3e-5
    nats in float32; torch.sum adds in cascades.
    """
    out_NV = logits_NV - logits_NV.amax(-1, keepdim=True)
    return out_NV.sub_(out_NV.exp().sum(-1, keepdim=True).log_())


def pick(logprobs_NV: Tensor, token_ids_N: Tensor) -> Tensor:
    """The entry of each row's own token [N]."""
    return logprobs_NV.gather(-1, token_ids_N[:, None])[:, 0]


def entropy(logprobs_NV: Tensor) -> Tensor:
    """Entropy of each row [N], nats; entries of −inf count nothing."""
    entropy_N = -torch.linalg.vecdot(logprobs_NV.exp(), logprobs_NV)
    cut_N = entropy_N.isnan()  # 0 × −inf
    if cut_N.any():
        kept_RV = logprobs_NV[cut_N].clamp(min=-1e30)
        entropy_N[cut_N] = -torch.linalg.vecdot(kept_RV.exp(), kept_RV)
    return entropy_N


def expected_and_entropy(logits_NV: Tensor, token_ids_N: Tensor, sampling: TokenSampling) -> tuple[Tensor, Tensor]:
    """`expected`, to the last bit, and the entropy of its whole distribution [N], nats."""
    if not _scales_only(sampling, logits_NV.shape[1]):
        distribution_NV = expected_distribution(logits_NV, sampling)
        return pick(distribution_NV, token_ids_N), entropy(distribution_NV)
    scaled_NV = _shifted(logits_NV, torch.where(sampling.raw_N, 1.0, _scale(sampling)))
    weights_NV = scaled_NV.exp()
    sum_N = weights_NV.sum(-1)
    return (pick(scaled_NV, token_ids_N) - sum_N.log(),
            sum_N.log() - torch.linalg.vecdot(weights_NV, scaled_NV.clamp_(min=-1e30)) / sum_N)


def expected(logits_NV: Tensor, token_ids_N: Tensor, sampling: TokenSampling) -> Tensor:
    """What the trainer assumes: its mode, its temperature, its truncation, its penalties."""
    if _scales_only(sampling, logits_NV.shape[1]):
        return _picked(logits_NV, token_ids_N, torch.where(sampling.raw_N, 1.0, _scale(sampling)))
    return pick(expected_distribution(logits_NV, sampling), token_ids_N)


def raw(logits_NV: Tensor, token_ids_N: Tensor, sampling: TokenSampling) -> Tensor:
    """Plain log-softmax: vLLM's raw_logprobs."""
    return _picked(logits_NV, token_ids_N, None)


def bf16_head(logits_NV: Tensor, token_ids_N: Tensor, sampling: TokenSampling) -> Tensor:
    """The expected view of a head that writes its logits in bfloat16."""
    return expected(logits_NV.bfloat16().to(logits_NV.dtype), token_ids_N, sampling)


def processed(**overrides: float | int | None) -> View:
    """A factory: processed logprobs with some of the trainer's sampling replaced.

    Overrides: temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty, frequency_penalty.

    >>> processed(temperature=0.8)  # doctest: +ELLIPSIS
    <function processed.<locals>.view at ...>
    """
    fields = {f"{name.removesuffix('_penalty')}_N": value for name, value in overrides.items() if value is not None}
    unknown = set(fields) - set(TokenSampling.__slots__)
    if unknown:
        raise TypeError(f"processed() has no parameter {', '.join(sorted(unknown))}")

    def view(logits_NV: Tensor, token_ids_N: Tensor, sampling: TokenSampling) -> Tensor:
        columns = {name: torch.full_like(getattr(sampling, name), value) for name, value in fields.items()}
        changed = replace(sampling, raw_N=torch.zeros_like(sampling.raw_N), **columns)
        return expected(logits_NV, token_ids_N, changed)

    return view


def temperature_views(grid: Iterable[float] = TEMPERATURES) -> dict[str, View]:
    """{"temperature:0.8": view, …}: processed at another temperature than the trainer's."""
    return {f"temperature:{value:g}": processed(temperature=value) for value in grid}


VIEWS: Mapping[str, View] = {
    "expected": expected,
    "raw": raw,
    "processed": processed(),
    "bf16_head": bf16_head,
}
"""Views by name. Third parties pass their own function with the same three arguments."""

ALWAYS: Mapping[str, View] = {"expected": expected, "raw": raw}
"""The views of every score; both cost one softmax each."""


def _picked(logits_NV: Tensor, token_ids_N: Tensor, scale_N: Tensor | None) -> Tensor:
    """Log-softmax of logits / scale at each row's own token, without the whole distribution: one tensor instead of three."""
    out_NV = _shifted(logits_NV, scale_N)
    picked_N = pick(out_NV, token_ids_N)
    return picked_N - out_NV.exp_().sum(-1).log_()


def _shifted(logits_NV: Tensor, scale_N: Tensor | None) -> Tensor:
    """(logits − their largest) / scale; a new tensor."""
    out_NV = logits_NV - logits_NV.amax(-1, keepdim=True)
    if scale_N is not None and (scale_N != 1).any():
        out_NV.div_(scale_N[:, None].to(out_NV.dtype))
    return out_NV


def _scale(sampling: TokenSampling) -> Tensor:
    """What vLLM divides the logits by [N]: the temperature, 1 where it decodes greedily."""
    return torch.where(sampling.temperature_N < GREEDY_BELOW, 1.0, sampling.temperature_N)


def _scales_only(sampling: TokenSampling, vocabulary: int) -> bool:
    """Is there neither a penalty nor a truncation in any row?"""
    penalised = (sampling.repetition_N != 1) | (sampling.presence_N != 0) | (sampling.frequency_N != 0)
    cut = (sampling.min_p_N > 0) | (sampling.top_p_N < 1) | ((sampling.top_k_N > 0) & (sampling.top_k_N < vocabulary))
    return not bool(((penalised | cut) & ~sampling.raw_N).any())


def _process(logits_NV: Tensor, sampling: TokenSampling) -> Tensor:
    """Logits as vLLM hands them to its sampler; a new tensor."""
    greedy_N = sampling.temperature_N < GREEDY_BELOW
    out_NV = _penalised(logits_NV, sampling) / _scale(sampling)[:, None].to(logits_NV.dtype)
    rows = {"min_p": (sampling.min_p_N > 0) & ~greedy_N, "top_p": (sampling.top_p_N < 1) & ~greedy_N,
            "top_k": (sampling.top_k_N > 0) & (sampling.top_k_N < logits_NV.shape[1]) & ~greedy_N}
    if rows["min_p"].any():
        floor_N = torch.log(sampling.min_p_N[rows["min_p"]]).to(out_NV.dtype)
        _keep_from(out_NV, rows["min_p"], out_NV[rows["min_p"]].amax(-1) + floor_N)
    if rows["top_k"].any():
        k_R = sampling.top_k_N[rows["top_k"]]
        best_RK = out_NV[rows["top_k"]].topk(int(k_R.max()), dim=-1).values
        _keep_from(out_NV, rows["top_k"], best_RK.gather(-1, k_R[:, None] - 1)[:, 0])
    if rows["top_p"].any():
        _keep_from(out_NV, rows["top_p"], _nucleus_floor(out_NV[rows["top_p"]], sampling.top_p_N[rows["top_p"]]))
    return out_NV


def _keep_from(logits_NV: Tensor, rows_N: Tensor, floor_R: Tensor) -> None:
    """Set what lies below each row's floor to −inf, in place."""
    part_RV = logits_NV[rows_N]
    logits_NV[rows_N] = part_RV.masked_fill(part_RV < floor_R[:, None], -math.inf)


def _nucleus_floor(logits_RV: Tensor, top_p_R: Tensor) -> Tensor:
    """The smallest logit inside each row's nucleus: a token is kept while the mass above it is below top-p."""
    log_mass_R = log_softmax(logits_RV)
    n_best = min(_CANDIDATES, logits_RV.shape[1])
    best_RK, where_RK = logits_RV.topk(n_best, dim=-1)
    mass_RK = log_mass_R.gather(-1, where_RK).exp()
    if n_best < logits_RV.shape[1] and (mass_RK.sum(-1) < top_p_R).any():
        best_RK, where_RK = logits_RV.sort(dim=-1, descending=True)
        mass_RK = log_mass_R.gather(-1, where_RK).exp()
    above_RK = mass_RK.cumsum(-1) - mass_RK
    kept_RK = above_RK < top_p_R[:, None].to(above_RK.dtype)
    kept_RK[:, 0] = True
    return best_RK.masked_fill(~kept_RK, math.inf).amin(-1)


def _penalised(logits_NV: Tensor, sampling: TokenSampling) -> Tensor:
    """Repetition (prompt and completion so far), frequency and presence (completion so far), in vLLM's order."""
    on_N = (sampling.repetition_N != 1) | (sampling.presence_N != 0) | (sampling.frequency_N != 0)
    if not on_N.any():
        return logits_NV
    out_NV = logits_NV.clone()
    for row in on_N.nonzero()[:, 0].tolist():
        rollout = sampling.rollouts[int(sampling.rollout_of_N[row])]
        so_far = rollout.completion_tokens_T[: int(sampling.index_N[row])]
        seen = torch.as_tensor(np.union1d(rollout.prompt_tokens_P, so_far).astype(np.int64), device=out_NV.device)
        ids, times = np.unique(so_far, return_counts=True)
        ids_t = torch.as_tensor(ids.astype(np.int64), device=out_NV.device)
        times_t = torch.as_tensor(times, dtype=out_NV.dtype, device=out_NV.device)
        factor = sampling.repetition_N[row].to(out_NV.dtype)
        values = out_NV[row, seen]
        out_NV[row, seen] = torch.where(values > 0, values / factor, values * factor)
        out_NV[row, ids_t] -= sampling.frequency_N[row] * times_t + sampling.presence_N[row]
    return out_NV
