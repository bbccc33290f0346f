"""deploy/prometheus/: Prometheus accepts the rules, each is seen firing and not firing, asks for metrics Klaxon has, and has its runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from klaxon.api_metrics import RunCollector
from klaxon.metric_rows import EXPORTED

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy/prometheus"
RULES, TESTS = FOLDER / "klaxon.rules.yml", FOLDER / "klaxon.rules.test.yml"
ALERTS = re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8"))
STATUS = {
    "run": "r1", "now": 5000.0, "verdict": "blind", "counts": {"store_errors": 2}, "scorer": {"oldest_unscored_seconds": 700.0},
    "taps": [{"source": "plugin", "engine": "http://a", "last_seen": 4000.0, "dropped": 0, "alive": False}],
    "receivers": [{"receiver": "slack", "breaker": "half-open", "failures": 6, "waiting": 3, "dead": 2, "oldest_at": 4000.0},
                  {"receiver": "console", "breaker": "closed", "failures": 0, "waiting": 0, "dead": 0, "oldest_at": None}],
}


def promtool(*arguments: str) -> subprocess.CompletedProcess:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (apt-get install prometheus)")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", [["check", "rules", str(RULES)], ["test", "rules", str(TESTS)]], ids=lambda command: command[0])
def test_promtool_accepts_the_rules_and_they_fire_when_they_should_and_only_then(command) -> None:
    done = promtool(*command)
    assert done.returncode == 0 and "SUCCESS" in done.stdout + done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize(("alert", "instead"), [*((alert, "vector(1) > 2") for alert in ALERTS), (ALERTS[0], "vector(1)")])
def test_the_cases_notice_a_rule_that_never_fires_and_one_that_always_does(alert, instead, tmp_path) -> None:
    expr = re.compile(rf"(- alert: {alert}\n(?:\s+#.*\n)*\s+expr: )(\|\n(?:\s{{10,}}.*\n)+|.*\n)")
    broken, times = expr.subn(rf"\g<1>{instead}\n", RULES.read_text(encoding="utf-8"))
    assert times == 1
    (tmp_path / RULES.name).write_text(broken, encoding="utf-8")
    (tmp_path / TESTS.name).write_text(TESTS.read_text(encoding="utf-8"), encoding="utf-8")
    done = promtool("test", "rules", str(tmp_path / TESTS.name))
    assert done.returncode != 0 and "FAILED" in done.stdout + done.stderr, f"{alert} as {instead} goes unnoticed"


def test_every_rule_has_a_severity_and_a_runbook_that_is_there() -> None:
    page = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    blocks = RULES.read_text(encoding="utf-8").split("- alert: ")[1:]
    assert len(blocks) == len(ALERTS) >= 12
    for block in blocks:
        name = block.split("\n", 1)[0]
        assert re.search(r"severity: (page|warn)", block), name
        assert f'runbook_url: "https://klaxon.example.org/monitoring/#{name.lower()}"' in block and f"\n### {name}\n" in page


def test_every_metric_a_rule_asks_for_is_exported() -> None:
    wanted = {name for name in re.findall(r"klaxon_\w+", " ".join(line for line in RULES.read_text(encoding="utf-8").splitlines() if "#" not in line))
              if not name.startswith("klaxon_rollouts_dropped")}
    assert len(wanted) >= 12 and wanted <= {one.name for one in EXPORTED}


def test_receivers_are_told_apart_in_the_metrics() -> None:
    live = SimpleNamespace(status=lambda: STATUS, incidents=list)
    registry = CollectorRegistry()
    registry.register(RunCollector(SimpleNamespace(query=lambda sql: []), live, faults=lambda: 0))
    text = generate_latest(registry).decode()
    for line in ('klaxon_alerts_receiver_up{receiver="slack",run="r1"} 0.0', 'klaxon_alerts_receiver_up{receiver="console",run="r1"} 1.0',
                 'klaxon_alerts_waiting{receiver="slack",run="r1"} 3.0', 'klaxon_alerts_dead_letters{receiver="slack",run="r1"} 2.0',
                 'klaxon_alerts_oldest_waiting_seconds{receiver="slack",run="r1"} 1000.0', 'klaxon_alerts_oldest_waiting_seconds{receiver="console",run="r1"} 0.0'):
        assert line in text
