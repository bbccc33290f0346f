"""A recorded run, or a file of batch JSONL, through a fresh bank: which pages come, and are they the stored ones?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from collector.errors import InputError, Unavailable
from collector.records import BatchStats, Drift
from collector.store import Store
from detectors.bank import Bank
from klaxon.batch_lines import parse_line
from klaxon.config import Config


@dataclass(kw_only=True)
class Replayed:
    """What a bank did. `differ`: batches whose ln M is not the stored one, bit for bit."""

    ln_a: float
    batches: int = 0
    highest: float = -math.inf
    pages: list[Drift] = field(default_factory=list)
    resolved: list[int] = field(default_factory=list)
    differ: list[int] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def store_of(run: str) -> Path:
    """The DuckDB file of a run's folder, or the file itself. Raises Unavailable when there is none."""
    path = Path(run)
    found = next((one for one in (path, path / "klaxon.duckdb", path / "state" / "klaxon.duckdb") if one.is_file()), None)
    if found is None:
        raise Unavailable(f"{run}: holds no klaxon.duckdb; name the run's folder ([run] dir) or the file")
    return found


def replay(run: str, config: Config) -> Replayed:
    """The stored batches through a new bank, resolved where the run was. Raises Unavailable while a daemon owns the file."""
    with Store(store_of(run), memory_limit=config.store.memory_limit, threads=config.store.threads) as store:
        stored = dict(store.query("SELECT t, ln_m FROM batches"))
        events = [json.loads(data) for (data,) in store.query("SELECT data FROM events WHERE kind = 'resolved'")]
        resolved = {event["t"] for event in events if event["fingerprint"].endswith("/mismatch")}
        bank = Bank(config.detectors, batch_seconds=config.daemon.batch_seconds)
        done = Replayed(ln_a=bank.ln_a)
        for batch in store.read_batches():
            _take(done, bank, batch)
            if bank.ln_m != (-math.inf if stored[batch.t] is None else stored[batch.t]):
                done.differ.append(batch.t)
            if batch.t in resolved:
                bank.resolve(batch.t)
                done.resolved.append(batch.t)
        return done


def backtest(source: str, config: Config) -> Replayed:
    """A run's batches, or batch JSONL, under another config; alarms resolve when their stream recovers."""
    bank = Bank(config.detectors, batch_seconds=config.daemon.batch_seconds)
    done = Replayed(ln_a=bank.ln_a)
    if Path(source).is_file() and Path(source).suffix != ".duckdb":
        _backtest_lines(source, bank, done, config.daemon.recovery_batches)
        return done
    with Store(store_of(source), memory_limit=config.store.memory_limit, threads=config.store.threads) as store:
        for batch in store.read_batches():
            _take(done, bank, batch)
            _recover(done, bank, batch.t, config.daemon.recovery_batches)
    return done


def _backtest_lines(source: str, bank: Bank, done: Replayed, patience: int) -> None:
    for number, text in _lines(source):
        try:
            line = parse_line(text, where=f"{source}, line {number}")
            if line.look is None:
                raise InputError("is a plain series; a backtest needs slices", field="stream", where=f"{source}, line {number}")
            if bank.last_t is not None and line.t <= bank.last_t:
                raise InputError(f"is {line.t}, not above the last, {bank.last_t}", field="t", where=f"{source}, line {number}")
        except InputError as error:
            done.refused.append(str(error))
            continue
        done.pages += bank.look(line.look, {})[1]
        _count(done, bank)
        _recover(done, bank, line.t, patience)
    if not done.batches:
        raise InputError("no usable line", where=source)


def _lines(source: str) -> Iterator[tuple[int, str]]:
    with open(source, encoding="utf-8", errors="replace") as lines:
        for number, text in enumerate(lines, start=1):
            if text.strip():
                yield number, text


def _take(done: Replayed, bank: Bank, batch: BatchStats) -> None:
    done.pages += bank.update(batch)[1]
    _count(done, bank)


def _count(done: Replayed, bank: Bank) -> None:
    done.batches += 1
    done.highest = max(done.highest, bank.ln_m)
    bank.notices.clear()


def _recover(done: Replayed, bank: Bank, t: int, patience: int) -> None:
    if bank.alarm is not None and bank.recovered and t - bank.alarm[0] >= patience:
        bank.resolve(t)
        done.resolved.append(t)
