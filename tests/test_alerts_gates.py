"""Circuit breaker, rate limit, dead letters, a clock that is set, a disk that is full: what the outbox does about each."""

from __future__ import annotations

import sqlite3
import time

import pytest
from pydantic import ValidationError

from alerts.config import AlertsConfig, ReceiverConfig
from alerts.gates import limits
from alerts.outbox import LEASE_SECONDS, LONGEST_PAUSE_SECONDS, NEXT
from alerts.service import MANY_OPEN, Alerts
from alerts_fault_server import FaultServer, answer, serving
from alerts_faults import wait
from alerts_helpers import BUDGET, NOW, fact, mismatch, one_by_one
from alerts_helpers import alerts_of as alerts_with
from collector.errors import InputError, Unavailable


@pytest.fixture
def place():
    with serving(FaultServer(fault=answer(500))) as server:
        yield server


def alerts_of(path, *receivers, **changes):
    """With patience enough for a busy machine: a receiver that is well must not look like one that is not."""
    return alerts_with(path, *receivers, **{"timeout_seconds": 20.0, **changes})


def hook(place, **changes):
    return ReceiverConfig(**{"type": "webhook", "name": "hook", "url": f"http://127.0.0.1:{place.port}/", **changes})


def some(count):
    return [fact(slice={"replica": f"engine-{i}"}) for i in range(count)]


def state(alerts, now):
    return next(row for row in alerts.receivers(now) if row["receiver"] == "hook")


def test_the_breaker_opens_after_failures_in_a_row_tries_one_message_and_closes_on_an_answer(place, tmp_path) -> None:
    alerts = alerts_of(tmp_path / "c.sqlite", hook(place), breaker_failures=3, breaker_seconds=30.0, **one_by_one())
    alerts.observe(some(10), now=NOW)
    assert alerts.deliver_due(NOW) == 0 and len(place.seen) == 3
    assert (state(alerts, NOW)["breaker"], state(alerts, NOW)["failures"], state(alerts, NOW)["waiting"]) == ("open", 3, 10)
    assert alerts.deliver_due(NOW + 29) == 0 and len(place.seen) == 3
    assert state(alerts, NOW + 31)["breaker"] == "half-open"
    assert alerts.deliver_due(NOW + 31) == 0 and len(place.seen) == 4  # one probe, and it is left alone again
    assert alerts.counts()["breaker_opened"] == 1
    place.heal()
    assert alerts.deliver_due(NOW + 60) == 0 and alerts.deliver_due(NOW + 62) == 10
    assert state(alerts, NOW + 62)["breaker"] == "closed" and alerts.undelivered() == []
    alerts.stop()


def test_the_breaker_of_one_receiver_is_nobody_elses(place, tmp_path) -> None:
    with serving(FaultServer()) as good:
        alerts = alerts_of(tmp_path / "c.sqlite", hook(place), hook(good, name="good"), breaker_failures=2, **one_by_one())
        alerts.observe(some(5), now=NOW)
        assert alerts.deliver_due(NOW) == 5
        assert [row["breaker"] for row in alerts.receivers(NOW)] == ["open", "closed"]
        alerts.stop()


def test_an_open_breaker_outlives_the_process(place, tmp_path) -> None:
    first = alerts_of(tmp_path / "c.sqlite", hook(place), breaker_failures=2)
    first.observe(some(4), now=NOW)
    first.deliver_due(NOW)
    first.stop()
    second = alerts_of(tmp_path / "c.sqlite", hook(place), breaker_failures=2)
    assert second.deliver_due(NOW + 10) == 0 and len(place.seen) == 2
    second.stop()


def test_a_message_that_fails_by_itself_does_not_keep_the_breaker_open(place, tmp_path) -> None:
    alerts = alerts_of(tmp_path / "c.sqlite", hook(place), breaker_failures=2, backoff_seconds=0.01)
    alerts.observe([mismatch()], now=NOW)
    for at in (NOW, NOW + 1):
        alerts.deliver_due(at)
    poison = place.seen[0][2]["message_id"]
    alerts.observe(some(2), now=NOW + 2)
    place.heal()
    alerts.deliver_due(NOW + 40)
    assert place.seen[2][2]["message_id"] != poison  # the probe is one that has failed less often
    assert alerts.undelivered() == []
    alerts.stop()


def test_asking_for_patience_and_refusing_do_not_open_the_breaker(place, tmp_path) -> None:
    alerts = alerts_of(tmp_path / "c.sqlite", hook(place), breaker_failures=1)
    alerts.observe(some(3), now=NOW)
    for at, fault in ((NOW, answer(429, "Retry-After: 1")), (NOW + 2, answer(404))):
        place.fault = fault
        alerts.deliver_due(at)
        assert state(alerts, at)["breaker"] == "closed"
    assert state(alerts, NOW)["dead"] == 3
    alerts.stop()


