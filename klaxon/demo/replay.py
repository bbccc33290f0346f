"""`klaxon demo --replay`: the page and the alerts in about a minute, with no engine and no torch.

A real daemon, a real page and a real receiver; the rollouts are recordings of real engines (recordings/README.md).
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from collector.errors import KlaxonError, Unavailable
from dashboard.launch import command as dashboard_command
from klaxon.client import get_json
from klaxon.demo.children import Child, Children, free_port
from klaxon.demo.player import PHASES, Phase, play
from klaxon.demo.settings import demo_alerts, write_config

SECONDS_A_RECORDING = 11.0
BATCH_SECONDS = 1.0
SETTLE_SECONDS = 3.0


def run_replay(folder: Path, *, dashboard: bool, exit_after: bool, as_json: bool, api_port: int = 8765,
               dashboard_port: int = 8501) -> int:
    """Play the migration story; returns the exit code (0: the alarm came with V1 as upgraded, only then, and went with the fix)."""
    console = Console(stderr=as_json)
    shutil.rmtree(folder, ignore_errors=True)
    api, receiver = free_port(api_port), free_port(8330)
    url = f"http://127.0.0.1:{api}"
    with Children() as children:
        try:
            _start_parts(children, folder, api, receiver, dashboard_port)
            _wait(url, console)
            if dashboard:
                _start_page(children, folder, url, dashboard_port, console)
            began = _play(url, console)
            summary = _summary(url, began)
        except KeyboardInterrupt:
            console.print("stopped")
            return 130
        except Unavailable as error:
            console.print(f"klaxon: {error}", style="red", markup=False)
            return 2
        _tell(console, summary, receiver)
        if as_json:
            print(json.dumps(summary), flush=True)
        if not exit_after:
            _linger(console, dashboard_port if dashboard else None)
    return 0 if summary["expected"] else 1


def _start_parts(children: Children, folder: Path, api: int, receiver: int, dashboard_port: int) -> None:
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    config = write_config(folder / "config.toml", {
        "run": {"name": "v0-to-v1", "dir": str(folder / "state")},
        "daemon": {"port": api, "batch_seconds": BATCH_SECONDS, "watermark_seconds": 0.5, "recovery_batches": 8},
        "trainer": {"expected_logprobs_mode": "processed_logprobs"},
        "shadow": {"enabled": False},
        "alerts": demo_alerts(f"http://127.0.0.1:{receiver}", dashboard_port),
    })
    children.start(Child("receiver", [sys.executable, "-m", "klaxon.demo.receiver", "--port", str(receiver), "--out",
                                      str(folder / "received.jsonl")], log=folder / "receiver.log",
                         env={"KLAXON_RECEIVER_SECRET": secret}))
    children.start(Child("daemon", [sys.executable, "-m", "klaxon", "run", "--config", str(config)],
                         log=folder / "daemon.log", env={"KLAXON_WEBHOOK_SECRET": secret, "KLAXON_TOKEN": ""}))


def _start_page(children: Children, folder: Path, url: str, port: int, console: Console) -> None:
    children.start(Child("dashboard", dashboard_command(port=port), log=folder / "dashboard.log", env={"KLAXON_API": url}))
    console.print(f"page: http://127.0.0.1:{port}", style="bold")


def _wait(url: str, console: Console, *, patience_seconds: float = 120.0) -> None:
    with console.status("starting the daemon"):
        began = time.monotonic()
        while time.monotonic() - began < patience_seconds:
            try:
                get_json(url, "/healthz")
            except KlaxonError:
                time.sleep(0.2)
                continue
            return
    raise Unavailable(f"the daemon did not come up within {patience_seconds:.0f} s; see daemon.log in the replay's folder")


def _play(url: str, console: Console) -> dict[str, float]:
    began: dict[str, float] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} rollouts"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        tasks = {phase.name: progress.add_task(phase.name, total=32 * phase.times, start=False) for phase in PHASES}

        def say(phase: Phase, done: int, total: int) -> None:
            progress.update(tasks[phase.name], completed=done, total=total)

        for phase, at in play(url, seconds_a_recording=SECONDS_A_RECORDING, say=say, stopping=lambda: False):
            progress.start_task(tasks[phase.name])
            began[phase.name] = at
    with console.status("the last batches close"):
        time.sleep(SETTLE_SECONDS)
    return began


def _summary(url: str, began: dict[str, float]) -> dict[str, Any]:
    status, incidents = get_json(url, "/v1/status"), get_json(url, "/v1/incidents")
    v0, upgraded, fixed = (began[phase.name] for phase in PHASES)
    mismatches = [item for item in incidents if item["drifts"][0]["kind"] == "statistical"]
    alarm_at = min((item["opened_at"] for item in mismatches), default=None)
    during = alarm_at is not None and upgraded <= alarm_at < fixed
    first = mismatches[-1] if mismatches else {}
    return {
        "engine": "recordings of vLLM 0.8.5 (V0) and 0.18.1 (V1)", "rollouts_seen": status["counts"]["seen"],
        "rollouts_scored": status["counts"].get("scored", 0), "tokens_scored": status["counts"].get("tokens_scored", 0),
        "fault": "raw-logprobs", "fault_at": upgraded, "alarm_at": alarm_at,
        "batches_to_alarm": None if alarm_at is None else int((alarm_at - upgraded) // BATCH_SECONDS) + 1,
        "cause": (first.get("diagnosis") or {}).get("verdict"), "resolved_at": first.get("resolved_at"),
        "alerts_delivered": status["alerts_delivered"],
        "false_alarms_before_fault": sum(item["opened_at"] < upgraded for item in incidents),
        "expected": during and len(incidents) == 1 and first.get("resolved_at") is not None,
    }


def _tell(console: Console, summary: dict[str, Any], receiver: int) -> None:
    if summary["alarm_at"] is None:
        console.print("No alarm: that is not what should have happened.", style="red")
        return
    console.print(f"Alarm {summary['batches_to_alarm']} batches ({summary['alarm_at'] - summary['fault_at']:.1f} s) after the upgrade: "
                  f"{summary['cause']}. {'Resolved after the fix.' if summary['resolved_at'] else 'Not resolved yet.'} "
                  f"{summary['alerts_delivered']} messages delivered; read them on http://127.0.0.1:{receiver}", markup=False)


def _linger(console: Console, port: int | None) -> None:
    where = f"The page stays on http://127.0.0.1:{port}. " if port else ""
    console.print(f"{where}Ctrl-C stops everything.", style="bold")
    try:
        while True:
            time.sleep(0.5)
    except KeyboardInterrupt:
        console.print("stopping")
