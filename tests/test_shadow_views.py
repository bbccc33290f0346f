"""What the daemon scores a rollout under: generating version, older ones, and the newest one for staleness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_collector_shadow import close, make_model, reference, relay, rollout, scorer

from collector.records import Sampling
from collector.shadow.candidates import UNSEEN
from collector.shadow.views import expected, processed, raw
from klaxon.shadow_views import HEAD_VIEWS, HIDDEN_SETTINGS, OLD_KV_LAG, ShadowViews, with_bet_views


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("weights")
    return {str(version): make_model(root / str(version), version) for version in range(1, 7)}


def views_of(models: dict[str, Path], item, **config):
    score = scorer(models, **config)
    (got,) = ShadowViews(score, score.shelf, refresh=lambda: None).score([item])
    return got.views


def test_the_newest_version_gives_the_staleness_of_a_share_of_the_groups(models) -> None:
    item = rollout(1, spans=[(0, 12, "4")])
    got = views_of(models, item, staleness_share=1.0)
    close(got["newest:2"], reference(models["6"], item))
    close(got["expected"], reference(models["4"], item))
    assert not any(name.startswith("newest") for name in views_of(models, item, staleness_share=0.0))
    assert not any(name.startswith("newest") for name in views_of(models, rollout(2, spans=[(0, 12, "6")]), staleness_share=1.0))


def test_older_weights_and_old_kv_are_replayed_for_the_bets(models) -> None:
    item = rollout(3, prompt=list(range(40)), spans=[(0, 12, "6")], cached_prompt_tokens=32)
    got = views_of(models, item)
    close(got["stale_weights"], reference(models["5"], item))
    close(got["stale_prefix_cache"], relay([(32, models["5"]), (52, models["6"])], item))
    close(got[f"stale_prefix_cache:{OLD_KV_LAG}"], relay([(32, models["2"]), (52, models["6"])], item))
    first = views_of(models, rollout(4, spans=[(0, 12, "1")], cached_prompt_tokens=8))
    assert "stale_weights" not in first, "nothing is older than the first version"
    assert "stale_weights" not in views_of(models, rollout(5, spans=[(0, 12, "6")], base_coin=False)), "bets are the base coin's"


def test_a_rollout_waits_until_its_version_is_on_the_shelf(models) -> None:
    score, asked = scorer(models), []
    views = ShadowViews(score, score.shelf, refresh=lambda: asked.append(1))
    assert views.can_score(rollout(1, spans=[(0, 12, "4")])) and not asked
    assert not views.can_score(rollout(1, spans=[(0, 12, "77")])) and asked


def test_every_setting_bet_on_is_what_its_own_view_says(models) -> None:
    """From the wide view of one pass; left out are only tokens at the edge of what a truncation keeps."""
    items = [rollout(seed, spans=[(0, 12, "4")], sampling=Sampling(temperature=0.7)) for seed in range(8)]
    score = scorer(models)
    got = with_bet_views(items, score.score(items, views=HEAD_VIEWS))
    wanted = score.score(items, views={"raw": raw} | {name: processed(**settings) for name, settings in HIDDEN_SETTINGS.items()} | {"expected": expected})
    assert set(got[0].views) == {"expected", "raw", "rank", *HIDDEN_SETTINGS}
    for name in wanted[0].views:
        mine, its = (np.concatenate([one.views[name] for one in scores]) for scores in (got, wanted))
        told = ~np.isnan(mine)
        assert told.mean() > 0.8 and (told.all() or name.startswith("truncation"))
        assert np.isneginf(mine[told]).tolist() == np.isneginf(its[told]).tolist()
        kept = np.isfinite(mine)
        assert np.abs(mine[kept] - its[kept]).max() < 0.01, name


def test_the_rank_is_the_tokens_place_among_all_logits(models) -> None:
    def counted(logits_NV, token_ids_N, sampling):
        return 1 + (logits_NV > logits_NV.gather(-1, token_ids_N[:, None])).sum(-1)

    items = [rollout(seed, spans=[(0, 12, "4")]) for seed in range(8)]
    score = scorer(models)
    got = np.concatenate([one.views["rank"] for one in with_bet_views(items, score.score(items, views=HEAD_VIEWS))])
    wanted = np.concatenate([one.views["rank"] for one in score.score(items, views={"rank": counted, "expected": expected})])
    exact = wanted <= UNSEEN
    assert np.array_equal(got[exact], wanted[exact]) and (got[~exact] > UNSEEN).all() and 0 < exact.sum()


def test_tokens_without_a_loaded_version_stay_unscored_in_every_view(models) -> None:
    half = rollout(9, spans=[(0, 6, "4"), (6, 12, "77")])
    score = scorer(models)
    (got,) = with_bet_views([half], score.score([half], views=HEAD_VIEWS))
    assert all(np.isnan(values[6:]).all() and not np.isnan(values[:6]).all() for values in got.views.values())
    assert with_bet_views([], []) == [], "nothing kept, nothing scored"
    for items in ([rollout(10, spans=[(0, 12, "77")])], [rollout(11, spans=[(0, 12, "77")]), half]):
        got, *_ = with_bet_views(items, score.score(items, views=HEAD_VIEWS))
        assert all(np.isnan(values).all() and values.shape == (12,) for values in got.views.values()), "nothing of it was scored"
