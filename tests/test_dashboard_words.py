"""What the page says in each state, that text from outside stays text, and that charts change their rows, not their shape."""

from __future__ import annotations

import doctest
import io
from dataclasses import replace

import httpx
import pandas as pd
import pyarrow as pa
import pytest

from dashboard import charts, launch, words
from dashboard.client import Disconnected, Snapshot, snapshot

NOW = 1_768_953_600.0
STATUS = {"now": NOW, "heartbeat_at": NOW - 1, "started_at": NOW - 7200, "tier": 2, "budget": "1 per 30 days", "floor_nats": 0.015,
          "ln_a": 9.5, "batch_seconds": 10.0}


def shot(**status) -> Snapshot:
    columns = ("mean_abs_d", "p50_abs_d", "p99_abs_d", "k3", "clip_rate", "gspo_clip_rate", "ln_m", "version_max")
    series = pd.DataFrame({"closed_at": [NOW - 20, NOW - 10, NOW], **{name: [0.01, None, 0.02] for name in columns}})
    return Snapshot(status={**STATUS, **status}, incidents=[], events=[], weights=[], series=series, evidence=pd.DataFrame(),
                    start=NOW - 1800, end=NOW)


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(words).failed == 0


@pytest.mark.parametrize(("status", "title", "tone"), [
    ({"verdict": "healthy"}, "Healthy", "good"),
    ({"verdict": "learning"}, "Learning", "info"),
    ({"verdict": "blind", "verdict_text": "No rollout for 90 s"}, "Blind", "warn"),
    ({"verdict": "starting"}, "Starting", "info"),
    ({"verdict": "some day a new one"}, "Starting", "info"),
    ({"verdict": "healthy", "heartbeat_at": NOW - 300}, "Stale · nothing new for 5 min", "warn"),
    ({}, "Starting", "info"),
])
def test_every_state_has_its_words_and_is_never_empty(status, title, tone):
    said = words.verdict({**STATUS, **status}, [])
    assert (said.title, said.tone) == (title, tone) and len(said.text) > 10


def test_a_mismatch_says_since_when_from_the_earliest_open_incident():
    found = [{"state": "firing", "since": [NOW - 90, NOW - 60]}, {"state": "resolved", "since": [NOW - 9000, NOW]},
             {"state": "acknowledged", "opened_at": NOW - 30}]
    assert words.verdict({**STATUS, "verdict": "mismatch"}, found).title == "Mismatch since 20 Jan 23:58:30 UTC · 1 min 30 s"
    assert words.verdict({**STATUS, "verdict": "mismatch"}, []).title == "Mismatch"


@pytest.mark.parametrize("hostile", ["![x](y)", "<b>x</b>", "[a](javascript:b)", ":red[x] :material/home: :smile:", "$x^2$", "`a`", "# a", "> q",
                                     "1. a", "a|b", "~~a~~"])
def test_text_from_outside_has_no_live_markdown(hostile):
    shown = words.plain(hostile)
    assert shown.replace("\\", "").replace("\u2060", "") == hostile
    assert all(shown[i - 1] == "\\" for i, sign in enumerate(shown) if sign in "[]<>!:$`#*_~|" and i)


def test_addresses_do_not_become_links():
    shown = words.plain("see http://a.b and www.a.b or a@b.c\nnext")
    assert "http://" not in shown.replace("\\", "") and "www." not in shown.replace("\\", "") and "a@" not in shown.replace("\\", "")
    assert "\n" not in shown


def test_pulses_tell_alive_late_and_absent_apart():
    taps = [{"source": "plugin", "last_seen": NOW - 2, "alive": True, "dropped": 3}, {"source": "plugin", "last_seen": NOW - 99, "alive": False},
            {"source": "trainer", "last_seen": NOW, "alive": True}]
    scorer = {"state": "on", "last_scored_at": NOW - 500, "tokens_per_second": 812.3, "backlog": 1200}
    found = {pulse.name: pulse for pulse in words.pulses({**STATUS, "taps": taps, "scorer": scorer})}
    assert (found["Tap"].tone, found["Tap"].note) == ("bad", "1 of 2 alive, 3 dropped")
    assert (found["Scorer"].tone, found["Scorer"].note) == ("warn", "812 tokens/s, 1,200 waiting")
    assert (found["Engine"].tone, found["Klaxon"].tone) == ("good", "good")
    bare = {pulse.name: pulse.value for pulse in words.pulses(STATUS)}
    assert bare == {"Engine": "not seen", "Tap": "not heard", "Scorer": "off", "Klaxon": "now"}


