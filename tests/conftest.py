"""What every test run leaves behind: each failure in a line, for `make test` to print last (libraries print at exit after pytest's own summary)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CACHE = Path(__file__).parent.parent / ".pytest_cache"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line a failed or broken test: where, and the first line of why."""
    reports = [report for outcome in ("failed", "error") for report in terminalreporter.stats.get(outcome, [])]
    why = (report.longrepr.reprcrash.message if getattr(report.longrepr, "reprcrash", None) else report.longreprtext for report in reports)
    if hasattr(terminalreporter.config, "workerinput"):
        return
    CACHE.mkdir(exist_ok=True)
    (CACHE / f"failures-{os.getpid()}.txt").write_text("".join(f"{report.nodeid}: {' '.join(text.split())[:240]}\n" for report, text in zip(reports, why, strict=True)), encoding="utf-8")
