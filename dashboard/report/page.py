"""From what was gathered to one HTML file: chapters in the order of the four questions, drawn and written by one template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2

from dashboard.report import of_incident, of_klaxon, of_run
from dashboard.report.gathered import Gathered
from dashboard.report.parts import Section
from dashboard.report.pictures import Pen, Svg
from dashboard.words import clock

SHOWN = {"mean_abs_d", "mean_abs_d_se", "p50_abs_d", "p99_abs_d", "k3", "clip_rate", "gspo_clip_rate", "ess"}
"""Signals that stand in the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A finished page, and what is in it."""

    html: str
    charts: int
    incidents: list[str]
    headline: str


def write(found: Gathered, svg: Svg, *, source: str, made_at: float, version: str, progress: Callable[[str], None] = lambda said: None) -> Written:
    """The page. `source`: the run or file it is about, as it was named; `made_at`: UTC seconds."""
    pen = Pen(svg)
    sections = [of_klaxon.verdict(found)]
    for number, one in enumerate(found.dossiers, 1):
        progress(f"drawing incident {number} of {len(found.dossiers)}")
        sections.append(of_incident.chapter(one, pen))
    progress("drawing the run")
    sections += [of_run.numbers(found, pen), of_run.slices(found, pen)]
    if not found.findings:
        sections += [of_run.training(found, pen), of_run.engine(found)]
    sections += [of_klaxon.unseen(found, pen), of_klaxon.promise(found), of_run.definitions(found, SHOWN)]
    headline = of_klaxon.headline(found, [one for one in found.incidents if one.get("state") != "resolved"]).title
    return Written(html=_html(sections, run=str(found.status.get("run", "unknown")), source=source, made=clock(made_at, now=0), until=clock(found.now, now=0), version=version),
                   charts=pen.drawn, incidents=[str(one.incident.get("id")) for one in found.dossiers], headline=headline)


def _html(sections: list[Section], **said: str) -> str:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined)
    return environment.get_template("template.html").render(sections=sections, **said)
