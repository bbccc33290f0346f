"""The tables of the store, and the pure conversions between records and Arrow.

Hot tables are append-only: no index, no key, no upsert. `seq` keeps the order inside a batch, because sums of floats
depend on it and a replay must be exact. `series` is the rollup that makes a month of charts cheap: one row a batch, with the
sums every signal is made of (collector/series_signals.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from collector import signals
from collector.records import BatchStats, Evidence, Fact, Rollout, Score, SliceStats
from collector.rollout_bins import bins_of

SERIES = (
    "mean_d", "mean_abs_d", "k1", "k2", "k3", "clip_rate", "clip_rate_low", "clip_rate_high", "gspo_clip_rate", "ess",
    "max_abs_d", "p50_abs_d", "p99_abs_d", "pearson", "ppl_ratio",
)
"""Metrics of collector.signals.metrics kept a batch. Means are token-weighted when batches are put together."""

PLAIN_SUMS = ("d", "abs_d", "k3", "clip_low", "clip_high", "cluster_n2", "cluster_a2", "cluster_an")
"""Sums a slice keeps in columns of their own too: a breakdown of a month reads these, and not the map of all sums."""

SERIES_COUNTS = ("confident_disagreements", "nonfinite", "zeros")
"""Counts of tokens kept a batch; summed when batches are put together."""

_DOUBLE, _BIGINT, _TEXT, _BOOL = pa.float64(), pa.int64(), pa.string(), pa.bool_()
_FLOAT, _INT = pa.float32(), pa.int32()

TABLES: dict[str, pa.Schema] = {
    "batches": pa.schema([("t", _BIGINT), ("opened_at", _DOUBLE), ("closed_at", _DOUBLE), ("counts", _TEXT),
                          ("ln_m", _DOUBLE), ("ln_a", _DOUBLE)]),
    "slices": pa.schema([("t", _BIGINT), ("seq", _BIGINT), ("replica", _TEXT), ("position", _TEXT), ("version", _TEXT),
                         ("cached", _BOOL), ("n_tokens", _BIGINT), ("n_sequences", _DOUBLE),
                         ("hist_pos", pa.list_(_BIGINT)), ("hist_neg", pa.list_(_BIGINT)),
                         ("sums", pa.map_(_TEXT, _DOUBLE)), ("population", _TEXT), *((name, _DOUBLE) for name in PLAIN_SUMS)]),
    "series": pa.schema([("t", _BIGINT), ("closed_at", _DOUBLE), ("n_tokens", _BIGINT), ("n_sequences", _DOUBLE),
                         ("version_max", _BIGINT), *((name, _DOUBLE) for name in SERIES),
                         *((name, _BIGINT) for name in SERIES_COUNTS),
                         ("hist_pos", pa.list_(_BIGINT)), ("hist_neg", pa.list_(_BIGINT)), ("sums", pa.map_(_TEXT, _DOUBLE))]),
    "gains": pa.schema([("t", _BIGINT), ("seq", _BIGINT), ("stream", _TEXT), ("gain", _DOUBLE)]),
    "facts": pa.schema([("t", _BIGINT), ("seq", _BIGINT), ("name", _TEXT), ("text", _TEXT), ("slice", _TEXT),
                        ("at", _DOUBLE)]),
    "evidence": pa.schema([("t", _BIGINT), ("stream", _TEXT), ("weight", _DOUBLE), ("gain", _DOUBLE),
                           ("log_sr", _DOUBLE), ("started_at", _BIGINT)]),
    "rollouts": pa.schema([("request", _TEXT), ("finished_at", _DOUBLE), ("t", _BIGINT), ("replica", _TEXT),
                           ("version", _TEXT), ("traffic", _TEXT), ("n_prompt", _BIGINT), ("n_tokens", _BIGINT),
                           ("n_scored", _BIGINT), ("cached", _BIGINT), ("mean_d", _DOUBLE), ("mean_abs_d", _DOUBLE),
                           ("max_abs_d", _DOUBLE), ("reward", _DOUBLE), ("base_coin", _BOOL),
                           ("inclusion_probability", _DOUBLE), ("finish_reason", _TEXT), ("source", _TEXT),
                           ("prompt_hash", _TEXT), ("step", _TEXT), ("env", _TEXT), ("turn", _TEXT),
                           ("bin_tokens", pa.list_(_BIGINT)), ("bin_abs_d", pa.list_(_DOUBLE)), ("read_from", _TEXT)]),
    "token_rollouts": pa.schema([("request", _TEXT), ("kept_at", _DOUBLE), ("finished_at", _DOUBLE), ("t", _BIGINT), ("kind", _TEXT), ("badness", _DOUBLE),
                                 ("replica", _TEXT), ("versions", pa.list_(_TEXT)), ("spans", _TEXT), ("traffic", _TEXT), ("env", _TEXT), ("turn", _TEXT),
                                 ("cached", _BIGINT), ("n_prompt", _BIGINT), ("n_tokens", _BIGINT), ("first", _BIGINT), ("n_scored", _BIGINT),
                                 ("mean_d", _DOUBLE), ("mean_abs_d", _DOUBLE), ("max_abs_d", _DOUBLE), ("reward", _DOUBLE), ("finish_reason", _TEXT),
                                 ("source", _TEXT), ("engine", pa.list_(_FLOAT)), ("trainer", pa.list_(_FLOAT)), ("entropy", pa.list_(_FLOAT)),
                                 ("rank", pa.list_(_INT)), ("sampled", pa.list_(_BOOL))]),
    "token_words": pa.schema([("request", _TEXT), ("kept_at", _DOUBLE), ("kind", _TEXT), ("prompt", pa.list_(_TEXT)), ("completion", pa.list_(_TEXT))]),
    "metrics": pa.schema([("step", _BIGINT), ("at", _DOUBLE), ("name", _TEXT), ("value", _DOUBLE), ("source", _TEXT)]),
    "events": pa.schema([("at", _DOUBLE), ("kind", _TEXT), ("text", _TEXT), ("data", _TEXT)]),
    "weights": pa.schema([("version", _TEXT), ("path", _TEXT), ("published_at", _DOUBLE), ("digest", _TEXT),
                          ("seen_at", _DOUBLE), ("engine_at", _DOUBLE)]),
    "meta": pa.schema([("key", _TEXT), ("value", _TEXT)]),
}

_SQL_TYPES = {_DOUBLE: "DOUBLE", _BIGINT: "BIGINT", _TEXT: "VARCHAR", _BOOL: "BOOLEAN", pa.list_(_BIGINT): "BIGINT[]",
              pa.list_(_DOUBLE): "DOUBLE[]", pa.list_(_TEXT): "VARCHAR[]", pa.list_(_FLOAT): "FLOAT[]", pa.list_(_INT): "INTEGER[]",
              pa.list_(_BOOL): "BOOLEAN[]", pa.map_(_TEXT, _DOUBLE): "MAP(VARCHAR, DOUBLE)"}
MOST_LABEL = 64  # characters of a label that are kept


def ddl() -> list[str]:
    """One CREATE TABLE a table, for a new file; an older one is brought here by collector/store_migrations.py."""
    return [f"CREATE TABLE {name} (" + ", ".join(f'"{field.name}" {_SQL_TYPES[field.type]}' for field in schema) + ")"
            for name, schema in TABLES.items()]


def to_arrow(table: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as an Arrow table with exactly the columns of `table`, in order."""
    return pa.Table.from_pylist(list(rows), schema=TABLES[table])


