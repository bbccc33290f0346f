"""`klaxon compare-engines`: do two running engines give the same logprobs?"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from klaxon.commands.preflight import progress

if TYPE_CHECKING:
    from diagnosis.parity import Identical
    from klaxon.preflight.compare import Parity

MAX_TOKENS = 32


def compare_engines(
    url_a: Annotated[str, typer.Argument(help="address of the first engine, e.g. the V0 server")],
    url_b: Annotated[str, typer.Argument(help="address of the second one")],
    model: Annotated[Path, typer.Option(help="folder of the weights both serve; measures the floor")],
    max_tokens: Annotated[int, typer.Option(help="tokens of one completion", min=4, max=1024)] = MAX_TOKENS,
    json_: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """Sample on both engines, force each one's tokens through the other, and say whether they are the same within noise.

    Everything at temperature 1 without truncation or penalties, where raw and processed logprobs are the same.

    \b
    Examples:
      klaxon compare-engines http://old:8000 http://new:8000 --model weights/step_0

    Exit codes: 0 the same within noise, 1 they differ, 2 it cannot run.
    """
    from diagnosis.config import DiagnosisConfig
    from klaxon.preflight.compare import compare

    found = compare((url_a, url_b), model, max_tokens=max_tokens, config=DiagnosisConfig(), say=progress())
    if json_:
        print(json.dumps(_json(found, url_a, url_b, model), allow_nan=False))
    else:
        _show(found, url_a, url_b)
    raise typer.Exit(2 if found.doubt and not found.reasons else int(not found.same))


def _json(found: Parity, url_a: str, url_b: str, model: Path) -> dict[str, Any]:
    return {"a": url_a, "b": url_b, "model": str(model), "vllm_versions": list(found.versions), "dtypes": list(found.dtypes), "same": found.same,
            "reasons": list(found.reasons), "doubt": found.doubt, "mode": "temperature 1, neutral sampling", "floor_nats": found.floor_nats,
            "intrinsic_nats": found.intrinsic_nats if math.isfinite(found.intrinsic_nats) else None, "directions": [_finite(asdict(one)) for one in found.directions],
            "greedy": _finite(asdict(found.greedy)) if found.greedy else None, "seeded": _finite(asdict(found.seeded)) if found.seeded else None,
            "refused": dict(found.refused), "seconds": round(found.seconds, 1)}


def _finite(value: Any) -> Any:
    """The same without infinities: an error nobody can know is null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(found: Parity, url_a: str, url_b: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from diagnosis.parity import as_table

    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe has room for whole numbers
        console.width = max(console.width, 140)
    for name, url, version, dtype in zip("AB", (url_a, url_b), found.versions, found.dtypes, strict=True):
        console.print(f"{name}  vLLM {version or 'of unknown version'} at {url}, {dtype or 'dtype not told, taken for bfloat16'}", style="bold", markup=False)
    console.print(f"temperature 1, neutral sampling; floor {found.floor_nats:.4f} nats", style="dim")
    console.print()
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("sampled on, forced through", "tokens", "mean |d|", "k1", "k3", "ESS", "beyond 1 nat"):
        grid.add_column(heading, justify="left" if "," in heading else "right", no_wrap="," in heading)
    crossed = [one for one in found.directions if "itself" not in one.name]
    parts = {f"{one.name}:": [one.total] for one in found.directions}
    for one in crossed:
        parts |= {f"{one.name}, position": one.by_position, f"{one.name},": one.by_class}
    for row in as_table(parts):
        grid.add_row(*row)
    console.print(grid)
    console.print()
    for name, one in (("greedy", found.greedy), ("same seed", found.seeded)):
        console.print(_identical(name, one), markup=False)
    for reason, count in found.refused.most_common():
        console.print(f"left out  {count}: {reason}", style="yellow", markup=False)
    for reason in found.reasons:
        console.print(f"differ  {reason}", style="red", markup=False)
    if found.doubt:
        console.print(f"unknown  {found.doubt}", style="yellow", markup=False)
    console.print()
    word = "same within noise" if found.same else "DIFFER" if found.reasons else "cannot tell"
    console.print(f"{word} ({found.seconds:.0f} s)", style="bold green" if found.same else "bold red", markup=False)
    if found.reasons:
        console.print(f"which of the two is off: klaxon preflight --engine {url_a} --model DIR, and the same for {url_b}", markup=False)


def _identical(name: str, found: Identical | None) -> str:
    if found is None:
        return f"{name}: nothing to compare"
    error = f" ± {found.same_se:.1%}" if math.isfinite(found.same_se) else ""
    return f"{name}: {found.same:.1%}{error} of {found.tokens:,} tokens are the same before the first that differs; {found.whole} of {found.prompts} completions whole"
