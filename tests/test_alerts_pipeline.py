"""The pipeline and the incidents: who is told what, and why."""

from __future__ import annotations

from dataclasses import replace

from alerts import incidents, pipeline
from alerts.config import ReceiverConfig
from alerts.incidents import Case
from alerts.notice import MEANING, Log, Notice, NotifyReason, Told
from alerts.silences import Silence
from alerts_helpers import BUDGET, NOW, alerts_of, diagnosis, fact, mismatch

LOG = Log(receivers=("slack",), budget_text=BUDGET)
CONSOLE = ReceiverConfig(type="console", name="console")


def opened(drift, now=NOW) -> Case:
    return incidents.opened(drift, run="r1", id="inc_" + drift.stream, now=now, closed_at=now, batch_seconds=120.0)


def decide(case: Case, log: Log = LOG, now: float = NOW) -> Notice:
    (notice,) = pipeline.decide([case], log, now)
    return notice


def after(case: Case, **changes) -> Log:
    """The log once the case has been told to the receiver."""
    notice = decide(case)
    return replace(LOG, open_cases=(case,), told={(case.incident.id, "slack"): replace(notice.told, **changes)})


def test_the_pipeline_is_the_list_the_design_names() -> None:
    assert [stage.__name__ for stage in pipeline.PIPELINE] == [
        "group", "route", "inhibit", "mute", "deduplicate", "gather", "damp", "respect_quiet", "deliver", "record"]


def test_every_reason_is_explained_in_plain_words_and_either_sends_or_does_not() -> None:
    assert set(MEANING) == set(NotifyReason)
    assert {str(reason) for reason in NotifyReason if not reason.sends} == {
        "muted", "inhibited", "duplicate", "not_routed", "not_escalated", "grouped", "flapping", "quiet_hours"}


def test_a_new_incident_is_told_first_to_every_receiver() -> None:
    notices = pipeline.decide([opened(mismatch())], replace(LOG, receivers=("a", "b")), NOW)
    assert [(n.receiver, n.reason) for n in notices] == [("a", NotifyReason.FIRST), ("b", NotifyReason.FIRST)]
    assert all(n.message is not None and n.told is not None for n in notices)


def test_nothing_new_is_a_duplicate_and_carries_no_message() -> None:
    case = opened(mismatch())
    notice = decide(case, after(case), NOW + 60)
    assert (notice.reason, notice.message, notice.told) == (NotifyReason.DUPLICATE, None, None)


def test_a_confident_verdict_is_news_once() -> None:
    case = opened(mismatch())
    log = after(case)
    known = incidents.diagnosed(case, diagnosis(), now=NOW)
    first = decide(known, log)
    assert (first.reason, first.detail) == (NotifyReason.DIAGNOSED, "the cause is now known")
    again = decide(known, replace(log, told={(case.incident.id, "slack"): first.told}))
    assert again.reason is NotifyReason.DUPLICATE


def test_an_uncertain_measured_diagnosis_is_told_once_and_changing_leaders_are_not() -> None:
    case = opened(mismatch())
    log = after(case)
    unsure = decide(incidents.diagnosed(case, diagnosis(confident=False), now=NOW), log)
    assert unsure.reason is NotifyReason.DIAGNOSED
    log = replace(log, told={(case.incident.id, "slack"): unsure.told})
    other = incidents.diagnosed(case, diagnosis("temperature", confident=False), now=NOW)
    assert decide(other, log).reason is NotifyReason.DUPLICATE


def test_an_effect_that_doubled_or_a_new_slice_is_worse() -> None:
    case = opened(mismatch(effect=0.2))
    log = after(case)
    grown = incidents.updated(case, mismatch(effect=0.41), now=NOW, batch_seconds=120.0)
    assert decide(grown, log).detail == "it grew from 0.2 nats to 0.41 nats since the last message"
    spread = incidents.updated(case, mismatch(slice={"replica": "b"}), now=NOW, batch_seconds=120.0)
    notice = decide(spread, log)
    assert (notice.reason, notice.detail) == (NotifyReason.WORSE, "it spread: replica b")


def test_an_unacknowledged_incident_is_repeated_and_an_acknowledged_one_is_not() -> None:
    case = opened(mismatch())
    log, later = after(case), NOW + LOG.repeat_interval_seconds
    assert decide(case, log, later).reason is NotifyReason.REPEAT
    assert decide(case, log, later - 1).reason is NotifyReason.DUPLICATE
    taken = incidents.acknowledged(case, now=NOW, by="ada", reason="on it")
    heard = decide(taken, log, later)
    assert (heard.reason, heard.detail) == (NotifyReason.ACKNOWLEDGED, "it was acknowledged by ada: on it")
    assert decide(taken, replace(log, told={(case.incident.id, "slack"): heard.told}), later + 10 * later).reason is NotifyReason.DUPLICATE


def test_an_unreachable_engine_inhibits_no_rollouts_and_nothing_else() -> None:
    engine, silence = opened(fact()), opened(fact("no_rollouts", slice={}))
    log = replace(LOG, open_cases=(engine, silence))
    notice = decide(silence, log)
    assert (notice.reason, notice.message) == (NotifyReason.INHIBITED, None)
    assert engine.incident.id in notice.detail
    assert decide(engine, log).reason is NotifyReason.FIRST
    assert decide(opened(mismatch()), log).reason is NotifyReason.FIRST
    assert decide(silence).reason is NotifyReason.FIRST


