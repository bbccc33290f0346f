"""`klaxon alerts`: one clearly marked test message through one receiver, and what came back; the rest of the group is dead_letters.py."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from alerts import words
from alerts.config import AlertsConfig, ReceiverConfig
from alerts.message import Message, Section
from alerts.notifiers import Notifier, build
from alerts.notifiers.http import Answer, overheard
from collector.errors import ConfigError, GiveUp, RetryLater
from klaxon.commands.dead_letters import resend, unsent
from klaxon.config import load_config

alerts = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Receivers of alerts: try them, and see what did not reach them.")
alerts.command()(unsent)
alerts.command()(resend)
OPENS_SOMETHING = ("pagerduty", "alertmanager")  # what stays open there until it is resolved


@alerts.callback()
def _group() -> None:
    """Receivers of alerts: try them, and see what did not reach them."""


@alerts.command()
def test(
    receiver: Annotated[str, typer.Argument(help="Name of the receiver ([[alerts.receivers]] name), or console.")],
    config: Annotated[str, typer.Option("--config", "-c", help="The run's config file.")] = "config.toml",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent; send nothing.")] = False,
    keep_open: Annotated[bool, typer.Option("--keep-open", help="PagerDuty, Alertmanager: do not resolve the test incident right away.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Send one message marked as a test, with the receiver's own address and secret, and say what came back.

    \b
    Examples:
      klaxon alerts test oncall
      klaxon alerts test oncall --dry-run

    Exit codes: 0 accepted (or not sent, with --dry-run), 2 not accepted.
    """
    loaded = load_config(config)
    chosen = _named(loaded.alerts, receiver)
    notifier = build(chosen, timeout_seconds=loaded.alerts.timeout_seconds)
    message = marked(loaded.run.name, chosen.name, dashboard_url=loaded.alerts.dashboard_url, now=time.time())
    if dry_run:
        found = {"receiver": chosen.name, "type": chosen.type, "outcome": "not sent", "would_send": notifier.preview(message)}
    else:
        found = {"receiver": chosen.name, "type": chosen.type, **_sent(notifier, message, ends=chosen.type in OPENS_SOMETHING and not keep_open)}
    typer.echo(json.dumps(found, ensure_ascii=False) if json_ else "\n".join(_lines(found)))
    raise typer.Exit(0 if found["outcome"] in ("accepted", "not sent") else 2)


def marked(run: str, receiver: str, *, dashboard_url: str, now: float) -> Message:
    """A message nobody can take for an incident."""
    number = secrets.token_hex(4)
    return Message(
        incident_id=f"test_{number}", fingerprint=f"{run}/test/{receiver}", run=words.clean(run, limit=80), state="firing", severity="warn",
        reason="first", at=now, title="TEST of Klaxon's alerts: nothing is wrong",
        headline=f"This is a test of the receiver {words.clean(receiver, limit=80)!r}. Nobody has to do anything.",
        sections=(Section(name="What", text="`klaxon alerts test` sent it by hand; no detector is involved."),
                  Section(name="Where", text="the configuration of this run")),
        because="Sent because somebody typed `klaxon alerts test`. It spends nothing of the false-alarm budget.",
        dashboard_url=dashboard_url, id=f"msg_test_{number}")


def _named(config: AlertsConfig, name: str) -> ReceiverConfig:
    known = {each.name: each for each in config.all_receivers()}
    if name not in known:
        raise ConfigError(f"no receiver is called {name!r}; configured: {', '.join(known) or 'none'}")
    return known[name]


def _sent(notifier: Notifier, message: Message, *, ends: bool) -> dict[str, Any]:
    """The outcome, every answer that came back, and what the receiver remembers of the test."""
    memory: MutableMapping[str, str] = {}
    found: dict[str, Any] = {"outcome": "accepted", "resolved": ends}
    with overheard() as answers:
        try:
            notifier.send(message, now=message.at, memory=memory)
            if ends:
                notifier.send(_over(message), now=time.time(), memory=memory)
        except RetryLater as error:
            found |= {"outcome": "not now", "resolved": False, "error": str(error), "retry_after_seconds": error.after_seconds}
        except GiveUp as error:
            found |= {"outcome": "refused", "resolved": False, "error": str(error)}
    return {**found, "answers": [_shown(answer) for answer in answers], "memory": dict(memory)}


def _over(message: Message) -> Message:
    return replace(message, state="resolved", reason="resolved", at=time.time(), headline="The test is over.", id=f"{message.id}_over")


def _shown(answer: Answer) -> dict[str, Any]:
    return {"status": answer.status, "body": words.clean(answer.body, limit=200)}


def _lines(found: dict[str, Any]) -> list[str]:
    """The outcome in words."""
    head = f"{found['receiver']} ({found['type']}): {found['outcome']}"
    if "would_send" in found:
        shown = found["would_send"]
        return [f"{head}; it would get:", shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False, indent=2)]
    after = found.get("retry_after_seconds")
    lines = [head + (f": {found['error']}" if "error" in found else "") + (f"; it asks for {after:g} s" if after is not None else "")]
    lines += [f"  answered HTTP {answer['status']} {answer['body']}".rstrip() for answer in found["answers"]]
    if found["resolved"]:
        lines.append("  and resolved right away, so that nothing stays open there (--keep-open leaves it)")
    return lines
