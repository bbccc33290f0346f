"""PipelineRL's actor stream in Redis: the same records as its file, read without taking them from the trainer.

XREAD with an id of our own: no consumer group, nothing acknowledged, nothing removed. The records are pickles (JSON where
producers share a stream); only plain data is unpickled. Redis trims the stream, and a reader that falls behind sees a gap in
the writer's index: counted.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from collector.errors import ConfigError, InputError
from collector.records import Rollout
from collector.sources.formats import Hygiene, ReadOptions
from collector.sources.formats.pipelinerl import PIPELINERL
from collector.sources.formats.safe_pickle import loads

SCHEME = "redis://"
RECORDS_A_POLL = 16  # groups; a group holds a handful of rollouts
RETRY_SECONDS = 5.0


class RedisTail:
    """One stream key, e.g. redis://10.0.0.3:6379/actor/0/0; from its oldest record on."""

    def __init__(self, url: str, *, options: ReadOptions | None = None) -> None:
        parts = urlsplit(url)
        self.key = parts.path.strip("/")
        if not url.startswith(SCHEME) or not parts.hostname or not self.key:
            raise ConfigError(f"{url!r} is no Redis stream; write redis://HOST:6379/actor/0/0")
        self.url = f"{SCHEME}{parts.hostname}:{parts.port or 6379}/{self.key}"  # without a password: it is shown
        if importlib.util.find_spec("redis") is None:
            raise ConfigError(f"{self.url}: reading Redis needs redis: pip install 'klaxon-rl[sources]'")
        self.options = options or ReadOptions()
        self.counts: Counter[str] = self.options.counts
        self._connect = {"host": parts.hostname, "port": parts.port or 6379, "username": parts.username, "password": parts.password}
        self._hygiene = Hygiene(self.counts)
        self._client: Any = None
        self._last = b"0-0"
        self._index: int | None = None
        self._silent_until = 0.0

    def poll(self, now: float) -> list[Rollout | InputError]:
        """New rollouts and refusals; an unreachable server is one refusal an outage, and asked again later."""
        if now < self._silent_until:
            return []
        try:
            answer = self._open().xread({self.key: self._last}, count=RECORDS_A_POLL)
        except OSError as error:
            return self._unreachable(error, now)
        except Exception as error:  # redis raises its own tree, which is there only when redis is
            if type(error).__module__.split(".")[0] != "redis":
                raise
            return self._unreachable(error, now)
        self._silent_until = 0.0
        streams = answer.values() if isinstance(answer, dict) else [records for _, records in answer]
        return [item for record in _flat(streams) for item in self._record(*record, now)]

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _record(self, name: bytes, fields: dict[bytes, bytes], now: float) -> list[Rollout | InputError]:
        self._last = name
        where = f"{self.url} {name.decode()}"
        self._count_gap(fields.get(b"index"))
        try:
            value = _decode(fields.get(b"data"))
        except (pickle.UnpicklingError, ValueError, EOFError, TypeError, AttributeError, IndexError, KeyError) as error:
            return [InputError(f"is neither JSON nor a pickle of plain data ({str(error)[:150]})", field="data", where=where)]
        items = PIPELINERL.each(value, where, self.options)
        return [item for item in items if isinstance(item, InputError) or self._hygiene.keep(item, now=now)]

    def _count_gap(self, index: bytes | None) -> None:
        """The writer numbers its records; one that starts over at 0 is a new writer."""
        if index is None or not index.isdigit():
            return
        number = int(index)
        if self._index is not None and number > self._index + 1:
            self.counts["records_trimmed_unread"] += number - self._index - 1
        elif self._index is None and number > 0:
            self.counts["records_trimmed_unread"] += number
        self._index = number

    def _unreachable(self, error: Exception, now: float) -> list[Rollout | InputError]:
        first, self._silent_until = not self._silent_until, now + RETRY_SECONDS
        self.counts["redis_unreachable"] += 1
        return [InputError(f"Redis does not answer ({str(error)[:150]})", where=self.url)] if first else []

    def _open(self) -> Any:
        if self._client is None:
            import redis

            self._client = redis.Redis(**self._connect, socket_timeout=2.0, socket_connect_timeout=2.0)
        return self._client


def _flat(streams: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """(id, fields) of every record; RESP3 nests one list deeper than RESP2."""
    found = []
    for records in streams:
        for record in records:
            found += [tuple(one) for one in record] if isinstance(record, list) and record and isinstance(record[0], (list, tuple)) else [tuple(record)]
    return found


def _decode(data: bytes | None) -> Any:
    if data is None:
        raise ValueError("no data")
    return json.loads(data) if data[:1] in (b"[", b"{") else loads(data)