def test_another_replicas_engine_does_not_inhibit() -> None:
    engine, tap = opened(fact()), opened(fact("tap_silent", slice={"replica": "http://10.0.0.4:8000"}))
    assert decide(tap, replace(LOG, open_cases=(engine, tap))).reason is NotifyReason.FIRST


def test_only_a_silence_mutes_and_only_in_its_time() -> None:
    case = opened(mismatch())
    row = Silence(id="sil_1", match={"fingerprint": case.incident.fingerprint}, starts_at=NOW, ends_at=NOW + 60, author="ada", reason="known")
    log = replace(LOG, silences=(row,))
    assert decide(case, log).detail == "muted by ada until 05:21:00 UTC, 21 Nov 2026: known (silence sil_1)"
    assert decide(case, log, NOW + 60).reason is NotifyReason.FIRST
    assert decide(case, replace(LOG, silences=(replace(row, match={"fingerprint": "r1/other"}),))).reason is NotifyReason.FIRST


def test_the_end_is_told_to_whoever_was_told_the_beginning_even_when_muted() -> None:
    case = opened(mismatch())
    over = incidents.resolved(case, now=NOW + 60, calm_seconds=900.0)
    row = Silence(match={"run": "*"}, starts_at=NOW, ends_at=NOW + 600, author="ada", reason="known")
    assert decide(over, replace(after(case), silences=(row,)), NOW + 60).reason is NotifyReason.RESOLVED
    assert decide(over, LOG, NOW + 60).reason is NotifyReason.DUPLICATE


def test_a_message_that_overtakes_an_unsent_first_notice_is_a_first_notice() -> None:
    case = opened(mismatch())
    log = replace(after(case), unsent={(case.incident.id, "slack"): NotifyReason.FIRST})
    assert decide(incidents.diagnosed(case, diagnosis(), now=NOW), log).reason is NotifyReason.FIRST
    assert decide(incidents.resolved(case, now=NOW, calm_seconds=900.0), log).reason is NotifyReason.RESOLVED


def test_stages_do_not_depend_on_each_others_state() -> None:
    case = opened(mismatch())
    assert decide(case) == decide(case)
    assert isinstance(decide(case).told, Told)


def test_one_fault_is_one_incident_and_a_fault_that_returns_much_later_is_a_new_one(tmp_path) -> None:
    alerts = alerts_of(tmp_path / "c.sqlite", CONSOLE)
    (first,) = alerts.observe([mismatch()], now=NOW)
    (again,) = alerts.observe([mismatch(stream="explain:raw_logprobs:0.3", statistic=20.0, alarm_t=19)], now=NOW + 120)
    assert first.id == again.id and len(again.drifts) == 1
    assert again.drifts[0].alarm_t == 18 and again.drifts[0].statistic == 20.0
    alerts.observe([fact(), fact(slice={"replica": "other"})], now=NOW + 120)
    assert len(alerts.open_incidents()) == 3
    alerts.resolve("r1/mismatch", now=NOW + 240, why="gone")
    (new,) = alerts.observe([mismatch()], now=NOW + 240 + 900)
    assert new.id != first.id and len(alerts.incidents()) == 4
    alerts.stop()


def test_the_change_interval_is_told_in_utc(tmp_path) -> None:
    alerts = alerts_of(tmp_path / "c.sqlite", CONSOLE)
    alerts.observe([mismatch()], now=NOW + 10, closed_at=NOW)
    assert alerts.incidents()[0]["since"] == [NOW - 360, NOW - 120]
    alerts.observe([mismatch(change_t=(17, 17))], now=NOW + 130, closed_at=NOW + 120)
    assert alerts.incidents()[0]["since"] == [NOW - 240, NOW - 120]
    alerts.stop()


def test_every_decision_is_stored_with_its_reason_and_repeats_of_it_are_counted(tmp_path) -> None:
    alerts = alerts_of(tmp_path / "c.sqlite", CONSOLE)
    alerts.observe([fact(), fact("no_rollouts", slice={})], now=NOW)
    silence = next(i for i in alerts.open_incidents() if i.drifts[0].stream == "no_rollouts")
    for minute in range(1, 4):
        alerts.observe([], now=NOW + 60 * minute)
    alerts.resolve(next(i for i in alerts.open_incidents() if i.id != silence.id).fingerprint, now=NOW + 300, why="back")
    alerts.observe([], now=NOW + 360)
    assert [(d["reason"], d["times"]) for d in alerts.decisions(silence.id)] == [("inhibited", 4), ("first", 1), ("duplicate", 1)]
    alerts.stop()


def test_the_same_alarms_give_the_same_ids_and_messages(tmp_path) -> None:
    seen = []
    for name in ("a.sqlite", "b.sqlite"):
        alerts = alerts_of(tmp_path / name, CONSOLE)
        alerts.observe([mismatch(), fact()], now=NOW)
        alerts.observe([], now=NOW + 60, diagnosis=diagnosis())
        seen.append((alerts.incidents(), [(row["id"], row["reason"]) for row in alerts.undelivered()]))
        alerts.stop()
    assert seen[0] == seen[1]
