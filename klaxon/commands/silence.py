"""`klaxon silence`: what must not be told for a while, who wants it so, and why."""

from __future__ import annotations

import getpass
import json
import time
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer

from collector.errors import ConfigError
from klaxon.client import DEFAULT_URL, get_json, write_json

AUTHOR_HELP = "Who you are; the default is this machine's user name."
Url = Annotated[str, typer.Option(help="Address of the daemon.")]
silence = typer.Typer(name="silence", no_args_is_help=True, help="Silence incidents for a while: add, list, expire. What still fires when a silence ends is told then.")


@silence.command()
def add(
    incident: Annotated[str, typer.Argument(help="Id of an incident (or a unique beginning of it, or last), to silence its fault.")] = "",
    match: Annotated[list[str], typer.Option("--match", "-l", help="label=value, again for each label: run, fault, a key of the slice such as replica, "
                                                                  "or fingerprint. A value may be a glob, a fingerprint not.")] = [],  # noqa: B006
    for_: Annotated[str, typer.Option("--for", help="How long: 30m, 2h, 1d, 1d12h.")] = "",
    until: Annotated[str, typer.Option(help="Until when instead: ISO time, UTC unless it says otherwise.")] = "",
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why; it is shown wherever the silence acts.")] = "",
    author: Annotated[str, typer.Option(help=AUTHOR_HELP)] = "",
    url: Url = DEFAULT_URL,
) -> None:
    """Silence an incident's fault, or whatever has all the labels given. Prints the silence's id.

    A daemon with a token asks for it in KLAXON_TOKEN. Ends of incidents that were told before are told all the same.

    \b
    Examples:
      klaxon silence add last --for 2h --reason 'known, fix is on its way'
      klaxon silence add --match replica=http://node7:8000 --for 1d --reason 'node is being drained'

    Exit codes: 0 silenced, 2 the daemon refuses it or does not answer.
    """
    if bool(incident) == bool(match):
        raise ConfigError("name an incident, or labels with --match label=value (not both)")
    if bool(for_) == bool(until):
        raise ConfigError("say how long with --for 2h, or until when with --until 2026-11-21T18:00 (one of the two)")
    if not reason.strip():
        raise ConfigError("say why with --reason \"…\"; it is shown wherever the silence acts")
    what: dict[str, Any] = {"incident": incident} if incident else {"match": dict(_label(one) for one in match)}
    how_long: dict[str, Any] = {"for": for_} if for_ else {"ends_at": _seconds(until)}
    found = write_json("POST", url, "/v1/silences", {**what, **how_long, "author": author_of(author), "reason": reason})
    typer.echo(found["id"])
    typer.echo(_line(found, time.time()), err=True)


@silence.command("list")
def list_(all_: Annotated[bool, typer.Option("--all", "-a", help="Those that have ended as well.")] = False, url: Url = DEFAULT_URL,
          json_: Annotated[bool, typer.Option("--json", help="One JSON array on standard output.")] = False) -> None:
    """List the silences in force and to come, the first to end first.

    \b
    Examples:
      klaxon silence list
      klaxon silence list --all --json

    Exit codes: 0 listed, 2 no daemon answers.
    """
    found = get_json(url, "/v1/silences", ended=all_)
    if json_:
        typer.echo(json.dumps(found))
        return
    for line in [_line(one, time.time()) for one in found] or ["no silence is in force"]:
        typer.echo(line)


@silence.command()
def expire(silence_id: Annotated[str, typer.Argument(metavar="SILENCE", help="Id of the silence (`klaxon silence list` shows it).")], url: Url = DEFAULT_URL) -> None:
    """End a silence now. What it covered and still fires is told at once.

    \b
    Examples:
      klaxon silence expire 4b1c

    Exit codes: 0 ended, 2 no such silence or no daemon.
    """
    found = write_json("DELETE", url, f"/v1/silences/{quote(silence_id, safe='')}")
    typer.echo(f"{found['id']} has ended; what it covered and still fires is told now")


def author_of(given: str) -> str:
    """The name given, or the user's. Raises ConfigError where neither is known."""
    try:
        return given.strip() or getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise ConfigError("say who you are with --author NAME") from None


def _label(text: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not found or not key.strip() or not value.strip():
        raise ConfigError(f"--match {text!r}: write label=value, e.g. fault=no_rollouts or replica='http://10.0.0.*'")
    return key.strip(), value.strip()


def _seconds(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--until {text!r} is no time; write 2026-11-21T18:00, or 2026-11-21T18:00+01:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _line(one: dict[str, Any], now: float) -> str:
    from alerts import words

    match = " ".join(f"{key}={words.clean(value)}" for key, value in one["match"].items())
    left = f", {words.duration(one['ends_at'] - now)} left" if one["state"] == "active" else ""
    return f"{one['id']}  {one['state']:<8}  {match}  until {words.clock(one['ends_at'])}{left}  by {words.clean(one['author'])}: {words.clean(one['reason'])}"
