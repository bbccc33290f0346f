"""`klaxon init`: a config.toml for a framework, from what it is told, what it finds, and a preset."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from collector.errors import ConfigError
from klaxon.init_config import Answers, push_url, receiver_of, render
from klaxon.init_engine import Found, look_at
from klaxon.presets import Preset, preset_named, preset_of_format, presets

FRAMEWORK_HELP = "What trains: a preset of --list. Recognised by the files of --rollouts where they are there."
RECEIVER_HELP = ("Who hears of alerts, repeatable: slack=CHANNEL, slack_webhook=env:NAME, webhook=env:NAME, pagerduty=env:NAME, alertmanager=URL, "
                 "wandb=ENTITY/PROJECT, apprise=file:PATH. Secrets are named (env:NAME or file:PATH), never written.")
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
TRAINER_HELP = "The trainer's own logprobs (tier 1): push (klaxon_tap.push_logprobs), rollouts (they stand in the files), none, or a JSONL file it appends them to."


def init(framework: Annotated[str, typer.Option(help=FRAMEWORK_HELP)] = "",
         engine: Annotated[str, typer.Option(help="The engine's address, e.g. http://127.0.0.1:8000; it is asked what it is.")] = "",
         weights: Annotated[str, typer.Option(help="Folder whose sub-folders are weight versions (tier 2).")] = "",
         layout: Annotated[str, typer.Option(help="How they lie there, where it is not the preset's (docs/weights.md).")] = "",
         rollouts: Annotated[str, typer.Option(help="File, folder or redis://… the framework writes rollouts to.")] = "",
         trainer_logprobs: Annotated[str, typer.Option(help=TRAINER_HELP)] = "",
         temperature: Annotated[float | None, typer.Option(min=0, help="Temperature the TRAINER divides its logits by; 1 is assumed, and said, where nobody says it.")] = None,
         receiver: Annotated[list[str] | None, typer.Option(help=RECEIVER_HELP)] = None,
         page: Annotated[bool, typer.Option("--page", help="Alerts link to the page on this machine.")] = False,
         run: Annotated[str, typer.Option(help="Name of the run; its state goes to runs/NAME.")] = "",
         port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the daemon's read API.")] = 8765,
         out: Annotated[Path, typer.Option("--out", "-o", help="Where to write.")] = Path("config.toml"),
         force: Annotated[bool, typer.Option("--force", help="Replace an existing file; the old one stays beside it as .bak.")] = False,
         yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take the default of whatever is not given.")] = False,
         list_: Annotated[bool, typer.Option("--list", help="Show the presets and leave.")] = False,
         json_: Annotated[bool, typer.Option("--json", help="Ask nothing, and answer with one JSON object.")] = False) -> None:
    """Write a config.toml for your framework: asks on a terminal, takes flags otherwise, and says what the engine is.

    \b
    Examples:
      klaxon init
      klaxon init --list
      klaxon init --framework nemo-rl --rollouts logs --temperature 1.0 --receiver slack=C0123
      klaxon init --framework pipelinerl --rollouts exp/streams/actor/0/0/0.jsonl --engine http://127.0.0.1:8000 --page

    Exit codes: 0 written, 2 it was not (the reason is one line), 130 interrupted; nothing is written then.
    """
    if list_:
        _list(json_)
        return
    console = Console(stderr=True)
    asking = not yes and not json_ and sys.stdin.isatty()
    _may_write(out, force=force, asking=asking, console=console)
    preset = _preset(framework, rollouts, console if asking else None, yes=yes)
    given = {"engine": engine, "weights": weights, "rollouts": rollouts, "temperature": temperature, "receivers": [receiver_of(text) for text in receiver or ()], "page": page}
    if asking:
        given = _ask(console, preset, given)
    answers = _answers(preset, given, run=run, port=port, layout=layout, trainer_logprobs=trainer_logprobs)
    console.print("asking the engine …", style="dim") if answers.engine and not json_ else None
    found = look_at(answers.engine)
    text = render(answers)
    _validated(text)
    backup = write(out, text)
    _report(answers, found, out, backup, json_=json_)


def _may_write(out: Path, *, force: bool, asking: bool, console: Console) -> None:
    """Before anything is asked: raises ConfigError where a file stands that must not be replaced, or nothing can be written."""
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; name a file, e.g. -o {out / 'config.toml'}")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{out.parent} is not there; create it first, or name another place with -o")
    if not out.exists() or force:
        return
    if asking:
        from klaxon.init_ask import ask_overwrite

        if ask_overwrite(console, out):
            return
    raise ConfigError(f"{out} exists and was left as it is; --force replaces it (the old one stays as {out.name}.bak), -o writes elsewhere")


def _preset(framework: str, rollouts: str, console: Console | None, *, yes: bool) -> Preset | None:
    """The preset that was named, told by the files, or chosen; None = another framework."""
    if framework and framework != "other":
        return preset_named(framework)
    if framework != "other" and rollouts and (kind := _format_at(rollouts)) and (preset := preset_of_format(kind)):
        return preset
    if console is not None and framework != "other":
        from klaxon.init_ask import ask_framework

        return ask_framework(console)
    if not framework and not yes and not rollouts:
        raise ConfigError(f"name the framework: klaxon init --framework NAME, one of {', '.join(presets())} or other (`klaxon init --list`)")
    return None


def _ask(console: Console, preset: Preset | None, given: dict[str, Any]) -> dict[str, Any]:
    """What was not given; Ctrl-C and Ctrl-D end it before anything is written."""
    from klaxon import init_ask

    questions = {"engine": lambda: init_ask.ask_engine(console), "rollouts": lambda: init_ask.ask_rollouts(console, preset),
                 "weights": lambda: init_ask.ask_weights(console, preset), "receivers": lambda: init_ask.ask_receivers(console),
                 "page": lambda: init_ask.ask_page(console)}
    try:
        asked = {name: given[name] or question() for name, question in questions.items()}
        says = preset is not None and preset.says_sampling and bool(asked["rollouts"])
        asked["temperature"] = given["temperature"] if given["temperature"] is not None or says else init_ask.ask_temperature(console)
    except (KeyboardInterrupt, EOFError):
        console.print("\nstopped; nothing was written")
        raise typer.Exit(130) from None
    return asked


def _answers(preset: Preset | None, given: dict[str, Any], *, run: str, port: int, layout: str, trainer_logprobs: str) -> Answers:
    kind = _fitting(preset, given["rollouts"])
    name = run or (preset.name if preset else "run")
    side = trainer_logprobs or (preset.trainer_logprobs if preset else "none")
    if side == "rollouts" and not given["rollouts"]:
        side = "none"
    if side not in ("push", "rollouts", "none") and not side.endswith((".jsonl", ".json")):
        raise ConfigError(f"--trainer-logprobs {side!r}: push, rollouts, none, or the path of a .jsonl file")
    return Answers(preset=preset, run=name, dir=f"runs/{name}", port=port, layout=layout, trainer_logprobs=side, rollouts_format=kind,
                   **{key: given[key] for key in ("engine", "rollouts", "weights", "temperature", "receivers", "page")})


def _fitting(preset: Preset | None, rollouts: str) -> str:
    """The format to write down for these files.

    Raises:
        ConfigError: they are another framework's, or hold no logprobs.
    """
    from collector.sources.formats import FORMATS

    kind = _format_at(rollouts) if rollouts else ""
    own = preset.rollouts.formats if preset else []
    if kind and "engine logprobs" not in FORMATS[kind].knows:
        raise ConfigError(f"{rollouts} is {FORMATS[kind].about}; leave --rollouts away: the tap or `klaxon proxy` brings the rollouts")
    if kind and preset and kind not in own and (fits := preset_of_format(kind)):
        raise ConfigError(f"{rollouts} holds {FORMATS[kind].about}, not {preset.title}'s files: klaxon init --framework {fits.name} --rollouts {rollouts}")
    readable = [name for name in own if "engine logprobs" in FORMATS[name].knows]
    return kind or (readable[0] if rollouts and readable and "://" not in rollouts else "")


def _format_at(rollouts: str) -> str:
    from collector.sources.formats import detect

    if "://" in rollouts or not Path(rollouts).exists():
        return ""
    found = detect(rollouts)
    return found.name if found else ""


def _validated(text: str) -> None:
    """What was written must be a config; a flag that makes it none is the user's to mend."""
    import tomllib

    from klaxon.config import parse_config

    parse_config(tomllib.loads(text), where="klaxon init")


