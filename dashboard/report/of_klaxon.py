"""The chapters about the watcher: what it says, what it did not see, and whether it keeps its promise."""

from __future__ import annotations

from typing import Any

from dashboard import klaxon_charts, klaxon_words, words
from dashboard.report import of_incident
from dashboard.report.gathered import Gathered
from dashboard.report.parts import Cell, Facts, Part, Section, Table, Words
from dashboard.report.pictures import Pen
from dashboard.words import clock, duration, number, percent

FINDINGS = {"wrong": "bad", "fine": "good", "unknown": "warn"}


def verdict(found: Gathered) -> Section:
    """The answer first, then the incidents in a table."""
    still_open = [one for one in found.incidents if one.get("state") != "resolved"]
    parts: list[Part] = [headline(found, still_open)]
    if found.findings:
        rows: list[list[Cell]] = [[(one["state"], FINDINGS.get(one["state"], "info")), one["topic"], " ".join((one["text"], *one.get("details", ())))] for one in found.findings]
        parts.append(Table(title="What the file says by itself", about="Every test that could be made on it, the wrong first.", columns=("state", "topic", "finding"), rows=rows))
    if found.incidents:
        told = {str(one.incident.get("id")) for one in found.dossiers}
        left = sum(str(one["id"]) not in told for one in found.incidents)
        parts.append(Table(title="Incidents", about="Newest first; the change is the interval in which the fault began." + (f" {left} of them are told here alone." if left else ""),
                           columns=("incident", "state", "change", "where", "cause"), rows=[of_incident.line(one, now=found.now) for one in found.incidents]))
    parts.append(_facts(found))
    return Section(anchor="verdict", title="Verdict", parts=parts)


def headline(found: Gathered, still_open: list[dict[str, Any]]) -> Words:
    """One sentence to be read from across the room, and what it rests on."""
    status = found.status
    if status.get("headline"):  # of a file
        return Words(tone=str(status.get("tone") or "info"), title=str(status["headline"]), lines=[str(status.get("verdict_text") or "")])
    if still_open:
        began = min((at for one in still_open if (at := words.since(one))), default=None)
        since = f" since {clock(began, now=0)}" if began else ""
        return Words(tone="bad", title=f"{_many(len(still_open), 'open incident')}{since}", lines=[str(one.get("title")) for one in still_open[:5]])
    if found.incidents:
        return Words(tone="good", title=f"Nothing fires now; {_many(len(found.incidents), 'resolved incident')}", lines=[str(one.get("title")) for one in found.incidents[:5]])
    return Words(tone="good" if not status.get("learning") else "info", title="No incident",
                 lines=["Nothing has been found in this run. That is health only where Klaxon looks: see “What was not seen”."])


def _facts(found: Gathered) -> Facts:
    status = found.status
    series = found.shot.series
    first, last = (float(series["closed_at"].iloc[at]) if len(series) else None for at in (0, -1))
    scorer, counts = status.get("scorer") or {}, status.get("counts") or {}
    rows = [
        ("Run", str(status.get("run", "unknown")), "Its name in config.toml, or the file."),
        ("Tier", words.TIERS.get(status.get("tier"), "unknown"), "What Klaxon had: the engine's report alone, the trainer's logprobs too, or weights and a scorer."),
        ("Batches", f"{int(status.get('t') or 0) + 1:,} from {clock(first, now=0)} to {clock(last, now=0)}" if len(series) else "none", f"Windows of {duration(float(status.get('batch_seconds') or 0))}, judged one by one."),
        ("Rollouts", f"{int(counts.get('seen') or 0):,} seen, {int(counts.get('scored') or 0):,} compared", "Compared: their tokens' logprobs were held against the trainer's or the scorer's."),
        ("Coverage", percent(scorer.get("coverage")), "Share of the sampled tokens that arrived that were compared."),
        ("Floor", f"{number(status.get('floor_nats'))} nats", "Median mean |d| of the batches closed while nothing fired."),
        ("Evidence", f"{number(status.get('ln_m'))} of {number(status.get('ln_a'))}", "ln M and the threshold ln A it rings at, at the end."),
    ]
    return Facts(title="The run in numbers", rows=rows)


def unseen(found: Gathered, pen: Pen) -> Section:
    """Losses by reason, blind spots, coverage."""
    counts, status = found.status.get("counts") or {}, found.status
    lost: list[list[Cell]] = [[f"{count:,}", text, name] for name, text, count in klaxon_words.drops(counts)]
    spots: list[list[Cell]] = [[str(spot)] for spot in (*(status.get("blind_spots") or ()), *(status.get("notices") or ()))]
    parts: list[Part] = [
        Table(title="Blind spots", about="What could have gone wrong without a word from Klaxon.", columns=("not seen",), rows=spots, empty="None is known at this tier."),
        Table(title="Left out, by reason", about="Everything that arrived and was not compared, was refused or looked odd. A rollout may stand in several lines.",
              columns=("count", "what", "name"), rows=lost, empty="Nothing was left out.")]
    for level, field, title, about, what, x_title in klaxon_charts.SHARES:
        rows = klaxon_charts.shares(found.coverage, level=level, field=field)
        parts.append(pen.figure(f"coverage-{level}", title, about, klaxon_charts.bars(what, x_title), rows, numbers=found.coverage[found.coverage["level"] == level], empty="Nothing was compared."))
    return Section(anchor="unseen", title="What was not seen", about="Silence is only health where Klaxon looks.", parts=parts)


def promise(found: Gathered) -> Section:
    """Promised against realised false alarms, and every kind of bet."""
    status = found.status
    honesty = status.get("honesty") or {}
    promised = str(status.get("budget") or "no stated budget")
    said = klaxon_words.budget(honesty, batch_seconds=float(status.get("batch_seconds") or 0), promise=promised)
    unjudged = f"Promised: at most {promised}. No batch has been judged, so there is nothing to hold against it."
    parts: list[Part] = [Words(lines=[str(status.get("promise_text") or (said if honesty.get("batches") else unjudged))])]
    means: list[list[Cell]] = [[name, number(one.get("mean_e")), number(one.get("standard_error")), f"{one.get('batches', 0):,}"] for name, one in (honesty.get("mean_e") or {}).items()]
    if means:
        parts.append(Table(title="Audit of the battery's own bets", about="A healthy run keeps each mean e-value at 1 or below.", columns=("bet", "mean e-value", "standard error", "batches"), rows=means))
    table = found.shot.evidence
    kinds = table["stream"].map(klaxon_words.kind_of).astype(str) if len(table) else table.get("stream")
    rows: list[list[Cell]] = []
    for kind, (name, question) in klaxon_words.KINDS.items():
        part = table[kinds == kind].dropna(subset=["log_share"]) if len(table) else table
        if len(part):
            top = part.loc[part["log_share"].idxmax()]
            rows.append([name, question, f"{len(part):,}", f"{top['stream']}: {number(float(top['log_share']))} of {number(status.get('ln_a'))}"])
    parts.append(Table(title="Detectors", about="Every kind of bet that has bet, the question it asks, and its strongest stream at the end: ln(weight × evidence) against ln A.",
                       columns=("kind", "question", "streams", "strongest"), rows=rows, empty="No stream has bet."))
    return Section(anchor="promise", title="False alarms: promised and realised", parts=parts)


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")
