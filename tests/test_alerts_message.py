"""The message: what a human reads, word for word, and what must never be in it."""

from __future__ import annotations

import json

import pytest

from alerts import incidents, words
from alerts.message import Message, compose
from alerts.render import as_slack, as_text, as_webhook
from alerts_helpers import BUDGET, NOW, diagnosis, fact, mismatch
from collector.records import CAUSES, Cause, Diagnosis
from detectors.hardfacts import FACTS
from klaxon.demo.receiver import _slack_fault
from klaxon.demo.receiver_page import plain

RAW_IN_SLACK = """\
🔴 Rollout logprobs no longer match the trainer
Cause: raw_logprobs (the engine reports logprobs from before temperature and truncation, the trainer expects them after).
run r1
What
Mean |log q − log p| is 0.214 nats a token, 11.9× the 0.018 nats of a healthy pair (the floor).
Alarm
Evidence ln M = 14.2 crossed the threshold ln A = 9.98 in batch 18; leading stream self_bet:+0.6.
Since
between 05:14:00 and 05:18:00 UTC, 21 Nov 2026 (batches 16 to 17)
Where
the whole run; no replica or position was singled out
Why
raw_logprobs (confident)
• explains all but 0.0182 nats a token, over 1,024 tokens; the next best, temperature, leaves 0.19
• the tap reports logprobs_mode = raw_logprobs
Impact
Last clean weight version 41; first tainted 42; 318 scored rollouts since the change are tainted, 37 % of the tokens at hand; \
PPO clip rate from the mismatch alone 0.2 % before, 11 % since; effective sample size 99.8 % before, 81 % since.
Fix
Start the engine with logprobs_mode=processed_logprobs.
Do next
vllm serve MODEL --logprobs-mode processed_logprobs
Runbook
klaxon runbook raw_logprobs
Dashboard (http://127.0.0.1:8501/incident?run=r1&incident=inc_1&window=30m) · Sent because the cause is now known. False-alarm budget: 1 per 30 days; \
a healthy run crosses this threshold no more often than that. · inc_1"""

FACT_IN_TEXT = """\
🔴 A rollout engine does not answer · run r1
  http://10.0.0.3:8000 has not answered for 31 s.
  Alarm    Hard fact, seen in batch 19: it holds or it does not; there is no threshold to cross by chance.
  Since    first seen at 05:20:00 UTC, 21 Nov 2026
  Where    replica http://10.0.0.3:8000
  Do next  $ klaxon status   # then the engine's own log: is it up, out of memory, restarting?
  Runbook  $ klaxon runbook engine_unreachable
  Sent because this is the first notice of this incident. Hard facts spend nothing of the false-alarm budget
  (1 per 30 days).
  http://127.0.0.1:8501/incident?run=r1&incident=inc_1&window=30m&slice=replica%3Dhttp%3A%2F%2F10.0.0.3%3A8000 · inc_1"""

FIRST_IN_TEXT = """\
🔴 Rollout logprobs no longer match the trainer · run r1
  Diagnosing. Leading explanation so far: raw_logprobs (the engine reports logprobs from before temperature
  and truncation, the trainer expects them after).
  What     The sampled tokens do not follow the probabilities the engine itself reports; its size in nats is
           not measured yet.
  Alarm    Evidence ln M = 14.2 crossed the threshold ln A = 9.98 in batch 18; leading stream self_bet:+0.6.
  Since    between 05:14:00 and 05:18:00 UTC, 21 Nov 2026 (batches 16 to 17)
  Where    the whole run; no replica or position was singled out
  Why      Not known yet. Leading explanation: raw_logprobs, from the stream that raised the alarm.
  Do next  $ klaxon status
  Runbook  $ klaxon runbook raw_logprobs
  Sent because this is the first notice of this incident. False-alarm budget: 1 per 30 days; a healthy run
  crosses this threshold no more often than that.
  http://127.0.0.1:8501/incident?run=r1&incident=inc_1&window=30m · inc_1"""


def message(drift, found: Diagnosis | None = None, *, reason="first", detail="this is the first notice of this incident", over=False) -> Message:
    case = incidents.opened(drift, run="r1", id="inc_1", now=NOW, closed_at=NOW, batch_seconds=120.0)
    if found is not None:
        case = incidents.diagnosed(case, found, now=NOW)
    if over:
        case = incidents.resolved(case, now=NOW + 7500)
    return compose(case, reason=reason, detail=detail, budget_text=BUDGET, dashboard_url="http://127.0.0.1:8501", now=NOW)


def shown_in_slack(sent: Message) -> str:
    return plain({"kind": "slack", "body": as_slack(sent)})


def test_the_verdict_reads_like_this_in_slack() -> None:
    sent = message(mismatch(), diagnosis(), reason="diagnosed", detail="the cause is now known")
    assert shown_in_slack(sent) == RAW_IN_SLACK


def test_the_first_message_reads_like_this_on_the_console() -> None:
    assert as_text(message(mismatch())) == FIRST_IN_TEXT


def test_a_hard_fact_reads_like_this_on_the_console() -> None:
    assert as_text(message(fact())) == FACT_IN_TEXT