def write(out: Path, text: str) -> Path | None:
    """Write whole or not at all; returns where the old file is kept, None when there was none.

    Raises:
        ConfigError: the place cannot be written.
    """
    backup = None
    try:
        handle, temporary = tempfile.mkstemp(dir=out.absolute().parent, prefix=f".{out.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.chmod(temporary, 0o644)
            if out.exists():
                backup = out.with_name(f"{out.name}.bak")
                if backup.exists():
                    backup = out.with_name(f"{out.name}.{time.strftime('%Y%m%dT%H%M%S')}.bak")
                os.replace(out, backup)
            os.replace(temporary, out)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}); name another place with -o") from None
    return backup


def _report(answers: Answers, found: Found, out: Path, backup: Path | None, *, json_: bool) -> None:
    preset = answers.preset
    notes = [*found.advice, *_notes(answers)]
    url = f"http://127.0.0.1:{answers.port}"
    after = [f"klaxon check -c {out}", f"klaxon run -c {out}", *(["python -m dashboard.launch" + (f" --api {url}" if answers.port != 8765 else "")] if answers.page else []),
             "klaxon status" + (f" --url {url}" if answers.port != 8765 else "")]
    if json_:
        typer.echo(json.dumps({"written": str(out), "backup": str(backup) if backup else None, "framework": preset.name if preset else None,
                               "engine": {"url": answers.engine, "state": found.state, "text": found.text}, "notes": notes, "next": after}))
        return
    console = Console()
    console.print(f"engine    {found.text}", **PLAIN)
    console.print(f"written   {out}" + (f" (the old one is {backup})" if backup else ""), **PLAIN)
    for note in notes:
        console.print(f"note      {note}", **PLAIN, style="yellow")
    if preset:
        console.print(f"read      docs/quickstarts/{preset.name}.md", **PLAIN)
    console.print(f"\nNext:  {after[0]}", style="bold", **PLAIN)
    console.print(f"then   {'; '.join(after[1:])}", **PLAIN)


