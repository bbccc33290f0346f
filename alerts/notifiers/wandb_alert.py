"""W&B: an alert on a run, by the two GraphQL mutations that wandb's own client sends (wandb-core 0.31: UpsertBucket and
NotifyScriptableRunAlert).

`run.alert()` itself needs a live run in this process and never says whether the alert arrived; asked directly, the server does, so
nothing is lost, and the trainer's run is not touched beyond the alert. With `path = "entity/project"` Klaxon makes a run of its own,
named after the watched one and always under the same id.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, MutableMapping
from typing import Any

from alerts.config import ReceiverConfig
from alerts.message import Message
from alerts.notifiers import http
from alerts.render import as_text, cut, escape, titled
from collector.errors import ConfigError, GiveUp, RetryLater

LEVELS = {"page": "ERROR", "warn": "WARN"}
_UPSERT = """mutation UpsertBucket($name: String, $project: String, $entity: String, $groupName: String, $displayName: String, $jobType: String, $state: String) {
  upsertBucket(input: {name: $name, modelName: $project, entityName: $entity, groupName: $groupName, displayName: $displayName, jobType: $jobType, state: $state}) {
    bucket { id name } inserted } }"""
_ALERT = """mutation NotifyScriptableRunAlert($entityName: String!, $projectName: String!, $runName: String!, $title: String!, $text: String!, $severity: AlertSeverity = INFO, $waitDuration: Duration) {
  notifyScriptableRunAlert(input: {entityName: $entityName, projectName: $projectName, runName: $runName, title: $title, text: $text, severity: $severity, waitDuration: $waitDuration}) {
    success } }"""


class WandbNotifier:
    """POSTs to /graphql."""

    def __init__(self, receiver: ReceiverConfig, *, timeout_seconds: float) -> None:
        """Raises ConfigError when the key is missing, the address is unusable, or WANDB_MODE keeps everything on this machine."""
        mode = os.environ.get("WANDB_MODE", "")
        if mode in ("offline", "dryrun", "disabled"):
            raise ConfigError(f"receiver {receiver.name!r}: WANDB_MODE is {mode}, so no alert can reach W&B; unset it for the daemon or remove the receiver")
        self._entity, self._project, self._run = (*receiver.path.split("/"), "")[:3]
        self._group = receiver.group
        key = receiver.secret() or ""
        basic = base64.b64encode(f"api:{key}".encode()).decode()
        self._headers = {"Content-Type": "application/json", "Authorization": f"Basic {basic}"}
        self._poster = http.poster(receiver, receiver.address().rstrip("/"), timeout_seconds=timeout_seconds, secrets=(key, basic))

    def preview(self, message: Message) -> dict[str, Any]:
        """The variables of the alert."""
        lines = as_text(message).splitlines()[1:]
        return {"entityName": self._entity, "projectName": self._project, "runName": self._run or own_run(message.run),
                "title": escape(cut(titled(message), 63)), "text": cut(escape("\n".join(line.strip() for line in lines)), 5000),
                "severity": "INFO" if message.state == "resolved" else LEVELS.get(message.severity, "WARN"), "waitDuration": 0}

    def send(self, message: Message, *, now: float, memory: MutableMapping[str, str]) -> None:
        """Send once. Raises RetryLater or GiveUp."""
        variables = self.preview(message)
        if not self._run and memory.get("run") != variables["runName"]:
            self._ask(_UPSERT, {"name": variables["runName"], "project": self._project, "entity": self._entity, "groupName": self._group or None,
                                "displayName": f"klaxon {message.run}", "jobType": "klaxon", "state": "finished"})
            memory["run"] = variables["runName"]
        data = self._ask(_ALERT, variables)
        if not (data.get("notifyScriptableRunAlert") or {}).get("success"):
            raise GiveUp("W&B took the alert and said it was not sent; are alerts of scripts switched on in the settings of user or team?")

    def _ask(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._poster.post(json.dumps({"query": query, "variables": variables}).encode(), self._headers, below="/graphql")
        if answer.status in (401, 403):
            raise GiveUp(f"W&B refuses the API key (HTTP {answer.status}); replace it, or check that it may write to {self._entity}/{self._project}")
        http.judge(answer)
        try:
            found = json.loads(answer.body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RetryLater("W&B answered something that is no JSON; is a proxy or a login page in between?")
        if found.get("errors"):
            first = found["errors"][0] if isinstance(found["errors"], list) else found["errors"]
            said = first.get("message") if isinstance(first, dict) else first
            raise GiveUp(f"W&B refuses the alert on {self._entity}/{self._project}: {str(said)[:80]!r}")
        return found.get("data") or {}


def own_run(run: str) -> str:
    """The id of Klaxon's own W&B run for a watched run: the same every time, and fit for a URL."""
    return "klaxon-" + hashlib.blake2b(run.encode(), digest_size=6).hexdigest()
