"""The shadow scorer: the trainer's logprobs of sampled rollouts, under the weights that generated them.

What rollouts have in common (a group's prompt, a system prompt) runs once, everything runs in packs without padding, and
logits exist for a chunk of tokens at a time, from which every view is read.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from collector.config import ShadowConfig
from collector.errors import Unavailable
from collector.records import Rollout, Score
from collector.shadow import plan as planning
from collector.shadow.devices import replicas, sized
from collector.shadow.model import ShadowModel
from collector.shadow.packs import Hidden, forests_of, run_forest
from collector.shadow.plan import Pass, Refusal
from collector.shadow.prompt_kv import PromptKV
from collector.shadow.views import ALWAYS, TokenSampling, View, expected, expected_and_entropy, sampling_rows
from collector.weights.shelf import WeightShelf

log = logging.getLogger(__name__)


class _Rows:
    """The arrays of one Score while they fill."""

    def __init__(self, rollout: Rollout, views: Mapping[str, View]) -> None:
        self.rollout = rollout
        self.views = {name: np.full(rollout.n_tokens, np.nan, dtype=np.float32) for name in views}
        self.entropy_T = np.full(rollout.n_tokens, np.nan, dtype=np.float32)

    def fill(self, name: str, index: np.ndarray, values: np.ndarray) -> None:
        """What a view says of these tokens; the first rows of a wide view [N, D] make room for its D numbers a token."""
        if values.ndim > self.views[name].ndim:
            self.views[name] = np.full((self.rollout.n_tokens, *values.shape[1:]), np.nan, dtype=np.float32)
        self.views[name][index] = values

    def score(self, version: str | None) -> Score:
        return Score(request_id=self.rollout.request_id, views=self.views, entropy_T=self.entropy_T, version=version,
                     scored_mask_T=~np.isnan(self.views["expected"]))


class ShadowScorer:
    """Scores rollouts with the versions on the shelf. One scorer belongs to one thread at a time.

    `counts`: rollouts_scored, rollouts_refused, tokens_scored, tokens_<kind> for every reason a sampled token was left
    out, body_tokens (through the body). `refusals` holds the last reasons.
    """

    def __init__(self, config: ShadowConfig, shelf: WeightShelf[ShadowModel]) -> None:
        self.config, self.shelf = sized(config), shelf
        self.prompts = [PromptKV(config.prompt_kv_mb << 20) for _ in range(replicas(config))]
        self.counts: Counter[str] = Counter()
        self.refusals: deque[Refusal] = deque(maxlen=200)
        self._lock = threading.Lock()  # replicas count beside one another

    def score(self, rollouts: Sequence[Rollout], *, views: Mapping[str, View] = ALWAYS, version: str | None = None,
              prefix_version: str | None = None) -> list[Score]:
        """One Score a rollout, in order; a rollout that cannot be scored has an all-False mask and a counted reason.

        Args:
            views: name → view; "expected" is added when absent.
            version: force this version; None = each token under the version that generated it.
            prefix_version: replay a stale prefix cache: the cached prompt tokens keep that version's KV.
        """
        torch.set_num_threads(self.config.threads)
        views = {"expected": expected, **views}
        rows = [_Rows(rollout, views) for rollout in rollouts]
        planned = rollouts if prefix_version is None else planning.older_than_their_group(rollouts)
        passes = [item for row, rollout in enumerate(planned)
                  for item in self._plan(row, rollout, version, prefix_version)]
        self._run(list(self._loadable(passes)), rows, views)
        scores = [row.score(version or row.rollout.version) for row in rows]
        n_scored = [int(score.scored_mask_T.sum()) for score in scores]
        self.counts["tokens_scored"] += sum(n_scored)
        self.counts["rollouts_scored"] += sum(n > 0 for n in n_scored)
        self.counts["rollouts_refused"] += sum(n == 0 for n in n_scored)
        return scores

    def quantised(self, scheme: str) -> ShadowScorer:
        """A scorer on the same loaded weights that computes as a quantised engine would (quantised.SCHEMES)."""
        from collector.shadow.quantised import quantised

        return quantised(self, scheme)

    def _run(self, passes: list[Pass], rows: list[_Rows], views: Mapping[str, View]) -> None:
        """Every forest; with replicas, the rollouts of one prompt on one device, all devices at once."""
        if len(self.prompts) == 1:
            self._run_share(passes, rows, views)
            return
        with ThreadPoolExecutor(len(self.prompts), thread_name_prefix="replica") as pool:
            shares = _shares(passes, len(self.prompts))
            for done in [pool.submit(self._run_share, share, rows, views, replica) for replica, share in enumerate(shares)]:
                done.result()

    def _run_share(self, passes: list[Pass], rows: list[_Rows], views: Mapping[str, View], replica: int = 0) -> None:
        for forest in forests_of(passes):
            self._score_forest(forest, rows, views, replica)

    def _plan(self, row: int, rollout: Rollout, version: str | None, prefix_version: str | None) -> list[Pass]:
        refusal = planning.check(rollout, config=self.config, version=version, prefix_version=prefix_version)
        if self._refused(refusal):
            return []
        self._refused(planning.outside_spans(rollout, version))
        return planning.plan(row, rollout, version=version, prefix_version=prefix_version,
                             kv_on_update=self.config.kv_on_update)

    def _loadable(self, passes: list[Pass]) -> Iterator[Pass]:
        """Passes whose generating version can be loaded and whose token ids fit; the others are refused and counted.

        Versions that only computed a part of the prompt are loaded when they are needed: their KV is often kept.
        """
        by_versions: dict[tuple[str, ...], list[Pass]] = defaultdict(list)
        for item in passes:
            by_versions[item.versions].append(item)
        for versions, group in by_versions.items():
            try:
                vocab_size = self.shelf.get(versions[-1]).vocab_size
            except Unavailable as error:
                for item in group:
                    self._refuse(item, "version_unavailable", str(error))
                continue
            for item in group:
                bad = planning.check_ids(item.rollout, vocab_size)
                if bad is None:
                    yield item
                else:
                    self._refuse(item, bad.kind, bad.text)

    def _score_forest(self, passes: Sequence[Pass], rows: list[_Rows], views: Mapping[str, View], replica: int) -> None:
        try:
            for hidden in run_forest(passes, self.shelf, self.config, self.prompts[replica], replica):
                with self._lock:
                    self.counts["body_tokens"] += hidden.body_tokens
                self._head(hidden, passes, rows, views, replica)
        except Unavailable as error:  # an older version was pruned, or vanished meanwhile
            for item in passes:
                self._refuse(item, "version_unavailable", str(error))
        except (RuntimeError, IndexError) as error:  # out of memory, or weights of another vocabulary
            if len(passes) > 1:
                for item in passes:
                    self._score_forest((item,), rows, views, replica)
                return
            (item,) = passes
            log.warning("scoring %s failed: %s", item.rollout.request_id, error)
            self._refuse(item, "forward_failed", f"its forward pass failed: {error}")

    def _head(self, hidden: Hidden, passes: Sequence[Pass], rows: list[_Rows], views: Mapping[str, View], replica: int) -> None:
        """Logits chunk by chunk, every view from each chunk."""
        model = self.shelf.get(hidden.version).replica(replica)
        rollouts = tuple(item.rollout for item in passes)
        chunk_tokens = max(1, min(self.config.chunk_tokens, (self.config.logits_mb << 20) // (4 * model.vocab_size)))
        for start in range(0, hidden.pass_of_N.size, chunk_tokens):
            part = slice(start, start + chunk_tokens)
            pass_of_N, index_N = hidden.pass_of_N[part], hidden.index_N[part]
            ids_N = np.array([rollouts[b].completion_tokens_T[i] for b, i in zip(pass_of_N, index_N, strict=True)])
            chunk = self._views(model, hidden.hidden_NH[part], ids_N, sampling_rows(
                rollouts, pass_of_N, index_N, model.device), views)
            for b in np.unique(pass_of_N):
                mine, target = pass_of_N == b, rows[passes[b].row]
                for name in views:
                    target.fill(name, index_N[mine], chunk[name][mine])
                target.entropy_T[index_N[mine]] = chunk["entropy"][mine]

    @staticmethod
    @torch.inference_mode()
    def _views(model: ShadowModel, hidden_NH: Tensor, ids_N: np.ndarray, sampling: TokenSampling,
               views: Mapping[str, View]) -> dict[str, np.ndarray]:
        logits_NV = model.logits(hidden_NH)
        token_ids_N = torch.as_tensor(ids_N, dtype=torch.int64, device=model.device)
        out = dict(zip(("expected", "entropy"), expected_and_entropy(logits_NV, token_ids_N, sampling), strict=True))
        out |= {name: view(logits_NV, token_ids_N, sampling) for name, view in views.items() if view is not expected}
        return {name: values.float().cpu().numpy() for name, values in out.items()}

    def _refuse(self, item: Pass, kind: str, text: str) -> None:
        self._refused(Refusal(request_id=item.rollout.request_id, kind=kind, text=text, tokens=item.wanted.size))

    def _refused(self, refusal: Refusal | None) -> bool:
        """Count and remember a refusal; False when there is none."""
        if refusal is None:
            return False
        with self._lock:
            self.counts[f"tokens_{refusal.kind}"] += refusal.tokens
            self.refusals.append(refusal)
        return True


def _shares(passes: Sequence[Pass], count: int) -> list[list[Pass]]:
    """Passes split by prompt so that every share has about as many tokens."""
    by_prompt: dict[bytes, list[Pass]] = defaultdict(list)
    for item in passes:
        by_prompt[item.rollout.prompt_tokens_P.tobytes()].append(item)
    shares: list[list[Pass]] = [[] for _ in range(count)]
    loads = [0] * count
    for group in sorted(by_prompt.values(), key=lambda group: -sum(item.steps[-1].end for item in group)):
        least = loads.index(min(loads))
        shares[least].extend(group)
        loads[least] += sum(item.steps[-1].end for item in group)
    return shares
