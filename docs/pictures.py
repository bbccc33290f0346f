"""The pictures of the documentation, made from what is written down: `python docs/pictures.py` writes docs/pictures/.

flow.svg        what happens to a rollout, and what each tier needs
promise.svg     false pages of healthy fleets against what was allowed: the table of docs/detection.md
delays.svg      how long faults of the mean stay unheard, beside an oracle and other rules: the second table there
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE / "pictures"
INK, DIM, LINE, BLUE, ORANGE, GREEN, PAPER = "#15202B", "#5B6670", "#C9D1DA", "#1A86CC", "#E69F00", "#009E73", "#FFFFFF"
FLOW = (
    ("engine", "vLLM samples; the tap\nreports p, never blocks", "tier 0"), ("sampler", "two coins choose what\nis scored, unbiased", "tier 0"),
    ("scorer", "the trainer's weights,\nfp32 head: q and d", "tier 2, or the trainer's own logprobs: tier 1"),
    ("statistics", "KL, clip rate, ESS\na batch, by slice", "tier 1"), ("detectors", "one evidence,\none false-alarm budget", "tier 0"),
    ("diagnosis", "which fault predicts\nthe numbers best", "tier 2"), ("alerts", "one incident, one\nthread, one next step", "tier 0"))
RULES = (("battery", BLUE, ""), ("oracle", GREEN, "6 3"), ("max-CUSUM", ORANGE, "2 3"), ("KSWIN", DIM, "8 2 2 2"))
FAULTS = ("× 1.2", "× 1.5", "× 2", "× 10")


def table(heading: str) -> list[list[str]]:
    """Rows of the table of docs/detection.md whose first column is `heading`. Raises ValueError: there is none."""
    lines = (HERE / "detection.md").read_text(encoding="utf-8").splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith(f"| {heading} |")), None)
    if start is None:
        raise ValueError(f"docs/detection.md holds no table that begins with {heading!r}")
    rows = []
    for line in lines[start + 2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """A picture with its title, for eyes and for readers."""
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="system-ui, sans-serif" font-size="12">',
                      f"<title>{title}</title>", f'<rect width="{width}" height="{height}" fill="{PAPER}"/>', *parts, "</svg>"]) + "\n"


def text(x: float, y: float, words: str, *, colour: str = INK, anchor: str = "start", bold: bool = False) -> str:
    """One line of words."""
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}"{" font-weight=" + chr(34) + "600" + chr(34) if bold else ""}>{words}</text>'


def flow() -> str:
    """Boxes from left to right, what feeds the scorer from below."""
    box, gap, high = 150, 26, 78
    width, parts = len(FLOW) * (box + gap) + gap, []
    for number, (name, words, tier) in enumerate(FLOW):
        x = gap + number * (box + gap)
        parts += [f'<rect x="{x}" y="30" width="{box}" height="{high}" rx="8" fill="#F3F5F8" stroke="{BLUE if tier == "tier 0" else ORANGE}"/>',
                  text(x + box / 2, 50, name, anchor="middle", bold=True)]
        parts += [text(x + box / 2, 70 + 16 * row, line, colour=DIM, anchor="middle") for row, line in enumerate(words.split("\n"))]
        if number:
            parts.append(f'<path d="M{x - gap + 3} 69h{gap - 9}m-6 -5l6 5l-6 5" fill="none" stroke="{INK}"/>')
    at = gap + 2 * (box + gap) + box / 2
    parts += [f'<path d="M{at} 150v-34m-5 6l5 -6l5 6" fill="none" stroke="{ORANGE}"/>', text(at, 166, "trainer: weights a version, its metrics, or its own logprobs", colour=INK, anchor="middle"),
              text(gap, 20, "blue: from tier 0 on, with the tap alone", colour=BLUE), text(gap + 250, 20, "orange: needs the trainer's logprobs or weights", colour="#9A6B00")]
    return svg(width, 178, "The way of a rollout through Klaxon", parts)


def promise() -> str:
    """Realised over allowed with its 95 % interval, a family a line; the promise is the line at 1."""
    rows, left, wide, step = table("healthy family"), 330, 420, 30
    top, most = 44, 2.5
    parts = [text(left, 22, "false pages realised / allowed (95 % interval); at 1 per 30 days", bold=True)]
    for tick in (0, 0.5, 1, 1.5, 2, 2.5):
        x = left + wide * tick / most
        parts += [f'<path d="M{x:g} {top}v{step * len(rows)}" stroke="{ORANGE if tick == 1 else LINE}" stroke-width="{2 if tick == 1 else 1}"/>',
                  text(x, top + step * len(rows) + 16, f"{tick:g}", colour=DIM, anchor="middle")]
    for number, row in enumerate(rows):
        ratio, low, high = map(float, re.fullmatch(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)", row[-1]).groups())
        y = top + step * (number + 0.5)
        name = row[0] if len(row[0]) < 52 else row[0][:50] + "…"
        parts += [text(left - 12, y + 4, name, anchor="end"), f'<path d="M{left + wide * low / most:g} {y:g}H{left + wide * min(high, most) / most:g}" stroke="{BLUE}" stroke-width="3"/>',
                  f'<circle cx="{left + wide * ratio / most:g}" cy="{y:g}" r="5" fill="{BLUE}"/>']
    parts.append(text(left + wide / most + 8, top - 6, "what was promised", colour="#9A6B00"))
    return svg(left + wide + 40, top + step * len(rows) + 30, "False pages of healthy fleets against what was allowed", parts)


def delays() -> str:
    """Median batches until a shift of mean |d| is heard, by its size, a rule a line; what is not heard is left out."""
    rows = {row[0]: row for row in table("fault")}
    columns = {"battery": 1, "oracle": 3, "max-CUSUM": 4, "KSWIN": 6}
    left, top, wide, high, most = 60, 40, 420, 200, 32.0
    parts = [text(left, 20, "median delay in batches, mean |d| of all replicas shifted", bold=True)]
    for tick in (0, 8, 16, 24, 32):
        y = top + high * (1 - tick / most)
        parts += [f'<path d="M{left} {y:g}h{wide}" stroke="{LINE}"/>', text(left - 8, y + 4, str(tick), colour=DIM, anchor="end")]
    for number, fault in enumerate(FAULTS):
        parts.append(text(left + wide * (number + 0.5) / len(FAULTS), top + high + 18, fault, anchor="middle"))
    for at, (rule, colour, dash) in enumerate(RULES):
        points = [(left + wide * (number + 0.5) / len(FAULTS), top + high * (1 - float(rows[fault][columns[rule]]) / most))
                  for number, fault in enumerate(FAULTS) if rows[fault][columns[rule]] != "–"]
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
        parts += [f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"/>',
                  *(f'<circle cx="{x:g}" cy="{y:g}" r="4" fill="{colour}"/>' for x, y in points),
                  f'<path d="M{left + wide + 20} {top + 14 + 20 * at}h26" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"/>',
                  text(left + wide + 52, top + 18 + 20 * at, rule)]
    return svg(left + wide + 150, top + high + 34, "How long a shift of the mean stays unheard, by rule", parts)


PICTURES = {"flow.svg": flow, "promise.svg": promise, "delays.svg": delays}


def main() -> None:
    """Write them all."""
    OUT.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (OUT / name).write_text(draw(), encoding="utf-8")
        print(f"docs/pictures/{name}")


if __name__ == "__main__":
    main()