def test_a_receiver_with_a_rate_gets_no_more_than_that_and_the_others_all(place, tmp_path) -> None:
    place.heal()
    with serving(FaultServer()) as other:
        alerts = alerts_of(tmp_path / "c.sqlite", hook(place), hook(other, name="other"), rates={"hook": 2.0}, **one_by_one())
        alerts.observe(some(20), now=NOW)
        assert alerts.deliver_due(NOW) == 1 + 20
        sent = [alerts.deliver_due(NOW + tick / 100) for tick in range(1, 301)]
        assert sum(sent) == 6  # 3 s at 2 a second
        alerts.stop()


def test_slack_is_told_once_a_second_unless_the_configuration_says_otherwise() -> None:
    assert limits(AlertsConfig(), name="x", kind="slack_webhook").per_second == 1.0
    assert limits(AlertsConfig(), name="x", kind="webhook").per_second == 0.0
    assert limits(AlertsConfig(rates={"slack_webhook": 0}), name="x", kind="slack_webhook").per_second == 0.0
    with pytest.raises(ValidationError, match="rates names 'slak'"):
        AlertsConfig(rates={"slak": 1})
    with pytest.raises(ValidationError, match="rates.console"):
        AlertsConfig(rates={"console": -1})


def test_in_a_long_queue_an_incident_that_keeps_changing_keeps_its_place_and_the_newest_state_leaves(place, tmp_path) -> None:
    place.heal()
    alerts = alerts_of(tmp_path / "c.sqlite", hook(place), rates={"hook": 1.0}, **one_by_one())
    alerts.observe(some(50), now=NOW)
    assert alerts.deliver_due(NOW) == 1
    second = next(one for one in alerts.open_incidents() if one.id == alerts.undelivered()[0]["incident_id"])
    alerts.resolve(second.fingerprint, now=NOW, why="gone")
    assert alerts.deliver_due(NOW + 1.1) == 1
    assert (place.bodies()[-1]["incident_id"], place.bodies()[-1]["state"]) == (second.id, "resolved")
    alerts.stop()


def test_dead_letters_are_listed_and_sent_again_under_their_id_unless_a_newer_message_left(place, tmp_path) -> None:
    place.fault = answer(410)
    alerts = alerts_of(tmp_path / "c.sqlite", hook(place), **one_by_one())
    alerts.observe([mismatch(), *some(1)], now=NOW)
    alerts.deliver_due(NOW)
    ended = next(incident.id for incident in alerts.open_incidents() if incident.fingerprint == "r1/mismatch")
    one, two = sorted(alerts.undelivered(), key=lambda row: row["incident_id"] != ended)
    assert (one["state"], two["state"]) == ("dead", "dead")
    place.heal()
    alerts.resolve("r1/mismatch", now=NOW + 1, why="gone")
    assert alerts.deliver_due(NOW + 1) == 1
    assert not alerts.redeliver(one["id"])  # its end is known by now
    assert alerts.redeliver(two["id"]) and alerts.deliver_due(NOW + 2) == 1
    assert place.bodies()[-1]["message_id"] == two["id"] and alerts.undelivered() == []
    for unusable, said in (("msg_x", "unknown"), (two["id"], "is sent"), (one["id"], "is superseded")):
        with pytest.raises(InputError, match=said):
            alerts.redeliver(unusable)
    alerts.stop()


def test_a_clock_that_jumps_neither_delays_nor_kills_what_waits(place, tmp_path) -> None:
    shift, waits = [0.0], {"backoff_seconds": 0.02, "backoff_max_seconds": 0.05, "breaker_failures": 1000,
                         "give_up_after_seconds": 3600.0, "timeout_seconds": 20.0}
    config = AlertsConfig(console=False, receivers=[hook(place)], **waits)
    alerts = Alerts(config, tmp_path / "c.sqlite", run="r1", budget_text=BUDGET, clock=lambda: time.time() + shift[0])
    alerts.start()
    alerts.observe([mismatch()], now=time.time())
    for jump in (48 * 3600.0, -7 * 86400.0, 30.0):
        before, shift[0] = len(place.seen), shift[0] + jump
        wait(lambda before=before: len(place.seen) > before + 2, "the clock jumped and nothing was tried any more")
    assert alerts.undelivered()[0]["state"] in ("pending", "leased") and alerts.counts()["clock_jumps"] == 3
    place.heal()
    wait(lambda: not alerts.undelivered(), "not delivered")
    alerts.stop()


def test_a_clock_put_back_while_nobody_ran_delays_by_no_more_than_the_longest_pause(place, tmp_path) -> None:
    first = alerts_of(tmp_path / "c.sqlite", hook(place), breaker_failures=1)
    first.observe(some(2), now=NOW + 1e6)
    first.deliver_due(NOW + 1e6)
    assert first._outbox._claim("hook", NOW + 1e6 + 40) is not None  # and then the power fails, and the clock's battery
    first.stop()
    place.heal()
    second = alerts_of(tmp_path / "c.sqlite", hook(place))
    second._outbox.settle("hook", NOW)
    assert second.deliver_due(NOW + LEASE_SECONDS + 1) >= 1
    assert second.deliver_due(NOW + LONGEST_PAUSE_SECONDS + 1) + len(place.bodies()) >= 2 and second.undelivered() == []
    second.stop()


