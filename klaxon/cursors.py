"""Where reading of [sources] files and trainer_files goes on after a restart, in SQLite, in step with the batches in DuckDB.

Two files cannot be committed as one. So the state that holds once batch t is stored is written *before* batch t is, under the
number t; a restart takes, of each source, the newest state whose batch is in the store. Killed between the two commits, the state
of an unstored batch is passed over, and its rollouts are read again: each counts once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from alerts.db import Database
from collector.sources.progress import Mark

States = dict[str, list[dict[str, Any]]]
NEWEST = "SELECT source, state FROM cursors AS one WHERE t = (SELECT max(t) FROM cursors WHERE source = one.source)"
OLDER = "DELETE FROM cursors WHERE source = ?1 AND t < (SELECT max(t) FROM cursors WHERE source = ?1 AND t < ?2)"


class Cursors:
    """Of one run. `kept` is what an earlier daemon left; `read_so_far` is asked at every batch."""

    def __init__(self, database: Database, *, next_t: int) -> None:
        """`next_t`: the first batch that is not stored; states of it and later ones are dropped.

        Raises:
            Unavailable: the file cannot be read or changed.
        """
        self._database = database
        with database.transaction() as connection:
            connection.execute("DELETE FROM cursors WHERE t >= ?", (next_t,))
        self._written = {row["source"]: row["state"] for row in database.rows(NEWEST)}
        self.kept: States = {source: json.loads(state) for source, state in self._written.items()}
        self.read_so_far: Callable[[], States] = dict

    def storing(self, t: int, marks: Iterable[Mark]) -> None:
        """Batch t is about to be stored; `marks`: where its rollouts were read.

        Raises:
            Unavailable: the file refuses the change; batch t must not be stored before it has taken it.
        """
        for mark in marks:
            mark.settle()
        texts = {source: json.dumps(state) for source, state in self.read_so_far().items()}
        changed = {source: text for source, text in texts.items() if self._written.get(source) != text}
        if not changed:
            return
        with self._database.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO cursors VALUES (?, ?, ?)", [(source, t, text) for source, text in changed.items()])
            connection.executemany(OLDER, [(source, t) for source in changed])
        self._written |= changed

    def close(self) -> None:
        """Close the file."""
        self._database.close()
