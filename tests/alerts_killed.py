"""kill -9 at random moments of a process that opens, changes, resolves and delivers incidents; then the books are checked.

    PYTHONPATH=.:tap:tests python tests/alerts_killed.py --lives 200
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from alerts.config import AlertsConfig, ReceiverConfig
from alerts.outbox import LEASE_SECONDS
from alerts.service import Alerts
from alerts_fault_server import FaultServer, serving
from alerts_helpers import BUDGET, fact, one_by_one

LIFE_SECONDS = LEASE_SECONDS + 10.0  # each life sees the clock this much further on: the leases of the dead have run out
MOST_OPEN = 8


@dataclass(kw_only=True)
class Books:
    """What was found after the last life."""

    lives: int
    incidents: int
    acknowledged: int  # changes the process had said were done
    delivered: int  # distinct messages
    killed_leased: int  # lives that ended between taking a message and marking it
    killed_sent: int  # of those, after the receiver had it
    copies: int  # requests with an id that had arrived before
    unexplained: list[str] = field(default_factory=list)  # copies outside the documented window
    forgotten: list[str] = field(default_factory=list)  # acknowledged, and not in the file
    untold: list[str] = field(default_factory=list)  # incidents whose final state did not arrive
    disordered: list[str] = field(default_factory=list)  # incidents of which an older message came after a newer one


def alerts_at(folder: Path, url: str, life: int) -> Alerts:
    """The alerts of one life, with one webhook receiver."""
    config = AlertsConfig(**one_by_one(), console=False, timeout_seconds=20.0, receivers=[ReceiverConfig(url=f"{url}/{life}")])
    return Alerts(config, folder / "control.sqlite", run="r1", budget_text=BUDGET, clock=lambda: time.time() + life * LIFE_SECONDS)


def live(folder: Path, url: str, life: int, up: Connection) -> None:
    """One life: until somebody kills it."""
    alerts, choose = alerts_at(folder, url, life), random.Random(life)
    alerts.start()
    up.send(True)
    done = os.open(folder / "acknowledged", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for n in range(100_000):
        now = time.time() + life * LIFE_SECONDS
        found = alerts.open_incidents()
        if len(found) > MOST_OPEN or (found and choose.random() < 0.4):
            alerts.resolve(choose.choice(found).fingerprint, now=now, why="gone")
        elif found and choose.random() < 0.4:
            one = choose.choice(found).drifts[0]
            alerts.observe([fact(slice=dict(one.slice), effect=2.5 * (one.effect or 1.0), effect_unit="nats")], now=now)
        else:
            (opened,) = alerts.observe([fact(slice={"replica": f"{life}-{n}"}, effect=1.0, effect_unit="nats")], now=now)
            os.write(done, f"{opened.id}\n".encode())


def trial(folder: Path, *, lives: int, seed: int) -> Books:
    """Kill `lives` processes, let the last one finish, check the books."""
    context, choose = multiprocessing.get_context("forkserver"), random.Random(seed)
    context.set_forkserver_preload(["alerts_killed"])
    leased: dict[int, set[str]] = {}
    with serving(FaultServer()) as server:
        url = f"http://127.0.0.1:{server.port}"
        for life in range(lives):
            ears, mouth = context.Pipe(duplex=False)
            child = context.Process(target=live, args=(folder, url, life, mouth))
            child.start()
            mouth.close()
            if choose.random() < 0.9 and not ears.poll(60.0):  # the others may be killed while they start
                raise RuntimeError(f"life {life} did not begin")
            time.sleep(choose.uniform(0.0, 0.2))  # this is the experiment, not a wait
            child.kill()
            child.join()
            ears.close()
            if child.exitcode != -signal.SIGKILL:
                raise RuntimeError(f"life {life} ended by itself, with exit code {child.exitcode}")
            leased[life] = _leased(folder)
        last = alerts_at(folder, url, lives)
        while last.undelivered():
            last.deliver_due(time.time() + lives * LIFE_SECONDS)
        states = {incident["id"]: incident["state"] for incident in last.incidents(limit=1_000_000)}
        last.stop()
    return _checked(folder, server, leased, states)


def _checked(folder: Path, server: FaultServer, leased: dict[int, set[str]], states: dict[str, str]) -> Books:
    with contextlib.closing(sqlite3.connect(folder / "control.sqlite")) as connection:
        place = dict(connection.execute("SELECT outbox_id, id FROM deliveries WHERE outbox_id IS NOT NULL").fetchall())
    arrivals = [(int(body["path"].strip("/")), body["message_id"], body["incident_id"], body["state"]) for body in server.bodies()]
    said = (folder / "acknowledged").read_text().split()
    lives_of: dict[str, list[int]] = defaultdict(list)
    order: dict[str, list[int]] = defaultdict(list)
    for life, message, incident, _ in arrivals:
        lives_of[message].append(life)
        order[incident].append(place[message])
    final = {incident: state for _, _, incident, state in arrivals}
    came = {(life, message) for life, message, _, _ in arrivals}
    return Books(
        lives=len(leased), incidents=len(states), acknowledged=len(said), delivered=len(lives_of),
        killed_leased=sum(bool(held) for held in leased.values()),
        killed_sent=sum(any((life, message) in came for message in held) for life, held in leased.items()),
        copies=sum(len(each) - 1 for each in lives_of.values()),
        unexplained=[message for message, each in lives_of.items()
                     if len(set(each)) < len(each) or any(message not in leased[life] for life in each[:-1])],
        forgotten=[incident for incident in said if incident not in states],
        untold=[incident for incident, state in states.items() if final.get(incident) != state],
        disordered=[incident for incident, each in order.items() if each != sorted(each)])


def _leased(folder: Path) -> set[str]:
    if not (folder / "control.sqlite").exists():
        return set()
    with contextlib.closing(sqlite3.connect(folder / "control.sqlite")) as connection:
        try:
            return {row[0] for row in connection.execute("SELECT id FROM outbox WHERE state = 'leased'")}
        except sqlite3.OperationalError:  # killed before it had made its tables
            return set()


def main() -> None:
    """Print the books as JSON; exit code 1 when they do not add up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lives", type=int, default=200)
    parser.add_argument("--seed", type=int, default=20261121)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        books = trial(Path(folder), lives=options.lives, seed=options.seed)
    print(json.dumps({**vars(books), "seconds": round(time.monotonic() - began, 1)}, indent=1))
    sys.exit(bool(books.unexplained or books.forgotten or books.untold or books.disordered))


if __name__ == "__main__":
    main()
