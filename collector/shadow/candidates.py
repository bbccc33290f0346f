"""What of a head's logits decides any sampler setting, in a few hundred numbers a token: one wide view instead of one view a setting.

Kept of each row: the `UNSEEN` largest logits of tokens that have not occurred yet, the `SEEN` largest of those that have (penalties move
them) with their counts, the sampled token's logit, and the log-sum of everything else at six inverse temperatures. diagnosis/settings.py reads
temperature, top-k, top-p, min-p and the three penalties from it, at any strength, without another forward pass.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from collector.records import Rollout
from collector.shadow.views import TokenSampling

UNSEEN, SEEN = 192, 192
POWERS = (1, 2, 3, 4, 6, 10)
"""The rest's log-sums are of exp(x · power / 2), x = logit − the row's largest: temperatures 2 down to 0.2."""

WIDTH = UNSEEN + 2 * SEEN + len(POWERS) + 2
"""D of the wide view."""

LEAST = 1e-37


def candidates(logits_NV: Tensor, token_ids_N: Tensor, sampling: TokenSampling) -> Tensor:
    """[N, D]: unseen logits [C], seen logits [S], their counts in the completion so far [S], the rest's log-sums [K], the token's logit,
    and its own count (−1 = unseen). Logits are descending, −inf where there are fewer. D = WIDTH = C + 2·S + K + 2.
    """
    rest_NV = logits_NV.clone()
    seen_NS = logits_NV.new_full((logits_NV.shape[0], SEEN), -torch.inf)
    count_NS, kind_N = torch.zeros_like(seen_NS), logits_NV.new_full((logits_NV.shape[0],), -1.0)
    for place in torch.unique(sampling.rollout_of_N).tolist():
        rows_R = torch.nonzero(sampling.rollout_of_N == place)[:, 0]
        ids_U, counts_RU, prompt_U = _occurrences(sampling.rollouts[place], sampling.index_N[rows_R].numpy())
        rows_R, counts_RU = rows_R.to(logits_NV.device), counts_RU.to(logits_NV)
        ids_U, prompt_U = ids_U.to(logits_NV.device), prompt_U.to(logits_NV.device)
        occurred_RU = (counts_RU > 0) | prompt_U
        values_RU = logits_NV[rows_R][:, ids_U].masked_fill_(~occurred_RU, -torch.inf)
        best_RS, where_RS = values_RU.topk(min(SEEN, ids_U.numel()), dim=-1)
        seen_NS[rows_R, : best_RS.shape[1]] = best_RS
        count_NS[rows_R, : best_RS.shape[1]] = counts_RU.gather(-1, where_RS)
        gone_RU = torch.zeros_like(occurred_RU).scatter_(-1, where_RS, torch.isfinite(best_RS))
        rest_NV[rows_R[:, None], ids_U] = torch.where(gone_RU, -torch.inf, logits_NV[rows_R[:, None], ids_U])
        mine_RU = ids_U == token_ids_N[rows_R][:, None]
        own_RU = mine_RU & occurred_RU
        kind_N[rows_R] = torch.where(own_RU.any(-1), (counts_RU * own_RU).sum(-1), -1.0)
    unseen_NC, where_NC = rest_NV.topk(min(UNSEEN, rest_NV.shape[1]), dim=-1)
    rest_NV.scatter_(-1, where_NC, -torch.inf)
    unseen_NC = torch.nn.functional.pad(unseen_NC, (0, UNSEEN - unseen_NC.shape[1]), value=-torch.inf)
    top_N1 = torch.maximum(unseen_NC[:, :1], seen_NS[:, :1])
    token_N = logits_NV.gather(-1, token_ids_N[:, None])
    return torch.cat([unseen_NC, seen_NS, count_NS, _log_sums(rest_NV, top_N1), token_N, kind_N[:, None]], dim=-1)


def ranks(wide_ND: np.ndarray) -> np.ndarray:
    """The sampled token's place among its row's logits before any penalty or truncation [N]: 1 = the largest. Exact up to UNSEEN; a
    larger number means only "beyond"."""
    kept_NM = wide_ND[:, : UNSEEN + SEEN]
    return 1.0 + (kept_NM > wide_ND[:, [WIDTH - 2]]).sum(axis=1)


def _occurrences(rollout: Rollout, index_R: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """(ids [U], how often each occurs in the completion before each row [R, U], does the prompt hold it [U])."""
    before = rollout.completion_tokens_T[: int(index_R.max())]
    ids_U, inverse = np.unique(np.concatenate([rollout.prompt_tokens_P, before]), return_inverse=True)
    size, prompt = rollout.prompt_tokens_P.size, np.zeros(ids_U.size, dtype=bool)
    prompt[inverse[:size]] = True
    counts_RU = np.stack([np.bincount(inverse[size: size + index], minlength=ids_U.size) for index in index_R])
    return torch.from_numpy(ids_U.astype(np.int64)), torch.from_numpy(counts_RU), torch.from_numpy(prompt)


def _log_sums(rest_NV: Tensor, top_N1: Tensor) -> Tensor:
    """log Σ exp((x − top) · power / 2) over each row [N, K]; powers are products of earlier ones, so one exp serves all. Ends `rest_NV`."""
    one = rest_NV.sub_(top_N1).mul_(0.5).exp_()
    two = one * one
    sums = {1: one.sum(-1), 2: two.sum(-1)}
    three = one.mul_(two)
    sums[3] = three.sum(-1)
    four = two.mul_(two)
    sums[4] = four.sum(-1)
    six = three.mul_(three)
    sums[6] = six.sum(-1)
    sums[10] = four.mul_(six).sum(-1)
    return torch.stack([sums[power] for power in POWERS], dim=-1).clamp_(min=LEAST).log_()