def _notes(answers: Answers) -> list[str]:
    """What was assumed, and what is still to be done."""
    preset, notes = answers.preset, []
    if answers.temperature is None and not (preset and preset.says_sampling):
        notes.append("temperature 1.0 is assumed for the trainer; --temperature says another")
    if preset and preset.rollouts.by == "files" and not answers.rollouts:
        notes.append(f"rollouts are not named: --rollouts {preset.rollouts.path}, or the tap in the engine")
    if not answers.rollouts:
        notes.append(f"the tap: pip install klaxon-tap beside vLLM, and KLAXON_URL=unix://{Path(answers.dir).absolute()}/klaxon.sock where it starts")
    if answers.trainer_logprobs == "push":
        notes.append(f"the trainer: klaxon_tap.push_logprobs, one call a rollout, with KLAXON_URL={push_url(answers)}")
    return notes


def _list(json_: bool) -> None:
    if json_:
        typer.echo(json.dumps([{"name": one.name, "title": one.title, "complete": one.complete, "about": one.about, "rollouts": one.rollouts.by,
                                "trainer_logprobs": one.trainer_logprobs, "tier_of_files": one.tier_of_files} for one in presets().values()]))
        return
    print(f"{'preset':14} {'rollouts by':11} {'logprobs of the trainer':23} {'weights':13} what")
    for one in presets().values():
        about = one.about + ("" if one.complete else " (a start)")
        print(f"{one.name:14} {one.rollouts.by:11} {one.trainer_logprobs:23} {one.weights.layout:13} {about}")
