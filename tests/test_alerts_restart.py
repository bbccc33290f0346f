"""Restart and kill -9: no alert is lost, and a second copy carries the same id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alerts.config import ReceiverConfig
from alerts.outbox import LEASE_SECONDS
from alerts_helpers import NOW, alerts_of, diagnosis, fact, mismatch, receiver, slack
from collector.errors import Unavailable

CHILD = """
import sys, time
from alerts_helpers import NOW, alerts_of, fact
from alerts.config import ReceiverConfig
alerts = alerts_of(sys.argv[1], ReceiverConfig(type="webhook", url=sys.argv[2] + "/webhook"), timeout_seconds=20.0)
alerts.start()
for i in range(10_000):
    alerts.observe([fact(slice={"replica": f"engine-{i}"})], now=NOW + i)
    print(i, flush=True)
"""


def test_a_new_process_delivers_what_the_last_one_could_not(tmp_path) -> None:
    path = tmp_path / "control.sqlite"
    with receiver(fail_first=1, retry_after=5.0) as (server, box):
        first = alerts_of(path, slack(server.url))
        (incident,) = first.observe([mismatch()], now=NOW)
        first.deliver_due(NOW)
        first.stop()
        second = alerts_of(path, slack(server.url))
        assert [opened.id for opened in second.open_incidents()] == [incident.id]
        assert second.deliver_due(NOW + 1) == 0  # the receiver's Retry-After outlives the process
        assert second.deliver_due(NOW + 6) == 1
        second.attach_diagnosis(incident.id, diagnosis(), now=NOW + 7)
        assert second.deliver_due(NOW + 7) == 1
        second.stop()
    assert len(box.messages) == 2


def test_a_message_leased_by_a_dead_process_is_sent_when_the_lease_runs_out(tmp_path) -> None:
    path = tmp_path / "control.sqlite"
    with receiver() as (server, box):
        dead = alerts_of(path, slack(server.url))
        dead.observe([mismatch()], now=NOW)
        assert dead._outbox._claim("slack_webhook", NOW) is not None  # and then the power fails
        alive = alerts_of(path, slack(server.url))
        assert alive.deliver_due(NOW + LEASE_SECONDS - 1) == 0
        assert alive.deliver_due(NOW + LEASE_SECONDS + 1) == 1
        dead.stop()
        alive.stop()
    assert len(box.messages) == 1


def test_kill_9_in_the_middle_of_delivery_loses_no_alert(tmp_path) -> None:
    path = tmp_path / "control.sqlite"
    with receiver(secret=None) as (server, box):
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), server.url], stdout=subprocess.PIPE, text=True,
                                 env=env, cwd=Path(__file__).parent.parent)
        acknowledged = [int(child.stdout.readline()) for _ in range(25)]
        child.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in child.stdout.read().split()]
        child.wait()
        child.stdout.close()
        before = len(box.messages)
        alerts = alerts_of(path, ReceiverConfig(type="webhook", url=f"{server.url}/webhook"), timeout_seconds=20.0)
        alerts.deliver_due(time.time() + LEASE_SECONDS + 1)
        assert alerts.undelivered() == []
        opened = {incident.id for incident in alerts.open_incidents()}
        alerts.stop()
    copies = Counter(message["id"] for message in box.messages)
    told = {message["body"]["data"]["incident_id"] for message in box.messages}
    assert opened == told and len(opened) >= len(acknowledged) >= 25
    assert 0 < before < len(box.messages) or before == len(opened)
    assert sum(copies.values()) - len(copies) <= 1  # the one window: sent, not yet marked


def test_observing_from_many_threads_is_safe(tmp_path) -> None:
    with receiver() as (server, box):
        alerts = alerts_of(tmp_path / "control.sqlite", slack(server.url))
        alerts.start()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda i: alerts.observe([fact(slice={"replica": f"engine-{i % 5}"})], now=NOW + i), range(20)))
        alerts.stop(drain_seconds=5.0)
    assert len(box.messages) == 5


def test_an_alarm_that_a_full_disk_refused_is_taken_with_the_next_call(tmp_path) -> None:
    alerts = alerts_of(tmp_path / "control.sqlite", ReceiverConfig(type="console"))
    pages = alerts._database.rows("PRAGMA page_count")[0][0]
    alerts._database.rows(f"PRAGMA max_page_count={pages}")
    with pytest.raises(Unavailable, match="full"):
        for i in range(200):
            alerts.observe([fact(slice={"replica": f"engine-{i}"})], now=NOW + i)
    stored = len(alerts.open_incidents())
    assert stored == i
    alerts._database.rows("PRAGMA max_page_count=1000000")
    alerts.observe([], now=NOW + 300)
    assert len(alerts.open_incidents()) == stored + 1
    alerts.stop()
