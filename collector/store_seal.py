"""Sealed hours as Parquet: what a run looked like, for other tools, and after the store has let go of it.

    <run.dir>/sealed/series/2026-11-22T13.parquet

An hour is sealed once, when it is an hour old: its batches are final then. A file is written beside its name and renamed, so that
it is whole or not there; one that is there is never written again. The store is only read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from collector.errors import Unavailable

HOUR, DAY = 3600.0, 86_400.0
OF_AN_HOUR = {
    "series": "SELECT * FROM series WHERE closed_at >= ? AND closed_at < ? ORDER BY t",
    "slices": "SELECT s.* FROM slices s JOIN batches b USING (t) WHERE b.closed_at >= ? AND b.closed_at < ? ORDER BY t, seq",
    "rollouts": "SELECT r.* FROM rollouts r JOIN batches b USING (t) WHERE b.closed_at >= ? AND b.closed_at < ? ORDER BY t",
    "evidence": "SELECT e.* FROM evidence e JOIN batches b USING (t) WHERE b.closed_at >= ? AND b.closed_at < ? ORDER BY t",
    "metrics": 'SELECT * FROM metrics WHERE "at" >= ? AND "at" < ? ORDER BY "at"',
    "events": 'SELECT * FROM events WHERE "at" >= ? AND "at" < ? ORDER BY "at"',
}
"""Table that can be sealed → its rows of one hour."""
Ask = Callable[[str, Sequence[Any]], pa.Table]


def seal(ask: Ask, folder: Path, tables: Sequence[str], now: float) -> int:
    """Write every hour that is over and not written yet; returns how many files. `ask`: Store.query_arrow; `now`: UTC seconds.

    Raises:
        Unavailable: a file cannot be written.
    """
    (first,) = ask("SELECT min(opened_at) AS first FROM batches", []).column("first").to_pylist()
    if first is None or not tables:
        return 0
    written = 0
    last = int((now - HOUR) // HOUR)  # the newest hour that ended an hour ago is the one before
    for table in tables:
        sealed = max((path.stem for path in (folder / table).glob("*.parquet")), default="")
        for hour in range(int(first // HOUR), last):
            path = folder / table / f"{datetime.fromtimestamp(hour * HOUR, UTC):%Y-%m-%dT%H}.parquet"
            if path.stem > sealed:  # hours are sealed in their order
                written += _write(ask(OF_AN_HOUR[table], [hour * HOUR, (hour + 1) * HOUR]), path)
    return written


def forget(folder: Path, days: float, now: float) -> int:
    """Delete sealed hours older than so many days; returns how many files."""
    gone = 0
    for path in folder.glob("*/*.parquet"):
        try:
            at = datetime.strptime(path.stem, "%Y-%m-%dT%H").replace(tzinfo=UTC).timestamp()
        except ValueError:
            continue  # not one of ours
        if at < now - days * DAY:
            path.unlink(missing_ok=True)
            gone += 1
    return gone


def _write(rows: pa.Table, path: Path) -> int:
    """0 where the hour holds nothing: no file then."""
    if not rows.num_rows:
        return 0
    fresh = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(rows, fresh, compression="zstd")
        os.replace(fresh, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise Unavailable(f"{path}: the sealed hour cannot be written ({error.strerror or error}); is there room?") from None
    return 1
