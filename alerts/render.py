"""Message → what a receiver understands: plain text, Slack Block Kit, webhook JSON. Pure; escaping happens here."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime
from typing import Any

from alerts.message import Message, Section

MARKS = {"firing": "🔴", "acknowledged": "🟠", "resolved": "🟢"}
SIDE_BY_SIDE = ("Since", "Where")
_WIDTH = 110


def as_text(message: Message) -> str:
    """The message for a terminal or a log."""
    lines = [f"{_titled(message)} · run {message.run}", *textwrap.wrap(message.headline, _WIDTH, initial_indent="  ", subsequent_indent="  ")]
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
    """The body of an incoming webhook: Block Kit, and a text for notifications and screen readers."""
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": _cut(_titled(message), 150), "emoji": True}},
        _markdown(f"*{escape(message.headline)}*\nrun {escape(message.run)}"),
    ]
    beside = [section for section in message.sections if section.name in SIDE_BY_SIDE]
    for section in message.sections:
        if section not in beside:
            blocks.append(_markdown(_labelled(section)))
        elif section is beside[0]:
            blocks.append({"type": "section", "fields": [_mrkdwn(_labelled(each), 2000) for each in beside]})
    link = f"<{escape(message.dashboard_url)}|Dashboard> · " if message.dashboard_url else ""
    blocks.append({"type": "context", "elements": [_mrkdwn(f"{link}{escape(message.because)} · {message.incident_id}", 2000)]})
    text = escape(f"{_titled(message)} · run {message.run}: {message.headline}")
    return {"text": _cut(text, 3000), "blocks": blocks, "unfurl_links": False, "unfurl_media": False}


def as_webhook(message: Message) -> dict[str, Any]:
    """The JSON of a generic webhook, shaped as Standard Webhooks advises: type, timestamp, data; `schema` counts versions."""
    return {
        "schema": message.schema,
        "type": f"klaxon.incident.{message.state}",
        "timestamp": datetime.fromtimestamp(message.at, UTC).isoformat().replace("+00:00", "Z"),
        "data": {
            "message_id": message.id, "incident_id": message.incident_id, "fingerprint": message.fingerprint, "run": message.run,
            "state": message.state, "severity": message.severity, "reason": message.reason, "title": message.title,
            "headline": message.headline, "sections": [{"name": each.name, "text": each.text} for each in message.sections],
            "because": message.because, "dashboard_url": message.dashboard_url, **message.facts,
        },
    }


def escape(text: str) -> str:
    """Slack's three characters: no mention, link or channel call can come out of data.

    >>> escape("<!channel> a & b")
    '&lt;!channel&gt; a &amp; b'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _titled(message: Message) -> str:
    return f"{MARKS[message.state]} {'Resolved: ' if message.state == 'resolved' else ''}{message.title}"


def _labelled(section: Section) -> str:
    if section.code:
        return f"*{section.name}*\n```{escape(section.text).replace('```', '')}```"
    return f"*{section.name}*\n{escape(section.text)}"


def _markdown(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _mrkdwn(text, 3000)}


def _mrkdwn(text: str, limit: int) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": _cut(text, limit), "verbatim": True}


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
