"""Message → what a receiver understands: plain text, Slack Block Kit, webhook JSON. Pure; escaping happens here."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime
from typing import Any

from alerts.message import Message, Section

MARKS = {"firing": "🔴", "acknowledged": "🟠", "resolved": "🟢"}
COLOURS = {"firing": "#c62828", "acknowledged": "#ef6c00", "resolved": "#2e7d32"}
SIDE_BY_SIDE = ("Since", "Where")
OLD_NEWS = {"diagnosed": ("Alarm", "Since", "Where"), "repeat": ("What", "Alarm", "Where", "Why", "Impact", "Fix"), "worse": ("Fix",)}
"""Reason → sections that the root message of a thread already says, or that did not change."""
_WIDTH = 110


def as_text(message: Message) -> str:
    """The message for a terminal or a log."""
    lines = [f"{titled(message)} · run {message.run}", *textwrap.wrap(message.headline, _WIDTH, initial_indent="  ", subsequent_indent="  ")]
    for section in message.sections:
        label = f"  {section.name:<9}"
        if section.code:
            lines.append(f"{label}$ {section.text}")
        else:
            for line in section.text.splitlines():
                lines += textwrap.wrap(line, _WIDTH, initial_indent=label, subsequent_indent=" " * 11, break_long_words=False)
                label = " " * 11
    lines += textwrap.wrap(message.because, _WIDTH, initial_indent="  ", subsequent_indent="  ")
    lines.append("  " + " · ".join(part for part in (message.dashboard_url, message.incident_id) if part))
    return "\n".join(lines)


def as_slack(message: Message) -> dict[str, Any]:
    """A whole message in Slack: Block Kit beside a bar in the colour of the state, and a text for notifications and screen readers."""
    headline = _markdown(f"*{escape(message.headline)}*\nrun {escape(message.run)}")  # not in the attachment: Slack folds long ones
    link = f"<{escape(message.dashboard_url)}|Dashboard> · " if message.dashboard_url else ""
    blocks = [*_blocks(message.sections), _context(f"{link}{escape(message.because)} · {escape(message.incident_id)}")]
    header = {"type": "header", "text": {"type": "plain_text", "text": cut(titled(message), 150), "emoji": True}}
    return {"text": slack_text(message), "blocks": [header, headline], "attachments": [{"color": COLOURS[message.state], "blocks": blocks}],
            "unfurl_links": False, "unfurl_media": False}


def as_slack_reply(message: Message) -> dict[str, Any]:
    """What is new, for the thread below a root message that shows the rest."""
    old = OLD_NEWS.get(message.reason, ())
    shown = message.state != "resolved" and message.reason != "acknowledged"
    blocks = [_markdown(f"{MARKS[message.state]} *{escape(message.headline)}*"),
              *_blocks(tuple(each for each in message.sections if shown and each.name not in old)),
              _context(escape(message.because))]
    return {"text": slack_text(message), "blocks": blocks, "unfurl_links": False, "unfurl_media": False}


def slack_text(message: Message) -> str:
    """The line a phone shows."""
    return cut(escape(f"{titled(message)} · run {message.run}: {message.headline}"), 3000)


def as_webhook(message: Message) -> dict[str, Any]:
    """The JSON of a generic webhook, shaped as Standard Webhooks advises: type, timestamp, data; `schema` counts versions."""
    return {"schema": message.schema, "type": f"klaxon.incident.{message.state}", "timestamp": rfc3339(message.at), "data": data_of(message)}


def data_of(message: Message) -> dict[str, Any]:
    """All of a message for machines."""
    return {
        "message_id": message.id, "incident_id": message.incident_id, "fingerprint": message.fingerprint, "run": message.run,
        "state": message.state, "severity": message.severity, "reason": message.reason, "title": message.title,
        "headline": message.headline, "sections": [{"name": each.name, "text": each.text} for each in message.sections],
        "because": message.because, "dashboard_url": message.dashboard_url, **message.facts,
    }


def rfc3339(at: float) -> str:
    """UTC seconds as RFC 3339.

    >>> rfc3339(1768953600.25)
    '2026-01-21T00:00:00.250000Z'
    """
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def escape(text: str) -> str:
    """Slack's three characters: no mention, link or channel call can come out of data.

    >>> escape("<!channel> a & b")
    '&lt;!channel&gt; a &amp; b'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def titled(message: Message) -> str:
    """Mark, state where it is over, and title."""
    return f"{MARKS[message.state]} {'Resolved: ' if message.state == 'resolved' else ''}{message.title}"


def _blocks(sections: tuple[Section, ...]) -> list[dict[str, Any]]:
    """One block a section; the short ones share a row."""
    blocks: list[dict[str, Any]] = []
    beside = [section for section in sections if section.name in SIDE_BY_SIDE]
    for section in sections:
        if section not in beside:
            blocks.append(_markdown(_labelled(section)))
        elif section is beside[0]:
            blocks.append({"type": "section", "fields": [_mrkdwn(_labelled(each), 2000) for each in beside]})
    return blocks


def _context(text: str) -> dict[str, Any]:
    return {"type": "context", "elements": [_mrkdwn(text, 2000)]}


def _labelled(section: Section) -> str:
    if section.code:
        return f"*{section.name}*\n```{escape(section.text).replace('```', '')}```"
    return f"*{section.name}*\n{escape(section.text)}"


def _markdown(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _mrkdwn(text, 3000)}


def _mrkdwn(text: str, limit: int) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": cut(text, limit), "verbatim": True}


def cut(text: str, limit: int) -> str:
    """At most `limit` characters, the last an ellipsis where something is missing."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
