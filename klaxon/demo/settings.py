"""The config.toml a demo writes for its daemon: short batches, so that a story of days fits into minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_config(path: Path, sections: dict[str, dict[str, Any]]) -> Path:
    """Write `sections` (dotted names allowed, a list value of tables as [[…]]) as TOML; returns the path."""
    lines: list[str] = []
    for name, values in sections.items():
        lines.append(f"[{name}]")
        tables = {key: value for key, value in values.items() if isinstance(value, list) and value and isinstance(value[0], dict)}
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in tables]
        for key, rows in tables.items():
            for row in rows:
                lines += ["", f"[[{name}.{key}]]", *(f"{inner} = {json.dumps(value)}" for inner, value in row.items())]
        lines.append("")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def demo_alerts(receiver_url: str, dashboard_port: int) -> dict[str, Any]:
    """[alerts] of a demo: console off (the demo shows alerts itself), the local Slack-contract receiver and a webhook."""
    return {"console": False, "dashboard_url": f"http://127.0.0.1:{dashboard_port}",
            "receivers": [{"type": "slack_webhook", "name": "slack", "url": f"{receiver_url}/services/demo"},
                          {"type": "webhook", "name": "webhook", "url": f"{receiver_url}/webhook",
                           "secret_env": "KLAXON_WEBHOOK_SECRET"}]}
