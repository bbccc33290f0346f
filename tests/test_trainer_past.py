"""A metric of the trainer bets on leaving its own past, and the one budget weighs it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from collector.records import BatchStats
from collector.store import Store
from detectors.bank import Bank
from klaxon.config import Config
from klaxon.trainer_side import TrainerSide

STEPS, CHANGED = 420, 300


def evidence(folder: Path, name: str, values: np.ndarray, **metrics: object) -> tuple[float, float, str | None]:
    """(ln M before the change, ln M at the end, leading stream) of one metric logged once a batch."""
    config = Config.model_validate({"shadow": {"enabled": False}, "run": {"dir": str(folder)}, "metrics": metrics})
    store = Store(folder / "k.duckdb", threads=1)
    try:
        trainer, bank = TrainerSide(config, store, lambda *_: None), Bank(config.detectors, batch_seconds=120.0)
        filed: dict[str, float] = {}
        trainer.bet = filed.update
        before = -math.inf
        empty = BatchStats(t=0, opened_at=0.0, closed_at=120.0, slices=())
        for step, value in enumerate(values):
            filed.clear()
            trainer.take_metrics({"step": step, "metrics": {name: float(value)}})
            bank.update(replace(empty, t=step, opened_at=120.0 * step, closed_at=120.0 * step + 120, gains=dict(filed)))
            before = bank.ln_m if step == CHANGED - 1 else before
        return before, bank.ln_m, bank.leading
    finally:
        store.close()


def entropies(*, fall: float) -> np.ndarray:
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.05, STEPS)
    for i in range(1, STEPS):
        noise[i] += 0.5 * noise[i - 1]
    level = np.where(np.arange(STEPS) >= CHANGED, fall, 1.0) * np.exp(-np.arange(STEPS) / 3000)
    return level * np.exp(noise)


def test_an_entropy_collapse_pages_and_a_slow_decline_does_not(tmp_path: Path) -> None:
    threshold = Bank(Config().detectors, batch_seconds=120.0).ln_a
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    before, after, leading = evidence(tmp_path / "a", "entropy", entropies(fall=0.5))
    assert before < threshold / 2 and after >= threshold and leading == "trainer_metrics:entropy"
    calm = evidence(tmp_path / "b", "entropy", entropies(fall=1.0))[1]
    assert calm < threshold / 2


def test_a_metric_nobody_watches_bets_nothing(tmp_path: Path) -> None:
    assert evidence(tmp_path, "entropy", entropies(fall=0.5), detect=["reward"])[1] == -math.inf


def test_a_restart_takes_up_the_past_it_has_stored(tmp_path: Path) -> None:
    config = Config.model_validate({"shadow": {"enabled": False}, "run": {"dir": str(tmp_path)}})
    values, told = entropies(fall=1.0)[:300], []
    for restarted, part in ((False, range(250)), (True, range(245, 300))):
        store = Store(tmp_path / "k.duckdb", threads=1)
        try:
            trainer = TrainerSide(config, store, lambda *_: None)
            trainer.bet = told.append
            assert trainer.past.series.keys() == ({"entropy"} if restarted else set())
            told.clear()
            for step in part:
                trainer.take_metrics({"step": step, "metrics": {"entropy": float(values[step])}, "at": 1e9 + step})
        finally:
            store.close()
    assert len(told) == 50, "every new step bets at once: nothing is learnt anew, and no step bets twice"
