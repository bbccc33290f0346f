"""Silences, acknowledgements, reopening, clock jumps and the lock, on the real file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from alerts import incidents
from alerts.config import AlertsConfig, ReceiverConfig
from alerts.service import Alerts
from alerts.silences import Silence, duration_seconds, read_silence
from alerts_helpers import BUDGET, NOW, alerts_of, diagnosis, fact, mismatch
from collector.errors import InputError, Unavailable

CONSOLE = ReceiverConfig(type="console", name="console")
HOLDER = """
import sys
from alerts.config import AlertsConfig
from alerts.service import Alerts
Alerts(AlertsConfig(), sys.argv[1], run="r1", budget_text="", exclusive=True)
print("up", flush=True)
sys.stdin.read()
"""


def reasons(alerts: Alerts, incident_id: str) -> list[str]:
    return [decision["reason"] for decision in alerts.decisions(incident_id)]


def test_a_silence_by_glob_holds_what_fits_tells_it_when_it_ends_and_leaves_the_rest(tmp_path) -> None:
    alerts = alerts_of(tmp_path / "c.sqlite", CONSOLE)
    made = alerts.desk.silence({"match": {"fault": "engine_*", "replica": "http://10.0.0.*"}, "for": "1h", "author": "ada", "reason": "new rack"}, now=NOW)
    assert made["id"].startswith("sil_") and made["ends_at"] == NOW + 3600
    mine, other = alerts.observe([fact(), fact(slice={"replica": "http://10.9.0.3:8000"})], now=NOW + 60)
    assert (reasons(alerts, mine.id), reasons(alerts, other.id)) == (["muted"], ["first"])
    alerts.observe([], now=NOW + 3599)
    alerts.tick(NOW + 3599)  # between batches nothing is counted
    alerts.tick(NOW + 3600)
    found = alerts.decisions(mine.id)
    assert [(one["reason"], one["times"]) for one in found] == [("muted", 2), ("first", 1)]
    assert found[1]["detail"] == "its silence has ended, and it still fires"
    assert alerts.desk.silences(NOW + 3600) == [] and alerts.desk.silences(NOW + 3600, ended=True)[0]["state"] == "expired"
    alerts.stop()


def test_expiring_a_silence_tells_at_once_and_an_unknown_one_lists_those_in_force(tmp_path) -> None:
    alerts = alerts_of(tmp_path / "c.sqlite", CONSOLE)
    (incident,) = alerts.observe([mismatch()], now=NOW)
    alerts.deliver_due(NOW)
    made = alerts.desk.silence({"incident": incident.id[:7], "for": "2h", "author": "ada", "reason": "known"}, now=NOW + 60)
    assert made["match"] == {"fingerprint": "r1/mismatch"}
    alerts.observe([mismatch(slice={"replica": "b"})], now=NOW + 120)
    with pytest.raises(InputError, match=rf"no silence 'sil_x'; in force: {made['id']} \(by ada: known\)"):
        alerts.desk.expire("sil_x", now=NOW + 180)
    assert alerts.desk.expire(made["id"], now=NOW + 180)["state"] == "expired"
    assert reasons(alerts, incident.id) == ["first", "muted", "worse"]
    with pytest.raises(InputError, match="already ended"):
        alerts.desk.expire(made["id"], now=NOW + 240)
    alerts.stop()


def test_a_planned_silence_begins_at_its_time(tmp_path) -> None:
    alerts = alerts_of(tmp_path / "c.sqlite", CONSOLE)
    alerts.desk.silence({"match": {"run": "r1"}, "starts_at": NOW + 600, "for": "1h", "author": "ada", "reason": "upgrade"}, now=NOW)
    before, = alerts.observe([fact()], now=NOW + 60)
    within, = alerts.observe([mismatch()], now=NOW + 660)
    assert (reasons(alerts, before.id), reasons(alerts, within.id)) == (["first", "muted"], ["muted"])
    alerts.stop()


@pytest.mark.parametrize(("changes", "words"), [
    ({"for": "soon"}, "for: 'soon' is no length of time; write 30m, 2h, 1d"), ({"for": "0h"}, "for: '0h' is not between"),
    ({"for": "-2h"}, "no length of time"), ({"for": "9999d"}, "and a year"), ({"match": {}}, "match: name at least one label"),
    ({"match": {"Fault!": "x"}}, "match.Fault!: is no label"), ({"match": {"fault": 3}}, "match.fault: a value or glob"),
    ({"author": " "}, "author: say who silences it"), ({"reason": ""}, "reason: say why"), ({"mute": 1}, "mute: is unknown"),
    ({"ends_at": NOW + 60}, "ends_at: give one of for"), ({"incident": "inc_x"}, "match: give one of incident and match"),
])
def test_a_silence_that_cannot_be_meant_is_refused_by_field(tmp_path, changes, words) -> None:
    said = {"match": {"fault": "no_rollouts"}, "for": "2h", "author": "ada", "reason": "known", **changes}
    alerts = alerts_of(tmp_path / "c.sqlite", CONSOLE)
    with pytest.raises(InputError) as caught:
        alerts.desk.silence(said, now=NOW)
    assert words in str(caught.value) and alerts.desk.silences(NOW) == []
    alerts.stop()


def test_an_expiry_in_the_past_is_refused_with_its_time() -> None:
    said = {"match": {"run": "*"}, "ends_at": NOW - 1, "author": "ada", "reason": "known"}
    with pytest.raises(InputError, match="ends_at: 05:19:59 UTC, 21 Nov 2026 is past"):
        read_silence(said, now=NOW)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400), ("1d12h", 129600), ("1.5h", 5400), ("1 week", None)])
def test_durations_are_read_as_people_type_them(text, seconds) -> None:
    if seconds is None:
        with pytest.raises(InputError):
            duration_seconds(text)
    else:
        assert duration_seconds(text) == seconds


def test_all_labels_of_a_silence_must_fit_and_a_fingerprint_is_no_glob() -> None:
    case = incidents.opened(fact(slice={"replica": "http://[::1]:8000"}), run="r1", id="inc_1", now=NOW, closed_at=NOW, batch_seconds=120.0)

    def fits(**match: str) -> bool:
        return Silence(match=match, starts_at=NOW, ends_at=NOW + 1, author="a", reason="r").fits(case)

    assert fits(replica="http://[::1]:8000") and fits(run="r?", fault="engine_*") and fits(fingerprint=case.incident.fingerprint)
    assert not fits(run="r1", fault="mismatch") and not fits(position="*") and not fits(fingerprint="r1/*") and not fits()


def test_an_acknowledgement_keeps_who_and_why_is_told_and_stops_the_repeats(tmp_path) -> None:
    alerts = alerts_of(tmp_path / "c.sqlite", CONSOLE)
    (incident,) = alerts.observe([mismatch()], now=NOW)
    alerts.deliver_due(NOW)
    assert alerts.acknowledge(incident.id[:8], by="ada", reason="rolling back", now=NOW + 60).state == "acknowledged"
    alerts.tick(NOW + 86400)
    found = alerts.desk.explain(incident.id, now=NOW + 86400)
    assert found["acknowledgement"] == "acknowledged by ada: rolling back"
    assert [(step["from_state"], step["to_state"], step["author"]) for step in found["history"]] == [
        (None, "firing", None), ("firing", "acknowledged", "ada")]
    assert [one["reason"] for one in found["decisions"]] == ["first", "acknowledged", "duplicate"]
    alerts.resolve("r1/mismatch", now=NOW + 86400, why="gone")
    with pytest.raises(InputError, match="nothing to acknowledge"):
        alerts.acknowledge(incident.id, by="bob", now=NOW + 90000)
    alerts.stop()


def test_an_unknown_incident_lists_the_open_ones_and_an_ambiguous_beginning_the_candidates(tmp_path) -> None:
    alerts = alerts_of(tmp_path / "c.sqlite", CONSOLE)
    with pytest.raises(InputError, match="none is open"):
        alerts.desk.explain("inc_x", now=NOW)
    (one,) = alerts.observe([mismatch()], now=NOW)
    alerts.observe([fact()], now=NOW)
    with pytest.raises(InputError, match=rf"no incident 'inc_x'; open: .*{one.id} \(Rollout logprobs"):
        alerts.desk.explain("inc_x", now=NOW)
    with pytest.raises(InputError, match=r"beginning of 2 incidents: inc_\w+, inc_\w+"):
        alerts.desk.explain("inc_", now=NOW)
    alerts.stop()


def test_a_fault_that_returns_soon_reopens_its_incident_and_its_held_back_end_is_told_by_the_next_process(tmp_path) -> None:
    path = tmp_path / "c.sqlite"
    alerts = alerts_of(path, CONSOLE)
    (first,) = alerts.observe([mismatch()], now=NOW, diagnosis=diagnosis())
    alerts.deliver_due(NOW)
    for i in range(1, 4):
        alerts.resolve("r1/mismatch", now=NOW + 120 * i, why="gone")
        (again,) = alerts.observe([mismatch(alarm_t=18 + i)], now=NOW + 120 * i + 60)
        assert again.id == first.id and again.state == "firing" and again.diagnosis is None
    assert reasons(alerts, first.id) == ["first", "resolved", "reopened", "flapping", "duplicate", "flapping", "duplicate"]
    alerts.resolve("r1/mismatch", now=NOW + 500, why="gone")
    assert alerts.open_incidents() == ()
    alerts.stop()
    alerts = alerts_of(path, CONSOLE)
    alerts.tick(NOW + 1399)
    assert reasons(alerts, first.id)[-1] == "flapping"
    alerts.observe([], now=NOW + 1400)
    alerts.observe([], now=NOW + 90000)
    assert reasons(alerts, first.id)[-1] == "resolved" and len(alerts.incidents()) == 1
    assert [step["to_state"] for step in alerts.desk.explain(first.id, now=NOW)["history"]] == 4 * ["firing", "resolved"]
    (new,) = alerts.observe([mismatch()], now=NOW + 90060)
    assert new.id != first.id
    alerts.stop()


def test_escalations_silences_and_acknowledgements_outlive_a_restart(tmp_path) -> None:
    receivers = (CONSOLE, ReceiverConfig(type="console", name="lead", escalation=True))
    alerts = alerts_of(tmp_path / "c.sqlite", *receivers)
    (one,) = alerts.observe([mismatch()], now=NOW)
    (other,) = alerts.observe([fact()], now=NOW)
    alerts.deliver_due(NOW)
    alerts.tick(NOW + 1800)
    alerts.acknowledge(one.id, by="ada", now=NOW + 1860)
    alerts.desk.silence({"incident": other.id, "for": "1h", "author": "ada", "reason": "known"}, now=NOW + 1860)
    alerts.stop()
    again = alerts_of(tmp_path / "c.sqlite", *receivers)
    again.observe([mismatch(alarm_t=30), fact(alarm_t=31)], now=NOW + 1920)
    again.tick(NOW + 1860 + 3600)
    assert [reason for reason in reasons(again, one.id) if reason != "duplicate"] == ["first", "not_escalated", "escalated", "escalated", "acknowledged", "acknowledged"]
    assert [reason for reason in reasons(again, other.id) if reason != "duplicate"] == [
        "first", "not_escalated", "escalated", "escalated", "muted", "muted", "repeat", "repeat"]
    again.stop()


def test_a_clock_that_goes_back_neither_loses_nor_repeats_a_message(tmp_path) -> None:
    alerts = alerts_of(tmp_path / "c.sqlite", CONSOLE, ReceiverConfig(type="console", name="lead", escalation=True))
    alerts.desk.silence({"match": {"fault": "no_rollouts"}, "for": "1h", "author": "ada", "reason": "known"}, now=NOW)
    (first,) = alerts.observe([mismatch()], now=NOW)
    alerts.deliver_due(NOW)
    muted, = alerts.observe([fact("no_rollouts", slice={})], now=NOW + 10)
    back = NOW - 7 * 86400
    for minute in range(5):
        alerts.observe([], now=back + 60 * minute)
        alerts.observe([mismatch(alarm_t=19 + minute)], now=back + 60 * minute + 30)
    assert [(one["receiver"], one["reason"]) for one in alerts.decisions(first.id) if one["reason"] not in ("duplicate", "not_escalated")] == [
        ("console", "first")]
    assert set(reasons(alerts, muted.id)) == {"muted"}  # a silence that began stays begun
    (other,) = alerts.observe([fact()], now=back + 400)
    assert reasons(alerts, other.id)[0] == "first"
    alerts.tick(back + 1800 + 60)  # escalation and repeats count from the jump, not from the time that lies ahead
    assert reasons(alerts, first.id).count("escalated") == 2
    alerts.tick(back + 1860 + 4 * 3600 + 60)
    assert reasons(alerts, first.id).count("repeat") == 2
    alerts.resolve("r1/mismatch", now=back - 86400, why="gone")
    assert reasons(alerts, first.id).count("resolved") == 2
    assert alerts.observe([mismatch()], now=back - 2 * 86400)[0].id == first.id  # soon, as far as anybody can tell
    alerts.stop()


def test_a_clock_that_jumps_ahead_loses_nothing(tmp_path) -> None:
    alerts = alerts_of(tmp_path / "c.sqlite", CONSOLE)
    (first,) = alerts.observe([mismatch()], now=NOW)
    alerts.deliver_due(NOW)
    alerts.observe([], now=NOW + 365 * 86400)
    alerts.observe([], now=NOW + 60)
    alerts.resolve("r1/mismatch", now=NOW + 120, why="gone")
    assert [reason for reason in reasons(alerts, first.id) if reason != "duplicate"] == ["first", "repeat", "resolved"]
    alerts.stop()


def test_a_first_guess_does_not_replace_a_measured_verdict(tmp_path) -> None:
    alerts = alerts_of(tmp_path / "c.sqlite", CONSOLE)
    (incident,) = alerts.observe([mismatch()], now=NOW)
    alerts.attach_diagnosis(incident.id, diagnosis("stale_weights"), now=NOW + 1)
    alerts.observe([mismatch(alarm_t=20)], now=NOW + 120, diagnosis=diagnosis("temperature", confident=False, causes=()))
    assert alerts.open_incidents()[0].diagnosis.verdict == "stale_weights"
    alerts.stop()


def test_a_second_daemon_on_a_state_file_is_refused_and_kill_9_lets_the_next_one_in(tmp_path) -> None:
    path = tmp_path / "control.sqlite"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
                              cwd=Path(__file__).parent.parent)
    try:
        assert holder.stdout.readline() == "up\n"
        with pytest.raises(Unavailable, match=rf"control\.sqlite: is in use by another process \(pid {holder.pid}\): one daemon a run\. Stop that one"):
            Alerts(AlertsConfig(), path, run="r1", budget_text=BUDGET, exclusive=True)
        Alerts(AlertsConfig(), path, run="r1", budget_text=BUDGET).stop()  # reading beside it is no second daemon
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    for _ in range(2):
        Alerts(AlertsConfig(), path, run="r1", budget_text=BUDGET, exclusive=True).stop()