def test_the_end_says_how_long_it_lasted_and_asks_for_nothing() -> None:
    sent = message(mismatch(), diagnosis(), over=True)
    assert sent.headline == "Resolved after 2 h 5 min. The cause was raw_logprobs."
    assert {"Do next", "Fix"}.isdisjoint(section.name for section in sent.sections)
    assert as_slack(sent)["blocks"][0]["text"]["text"] == "🟢 Resolved: Rollout logprobs no longer match the trainer"


@pytest.mark.parametrize("drift", [mismatch(), mismatch(effect=0.3), fact(), fact("no_rollouts", slice={}), fact("never_heard_of")])
@pytest.mark.parametrize("found", [None, diagnosis(), diagnosis("unexplained", confident=False), diagnosis("healthy")])
def test_every_message_says_what_threshold_budget_since_where_next_and_why_sent(drift, found) -> None:
    sent = message(drift, found)
    names = [section.name for section in sent.sections]
    assert {"Alarm", "Since", "Where", "Do next"} <= set(names)
    assert drift.kind == "fact" or {"What", "Why"} <= set(names)
    assert "budget" in sent.because and BUDGET in sent.because and "first notice" in sent.because
    assert _slack_fault(as_slack(sent)) is None
    json.dumps(as_webhook(sent), allow_nan=False)


def test_rollout_text_ids_and_secrets_never_enter_a_message() -> None:
    secret = diagnosis(
        causes=(Cause(cause="raw_logprobs", residual_nats=0.01, tokens=9, parameters={"prompt": "PRIVATE text", "token_ids": [31337]},
                      evidence=("seen at http://admin:hunter22@engine:8000/ with Authorization: Bearer abcdef123456 and whsec_c2VjcmV0c2VjcmV0",)),),
        impact={"tainted_requests": ["cmpl-PRIVATE-1", "cmpl-PRIVATE-2"], "example": "PRIVATE text", "token_ids": [31337], "token_share": 0.5},
        next="curl https://hooks.slack.com/services/T0/B0/hunter22")
    sent = message(mismatch(slice={"replica": "http://admin:hunter22@10.0.0.3:8000"}), secret)
    for shown in (as_text(sent), json.dumps(as_slack(sent)), json.dumps(as_webhook(sent)), sent.to_json()):
        for forbidden in ("PRIVATE", "31337", "hunter22", "abcdef123456", "c2VjcmV0"):
            assert forbidden not in shown
        assert "2 scored rollouts" in shown


def test_markup_in_data_is_escaped_for_slack() -> None:
    sent = message(mismatch(slice={"replica": "<!channel> & <https://evil.test|click>"}))
    assert "<!channel>" not in json.dumps(as_slack(sent)) and "&lt;!channel&gt; &amp;" in json.dumps(as_slack(sent))
    assert "<!channel>" in as_text(sent)


def test_a_message_fits_slacks_limits_whatever_is_in_it() -> None:
    long = diagnosis(causes=(Cause(cause="raw_logprobs", residual_nats=0.01, tokens=9, evidence=("<" * 3000,) * 9),), next="&" * 5000, fix="x" * 5000)
    sent = message(mismatch(slice={f"key{i}": "v" * 500 for i in range(30)}, stream="s" * 4000), long)
    assert _slack_fault(as_slack(sent)) is None


def test_a_message_comes_back_from_the_outbox_as_it_went_in() -> None:
    sent = message(mismatch(effect=0.2, slice={"replica": "a"}), diagnosis())
    assert Message.from_json(sent.to_json()) == sent


def test_numbers_no_json_knows_are_left_out_of_the_webhook() -> None:
    body = as_webhook(message(mismatch(statistic=float("inf"), effect=float("nan"))))
    assert body["data"]["statistic"] is None and body["data"]["effect"] is None


def test_every_cause_and_every_fact_has_plain_words() -> None:
    assert set(words.CAUSES_IN_WORDS) == set(CAUSES)
    assert set(words.FACT_TITLES) == set(words.FACT_NEXT) == set(FACTS)


def test_a_runbook_is_a_link_where_the_pages_can_be_read() -> None:
    case = incidents.opened(mismatch(), run="r1", id="inc_1", now=NOW, closed_at=NOW, batch_seconds=120.0)
    sent = compose(case, reason="first", detail="", budget_text=BUDGET, dashboard_url="", runbook_url="https://docs.test/runbooks/", now=NOW)
    (link,) = [section for section in sent.sections if section.name == "Runbook"]
    assert (link.text, link.code) == ("https://docs.test/runbooks/raw_logprobs.md", False)


def test_the_evidence_over_time_goes_with_a_statistical_alarm_only() -> None:
    made = {drift.kind: compose(incidents.opened(drift, run="r1", id="inc_1", now=NOW, closed_at=NOW, batch_seconds=120.0), reason="first", detail="", budget_text=BUDGET,
                                dashboard_url="", chart=((NOW - 120, 1.0), (NOW, 14.2)), now=NOW) for drift in (mismatch(), fact())}
    assert made["statistical"].facts["chart"] == [[NOW - 120, 1.0], [NOW, 14.2]] and "chart" not in made["fact"].facts