def batch_tables(batch: BatchStats, evidence: Iterable[Evidence], *, ln_m: float | None,
                 ln_a: float | None) -> dict[str, list[dict[str, Any]]]:
    """One batch as rows, table by table."""
    t = batch.t
    return {
        "batches": [{"t": t, "opened_at": batch.opened_at, "closed_at": batch.closed_at,
                     "counts": json.dumps(dict(batch.counts)), "ln_m": ln_m, "ln_a": ln_a}],
        "slices": [_slice_row(t, seq, item) for seq, item in enumerate(batch.slices)],
        "series": [_series_row(batch)],
        "gains": [{"t": t, "seq": seq, "stream": stream, "gain": float(gain)}
                  for seq, (stream, gain) in enumerate(batch.gains.items())],
        "facts": [{"t": t, "seq": seq, "name": fact.name, "text": fact.text, "slice": json.dumps(dict(fact.slice)),
                   "at": fact.at} for seq, fact in enumerate(batch.facts)],
        "evidence": [{"t": item.t, "stream": item.stream, "weight": item.weight, "gain": item.gain,
                      "log_sr": item.log_sr, "started_at": item.started_at} for item in evidence],
    }


def _sums_of(item: SliceStats) -> dict[str, Any]:
    return {"hist_pos": [int(count) for count in item.hist_pos], "hist_neg": [int(count) for count in item.hist_neg],
            "sums": [(name, float(value)) for name, value in item.sums.items()]}


def _slice_row(t: int, seq: int, item: SliceStats) -> dict[str, Any]:
    return {"t": t, "seq": seq, "replica": item.replica, "position": item.position, "version": item.version,
            "cached": item.cached, "n_tokens": item.n_tokens, "n_sequences": float(item.n_sequences),
            "population": item.population, **_sums_of(item), **{name: float(item.sums.get(name, 0.0)) for name in PLAIN_SUMS}}


def _series_row(batch: BatchStats) -> dict[str, Any]:
    row: dict[str, Any] = {"t": batch.t, "closed_at": batch.closed_at, "n_tokens": 0, "n_sequences": 0.0}
    if not batch.slices:
        return row
    whole = signals.total(batch.slices)
    metrics = signals.metrics(whole)
    row |= {name: finite(metrics.get(name)) for name in SERIES} if whole.n_tokens else {}
    row |= {name: int(metrics.get(name) or 0) for name in SERIES_COUNTS}
    row |= {"n_tokens": whole.n_tokens, "n_sequences": float(whole.n_sequences),
            "version_max": newest_version(item.version for item in batch.slices)}
    return row | _sums_of(whole)


