"""`klaxon demo`: the whole thing on a real engine, or replayed from recordings."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Fault(StrEnum):
    """Faults the demo can really make."""

    raw_logprobs = "raw-logprobs"
    stale_prefix_cache = "stale-prefix-cache"
    none = "none"


def demo(fault: Annotated[Fault, typer.Option(help="What goes wrong halfway through.")] = Fault.raw_logprobs,
         steps: Annotated[int, typer.Option(min=4, help="GRPO steps.")] = 24,
         exit_: Annotated[bool, typer.Option("--exit", help="Stop after the steps; exit 0 when the expected thing happened.")] = False,
         dashboard: Annotated[bool, typer.Option("--dashboard/--no-dashboard", help="Serve the page on http://127.0.0.1:8501.")] = True,
         json_: Annotated[bool, typer.Option("--json", help="Last line of standard output: one JSON object.")] = False,
         replay: Annotated[bool, typer.Option("--replay", help="No engine, no torch: play recordings of real V0 and V1 engines.")] = False,
         directory: Annotated[Path, typer.Option("--dir", help="Folder of the demo's run.")] = Path(".cache/demo")) -> None:
    """Run a real vLLM engine, a real GRPO loop, Klaxon and its page; break something halfway and watch the alarm.

    \b
    Examples:
      klaxon demo --replay
      klaxon demo --fault stale-prefix-cache --steps 20 --exit

    Exit codes: 0 the expected alarm (or, with --fault none, no alarm) came; 1 it did not; 2 the demo could not run.
    """
    if replay:
        from klaxon.demo.replay import run_replay

        raise typer.Exit(run_replay(directory / "replay", dashboard=dashboard, exit_after=exit_, as_json=json_))
    from klaxon.demo.orchestrate import DemoOptions, run_demo

    options = DemoOptions(fault=fault.value, steps=steps, exit_after=exit_, dashboard=dashboard, as_json=json_,
                          directory=directory)
    raise typer.Exit(run_demo(options))
