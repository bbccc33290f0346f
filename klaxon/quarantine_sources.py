"""Where `klaxon quarantine` gets its answers: a stored run's own files, or a running daemon."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import pyarrow as pa

from collector.errors import Unavailable
from collector.store import Store
from klaxon import quarantine
from klaxon.client import DEFAULT_URL, get_bytes, get_json, post_json
from klaxon.replaying import store_of


class StoredRun:
    """A run no daemon is running on, opened while used as a context."""

    def __init__(self, run: str, incident: str) -> None:
        """Choose the incident.

        Raises:
            Unavailable: no run lies there, or a daemon owns its store.
            InputError: no such incident, or several.
        """
        path = store_of(run)
        self._fault = quarantine.choose(quarantine.incidents_of(path.with_name("control.sqlite")), incident)
        try:
            self._store = Store(path)
        except Unavailable as error:
            if "another process owns it" not in str(error):
                raise
            raise Unavailable(f"{path}: is locked by a running daemon; ask that one: klaxon quarantine {incident} --url {DEFAULT_URL}") from None

    def __enter__(self) -> StoredRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._store.close()

    def summary(self) -> dict[str, Any]:
        """As quarantine.summary."""
        return quarantine.summary(self._store, self._fault)

    def tainted(self) -> pa.Table:
        """As quarantine.tainted."""
        return quarantine.tainted(self._store, self._fault)

    def hashes(self, ids: list[str]) -> list[str]:
        """The hashes these request ids are stored under."""
        return [self._store.request_hash(one) for one in ids]


class LiveRun:
    """A running daemon. Raises Unavailable when nobody answers, InputError for an unknown incident."""

    def __init__(self, url: str, incident: str) -> None:
        self._url = url
        self._id = quarantine.choose(get_json(url, "/v1/incidents"), incident).id

    def summary(self) -> dict[str, Any]:
        """As quarantine.summary."""
        return get_json(self._url, f"/v1/quarantine/{self._id}")

    def tainted(self) -> pa.Table:
        """As quarantine.tainted."""
        with pa.ipc.open_stream(get_bytes(self._url, f"/v1/quarantine/{self._id}/rollouts")) as reader:
            return reader.read_all()

    def hashes(self, ids: list[str]) -> list[str]:
        """The hashes these request ids are stored under."""
        return post_json(self._url, "/v1/request-hashes", {"ids": ids})
