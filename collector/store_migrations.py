"""The versions of the store's schema, and the way from each to the next.

A release that changes a table adds one entry here, and the change to `TABLES` in collector/store_schema.py: a new file gets its tables
from `TABLES`, an older one runs every entry above its own version, all in one transaction. An entry is plain SQL, written down once and
never touched again; it may not read `TABLES`, which changes with every release.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from collector.errors import Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One step forward: what it is for, in words for the operator, and its statements."""

    about: str
    statements: tuple[str, ...]


def _columns(table: str, *columns: str) -> tuple[str, ...]:
    """Add columns that files of the version before may or may not have."""
    return tuple(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column}" for column in columns)


MIGRATIONS: dict[int, Migration] = {
    2: Migration(about="columns that came during version 1; where in a file a rollout was read", statements=(
        *_columns("slices", "population VARCHAR", *(f"{name} DOUBLE" for name in (
            "d", "abs_d", "k3", "clip_low", "clip_high", "cluster_n2", "cluster_a2", "cluster_an"))),
        *_columns("series", "hist_pos BIGINT[]", "hist_neg BIGINT[]", "sums MAP(VARCHAR, DOUBLE)"),
        *_columns("rollouts", "prompt_hash VARCHAR", '"step" VARCHAR', "env VARCHAR", "turn VARCHAR", "bin_tokens BIGINT[]",
                  "bin_abs_d DOUBLE[]", "read_from VARCHAR"),
    )),
    3: Migration(about="the tokens of the rollouts furthest off", statements=(
        "CREATE TABLE IF NOT EXISTS token_rollouts (request VARCHAR, kept_at DOUBLE, finished_at DOUBLE, t BIGINT, kind VARCHAR, badness DOUBLE, replica VARCHAR, "
        "versions VARCHAR[], spans VARCHAR, traffic VARCHAR, env VARCHAR, turn VARCHAR, cached BIGINT, n_prompt BIGINT, n_tokens BIGINT, \"first\" BIGINT, "
        "n_scored BIGINT, mean_d DOUBLE, mean_abs_d DOUBLE, max_abs_d DOUBLE, reward DOUBLE, finish_reason VARCHAR, source VARCHAR, engine FLOAT[], "
        "trainer FLOAT[], entropy FLOAT[], \"rank\" INTEGER[], sampled BOOLEAN[])",
        "CREATE TABLE IF NOT EXISTS token_words (request VARCHAR, kept_at DOUBLE, kind VARCHAR, prompt VARCHAR[], completion VARCHAR[])",
    )),
}
"""Version → the step that brings a store of the version before there. Version 1 is the first."""

VERSION = max(MIGRATIONS)


def migrate(cursor: duckdb.DuckDBPyConnection, found: str, *, where: str) -> list[str]:
    """Bring an older store here, inside the caller's transaction; what was done, in words for the operator ([] = nothing).

    Raises:
        Unavailable: a newer Klaxon wrote it, or its version is no number.
    """
    if not found.isdecimal() or int(found) > VERSION or int(found) < 1:
        raise Unavailable(f"{where}: has store format {found}, this Klaxon knows 1 to {VERSION}: a newer Klaxon wrote it. "
                          "Start that Klaxon again, or set [store] path to a new file; `klaxon restore` brings back an older backup")
    said = []
    for version in range(int(found) + 1, VERSION + 1):
        for statement in MIGRATIONS[version].statements:
            cursor.execute(statement).fetchall()
        said.append(f"the store was brought to format {version} ({MIGRATIONS[version].about})")
    return said
