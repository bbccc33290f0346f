"""The policy being trained: fp32 master weights, bfloat16 body, fp32 head, AdamW, and the GRPO loss.

All rollouts of a step go through ONE forward pass: the common start of the prompts once, each prompt once, each
completion once, in one row under a tree-shaped attention mask. Suffixes: L tokens of that row, N completion tokens of
the step, H hidden size, V vocabulary.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from precision import autocast, has_bfloat16, round_linears
from rollouts import Rollout
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

CLIP = 0.2
ENTROPY_WEIGHT = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Rollouts packed into one row. `before_N` is the place in the row whose hidden state predicts each completion token."""

    tokens_L: Tensor
    positions_L: Tensor
    mask_LL: Tensor
    before_N: Tensor
    targets_N: Tensor


class Policy:
    """Model and optimizer. The published weights are the master weights rounded to bfloat16."""

    def __init__(self, folder: Path, *, learning_rate: float, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").to(device)
        self._names = {id(p): name for name, p in self._model.named_parameters()}
        if not has_bfloat16(device):
            round_linears(self._model.base_model)
        self._head_VH = self._model.get_output_embeddings().weight
        self._head_VH.requires_grad_(False)  # vLLM 0.32 on CPU keeps its old head after a reload where embeddings are tied: training it would be a second fault
        self._parameters = list({id(p): p for p in self._model.parameters()}.values())
        self._trained = [p for p in self._parameters if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def set_learning_rate(self, value: float) -> None:
        """Change the learning rate from the next step on."""
        for group in self._optimizer.param_groups:
            group["lr"] = value

    def step(self, rollouts: list[Rollout], *, temperature: float, entropy_target: float = 0.0) -> dict[str, float]:
        """One GRPO update on rollouts with advantages; below `entropy_target` (nats a token) the loss also asks for entropy.

        Every rollout gets its `trainer_logprobs`. Returns the step's metrics, of the weights BEFORE the update: d = log q - log p per token, in nats, with q this
        policy and p what the engine reported; k3 = e^d - 1 - d; clip rate = share of ratios e^d outside 1 ± 0.2.
        """
        tree = pack(rollouts, self.device)
        logprob_N, entropy_N = self._logprobs(tree, temperature)
        engine_N = torch.tensor([p for r in rollouts for p in r.logprobs], device=self.device)
        for rollout, mine in zip(rollouts, logprob_N.detach().split([len(r.tokens) for r in rollouts]), strict=True):
            rollout.trainer_logprobs = mine.tolist()
        advantage_N = torch.tensor([r.advantage for r in rollouts for _ in r.tokens], device=self.device)
        usable_N = torch.isfinite(engine_N)
        d_N = torch.where(usable_N, logprob_N - engine_N.masked_fill(~usable_N, 0.0), 0.0)
        ratio_N = d_N.exp()
        surrogate_N = torch.minimum(ratio_N * advantage_N, ratio_N.clamp(1 - CLIP, 1 + CLIP) * advantage_N)
        loss = -(surrogate_N * usable_N).sum() / usable_N.sum()
        loss = loss + ENTROPY_WEIGHT * (entropy_target - entropy_N.mean()).clamp(min=0.0)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        with torch.no_grad():
            clipped_N = (ratio_N - 1.0).abs() > CLIP
            return {"loss": float(loss), "grad_norm": float(norm), "clip_rate": float(clipped_N.float().mean()),
                    "kl": float((ratio_N - 1.0 - d_N).mean()), "mean_abs_d": float(d_N.abs().mean()),
                    "mean_d": float(d_N.mean()), "entropy": float(entropy_N.mean())}

    def save(self, folder: Path) -> None:
        """Write the weights as bfloat16 safetensors plus tokenizer and config: a folder every engine can load."""
        folder.mkdir(parents=True)
        tensors = {self._names[id(p)]: p.detach().to(torch.bfloat16).cpu().contiguous() for p in self._parameters}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for file in self.folder.iterdir():
            if file.suffix in (".json", ".jinja", ".txt") and not file.name.endswith(".index.json"):
                shutil.copyfile(file, folder / file.name)

    def _logprobs(self, tree: Tree, temperature: float) -> tuple[Tensor, Tensor]:
        with autocast(self.device):
            hidden_1LH = self._model.base_model(
                input_ids=tree.tokens_L[None], position_ids=tree.positions_L[None],
                attention_mask=tree.mask_LL[None, None], use_cache=False).last_hidden_state
        logits_NV = functional.linear(hidden_1LH[0, tree.before_N].float(), self._head_VH) / temperature
        all_NV = torch.log_softmax(logits_NV, dim=-1)
        entropy_N = -(all_NV.exp() * all_NV).sum(-1)
        return all_NV.gather(1, tree.targets_N[:, None])[:, 0], entropy_N


def pack(rollouts: list[Rollout], device: torch.device) -> Tree:
    """Lay rollouts out as a tree: common prefix, prompts, completions; each token attends to its own branch only."""
    prompts = list(dict.fromkeys(tuple(r.prompt) for r in rollouts))
    shared = _common_prefix(prompts)
    tokens, positions, before, targets = list(prompts[0][:shared]), list(range(shared)), [], []
    spans: list[tuple[int, int, list[tuple[int, int]]]] = [(0, shared, [])]
    for prompt in prompts:
        prompt_span = (len(tokens), len(tokens) + len(prompt) - shared)
        spans.append((*prompt_span, [(0, shared)]))
        tokens += prompt[shared:]
        positions += range(shared, len(prompt))
        for rollout in (r for r in rollouts if tuple(r.prompt) == prompt):
            start, length = len(tokens), len(rollout.tokens)
            spans.append((start, start + length, [(0, shared), prompt_span]))
            before.append(torch.tensor([prompt_span[1] - 1, *range(start, start + length - 1)]))
            targets.append((rollout, torch.tensor(rollout.tokens)))
            tokens += rollout.tokens
            positions += range(len(prompt), len(prompt) + length)
    place = {id(rollout): n for n, (rollout, _) in enumerate(targets)}
    order = [place[id(rollout)] for rollout in rollouts]
    return Tree(tokens_L=torch.tensor(tokens, device=device), positions_L=torch.tensor(positions, device=device),
                mask_LL=_mask(spans, len(tokens)).to(device), before_N=torch.cat([before[n] for n in order]).to(device),
                targets_N=torch.cat([targets[n][1] for n in order]).to(device))


def _common_prefix(prompts: list[tuple[int, ...]]) -> int:
    """Tokens all prompts start with; at least one token of each prompt stays its own."""
    longest = min(map(len, prompts)) - 1
    for place in range(longest):
        if len({prompt[place] for prompt in prompts}) > 1:
            return place
    return longest


def _mask(spans: list[tuple[int, int, list[tuple[int, int]]]], length: int) -> Tensor:
    mask_LL = torch.zeros(length, length, dtype=torch.bool)
    for start, end, ancestors in spans:
        mask_LL[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        for first, last in ancestors:
            mask_LL[start:end, first:last] = True
    return mask_LL
