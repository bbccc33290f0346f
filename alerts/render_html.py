"""Message → HTML for e-mail. Pure; everything that came from data is escaped here."""

from __future__ import annotations

from html import escape
from urllib.parse import urlsplit

from alerts.message import Message, Section
from alerts.render import COLOURS


def as_html(message: Message) -> str:
    """A fragment without scripts, images or remote parts: paragraphs beside a bar in the colour of the state."""
    body = [f"<p><strong>{escape(message.headline)}</strong><br>run {escape(message.run)}</p>", *(_section(each) for each in message.sections)]
    link = ""
    if urlsplit(message.dashboard_url).scheme in ("http", "https"):
        link = f'<a href="{escape(message.dashboard_url)}">Dashboard</a> · '
    body.append(f"<p><small>{link}{escape(message.because)} · {escape(message.incident_id)}</small></p>")
    return f'<div style="border-left:4px solid {COLOURS[message.state]};padding-left:12px">{"".join(body)}</div>'


def _section(section: Section) -> str:
    text = escape(section.text)
    shown = f"<pre>{text}</pre>" if section.code else text.replace("\n", "<br>")
    return f"<p><strong>{escape(section.name)}</strong><br>{shown}</p>"
