"""A chart of the page in a real browser: it says on hover what it shows, and can be taken away as numbers and as a picture."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from dashboard import charts
from dashboard_served import faulty_run
from test_dashboard_browser import browser, dashboard_of, visit  # noqa: F401

pytestmark = pytest.mark.browser


def test_a_chart_is_explained_on_hover_and_taken_away_as_csv_and_png(browser, tmp_path):  # noqa: F811
    with faulty_run(tmp_path) as served, dashboard_of(served.url, tmp_path / "log") as url:
        page = visit(browser, url)
        chart = page.locator(".st-key-chart-mismatch")
        expect(chart.locator("canvas, svg.marks").first).to_be_visible()
        chart.locator("[data-testid=stTooltipHoverTarget]").first.hover()
        expect(page.locator("[data-testid=stTooltipContent]").first).to_contain_text("A healthy engine stays near its floor")
        with page.expect_download() as numbers:
            chart.get_by_role("button", name="CSV").first.click()
        told = numbers.value.path().read_text(encoding="utf-8")
        assert numbers.value.suggested_filename == "klaxon-mismatch.csv" and told.startswith("row,at,") and "Z," in told and "p50–p99" in told and "frame" not in told
        with page.expect_download() as picture:
            chart.get_by_role("button", name="Download as PNG").first.press("Enter")  # a moving pointer would lose the toolbar
        assert picture.value.suggested_filename.endswith(".png") and picture.value.path().read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        page.close()


def test_the_numbers_of_a_chart_hold_no_places_of_labels():
    look = charts.Look(y_title="nats", series=(("mean", "#000", False),))
    table = charts._chart("x", "X", "x", look, [{"row": "line", "at": 1000.0, "value": 2.0}, {"row": "rule", "at": 2000.0, "value": 1.0, "low": 3.0, "text": "alarm"},
                                                {"row": "frame", "at": 0.0}], empty="").rows
    told = charts.numbers(charts.Chart(name="x", title="X", help="x", look=look, rows=table))
    assert told.to_dict("records")[0] | {"text": None} == {"row": "line", "at": "1970-01-01T00:00:01.000000Z", "value": 2.0, "text": None}
    assert told["value"].tolist()[0] == 2.0 and told["value"].isna().tolist() == [False, True] and "low" not in told
