"""How the local receiver shows a message: as text, and as a chat page. Everything that came in is escaped."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime
from typing import Any

_LINK = re.compile(r"<(https?://[^|>\s]+)\|([^>]*)>")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:0;background:#f8f8f8;color:#1d1c1d}
header{background:#4a154b;color:#fff;padding:12px 20px;position:sticky;top:0}header small{opacity:.8;margin-left:8px}
main{max-width:860px;margin:0 auto;padding:12px 20px}
article{background:#fff;border:1px solid #ddd;border-left:4px solid #c62828;border-radius:6px;padding:10px 16px;margin:14px 0}
article.resolved{border-left-color:#2e7d32}article.other{border-left-color:#777}
.who{font-weight:700}.when,.context{color:#616061;font-size:13px}h2{font-size:18px;margin:6px 0}
pre{background:#f4f4f4;border:1px solid #ddd;border-radius:4px;padding:8px;white-space:pre-wrap;overflow-wrap:anywhere;margin:4px 0}
.fields{display:grid;grid-template-columns:1fr 1fr;gap:12px}.block{margin:8px 0;overflow-wrap:anywhere}
"""


def plain(message: dict[str, Any]) -> str:
    """A message as text for the terminal."""
    body = message["body"]
    if message["kind"] == "slack":
        return "\n".join(_block_text(block) for block in slack_blocks(body)) or str(body.get("text", ""))
    data = body.get("data", {}) if isinstance(body.get("data"), dict) else {}
    signed = "signature verified" if message.get("verified") else "not verified (no secret set)"
    return f"{body.get('type')} · {data.get('title', '')} · {data.get('headline', '')}\n{message.get('id')} · {signed}"


def slack_blocks(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The blocks of a Slack message and then those of its attachments (the ones beside the coloured bar)."""
    attached = (each.get("blocks", []) for each in body.get("attachments") or [] if isinstance(each, dict))
    return [*body.get("blocks", []), *(block for blocks in attached for block in blocks)]


def render(messages: list[dict[str, Any]]) -> str:
    """The page, newest message first; it reloads itself."""
    articles = "".join(_article(message) for message in reversed(messages)) or "<p>No message yet.</p>"
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="3"><title>Alerts received</title>'
            f"<style>{_STYLE}</style></head><body><header><strong># rl-oncall</strong><small>local receiver, not Slack · {len(messages)} "
            f'message{"" if len(messages) == 1 else "s"}</small></header><main>{articles}</main></body></html>')


def _article(message: dict[str, Any]) -> str:
    shown = plain(message)
    kind = "resolved" if "🟢" in shown or ".resolved" in shown.partition("\n")[0] else "firing" if "🔴" in shown or ".firing" in shown else "other"
    when = f"{datetime.fromtimestamp(message['at'], UTC):%H:%M:%S} UTC · {message['kind']}"
    body = message["body"]
    blocks = slack_blocks(body) if message["kind"] == "slack" else None
    content = "".join(_block(block) for block in blocks) if blocks else f"<pre>{html.escape(shown)}</pre>"
    return (f'<article class="{kind}" data-testid="message"><span class="who">Klaxon</span> <span class="when">{html.escape(when)}</span>'
            f"{content}</article>")


def _block(block: dict[str, Any]) -> str:
    text = _text_of(block.get("text"))
    if block.get("type") == "header":
        return f"<h2>{html.escape(text.lstrip('🔴🟠🟢 '))}</h2>"  # the colour of the edge says it without an emoji font
    if block.get("type") == "context":
        return f'<div class="block context">{" ".join(_markup(_text_of(each)) for each in block.get("elements", []))}</div>'
    if block.get("fields"):
        return f'<div class="block fields">{"".join(f"<div>{_markup(_text_of(each))}</div>" for each in block["fields"])}</div>'
    return f'<div class="block">{_markup(text)}</div>'


def _markup(text: str) -> str:
    """Slack's mrkdwn as HTML: bold, code, links to http(s), line breaks; the rest is text."""
    parts, end = [], 0
    for link in _LINK.finditer(text):
        parts += [_inline(text[end:link.start()]), f'<a href="{_escaped(link[1])}" rel="noreferrer">{_escaped(link[2])}</a>']
        end = link.end()
    return "".join([*parts, _inline(text[end:])])


def _inline(text: str) -> str:
    pieces = _escaped(text).split("```")
    for i, piece in enumerate(pieces):
        if i % 2 and i < len(pieces) - 1:
            pieces[i] = f"<pre>{piece}</pre>"
        else:
            pieces[i] = re.sub(r"(?m)^\*([^*\n]+)\*", r"<strong>\1</strong>", piece).strip("\n").replace("\n", "<br>")
    return "".join(pieces)


def _escaped(text: str) -> str:
    """Slack escapes three characters; undo that, then escape for HTML."""
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        text = text.replace(entity, character)
    return html.escape(text)


def _block_text(block: dict[str, Any]) -> str:
    texts = [_text_of(block.get("text")), *(_text_of(each) for key in ("fields", "elements") for each in block.get(key, []))]
    shown = "\n".join(text for text in texts if text)
    shown = _LINK.sub(r"\2 (\1)", shown).replace("```", "")
    return html.unescape(re.sub(r"(?m)^\*([^*\n]+)\*", r"\1", shown))


def _text_of(found: Any) -> str:
    return str(found.get("text", "")) if isinstance(found, dict) else ""
