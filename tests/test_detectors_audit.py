"""Bets that average above 1 widen the noise and say so; the bank's state survives a kill and an upgrade."""

import json
from pathlib import Path

import numpy as np
import pytest

from collector.records import BatchStats
from detectors.audit import Audit
from detectors.bank import Bank
from detectors.block import Block
from detectors.config import DetectorsConfig
from detectors.frontend import Settings
from klaxon.bank_state import NAME, load, save

CONFIG = DetectorsConfig()


def audited(mean_gain: float) -> tuple[Audit, Block, list[str]]:
    block = Block(Settings(warmup=20, delay=2, memory=100), {"global": 1.0})
    block.add(["battery:mean:global"] * 4, family="global", kinds=["up"] * 4, slopes=[0.0] * 4, floors=[0.01] * 4, dead_bands=[0.0] * 4)
    audit, told, rng = Audit(), [], np.random.default_rng(0)
    for _ in range(600):
        block.gain, block.told = rng.normal(mean_gain, 0.3, (6, 4)), np.ones(4, bool)
        told += audit.take(block, paused=False)
    return audit, block, told


def test_bets_that_win_too_often_widen_the_noise_and_say_so() -> None:
    _, block, told = audited(0.1)
    assert block.widen > 1 and told and "instead of at most 1" in told[0]


def test_honest_bets_change_nothing_and_their_mean_is_published() -> None:
    audit, block, told = audited(-0.1)
    assert block.widen == 1.0 and told == []
    assert audit.means()["global"]["mean_e"] < 1


def test_a_kept_bank_goes_on_and_a_foreign_one_is_dropped_with_a_reason(tmp_path: Path) -> None:
    bank = Bank(CONFIG, batch_seconds=120)
    for t in range(5):
        bank.update(BatchStats(t=t, opened_at=0, closed_at=1, gains={"self_bet:+0.3": 1.0}, counts={"seen": 1}))
    assert load(tmp_path, CONFIG, batch_seconds=120) == (None, "")
    save(bank, tmp_path, CONFIG)
    kept, why = load(tmp_path, CONFIG, batch_seconds=120)
    assert kept is not None and why == "" and kept.to_state() == bank.to_state() and kept.last_t == 4
    assert "config has changed" in load(tmp_path, DetectorsConfig(dead_band_nats=0.01), batch_seconds=120)[1]
    found = json.loads((tmp_path / NAME).read_text())
    found["bank"]["schema"] = 1
    (tmp_path / NAME).write_text(json.dumps(found))
    assert "another Klaxon" in load(tmp_path, CONFIG, batch_seconds=120)[1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": 1}'])
def test_a_damaged_state_is_dropped_with_a_reason(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    assert "cannot be read" in load(tmp_path, CONFIG, batch_seconds=120)[1] or content == '{"config": 1}'
    assert load(tmp_path, CONFIG, batch_seconds=120)[0] is None