def test_losses_show_known_counts_even_at_zero_and_unknown_ones_when_they_happen():
    found = words.losses({"seen": 9, "refused": 0, "dropped_by_taps": 2, "dropped_gremlins": 5, "dropped_nothing": 0})
    assert found == [("dropped gremlins", 5), ("rollouts dropped inside the engine's tap", 2), ("rollouts or lines refused as bad data", 0)]


def test_the_calls_of_one_weight_update_are_one_line_and_nothing_else_is_merged():
    call = {"kind": "engine_call", "text": "weight_update_call /resume"}
    events = [call | {"at": 30.0}, call | {"at": 29.0, "text": "weight_update_call /pause"}, {"kind": "weights", "at": 28.9, "text": "version 3"},
              call | {"at": 28.0}, call | {"at": 10.0}, {"kind": "alarm", "at": 9.9, "text": "a"}, {"kind": "alarm", "at": 9.8, "text": "b"}]
    assert [[event["at"] for event in group] for group in words.together(events)] == [[30.0, 29.0], [28.9], [28.0], [10.0], [9.9], [9.8]]
    assert words.said_together(words.together(events)[0]) == "weight_update_call /pause, /resume"


def test_the_band_of_a_log_axis_stays_near_the_line():
    bare = shot(floor_nats=None)
    rows = charts.mismatch(replace(bare, series=bare.series.assign(mean_abs_d=[0.03, None, 0.06], p50_abs_d=[0.0, None, 0.02], p99_abs_d=0.5))).rows
    assert rows[rows["row"] == "band"]["low"].tolist() == [pytest.approx(0.03 / charts.BELOW_MEAN), 0.02]


def test_a_chart_changes_its_rows_never_its_specification():
    early, late = charts.mismatch(shot()), charts.mismatch(shot(floor_nats=0.02, now=NOW + 100))
    assert charts.specification(early.look) is charts.specification(late.look)
    assert not early.rows.equals(late.rows) and early.empty is None
    assert "data" not in str(charts.specification(early.look)).replace("datum", "").replace("'data-", "")


def test_every_chart_names_a_unit_on_its_axis_and_explains_itself_in_words():
    made = [charts.mismatch(shot()), charts.k3(shot()), charts.clip(shot()), charts.evidence(shot()), charts.weights(shot()),
            charts.trainer_metric(shot(), "reward", "Reward", y_title="reward, trainer's units", help="The reward.")]
    for chart in made:
        spec = charts.specification(chart.look)
        titles = {layer["encoding"]["y"].get("title") for layer in spec["layer"] if "title" in layer["encoding"].get("y", {})}
        assert titles == {chart.look.y_title} and chart.help.endswith(".")


def test_a_gap_stays_a_gap():
    rows = charts.k3(shot()).rows
    assert rows[rows["row"] == "line"]["value"].isna().tolist() == [False, True, False]


def test_an_empty_chart_says_what_to_do():
    nothing = replace(shot(tier=0), series=shot().series.iloc[:0])
    assert "[weights]" in charts.mismatch(nothing).empty and "klaxon_tap.push" in charts.trainer_metric(
        nothing, "reward", "Reward", y_title="r", help="h").empty


def test_events_close_together_keep_their_own_labels_in_lanes():
    events = [{"at": NOW - 600, "kind": "engine_restart", "text": "r"}, {"at": NOW - 599, "kind": "engine_config", "text": "c"},
              {"at": NOW - 500, "kind": "alarm", "text": "a"}, {"at": NOW - 30, "kind": "weights", "text": "w"},
              {"at": NOW - 20, "kind": "resolved", "text": "ok"}, {"at": NOW - 9999, "kind": "alarm", "text": "before the window"}]
    drawn = charts._events(replace(shot(), events=events))
    rules = [(row["series"], row["low"], row["value"]) for row in drawn if row["row"] == "rule"]
    assert rules == [("restart +1", 0.0, 0.0), ("alarm", 1.0, 0.0), ("resolved", 2.0, 1.0)]
    assert [row["text"] for row in drawn if row["row"] == "tick"] == ["w"]


