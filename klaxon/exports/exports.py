"""What the daemon holds: the exporters that are configured, fed from the store by the scheduler.

The store is the buffer: an exporter remembers (exports.json) the last batch it wrote, so that a server that was away, a full
queue or a restart costs delay and no batch.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klaxon.config import Config
from klaxon.exports import tensorboard, wandb
from klaxon.exports.points import note, points, with_live
from klaxon.exports.relay import Relay

if TYPE_CHECKING:
    from collector.store import Store

log = logging.getLogger("klaxon.exports")
FEED_SECONDS = 2.0
STOP_SECONDS = 12.0
CURSORS = "exports.json"
AT_ONCE = 100  # batches read from the store in one go
MOST_TOLD = 500  # incidents remembered as told


class Exports:
    """Every configured exporter. `feed` is called every FEED_SECONDS, on the scheduler's thread."""

    def __init__(self, config: Config, store: Store, *, status: Callable[[], Mapping[str, Any]], incidents: Callable[[], list[dict[str, Any]]]) -> None:
        """Raises ConfigError: one that is configured cannot work; says what to do."""
        self.counts: Counter[str] = Counter()
        self._config, self._store, self._status, self._incidents = config, store, status, incidents
        self._path = Path(config.run.dir) / CURSORS
        self.relays = list(_relays(config))
        self._saved = self._kept() if self.relays else {}
        self._newest = store.next_t() - 1  # batch, as of the last feed
        for relay in self.relays:
            kept = self._saved.get(relay.exporter) or {}
            relay.done_t, relay.told = min(int(kept.get("t", -1)), self._newest), dict(kept.get("incidents", {}))
        self._offered = {relay.exporter: relay.done_t for relay in self.relays}
        self._offered_notes = {relay.exporter: dict(relay.told) for relay in self.relays}

    def start(self) -> None:
        """Start the threads."""
        for relay in self.relays:
            relay.start()

    def stop(self) -> None:
        """Hand on what is stored, and end; an exporter that takes longer than STOP_SECONDS is left behind."""
        if self.relays:
            self.feed()
        for relay in self.relays:
            relay.stop()
        for relay in self.relays:
            if relay.ident is not None:
                relay.join(STOP_SECONDS)
        if self.relays:
            self._save()

    def feed(self) -> None:
        """Offer what is new, as much as fits; never waits for an exporter."""
        self._newest = self._store.next_t() - 1
        for relay in self.relays:
            self._feed_batches(relay)
            if relay.takes_notes:
                self._feed_notes(relay)
        self._save()

    def status(self) -> list[dict[str, Any]]:
        """One dict an exporter (Relay.status), with `behind`: stored batches it has not taken yet."""
        return [{**relay.status(), "behind": max(0, self._newest - relay.done_t)} for relay in self.relays]

    def _feed_batches(self, relay: Relay) -> None:
        after, newest = self._offered[relay.exporter], self._newest
        found = points(self._store, after=after, most=min(AT_ONCE, relay.room())) if newest > after else []
        if found and found[-1].t == newest:
            opened = sum(item.get("state") != "resolved" for item in self._incidents())
            found[-1] = with_live(found[-1], self._status(), incidents_open=opened)
        for point in found:
            if not relay.offer(point):
                break
            self._offered[relay.exporter] = point.t

    def _feed_notes(self, relay: Relay) -> None:
        told = self._offered_notes[relay.exporter]
        for incident in reversed(self._incidents()):
            over = incident["state"] == "resolved"
            if told.get(incident["id"]) == ("resolved" if over else "firing") or (over and incident["id"] not in told):
                continue
            item = note(incident, dashboard_url=self._config.alerts.dashboard_url)
            if relay.offer(item):
                told[item.incident] = item.state
        while len(told) > MOST_TOLD:
            del told[next(iter(told))]

    def _kept(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read (%s): the exporters start with the first stored batch", self._path, error)
            return {}
        return found if isinstance(found, dict) else {}

    def _save(self) -> None:
        """Keep what was written, whole or not at all; what was only offered is offered again after a restart."""
        now = {relay.exporter: {"t": relay.done_t, "incidents": dict(list(relay.told.items())[-MOST_TOLD:])} for relay in self.relays}
        if now == self._saved:
            return
        fresh = self._path.with_suffix(".json.new")
        try:
            fresh.write_text(json.dumps(now), encoding="utf-8")
            os.replace(fresh, self._path)
        except OSError as error:
            self.counts["export_cursor_errors"] += 1
            log.error("%s is not written: %s; after a restart batches are exported twice", self._path, error)
            return
        self._saved = now


def _relays(config: Config) -> list[Relay]:
    """The configured exporters, not started. Raises ConfigError."""
    given, found = config.exports, []
    if given.wandb.mode != "off":
        wandb.check(config)
        found.append(Relay("wandb", lambda halt: wandb.WandbSink(config, halt=halt), where=wandb.where(config), capacity=given.queue_batches, takes_notes=True))
    if given.tensorboard_dir:
        folder = Path(given.tensorboard_dir)
        tensorboard.check(folder)
        found.append(Relay("tensorboard", lambda _: tensorboard.TensorBoardSink(folder), where=str(folder), capacity=given.queue_batches, takes_notes=False))
    return found
