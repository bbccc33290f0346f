"""docs/prometheus-rules.yml: Prometheus accepts it, each rule fires when it should, and asks for metrics Klaxon really has."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from klaxon.api_metrics import RunCollector

ROOT = Path(__file__).parent.parent
RULES = ROOT / "docs/prometheus-rules.yml"
STATUS = {
    "now": 5000.0, "verdict": "blind", "counts": {"store_errors": 2}, "scorer": {"oldest_unscored_seconds": 700.0},
    "taps": [{"source": "plugin", "engine": "http://a", "last_seen": 4000.0, "dropped": 0, "alive": False}],
    "receivers": [{"receiver": "slack", "breaker": "half-open", "failures": 6, "waiting": 3, "dead": 2, "oldest_at": 4000.0},
                  {"receiver": "console", "breaker": "closed", "failures": 0, "waiting": 0, "dead": 0, "oldest_at": None}],
}


def exported() -> str:
    live = SimpleNamespace(status=lambda: STATUS, incidents=list)
    registry = CollectorRegistry()
    registry.register(RunCollector(SimpleNamespace(query=lambda sql: []), live, faults=lambda: 0))
    return generate_latest(registry).decode()


@pytest.mark.parametrize("command", [["check", "rules", str(RULES)], ["test", "rules", str(ROOT / "tests/fixtures/prometheus-rules-test.yml")]],
                         ids=lambda command: command[0])
def test_promtool_accepts_the_rules_and_they_fire_when_they_should(command) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (apt-get install prometheus)")
    done = subprocess.run(["promtool", *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "SUCCESS" in done.stdout + done.stderr, done.stdout + done.stderr


def test_every_metric_a_rule_asks_for_is_exported() -> None:
    text = exported()
    wanted = {name for line in RULES.read_text().splitlines() if "expr:" in line for name in re.findall(r"klaxon_\w+", line)}
    assert len(wanted) >= 8
    missing = [name for name in wanted if not re.search(rf"^{name}(\{{| )", text, re.MULTILINE)]
    assert missing == []


def test_receivers_are_told_apart_in_the_metrics() -> None:
    text = exported()
    for line in ('klaxon_alerts_receiver_up{receiver="slack"} 0.0', 'klaxon_alerts_receiver_up{receiver="console"} 1.0',
                 'klaxon_alerts_waiting{receiver="slack"} 3.0', 'klaxon_alerts_dead_letters{receiver="slack"} 2.0',
                 'klaxon_alerts_oldest_waiting_seconds{receiver="slack"} 1000.0', 'klaxon_alerts_oldest_waiting_seconds{receiver="console"} 0.0'):
        assert line in text