def test_a_month_of_weight_updates_stays_a_bounded_number_of_marks_and_none_is_lost():
    events = [{"at": NOW - 1800 + second, "kind": "weight_update", "text": f"version {second}"} for second in range(1800)]
    drawn = charts._events(replace(shot(), events=events))
    assert len(drawn) == charts.MOST_TICKS and {row["row"] for row in drawn} == {"tick"}
    assert drawn[0]["text"] == "version 0 · and 17 more"
    assert len(drawn) + sum(int(row["text"].rpartition("and ")[2].removesuffix(" more")) for row in drawn) == len(events)
    assert charts._events(replace(shot(), events=[{"at": NOW, "kind": "weights", "text": "w"}]))[0]["text"] == "w"


def test_labels_of_every_lane_and_side_are_one_layer():
    layers = charts.specification(charts.mismatch(shot()).look)["layer"]
    texts = [layer["mark"] for layer in layers if layer["mark"]["type"] == "text"]
    assert len(texts) == 1 and "datum.low" in texts[0]["dy"]["expr"] and "datum.value" in texts[0]["align"]["expr"]


def arrow(table: pa.Table) -> httpx.Response:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return httpx.Response(200, content=sink.getvalue())


@pytest.mark.parametrize(("answer", "text"), [
    (lambda request: httpx.Response(503, json={"error": "x"}), "answers 503"),
    (lambda request: httpx.Response(200, text="<html>"), "not like Klaxon"),
    (lambda request: httpx.Response(200, json={"now": 1.0}), "no Arrow"),
    (lambda request: (_ for _ in ()).throw(httpx.ConnectError("refused")), "cannot be reached"),
    (lambda request: (_ for _ in ()).throw(httpx.ReadTimeout("slow")), "took longer"),
])
def test_every_way_the_daemon_can_fail_is_said_in_words(answer, text):
    with httpx.Client(base_url="http://daemon", transport=httpx.MockTransport(answer)) as client, pytest.raises(Disconnected, match=text):
        snapshot(client, window_seconds=60)


def test_the_trainers_metrics_are_found_under_the_name_their_framework_uses():
    tables = {
        "/v1/series": pa.table({"closed_at": pa.array([5.0])}), "/v1/evidence": pa.table({"stream": pa.array([], pa.string())}),
        "/v1/metrics": pa.table({"name": ["actor/pg_clipfrac", "critic/rewards/mean"], "source": ["t", "t"], "step": [1, 1], "at": [1.0, 1.0],
                                 "value": [0.1, 0.7]})}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path in tables:
            return arrow(tables[request.url.path])
        return httpx.Response(200, json={"now": 10.0} if request.url.path == "/v1/status" else [])

    with httpx.Client(base_url="http://daemon", transport=httpx.MockTransport(answer)) as client:
        found = snapshot(client, window_seconds=None)
    assert set(found.metrics) == {"clip_rate", "reward"} and found.metrics["reward"]["value"].tolist() == [0.7]
    assert (found.start, found.end) == (4.9, 10.0)


def test_the_page_is_served_on_loopback_and_tells_nobody():
    argv = launch.command(port=8599)
    assert "--server.address=127.0.0.1" in argv and "--browser.gatherUsageStats=false" in argv and "--client.showErrorDetails=none" in argv


def test_what_is_compared_is_told_apart_in_a_fixed_order():
    rows = words.compared({"stale": {"n_tokens": 50.0, "mean_abs_d": 0.2, "clip_rate": 0.1},
                           "served": {"n_tokens": 7315.0, "mean_abs_d": 0.0231, "clip_rate": 0.012}, "unheard_of": {"n_tokens": 1.0}})
    assert [what.split(",")[0] for what, _ in rows] == ["what the engine samples", "staleness alone: newest weights against the generating ones"]
    assert rows[0][1].startswith("mean |d| 0.0231 nats, clip rate 1.2") and "7,315 tokens" in rows[0][1]
    assert words.compared({}) == []
