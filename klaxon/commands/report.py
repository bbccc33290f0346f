"""`klaxon report`: a run, a daemon or a file of rollouts as one HTML page that needs nothing else."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from collector.errors import ConfigError, InputError, Unavailable
from klaxon.commands.rollout_files import AllowPickle, FileFormat, TokenizerDir

if TYPE_CHECKING:
    import httpx

    from dashboard.report.gathered import Gathered

WHAT = "A run's folder ([run] dir, its daemon stopped), the address of a daemon (http://…), or a file of rollouts as `klaxon look` takes."
NEEDS = "klaxon report draws with vl-convert-python, which is not installed: pip install 'klaxon-rl[report]'"
ASK_SECONDS = 60.0


def report(
    what: Annotated[str, typer.Argument(help=WHAT, metavar="RUN|FILE")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")] = Path("report.html"),
    incident: Annotated[str, typer.Option(help="Only this incident in full: its id, a beginning of it, or \"last\".")] = "",
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on standard output: what was written.")] = False,
    trainer: Annotated[str, typer.Option(help="Of a file: JSONL of the trainer's own logprobs, joined by request id or by tokens.")] = "",
    format: FileFormat = "",
    tokenizer: TokenizerDir = "",
    allow_pickle: AllowPickle = False,
) -> None:
    """Write a post-mortem: one HTML file with the charts of the page, nothing loaded from anywhere.

    Verdict, incidents, causes, impact, slices, engine audit, what was not seen, the false-alarm budget, and the definition of every number.

    \b
    Examples:
      klaxon report runs/grpo-7b -o report.html
      klaxon report http://127.0.0.1:8765 --incident last -o incident.html
      klaxon report rollouts.jsonl --force

    Exit codes: 0 written, 2 it could not be.
    """
    from dashboard.client import Disconnected
    from dashboard.client_incident import Refused
    from dashboard.report.gathered import gather
    from dashboard.report.page import write
    from dashboard.report.pictures import vl_convert_svg

    _may_write(output, force=force)
    _can_draw()
    progress = _said
    with _opened(what, trainer=trainer, format=format, tokenizer=tokenizer, allow_pickle=allow_pickle, progress=progress) as client:
        try:
            found = gather(client, incident=incident or None, progress=progress)
        except Refused as error:
            raise InputError(str(error), field="--incident", where=what) from None
        except Disconnected as error:
            raise Unavailable(str(error)) from None
        done = write(found, vl_convert_svg, source=what, made_at=time.time(), version=version("klaxon-rl"), progress=progress)
    size = _save(output, done.html)
    progress(f"{output}: {size / 1e6:.1f} MB, {done.charts} charts, {_incidents(found)}")
    if json_:
        typer.echo(json.dumps({"file": str(output), "bytes": size, "run": found.status.get("run"), "verdict": done.headline, "incidents": done.incidents, "charts": done.charts}))


def _incidents(found: Gathered) -> str:
    told, known = len(found.dossiers), len(found.incidents)
    return "no incident" if not known else f"{told} of {known} incident{'s' if known != 1 else ''} in full"


def _said(text: str) -> None:
    typer.echo(f"report: {text}", err=True)


def _may_write(output: Path, *, force: bool) -> None:
    """Before minutes of work: can the file be written? Raises ConfigError."""
    if output.is_dir():
        raise ConfigError(f"{output} is a folder; name the file: -o {output / 'report.html'}")
    if output.exists() and not force:
        raise ConfigError(f"{output} exists; write over it with --force, or name another with -o")
    folder = output.parent
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; make it, or name another with -o")
    if not os.access(output if output.exists() else folder, os.W_OK):
        raise ConfigError(f"{output} cannot be written (permission denied); name another with -o")


def _can_draw() -> None:
    try:
        import vl_convert  # noqa: F401
    except ImportError:
        raise ConfigError(NEEDS) from None


def _save(output: Path, html: str) -> int:
    """Write whole or not at all; returns the bytes. Raises ConfigError."""
    body, fresh = html.encode(), output.with_name(f".{output.name}.new")
    try:
        fresh.write_bytes(body)
        os.replace(fresh, output)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise ConfigError(f"{output}: cannot be written ({error.strerror})") from None
    return len(body)


@contextmanager
def _opened(what: str, *, trainer: str, format: str, tokenizer: str, allow_pickle: bool, progress: Callable[[str], None]) -> Iterator[httpx.Client]:
    """A client of the read API over whatever was named.

    Raises:
        InputError, ConfigError, Unavailable: it is none of the three, or cannot be read.
    """
    from klaxon.report_sources import daemon, file, folder
    from klaxon.sealed import STORE

    if what.startswith(("http://", "https://")):
        opened = daemon(what, timeout_seconds=ASK_SECONDS)
    elif (Path(what) / STORE).is_file():
        progress(f"copying {what}")
        opened = folder(Path(what))
    else:
        progress(f"reading {what}" + (f", which holds no {STORE} and so is no run's folder, as rollouts" if Path(what).is_dir() else ""))
        opened = file(what, trainer=trainer, format=format, tokenizer=tokenizer, allow_pickle=allow_pickle, progress=progress)
    with opened as client:
        yield client
