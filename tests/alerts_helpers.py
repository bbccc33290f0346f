"""Drifts, diagnoses and a local receiver for the tests of alerts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alerts.config import AlertsConfig, ReceiverConfig
from alerts.service import Alerts
from collector.records import Cause, Diagnosis, Drift
from klaxon.demo.receiver import Inbox, Receiver

NOW = 1795238400.0  # 2026-11-21 05:20:00 UTC
SECRET = "whsec_" + "c2VjcmV0LXNlY3JldC1zZWNyZXQtMTIz"
BUDGET = "1 per 30 days"


def mismatch(**changes: Any) -> Drift:
    """A statistical alarm in batch 18."""
    return Drift(**{"kind": "statistical", "stream": "self_bet:+0.6", "statistic": 14.23, "threshold": 9.98, "alarm_t": 18,
                    "change_t": (16, 17), **changes})


def fact(name: str = "engine_unreachable", **changes: Any) -> Drift:
    """A hard fact in batch 19."""
    return Drift(**{"kind": "fact", "stream": name, "statistic": 1.0, "threshold": 1.0, "alarm_t": 19, "change_t": (19, 19),
                    "text": "http://10.0.0.3:8000 has not answered for 31 s.", "slice": {"replica": "http://10.0.0.3:8000"}, **changes})


def diagnosis(verdict: str = "raw_logprobs", *, confident: bool = True, **changes: Any) -> Diagnosis:
    """A measured verdict."""
    causes = (
        Cause(cause=verdict, residual_nats=0.0182, tokens=1024, evidence=("the tap reports logprobs_mode = raw_logprobs",)),
        Cause(cause="temperature", residual_nats=0.19, tokens=1024), Cause(cause="healthy", residual_nats=0.214, tokens=1024))
    return Diagnosis(**{
        "verdict": verdict, "confident": confident, "causes": causes, "floor_nats": 0.018,
        "next": "vllm serve MODEL --logprobs-mode processed_logprobs", "fix": "Start the engine with logprobs_mode=processed_logprobs.",
        "impact": {"last_clean_version": "41", "first_tainted_version": "42", "tainted_requests": 318, "token_share": 0.37,
                   "clip_rate_before": 0.002, "clip_rate_after": 0.11, "ess_before": 0.998, "ess_after": 0.81}, **changes})


def one_by_one() -> dict[str, float]:
    """Settings under which every change of every incident is told by itself, at once."""
    return {name: 0 for name in ("group_over", "flap_window_seconds") if name in AlertsConfig.model_fields}


@contextmanager
def receiver(**inbox: Any) -> Iterator[tuple[Receiver, Inbox]]:
    """The local receiver on a free port."""
    box = Inbox(**{"secret": SECRET, **inbox})
    with Receiver(box) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server, box
        finally:
            server.shutdown()
            thread.join()


def slack(url: str, **changes: Any) -> ReceiverConfig:
    """A Slack receiver at a local address."""
    return ReceiverConfig(type="slack_webhook", url=f"{url}/services/T000/B000/key", **changes)


def alerts_of(path: Path, *receivers: ReceiverConfig, **changes: Any) -> Alerts:
    """An Alerts object without the console, with short patience and no rate limit."""
    config = AlertsConfig(**{"console": False, "receivers": list(receivers), "timeout_seconds": 5.0, "backoff_seconds": 0.01,
                             "group_over": 0, "rates": {receiver.type: 0.0 for receiver in receivers}, **changes})
    return Alerts(config, path, run="r1", budget_text=BUDGET)


def texts(box: Inbox) -> list[str]:
    """The notification texts of the Slack messages that arrived, oldest first."""
    return [message["body"]["text"] for message in box.messages if message["kind"] == "slack"]
