"""KV kept for prompts that start alike: it saves work and changes no number."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_collector_shadow import close, make_model, reference, relay, rollout, scorer

from collector.weights.checkpoint import inspect

SYSTEM = [(7 * i) % 97 for i in range(80)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("weights")
    return {name: make_model(root / name, seed) for seed, name in enumerate(("1", "2", "3"))}


def group(first: int, *, question: list[int], version: str = "1", rollouts: int = 2, **fields):
    return [rollout(first + i, prompt=SYSTEM + question, tokens=5 + i, spans=[(0, 5 + i, version)], **fields) for i in range(rollouts)]


def test_a_shared_system_prompt_runs_once_a_version_and_no_number_changes(models) -> None:
    score = scorer(models)
    calls = [group(0, question=[1, 2, 3]) + group(10, question=[4, 5]), group(20, question=[6, 7, 8, 9], rollouts=1)]
    for items in calls:
        for got, item in zip(score.score(items), items, strict=True):
            close(got.views["expected"], reference(models["1"], item))
    assert score.prompts[0].counts["kept"] == 1 and score.prompts[0].counts["tokens_taken"] == len(SYSTEM)
    assert score.counts["body_tokens"] == (83 + 4 + 3 + 5) + (2 + 4 + 2 + 5) + (4 + 4), "questions of 2 or 3 tokens are not worth sharing"


def test_the_same_prompt_again_recomputes_only_its_last_token(models) -> None:
    score, items = scorer(models), group(0, question=[1, 2, 3], rollouts=3)
    score.score(items[:2])
    before = score.counts["body_tokens"]
    (got,) = score.score(items[2:])
    close(got.views["expected"], reference(models["1"], items[2]))
    assert score.counts["body_tokens"] - before == 1 + 6


def test_other_weights_never_lend_their_kv(models, tmp_path: Path) -> None:
    """Neither another version, nor other weights that came back under an old name."""
    score, items = scorer(models), group(0, question=[1, 2, 3])
    score.score(items)
    for got, item in zip(score.score(items, version="2"), items, strict=True):
        close(got.views["expected"], reference(models["2"], item))
    folder = shutil.copytree(models["3"], tmp_path / "again")
    score.shelf.add(inspect(folder, version="1"))
    for got, item in zip(score.score(items), items, strict=True):
        close(got.views["expected"], reference(models["3"], item))
    assert score.prompts[0].counts["tokens_taken"] == 0


@pytest.mark.parametrize("held", [1, 3])
def test_a_stale_replay_takes_the_old_kv_without_loading_the_old_weights(models, held: int) -> None:
    score = scorer(models, versions_held=held)
    score.score(group(0, question=[1, 2, 3], version="1"))
    items = group(10, question=[9, 9], version="3", cached_prompt_tokens=64)
    loads = score.shelf.counts["loads"]
    for got, item in zip(score.score(items, prefix_version="1"), items, strict=True):
        close(got.views["expected"], relay([(64, models["1"]), (82 + item.n_tokens, models["3"])], item))
    assert score.shelf.counts["loads"] - loads == 1, "only version 3"


def test_memory_is_bounded_and_0_keeps_nothing(models) -> None:
    none, small = scorer(models, prompt_kv_mb=0), scorer(models, prompt_kv_mb=0)
    small.prompts[0]._limit_bytes = 100_000  # one prompt of 83 tokens takes 2 layers × 2 × 2 heads × 8 × 4 bytes × 83 = 21 kB
    for seed in range(10):
        items = [rollout(seed, prompt=np.random.default_rng(seed).integers(0, 97, 83).tolist()), rollout(50 + seed, prompt=5)]
        for score in (none, small):
            score.score([items[0], *[rollout(100 + seed, prompt=items[0].prompt_tokens_P.tolist())], items[1]])
    assert none.prompts[0].counts == {} and small.prompts[0].counts["kept"] == 10 and small.prompts[0].counts["dropped"] == 6
