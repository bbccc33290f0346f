"""Every verdict and every hard fact has a page that says what to do, and the pages are those of the table."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from alerts import runbooks
from collector.records import CAUSES
from detectors.hardfacts import FACTS
from klaxon.cli import COMMANDS, app

PAGES = Path(__file__).parent.parent / "docs" / "runbooks"


def test_every_cause_and_every_hard_fact_has_a_page_and_nothing_else_has() -> None:
    assert set(runbooks.names()) == {*CAUSES, *FACTS}
    assert {path.stem for path in PAGES.glob("*.md")} == {*runbooks.names(), "README"}


@pytest.mark.parametrize("name", runbooks.names())
def test_the_page_is_the_tables(name: str) -> None:
    assert (PAGES / f"{name}.md").read_text(encoding="utf-8") == runbooks.page(name), "python -m alerts.runbooks docs/runbooks"


def test_the_index_is_the_tables() -> None:
    assert (PAGES / "README.md").read_text(encoding="utf-8") == runbooks.index()


@pytest.mark.parametrize("name", CAUSES)
def test_commands_on_a_page_exist(name: str) -> None:
    typed = [line.split("`")[1].split() for line in runbooks.page(name).splitlines() if line.startswith("- `klaxon ")]
    assert all(command[1] in COMMANDS for command in typed), typed


def test_the_command_prints_a_page_lists_them_and_names_them_for_a_wrong_name() -> None:
    listed = CliRunner().invoke(app(["runbook"]), ["runbook"])
    assert listed.exit_code == 0 and all(name in listed.output for name in runbooks.names())
    assert CliRunner().invoke(app(["runbook"]), ["runbook", "raw_logprobs"]).output.startswith("# raw_logprobs\n")
    wrong = CliRunner().invoke(app(["runbook"]), ["runbook", "raw_logprob"])
    assert "raw_logprobs" in str(wrong.exception) and wrong.exit_code != 0
