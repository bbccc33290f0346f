"""What people do at the desk besides acknowledging: silence, look, and ask why."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alerts import reading, rows
from alerts.db import Database
from alerts.silences import Silence, read_silence
from collector.errors import InputError

SHOWN = 10  # silences named in an error


class Desk:
    """Part of `service.Alerts`, on its file. Every change of what may be told is told at once, in the same transaction."""

    def __init__(self, database: Database, *, tell: Callable[[sqlite3.Connection, float], None], wake: Callable[[], None]) -> None:
        self._database, self._tell, self._wake = database, tell, wake

    def silence(self, said: Mapping[str, Any], *, now: float) -> dict[str, Any]:
        """Take a silence as the API and the command line say it (silences.read_silence), or with "incident" in place of "match".

        Raises:
            InputError: naming the field that cannot be used, or the incidents that are open.
            Unavailable: not stored.
        """
        with self._database.transaction() as connection:
            if "incident" in said:
                if "match" in said:
                    raise InputError("give one of incident and match", field="match")
                case = reading.find(self._database, str(said["incident"]))
                said = {key: value for key, value in said.items() if key != "incident"} | {"match": {"fingerprint": case.incident.fingerprint}}
            stored = rows.insert_silence(connection, read_silence(said, now=now))
            self._tell(connection, now)
        return stored.to_json(now)

    def silences(self, now: float, *, ended: bool = False) -> list[dict[str, Any]]:
        """The silences in force and to come, the first to end first; with `ended`, all there ever were."""
        found = [rows.silence(row) for row in self._database.rows("SELECT * FROM silences ORDER BY ends_at, id")]
        return [one.to_json(now) for one in found if ended or now < one.ends_at]

    def expire(self, silence_id: str, *, now: float) -> dict[str, Any]:
        """End a silence now; what it covered and still fires is told. Raises InputError: it is unknown, or has ended; Unavailable."""
        with self._database.transaction() as connection:
            known = [rows.silence(row) for row in connection.execute("SELECT * FROM silences ORDER BY ends_at, id").fetchall()]
            one = next((one for one in known if one.id == silence_id), None)
            if one is None or now >= one.ends_at:
                raise InputError(f"{'no silence' if one is None else 'already ended:'} {silence_id!r}; {_in_force(known, now)}")
            connection.execute("UPDATE silences SET ends_at = ? WHERE id = ?", (now, silence_id))
            self._tell(connection, now)
        self._wake()
        return replace(one, ends_at=now).to_json(now)

    def open_incidents(self, limit: int = 1000) -> list[dict[str, Any]]:
        """Those that fire or are acknowledged, the newest first, as dicts fit for JSON."""
        return reading.open_incidents(self._database, limit)

    def explain(self, incident_id: str, *, now: float) -> dict[str, Any]:
        """An incident's history, every decision about it in order, and the silences over it. Raises InputError: there is no such
        incident; the open ones are listed."""
        return reading.explain(self._database, incident_id, now)


def _in_force(known: Sequence[Silence], now: float) -> str:
    found = [f"{one.id} (by {one.author}: {one.reason})" for one in known if now < one.ends_at]
    return f"in force: {', '.join(found[:SHOWN])}" if found else "none is in force"
