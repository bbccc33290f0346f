"""`klaxon preflight`: probe a running engine before the run spends GPUs on it."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collector.errors import ConfigError, InputError

if TYPE_CHECKING:
    from diagnosis.preflight import Row
    from klaxon.preflight.run import Options, Report

MARKS = {"passed": "[green]✓[/]", "failed": "[red]✗[/]", "unknown": "[yellow]?[/]", "measured": "[dim]·[/]"}
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def preflight(
    engine: Annotated[str, typer.Option(help="address of the running vLLM engine, e.g. http://127.0.0.1:8000")],
    model: Annotated[Path, typer.Option(help="folder of the weights the engine should be serving, as the trainer has them")],
    previous: Annotated[Path | None, typer.Option(help="folder of older weights: tested as an explanation, and what --allow-update switches to")] = None,
    config: Annotated[str, typer.Option(help="config.toml of the run: [trainer], [canary], [shadow] and [diagnosis] are used")] = "",
    temperature: Annotated[float | None, typer.Option(help="the run's sampling, where --config does not say; what is left out is left out of the requests too", min=0.0)] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    top_k: Annotated[int | None, typer.Option(min=-1)] = None,
    min_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    repetition_penalty: Annotated[float | None, typer.Option(min=0.0)] = None,
    body_dtype: Annotated[str, typer.Option(help="precision of the trainer's forward (default: the config's, else bfloat16)")] = "",
    head_dtype: Annotated[str, typer.Option(help="precision of the trainer's head (default: the config's, else float32)")] = "",
    max_tokens: Annotated[int, typer.Option(help="tokens of one canary (default: the config's, else 32)", min=0, max=4096)] = 0,
    allow_update: Annotated[bool, typer.Option("--allow-update", help="also switch the engine to --previous and back, as a weight update does; needs --previous")] = False,
    save: Annotated[str, typer.Option(help="write the canaries as rollout JSONL, for klaxon diagnose")] = "",
    json_: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """Probe a running engine before the run: settings, canaries, their logprobs under your weights, prefix cache, batch, and, if allowed, one weight update.

    Sends some forty short requests; changes nothing in the engine without --allow-update.

    \b
    Examples:
      klaxon preflight --engine http://127.0.0.1:8000 --model weights/step_0
      klaxon preflight --engine http://127.0.0.1:8000 --model weights/step_1 --previous weights/step_0 --allow-update

    Exit codes: 0 nothing failed, 1 a check failed, 2 it cannot run.
    """
    if allow_update and previous is None:
        raise ConfigError("--allow-update needs --previous: the folder of weights to switch to and back from")
    given = dict(zip(SAMPLING, (temperature, top_p, top_k, min_p, repetition_penalty), strict=True))
    options = _options(engine, model, previous, config, given, body_dtype, head_dtype, max_tokens, allow_update)
    if save and not Path(save).resolve().parent.is_dir():
        raise InputError("its folder is not there", where=save)
    from klaxon.preflight.run import preflight as fly

    report = fly(options, progress())
    if save:
        _save(save, report)
    code = _code(report)
    if json_:
        print(json.dumps(_json(report, options, code), allow_nan=False))
    else:
        _show(report, options, code)
    raise typer.Exit(code)


def progress() -> Callable[[str], None]:
    """Says each step with the seconds so far on standard error."""
    began = time.monotonic()
    return lambda text: print(f"[{time.monotonic() - began:4.0f} s] {text}", file=sys.stderr, flush=True)


def _options(engine: str, model: Path, previous: Path | None, config: str, given: dict[str, Any], body: str, head: str, max_tokens: int, allow_update: bool) -> Options:
    """Flags over config.toml over defaults."""
    from diagnosis.engine_told import Assumed
    from klaxon.config import Config, load_config
    from klaxon.preflight.run import MAX_TOKENS, Options
    from klaxon.trainer_file import read_assumed

    whole = load_config(config) if config else Config()
    assumed = read_assumed(config)[0] if config else Assumed()
    flags = {name: value for name, value in given.items() if value is not None}
    assumed = replace(assumed, sampling=replace(assumed.sampling, **flags), body_dtype=body or assumed.body_dtype, head_dtype=head or assumed.head_dtype)
    return Options(
        engine=engine.rstrip("/"), model=model, previous=previous, assumed=assumed, body_dtype=body or whole.shadow.body_dtype, head_dtype=head or whole.shadow.head_dtype,
        max_tokens=max_tokens or (whole.canary.max_tokens if config else MAX_TOKENS), logprobs=whole.canary.logprobs, own_prompts=whole.canary.prompts,
        allow_update=allow_update, diagnosis=whole.diagnosis)


def _code(report: Report) -> int:
    from diagnosis.preflight import exit_code

    return exit_code(report.rows)


def _save(path: str, report: Report) -> None:
    from klaxon.preflight.client import saved

    try:
        Path(path).write_text("".join(json.dumps(one, allow_nan=False) + "\n" for one in saved(report.rollouts)), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=path) from None


def _json(report: Report, options: Options, code: int) -> dict[str, Any]:
    from klaxon.commands.diagnose import verdict_json

    values = {name: value if math.isfinite(value) else None for name, value in report.values.items()}
    sampling = {name: value for name, value in asdict(options.assumed.sampling).items() if value is not None}
    return {"engine": options.engine, "model": str(options.model), "vllm_version": report.version, "passed": code == 0, "sampling": sampling,
            "rows": [asdict(row) for row in report.rows], "signals": values, "diagnosis": verdict_json(report.diagnosis) if report.diagnosis else None,
            "checks": [asdict(check) for check in report.checks], "left_out": list(report.left_out), "seconds": round(report.seconds, 1)}


def _show(report: Report, options: Options, code: int) -> None:
    from rich.console import Console

    from klaxon.commands.diagnose import show, verdict_json

    console = Console(highlight=False)
    console.print(f"vLLM {report.version or 'of unknown version'} at {options.engine}, weights {options.model}, sampling {_said(options)}", style="bold", markup=False)
    console.print()
    console.print(table(report.rows))
    if report.diagnosis is not None and report.diagnosis.verdict != "healthy":
        found = verdict_json(report.diagnosis)
        found["next"] = found["next"].replace("ENGINE_URL", options.engine).replace("MODEL_DIR", str(options.model)).replace("--model DIR", f"--model {options.model}")
        show(found | {"file": "canaries", "rollouts": len(report.rollouts), "left_out": list(report.left_out)})
    failed, unknown = ([row.name for row in report.rows if row.state == state] for state in ("failed", "unknown"))
    words = f"FAILED: {', '.join(failed)}" if code else "passed"
    more = f"; unknown: {', '.join(unknown)}" if unknown else ""
    console.print()
    console.print(f"preflight {words}{more} ({report.seconds:.0f} s)", style="bold red" if code else "bold green", markup=False)


def table(rows: tuple[Row, ...]) -> Any:
    """A rich table: mark, name, what was seen and what to type."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_header=False, padding=(0, 1))
    grid.add_column()
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for row in rows:
        text = Text(row.seen)
        if row.do and row.state != "passed":
            text.append(f"\n→ {row.do}", style="bold")
        grid.add_row(MARKS[row.state], row.name, text)
    return grid


def _said(options: Options) -> str:
    given = {name: value for name, value in asdict(options.assumed.sampling).items() if value is not None}
    return ", ".join(f"{name} {value:g}" for name, value in given.items()) or "not declared (taken as temperature 1 without truncation)"