def full(alerts):
    """Leave the file not a page to grow, and fill what it has; returns what lets it grow again."""
    database = alerts._database
    database.rows(f"PRAGMA max_page_count={database.rows('PRAGMA page_count')[0][0]}")
    with pytest.raises(Unavailable, match="full"):
        for _ in range(10_000):
            with database.transaction() as connection:
                connection.execute("INSERT INTO memories VALUES (hex(randomblob(16)), 'x', hex(randomblob(400)))")
    return lambda: database.rows("PRAGMA max_page_count=1000000")


def test_what_was_sent_while_the_disk_was_full_is_marked_later_and_not_sent_twice(place, tmp_path, monkeypatch) -> None:
    place.heal()
    alerts = alerts_of(tmp_path / "c.sqlite", hook(place))
    alerts.observe(some(1), now=NOW)
    real = alerts._outbox._mark_sent

    def refused(*args):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(alerts._outbox, "_mark_sent", refused)
    for at in (NOW, NOW + LEASE_SECONDS + 1, NOW + 2 * LEASE_SECONDS + 2):
        with pytest.raises(Unavailable, match="full"):
            alerts.deliver_due(at)
    monkeypatch.setattr(alerts._outbox, "_mark_sent", real)
    alerts.deliver_due(NOW + 300)
    assert len(place.seen) == 1 and alerts.undelivered() == []
    alerts.stop()


def test_a_full_disk_loses_nothing_and_delivery_goes_on_when_there_is_room(place, tmp_path) -> None:
    place.heal()
    alerts = alerts_of(tmp_path / "c.sqlite", hook(place), **one_by_one())
    alerts.start()
    alerts.observe(some(3), now=time.time())
    wait(lambda: len(place.bodies()) == 3 and not alerts.undelivered(), "the first three")
    room = full(alerts)
    with pytest.raises(Unavailable, match="full"):
        alerts.observe([fact(slice={"replica": f"later-{i}"}, text="x" * 900) for i in range(50)], now=time.time())
    room()
    alerts.observe([], now=time.time())
    wait(lambda: len({body["incident_id"] for body in place.bodies()}) == 53 and not alerts.undelivered(), "the rest")
    alerts.stop()


def test_with_very_many_open_an_end_is_told_at_once_and_what_it_uncovers_with_the_next_batch(place, tmp_path) -> None:
    place.heal()
    alerts = alerts_of(tmp_path / "c.sqlite", hook(place), **one_by_one())
    alerts.observe([fact("engine_unreachable", slice={}), fact("no_rollouts", slice={}), *some(MANY_OPEN + 1)], now=NOW)
    cause, hidden = (next(one for one in alerts.open_incidents() if one.fingerprint == f"r1/{name}") for name in ("engine_unreachable", "no_rollouts"))
    alerts.deliver_due(NOW)
    assert hidden.id not in {body["incident_id"] for body in place.bodies()}
    alerts.resolve(cause.fingerprint, now=NOW + 1, why="it answers")
    alerts.deliver_due(NOW + 1)
    assert [body["state"] for body in place.bodies() if body["incident_id"] == cause.id] == ["firing", "resolved"]
    for one in alerts.open_incidents():
        if one.drifts[0].stream == "engine_unreachable":
            alerts.resolve(one.fingerprint, now=NOW + 2, why="it answers")
    alerts.observe([], now=NOW + 3)
    alerts.deliver_due(NOW + 3)
    assert [body["state"] for body in place.bodies() if body["incident_id"] == hidden.id] == ["firing"]
    alerts.stop()


def test_in_a_storm_what_is_new_is_told_in_rounds_and_nothing_is_left_out(place, tmp_path, monkeypatch) -> None:
    place.heal()
    monkeypatch.setattr("alerts.service.STORM_OPEN", 20)
    alerts = alerts_of(tmp_path / "c.sqlite", hook(place), **one_by_one())
    alerts.observe(some(30), now=NOW)
    for tick in range(1, 4):
        alerts.observe([fact(slice={"replica": f"new-{tick}"})], now=NOW + tick / 1000)
    assert alerts.deliver_due(NOW) == 30
    alerts.observe([], now=NOW + 1)
    assert alerts.deliver_due(NOW + 1) == 3
    alerts.observe([fact(slice={"replica": "after the clock went back"})], now=NOW - 3600)
    assert alerts.deliver_due(NOW + 1) == 1
    alerts.stop()


def test_taking_the_next_message_looks_at_no_message_that_has_left(place, tmp_path) -> None:
    alerts = alerts_of(tmp_path / "c.sqlite", hook(place))
    plan = [row["detail"] for row in alerts._database.rows(f"EXPLAIN QUERY PLAN {NEXT.replace(':receiver', '?').replace(':now', '?')}", "hook", NOW)]
    assert plan and not [step for step in plan if "SCAN" in step or "TEMP B-TREE" in step]
    alerts.stop()
