"""Who hears of what, and when: routing, quiet hours, escalation, inhibition by stale weights, grouping and flapping, stage by stage."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from alerts import incidents, pipeline
from alerts.config import AlertsConfig, ReceiverConfig
from alerts.incidents import Case
from alerts.notice import Log, Notice, NotifyReason
from alerts.policy import Policy, policy_of
from alerts.quiet import quiet_of
from alerts.silences import Silence
from alerts_helpers import BUDGET, NOW, diagnosis, fact, mismatch

HOUR = 3600.0
BERLIN = ZoneInfo("Europe/Berlin")


def case_of(drift, now=NOW, id=None) -> Case:
    return incidents.opened(drift, run="r1", id=id or f"inc_{drift.stream}_{drift.slice.get('replica', '')}", now=now, closed_at=now, batch_seconds=120.0)


class Desk:
    """A log that remembers what the receivers were told, as the tables do, and a clock."""

    def __init__(self, **policies: Policy) -> None:
        self.log = Log(receivers=tuple(policies), policies=policies, budget_text=BUDGET)

    def tell(self, *cases: Case, now: float) -> dict[tuple[str, str], Notice]:
        """What is decided for (incident id, receiver) at `now`."""
        notices = pipeline.decide(cases, replace(self.log, open_cases=tuple(case for case in cases if case.is_open)), now)
        found = {(notice.case.incident.id, notice.receiver): notice for notice in notices}
        self.log = replace(self.log, last={**self.log.last, **{key: notice.reason for key, notice in found.items()}},
                           told={**self.log.told, **{key: notice.told for key, notice in found.items() if notice.told is not None}})
        return found

    def reasons(self, *cases: Case, now: float) -> list[str]:
        return [str(notice.reason) for notice in self.tell(*cases, now=now).values()]


def berlin(hour: int, minute: int = 0, *, day: int = 21, month: int = 11) -> float:
    return datetime(2026, month, day, hour, minute, tzinfo=BERLIN).timestamp()


def test_a_receiver_hears_only_what_its_match_takes_and_the_record_says_why_not() -> None:
    desk = Desk(numerics=Policy(match={"cause": ("temperature", "raw_*")}), pages=Policy(match={"severity": ("page",), "run": ("r*",)}),
                engines=Policy(match={"fault": ("engine_*", "tap_silent")}))
    found = desk.tell(case_of(mismatch()), case_of(fact("disk_low", slice={})), now=NOW)
    said = {(id.removeprefix("inc_"), receiver): (str(n.reason), n.detail) for (id, receiver), n in found.items()}
    assert said["self_bet:+0.6_", "numerics"][0] == said["self_bet:+0.6_", "pages"][0] == "first"
    assert said["self_bet:+0.6_", "engines"] == ("not_routed", "fault is mismatch; the receiver takes engine_* or tap_silent")
    assert said["disk_low_", "pages"] == ("not_routed", "severity is warn; the receiver takes page")


def test_a_receiver_that_was_told_hears_the_rest_though_the_cause_turns_out_another() -> None:
    desk, case = Desk(numerics=Policy(match={"cause": ("raw_logprobs",)})), case_of(mismatch())
    assert desk.reasons(case, now=NOW) == ["first"]
    known = incidents.diagnosed(case, diagnosis("temperature"), now=NOW + 60)
    assert desk.reasons(known, now=NOW + 60) == ["diagnosed"]
    assert desk.reasons(incidents.resolved(known, now=NOW + 120), now=NOW + 120) == ["resolved"]


def test_a_verdict_that_fits_later_is_routed_then() -> None:
    desk, case = Desk(storage=Policy(match={"cause": ("stale_weights",)})), case_of(mismatch())
    assert desk.reasons(case, now=NOW) == ["not_routed"]
    assert desk.reasons(incidents.diagnosed(case, diagnosis("stale_weights"), now=NOW), now=NOW + 60) == ["first"]


@pytest.mark.parametrize(("match", "words"), [
    ({"severity": ["critical"]}, "'critical' is no known severity"),
    ({"cause": ["stale_wieghts"]}, "did you mean 'stale_weights'"),
    ({"replica": ["a"]}, "'replica' is none of severity, run, cause, fault"),
])
def test_a_route_that_can_never_match_is_refused_with_the_nearest_right_one(match, words) -> None:
    with pytest.raises(ValidationError, match="receiver 'hook'") as caught:
        ReceiverConfig(name="hook", url="http://127.0.0.1:1/", match=match)
    assert words in str(caught.value)


def test_quiet_hours_hold_what_may_wait_and_tell_it_when_they_end() -> None:
    quiet = quiet_of(["22:00-07:00"], "Europe/Berlin", ["page"])
    desk = Desk(night=Policy(quiet=quiet))
    warning, page = case_of(fact("disk_low", slice={}), now=berlin(23)), case_of(fact(), now=berlin(23))
    found = desk.tell(warning, page, now=berlin(23))
    assert found[page.incident.id, "night"].reason is NotifyReason.FIRST  # its severity passes
    held = found[warning.incident.id, "night"]
    assert (held.reason, held.message) == (NotifyReason.QUIET_HOURS, None)
    assert held.detail == "quiet hours 22:00-07:00 Europe/Berlin; told when they end (first)"
    assert desk.reasons(warning, now=berlin(6, 59, day=22)) == ["quiet_hours"]
    assert desk.reasons(warning, now=berlin(7, day=22)) == ["first"]


def test_what_ends_within_the_quiet_hours_is_never_told_and_the_end_of_what_was_told_before_waits_for_their_end() -> None:
    desk = Desk(night=Policy(quiet=quiet_of(["22:00-07:00"], "Europe/Berlin", [])))
    before, within = case_of(mismatch(), now=berlin(21)), case_of(fact(), now=berlin(23))
    assert desk.reasons(before, now=berlin(21)) == ["first"]
    assert desk.reasons(before, within, now=berlin(23)) == ["duplicate", "quiet_hours"]
    over = [incidents.resolved(case, now=berlin(3, day=22)) for case in (before, within)]
    assert desk.reasons(*over, now=berlin(3, day=22)) == ["quiet_hours", "duplicate"]
    assert desk.reasons(over[0], now=berlin(8, day=22)) == ["resolved"]


def test_quiet_hours_follow_the_wall_clock_through_the_end_of_summer_time() -> None:
    quiet = quiet_of(["22:00-07:00"], "Europe/Berlin")
    before, after = berlin(6, 30, day=24, month=10), berlin(6, 30, day=25, month=10)  # the clocks go back in between: 25 hours
    assert after - before == 25 * HOUR
    assert quiet.span_at(before) is not None and quiet.span_at(after) is not None and quiet.span_at(before + 24 * HOUR) is not None
    assert quiet.span_at(after + HOUR) is None
    assert quiet_of(["00:00-24:00"], "UTC").span_at(NOW) == "00:00-24:00 UTC"


@pytest.mark.parametrize(("keys", "words"), [
    ({"quiet_hours": ["22-7"]}, "is not a span of the day like 22:00-07:00"), ({"quiet_hours": ["25:00-26:00"]}, "no time of day"),
    ({"quiet_hours": ["07:00-07:00"]}, "00:00-24:00"), ({"time_zone": "Mars/Olympus"}, "Europe/Berlin"), ({"quiet_passes": ["critical"]}, "page"),
])
def test_quiet_hours_that_cannot_be_meant_are_refused(keys, words) -> None:
    with pytest.raises(ValidationError) as caught:
        AlertsConfig(receivers=[{"name": "hook", "url": "http://127.0.0.1:1/", **keys}])
    assert words in str(caught.value)


def test_what_nobody_acknowledges_escalates_once_to_those_who_hear_only_of_that() -> None:
    desk, case = Desk(team=Policy(), lead=Policy(escalation=True)), case_of(mismatch())
    found = desk.tell(case, now=NOW)
    assert [(n.receiver, str(n.reason)) for n in found.values()] == [("team", "first"), ("lead", "not_escalated")]
    assert desk.reasons(case, now=NOW + 1799) == ["duplicate", "not_escalated"]
    found = desk.tell(case, now=NOW + 1800)
    assert [str(n.reason) for n in found.values()] == ["escalated", "escalated"]
    assert found[case.incident.id, "team"].detail == "nobody has acknowledged it for 30 min; from now on told to lead as well"
    assert desk.reasons(case, now=NOW + 1900) == ["duplicate", "duplicate"]
    assert desk.reasons(incidents.resolved(case, now=NOW + 2000), now=NOW + 2000) == ["resolved", "resolved"]


def test_an_acknowledged_incident_does_not_escalate() -> None:
    desk, case = Desk(team=Policy(), lead=Policy(escalation=True)), case_of(mismatch())
    desk.tell(case, now=NOW)
    taken = incidents.acknowledged(case, now=NOW + 60, by="ada")
    assert desk.reasons(taken, now=NOW + 60) == ["acknowledged", "not_escalated"]
    assert desk.reasons(taken, now=NOW + 3 * HOUR) == ["duplicate", "not_escalated"]
    assert desk.reasons(incidents.resolved(taken, now=NOW + 4 * HOUR), now=NOW + 4 * HOUR) == ["resolved", "duplicate"]


def test_escalation_counts_from_when_somebody_first_heard_of_it() -> None:
    desk, case = Desk(team=Policy(), lead=Policy(escalation=True)), case_of(mismatch())
    desk.log = replace(desk.log, silences=(Silence(match={"run": "*"}, starts_at=NOW, ends_at=NOW + HOUR, author="ada", reason="upgrade"),))
    assert desk.reasons(case, now=NOW) == ["muted", "muted"]
    found = desk.tell(case, now=NOW + HOUR)
    assert [(str(n.reason), n.detail) for n in found.values()] == [
        ("first", "its silence has ended, and it still fires"), ("not_escalated", "it escalates if nobody acknowledges it for 30 min")]
    assert desk.reasons(case, now=NOW + HOUR + 1799) == ["duplicate", "not_escalated"]
    assert desk.reasons(case, now=NOW + HOUR + 1800) == ["escalated", "escalated"]


def test_an_escalation_that_overtakes_an_unsent_first_notice_is_told_once() -> None:
    desk, case = Desk(team=Policy(), lead=Policy(escalation=True)), case_of(mismatch())
    desk.tell(case, now=NOW)
    desk.log = replace(desk.log, unsent={(case.incident.id, "team"): NotifyReason.FIRST})
    assert desk.reasons(case, now=NOW + 1800) == ["escalated", "escalated"]
    assert desk.reasons(case, now=NOW + 1815) == ["duplicate", "duplicate"]


@pytest.mark.parametrize("others", [{}, {"lead": Policy(escalation=True, match={"severity": ("warn",)})}])
def test_without_receivers_to_escalate_to_nothing_escalates(others) -> None:
    desk, case = Desk(team=Policy(), **others), case_of(mismatch())
    desk.tell(case, now=NOW)
    assert desk.reasons(case, now=NOW + 2 * HOUR)[0] == "duplicate"


@pytest.mark.parametrize("cause", ["label_moved_weights_same", "weights_never_move"])
@pytest.mark.parametrize("stream", ["trainer_metrics:kl", "trainer_metrics:clip_rate", "reference:kl:above:0.5", "battery:k3:global", "explain:stale_weights:0.3"])
def test_weights_that_stand_still_inhibit_what_they_do_to_kl_and_clip_rate(cause, stream) -> None:
    stale, metric = case_of(fact(cause, slice={})), case_of(mismatch(stream=stream), now=NOW - 60)
    found = Desk(team=Policy()).tell(stale, metric, now=NOW)
    assert found[stale.incident.id, "team"].reason is NotifyReason.FIRST
    assert found[metric.incident.id, "team"].detail == f"{cause} is open ({stale.incident.id}) and explains it"


@pytest.mark.parametrize("stream", ["trainer_metrics:reward", "trainer_metrics:entropy", "self_bet:+0.6", "requests:0.01", "explain:temperature:0.7:0.3"])
def test_weights_that_stand_still_do_not_hide_what_they_cannot_explain(stream) -> None:
    stale, other = case_of(fact("weights_never_move", slice={})), case_of(mismatch(stream=stream))
    assert Desk(team=Policy()).reasons(stale, other, now=NOW) == ["first", "first"]


def test_a_confident_verdict_other_than_stale_weights_is_told_beside_weights_that_stand_still() -> None:
    stale, metric = case_of(fact("weights_never_move", slice={})), case_of(mismatch(stream="battery:k3:global"))
    desk = Desk(team=Policy())
    assert desk.reasons(stale, metric, now=NOW) == ["first", "inhibited"]
    assert desk.reasons(stale, incidents.diagnosed(metric, diagnosis("temperature", confident=False), now=NOW), now=NOW) == ["duplicate", "inhibited"]
    assert desk.reasons(stale, incidents.diagnosed(metric, diagnosis("temperature"), now=NOW), now=NOW) == ["duplicate", "first"]


def test_a_confident_stale_weights_verdict_inhibits_the_fact_that_says_the_same_later() -> None:
    known = incidents.diagnosed(case_of(mismatch(stream="trainer_metrics:kl")), diagnosis("stale_weights"), now=NOW)
    later = case_of(fact("weights_never_move"), now=NOW + HOUR)
    found = Desk(team=Policy()).tell(known, later, now=NOW + HOUR)
    assert found[known.incident.id, "team"].reason is NotifyReason.FIRST  # the one opened first is told
    assert found[later.incident.id, "team"].detail == f"stale_weights of mismatch, confident, is open ({known.incident.id}) and explains it"
    unsure = incidents.diagnosed(known, diagnosis("stale_weights", confident=False), now=NOW)
    assert Desk(team=Policy()).reasons(unsure, later, now=NOW + HOUR) == ["inhibited", "first"]


def test_weights_of_another_replica_or_run_explain_nothing() -> None:
    stale = case_of(fact("weights_never_move", slice={"replica": "a"}))
    metric = case_of(mismatch(stream="battery:k3:replica", slice={"replica": "b"}))
    assert Desk(team=Policy()).reasons(stale, metric, now=NOW) == ["first", "first"]
    elsewhere = replace(metric, incident=replace(metric.incident, run="r2", drifts=(mismatch(stream="trainer_metrics:kl"),)))
    assert Desk(team=Policy()).reasons(case_of(fact("weights_never_move", slice={})), elsewhere, now=NOW) == ["first", "first"]


def test_a_fault_in_many_places_is_told_a_few_times_and_then_counted() -> None:
    desk = Desk(team=Policy())
    desk.log = replace(desk.log, group_over=2)
    engines = [case_of(fact(slice={"replica": f"e{i}"}), id=f"inc_{i}") for i in range(6)]
    found = list(desk.tell(*engines[:4], now=NOW).values())
    assert [str(notice.reason) for notice in found] == ["first", "first", "grouped", "grouped"]
    assert found[0].detail == "this is the first notice of this incident; 2 more of this fault are open, listed by `klaxon incidents`"
    assert "klaxon incidents" in found[0].message.because
    assert desk.reasons(*engines[:4], now=NOW + 60) == ["duplicate", "duplicate", "grouped", "grouped"]
    found = list(desk.tell(*engines, now=NOW + 120).values())
    assert [str(notice.reason) for notice in found] == ["worse", "duplicate", *4 * ["grouped"]]  # twice as many as were told
    assert found[0].detail == "it spread: 4 more of this fault are open, listed by `klaxon incidents`"
    assert desk.reasons(*engines, now=NOW + 180) == ["duplicate", "duplicate", *4 * ["grouped"]]


def test_counted_incidents_are_not_told_while_a_told_one_of_their_fault_is_open_and_then_they_are() -> None:
    desk = Desk(team=Policy())
    desk.log = replace(desk.log, group_over=1)
    engines = [case_of(fact(slice={"replica": f"e{i}"}), id=f"inc_{i}") for i in range(3)]
    assert desk.reasons(*engines, now=NOW) == ["first", "grouped", "grouped"]
    over = incidents.resolved(engines[0], now=NOW + 60)
    assert desk.reasons(engines[1], engines[2], over, now=NOW + 60) == ["first", "grouped", "resolved"]
    ended = incidents.resolved(engines[2], now=NOW + 90)
    assert desk.reasons(engines[1], ended, now=NOW + 90) == ["duplicate", "duplicate"]  # never told, so nothing to take back


def test_silenced_incidents_take_no_room_in_a_group() -> None:
    desk = Desk(team=Policy())
    desk.log = replace(desk.log, group_over=1)
    engines = [case_of(fact(slice={"replica": f"e{i}"}), id=f"inc_{i}") for i in range(3)]
    assert desk.reasons(engines[0], now=NOW) == ["first"]
    desk.log = replace(desk.log, silences=(Silence(match={"replica": "e0"}, starts_at=NOW, ends_at=NOW + HOUR, author="ada", reason="x"),))
    assert desk.reasons(*engines, now=NOW + 60) == ["muted", "first", "grouped"]


def test_escalations_of_one_fault_in_many_places_are_gathered_too() -> None:
    desk = Desk(team=Policy(), lead=Policy(escalation=True))
    desk.log = replace(desk.log, group_over=2)
    engines = [case_of(fact(slice={"replica": f"e{i}"}), id=f"inc_{i}") for i in range(4)]
    desk.tell(*engines, now=NOW)
    found = desk.tell(*engines, now=NOW + 1800)
    assert [str(found[case.incident.id, "lead"].reason) for case in engines] == ["escalated", "escalated", "grouped", "grouped"]
    assert "2 more of this fault are open" in found["inc_0", "lead"].detail


def returned(case: Case, now: float) -> Case:
    return incidents.reopened(case, case.incident.drifts[0], now=now, batch_seconds=120.0)


def test_a_fault_that_comes_and_goes_is_told_as_one_incident_that_fires_until_it_stays_away() -> None:
    desk, case = Desk(team=Policy()), case_of(mismatch())
    assert desk.reasons(case, now=NOW) == ["first"]
    told = []
    for i in range(1, 5):  # every four minutes it ends, a minute later it is back
        case = incidents.resolved(case, now=NOW + 240 * i - 60)
        told += desk.reasons(case, now=NOW + 240 * i - 60)
        case = returned(case, NOW + 240 * i)
        told += desk.reasons(case, now=NOW + 240 * i)
    assert told == ["resolved", "reopened", *3 * ["flapping", "duplicate"]]
    over = incidents.resolved(case, now=NOW + 1000)
    held = desk.tell(over, now=NOW + 1000)[over.incident.id, "team"]
    assert (held.reason, held.message) == (NotifyReason.FLAPPING, None)
    assert held.detail == "it came back 4 times within 15 min of its end; its end is told once it has stayed away for 15 min"
    assert desk.reasons(over, now=NOW + 1899) == ["flapping"]
    found = desk.tell(over, now=NOW + 1900)[over.incident.id, "team"]
    assert (found.reason, found.detail) == (NotifyReason.RESOLVED, "the incident is over; it came back 4 times before")


def test_a_fault_that_stayed_for_the_window_is_no_longer_taken_for_flapping() -> None:
    desk, case = Desk(team=Policy()), case_of(mismatch())
    desk.tell(case, now=NOW)
    case = returned(incidents.resolved(case, now=NOW + 60), NOW + 120)
    over = incidents.resolved(case, now=NOW + 120 + 900)
    assert over.returns == 0 and desk.reasons(over, now=NOW + 1020) == ["resolved"]


def test_policies_come_out_of_the_configuration() -> None:
    receiver = ReceiverConfig(name="lead", url="http://127.0.0.1:1/", match={"severity": ["page"]}, escalation=True,
                              quiet_hours=["22:00-06:00"], time_zone="Asia/Tokyo", quiet_passes=[])
    assert policy_of(receiver) == Policy(match={"severity": ("page",)}, escalation=True, quiet=quiet_of(["22:00-06:00"], "Asia/Tokyo", []))
    assert policy_of(ReceiverConfig(type="console")) == Policy()