def finite(value: Any) -> float | None:
    """The number, or None where there is none."""
    return float(value) if value is not None and math.isfinite(value) else None


def newest_version(versions: Iterable[str | None]) -> int | None:
    """The largest version that is a plain number; other names have no order of their own."""
    return max((int(name) for name in versions if name is not None and name.isdecimal()), default=None)


def rollout_row(rollout: Rollout, score: Score | None, *, t: int, key: str) -> dict[str, Any]:
    """Statistics of one rollout. The request id is kept as a keyed hash; ids and text are left out.

    mean_d, mean_abs_d, max_abs_d in nats over the sampled tokens both sides have a finite logprob for; bin_tokens and bin_abs_d the
    same tokens by the engine's probability (collector/rollout_bins.py). env and turn are the rollout's labels of that name.
    """
    d, p = differences(rollout, score)
    bin_tokens, bin_abs_d = bins_of(p, d)
    return {
        "request": request_hash(rollout.request_id, key=key), "finished_at": rollout.finished_at, "t": t,
        "replica": rollout.replica, "version": rollout.version, "traffic": rollout.traffic,
        "n_prompt": int(rollout.prompt_tokens_P.size), "n_tokens": rollout.n_tokens, "n_scored": int(d.size),
        "cached": rollout.cached_prompt_tokens, "mean_d": float(d.mean()) if d.size else None,
        "mean_abs_d": float(np.abs(d).mean()) if d.size else None, "max_abs_d": float(np.abs(d).max()) if d.size else None,
        "reward": finite(rollout.reward), "base_coin": rollout.base_coin,
        "inclusion_probability": rollout.inclusion_probability, "finish_reason": rollout.finish_reason,
        "source": score.source if score is not None else None,
        "prompt_hash": prompt_hash(rollout.prompt_tokens_P, key=key), "step": rollout.labels.get("step"),
        "env": label(rollout, "env"), "turn": label(rollout, "turn"), "bin_tokens": bin_tokens, "bin_abs_d": bin_abs_d,
        "read_from": None if rollout.mark is None else str(rollout.mark),
    }


def label(rollout: Rollout, name: str) -> str | None:
    """A label's text, cut to MOST_LABEL characters; None where the rollout does not carry it."""
    value = rollout.labels.get(name)
    return None if value is None else str(value)[:MOST_LABEL]


def differences(rollout: Rollout, score: Score | None) -> tuple[np.ndarray, np.ndarray]:
    """(d, the engine's logprobs) of the tokens that count, float64, nats: sampled, scored, and finite on both sides."""
    if score is None:
        return np.empty(0), np.empty(0)
    kept = np.asarray(rollout.sampled_mask_T, dtype=bool)
    if score.scored_mask_T is not None:
        kept = kept & score.scored_mask_T
    p = rollout.engine_logprobs_T.astype(np.float64)
    d = score.views["expected"].astype(np.float64) - p
    kept = kept & np.isfinite(d)
    return d[kept], p[kept]


def request_hash(request_id: str, *, key: str) -> str:
    """Keyed hash of a request id: the same request is found again, an id cannot be read back."""
    return hashlib.blake2b(request_id.encode(), key=bytes.fromhex(key), digest_size=12).hexdigest()


def prompt_hash(prompt_tokens_P: np.ndarray, *, key: str) -> str:
    """Keyed hash of a prompt: rollouts of one group share it, the prompt cannot be read back. `prompt_tokens_P`: int32 [P]."""
    return hashlib.blake2b(prompt_tokens_P.astype("<i4").tobytes(), key=bytes.fromhex(key), digest_size=8).hexdigest()


def batches_from(tables: Mapping[str, list[dict[str, Any]]]) -> list[BatchStats]:
    """The inverse of `batch_tables`: rows, already in order, back to records."""
    slices, gains, facts = defaultdict(list), defaultdict(dict), defaultdict(list)
    for row in tables["slices"]:
        slices[row["t"]].append(slice_from(row))
    for row in tables["gains"]:
        gains[row["t"]][row["stream"]] = row["gain"]
    for row in tables["facts"]:
        facts[row["t"]].append(Fact(name=row["name"], text=row["text"], slice=json.loads(row["slice"]), at=row["at"]))
    return [BatchStats(t=row["t"], opened_at=row["opened_at"], closed_at=row["closed_at"],
                       slices=tuple(slices[row["t"]]), gains=gains[row["t"]], counts=json.loads(row["counts"]),
                       facts=tuple(facts[row["t"]])) for row in tables["batches"]]


def slice_from(row: Mapping[str, Any]) -> SliceStats:
    """One row of `slices` as a record."""
    return SliceStats(
        replica=row["replica"], position=row["position"], version=row["version"], cached=row["cached"],
        n_tokens=row["n_tokens"], n_sequences=row["n_sequences"],
        hist_pos=np.array(row["hist_pos"], dtype=np.int64), hist_neg=np.array(row["hist_neg"], dtype=np.int64),
        sums=dict(row["sums"]), population=row.get("population") or "served",
    )
