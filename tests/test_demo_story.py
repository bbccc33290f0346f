"""How a demo judges what happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from klaxon.demo.story import Metrics, Story, delivered_count

STATUS = {"counts": {"seen": 700, "scored": 690, "tokens_scored": 9000}, "weights": {"versions_seen": 25},
          "floor_nats": 0.021, "started_at": 1000.0, "batch_seconds": 8.0}


def incident(*, opened_at: float = 1130.0, cause: str | None = "raw_logprobs", confident: bool = True, kind: str = "statistical") -> dict[str, Any]:
    diagnosis = None if cause is None else {"verdict": cause, "confident": confident}
    return {"id": "i1", "opened_at": opened_at, "alarm_t": int((opened_at - 1000.0) // 8.0), "drifts": [{"kind": kind}],
            "diagnosis": diagnosis, "state": "firing", "title": "mismatch"}


def story(*incidents: dict[str, Any], fault: str = "raw-logprobs", fault_at: float | None = 1100.0, delivered: int = 2,
          status: dict[str, Any] = STATUS) -> Story:
    return Story(fault=fault, fault_at=fault_at, engine="vLLM", status=status, incidents=incidents, delivered=delivered)


def test_the_right_alarm_after_the_fault_is_as_expected() -> None:
    seen = story(incident())
    assert seen.as_expected() and seen.settled()
    found = seen.summary()
    assert found["alarm_at"] == 1130.0
    assert found["cause"] == "raw_logprobs"
    assert found["batches_to_alarm"] == 16 - 12 + 1
    assert found["false_alarms_before_fault"] == 0


@pytest.mark.parametrize("seen", [
    story(),
    story(incident(cause="temperature")),
    story(incident(cause=None)),
    story(incident(), delivered=0),
    story(incident(kind="fact")),
    story(incident(), incident(opened_at=1050.0)),
    story(incident(opened_at=1050.0)),
    story(incident(), status={**STATUS, "counts": {"seen": 700}}),
    story(incident(), fault_at=None),
], ids=["no alarm", "wrong cause", "no diagnosis", "nobody told", "only a fact", "false alarm before", "alarm before the fault",
        "nothing scored", "the fault was never made"])
def test_anything_else_is_not(seen: Story) -> None:
    assert not seen.as_expected()


def test_an_unsure_diagnosis_is_not_settled() -> None:
    assert not story(incident(confident=False)).settled()


def test_without_a_fault_silence_is_expected_and_any_alarm_is_false() -> None:
    quiet = story(fault="none", fault_at=None, delivered=0)
    assert quiet.as_expected() and quiet.settled()
    assert quiet.summary()["batches_to_alarm"] is None
    loud = story(incident(kind="fact"), fault="none", fault_at=None)
    assert not loud.as_expected()
    assert loud.summary()["false_alarms_before_fault"] == 1


def test_metrics_are_followed_and_half_a_line_waits(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    assert metrics.poll() == []
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 0}) + "\n" + '{"st')
        file.flush()
        assert metrics.poll() == [{"step": 0}]
        assert metrics.poll() == []
        file.write('ep": 1}\n')
    assert metrics.poll() == [{"step": 1}]
    assert len(metrics.rows) == 2


def test_delivered_alerts_are_counted_where_they_arrived(tmp_path: Path) -> None:
    assert delivered_count(tmp_path / "received.jsonl") == 0
    (tmp_path / "received.jsonl").write_text("{}\n{}\n")
    assert delivered_count(tmp_path / "received.jsonl") == 2
