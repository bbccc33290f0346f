"""What the last batches say together: the same numbers as from all their slices, computed once a batch, with bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import klaxon.recent
from collector import signals
from collector.config import SignalsConfig
from collector.populations import shares_by_lag, slices_of
from collector.records import POPULATIONS, BatchStats, Rollout, Score, WeightSpan
from collector.signals import metrics, total, weighted
from klaxon.filing import SEEN
from klaxon.recent import OF_INTEREST, Recent


def rollout(rng: np.random.Generator, t: int, replica: int) -> tuple[Rollout, Score]:
    size = int(rng.integers(5, 80))
    trainer = rng.uniform(-3, -0.1, size).astype(np.float32)
    made = Rollout(
        request_id=f"{t}-{replica}-{rng.integers(1 << 40)}", engine=f"http://e{replica}", prompt_tokens_P=np.zeros(int(rng.integers(1, 6000)), np.int32),
        completion_tokens_T=np.zeros(size, np.int32), sampled_mask_T=np.ones(size, bool),
        engine_logprobs_T=np.minimum(trainer + rng.normal(0, 0.1, size), 0).astype(np.float32), cached_prompt_tokens=int(rng.integers(0, 2)),
        weight_versions=(WeightSpan(start=0, end=size, version=str(t)),), trainer_logprobs_T=trainer if rng.random() < 0.5 else None,
        dropped=bool(rng.random() < 0.2), base_coin=bool(rng.random() < 0.7), inclusion_probability=float(rng.uniform(0.1, 1)))
    lag = int(rng.integers(1, 4))
    newest = (trainer + rng.normal(0, 0.2, size)).astype(np.float32)
    return made, Score(request_id=made.request_id, views={"expected": trainer, f"newest:{lag}": newest})


def batch(t: int) -> BatchStats:
    rng = np.random.default_rng(t)
    if t % 7 == 3:
        return BatchStats(t=t, opened_at=float(t), closed_at=t + 1.0, slices=(), counts={})  # a missing batch
    pairs = [rollout(rng, t, replica) for replica in range(3) for _ in range(3)]
    seen = Counter({f"{SEEN}http://e{replica}": int(rng.integers(100, 900)) for replica in range(3 - t % 2)})
    return BatchStats(t=t, opened_at=float(t), closed_at=t + 1.0, counts=dict(seen),
                      slices=signals.merge([item for made, score in pairs for item in slices_of(made, score, SignalsConfig())]))


def from_all_slices(batches: list[BatchStats]) -> tuple[dict, list, dict]:
    """Populations, staleness and signals as the definitions say, from every slice."""
    slices = [item for one in batches for item in one.slices]
    found = {name: metrics(total(slices, population=name)) for name in POPULATIONS}
    kept = {name: {key: values[key] for key in ("n_tokens", "mean_abs_d", "clip_rate")} for name, values in found.items() if values["n_tokens"]}
    seen: Counter[str] = Counter()
    for one in batches:
        seen.update({name.removeprefix(SEEN): count for name, count in one.counts.items()})
    whole = weighted(slices, seen)
    kept["estimate"] = {"n_tokens": whole["tokens"], **{key: whole[key] for key in ("mean_abs_d", "clip_rate", "mean_abs_d_se")}}
    served = found["served"]
    return kept, shares_by_lag(slices), {name: served[name] for name in OF_INTEREST if math.isfinite(served[name])}


def test_after_every_batch_it_says_what_all_slices_of_the_last_batches_say() -> None:
    recent, batches = Recent(batches=12), [batch(t) for t in range(30)]
    for t, one in enumerate(batches):
        recent.add(one)
        if t % 5 != 4:
            continue
        populations, staleness, values = from_all_slices(batches[max(0, t - 11):t + 1])
        assert {"served", "hinted", "trained", "dropped", "stale", "trainer_check", "estimate"} <= set(populations)
        assert recent.populations() == {name: pytest.approx(one, rel=1e-9, abs=1e-12) for name, one in populations.items()}
        assert recent.signals() == pytest.approx(values, rel=1e-9, abs=1e-12)
        assert [row["lag"] for row in recent.staleness()] == [row["lag"] for row in staleness] == [1, 2, 3, None]
        for mine, theirs in zip(map(dict, recent.staleness()), staleness, strict=True):
            del mine["lag"], theirs["lag"]
            assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def test_since_a_batch_is_what_was_served_from_it_on() -> None:
    recent, batches = Recent(), [batch(t) for t in range(10)]
    for one in batches:
        recent.add(one)
    whole = total(item for one in batches[6:] for item in one.slices)
    assert metrics(recent.since(6))["mean_abs_d"] == pytest.approx(metrics(whole)["mean_abs_d"], rel=1e-12)
    assert recent.since(6).n_tokens == whole.n_tokens and recent.since(99).n_tokens == 0


def test_nothing_is_said_before_the_first_batch_and_without_a_compared_token() -> None:
    recent = Recent()
    assert (recent.populations(), recent.staleness(), recent.signals()) == ({}, [], {})
    recent.add(batch(3))
    assert (recent.populations(), recent.staleness(), recent.signals()) == ({}, [], {})


def test_an_answer_is_computed_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    recent, computed = Recent(), []
    monkeypatch.setattr(klaxon.recent, "metrics", lambda stats: computed.append(stats) or metrics(stats))
    recent.add(batch(0))
    assert recent.signals() is recent.signals() is recent.signals()
    assert len(computed) == 1
    first = recent.signals()
    recent.add(batch(1))
    assert recent.signals() != first and len(computed) == 2


def test_what_is_held_does_not_grow_with_the_slices_of_a_batch() -> None:
    narrow, wide = Recent(), Recent()
    one = batch(0)
    many = replace(one, slices=tuple(replace(item, position=f"p{number}") for item in one.slices for number in range(50)))
    narrow.add(one)
    wide.add(many)

    def records(recent: Recent) -> int:
        return sum(len(part.populations) + len(part.stale) + len(part.replicas) for part in recent._parts)

    assert records(wide) == records(narrow) < len(one.slices)
    for t in range(1, 300):
        narrow.add(batch(3))  # empty ones are cheap
    assert len(narrow._parts) == klaxon.recent.BATCHES == 200
