"""Slack by bot token: one root message an incident, always showing its newest state, and a thread below it with each piece of news.

What Slack told us of the root (its channel and ts) is the receiver's memory of the incident. The update is idempotent and comes
first; what was already said in the thread is remembered by the message's id, so a retry does not say it twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from alerts.config import ReceiverConfig
from alerts.message import Message
from alerts.notifiers import http
from alerts.notifiers.chart import drawn
from alerts.notifiers.slack_client import GONE_WITH_ITS_CHANNEL, Client
from alerts.render import as_slack, as_slack_reply
from collector.errors import GiveUp, RetryLater

log = logging.getLogger(__name__)


class SlackBotNotifier:
    """chat.postMessage, chat.update, and files.getUploadURLExternal for charts."""

    def __init__(self, receiver: ReceiverConfig, *, timeout_seconds: float) -> None:
        """Raises ConfigError when the token is missing or an address is unusable."""
        token = receiver.secret() or ""
        self._receiver, self._timeout, self._channel = receiver, timeout_seconds, receiver.channel
        address = receiver.address().rstrip("/") + "/"
        self._host = urlsplit(address).hostname or ""
        self._client = Client(http.poster(receiver, address, timeout_seconds=timeout_seconds, secrets=(token,)), token)

    def preview(self, message: Message) -> dict[str, Any]:
        """The first message about an incident."""
        return {"channel": self._channel, **as_slack(message)}

    def send(self, message: Message, *, now: float, memory: MutableMapping[str, str]) -> None:
        """Send once, in at most 8 time limits (connect, TLS, send and answer, twice). Raises RetryLater or GiveUp."""
        chart_until = time.monotonic() + 2 * self._timeout
        if not self._updated(message, memory) or not self._replied(message, memory):
            answer = self._client.call("chat.postMessage", json=self.preview(message))
            if not answer.get("ts") or not answer.get("channel"):
                raise GiveUp(f"Slack took the message and did not say which one it is ({answer.get('error', 'no ts')})")
            memory.update(channel=str(answer["channel"]), ts=str(answer["ts"]), said=message.id)
        self._illustrate(message, memory, until=chart_until)

    def _updated(self, message: Message, memory: MutableMapping[str, str]) -> bool:
        """The root shows the newest state; False when there is none (any more)."""
        if not memory.get("ts"):
            return False
        place = {"channel": memory["channel"], "ts": memory["ts"]}
        return bool(self._client.call("chat.update", gone=GONE_WITH_ITS_CHANNEL, json={**as_slack(message), **place}).get("ok"))

    def _replied(self, message: Message, memory: MutableMapping[str, str]) -> bool:
        """The thread has the news; False when it is gone."""
        if memory.get("said") == message.id:
            return True
        place = {"channel": memory["channel"], "thread_ts": memory["ts"]}
        answer = self._client.call("chat.postMessage", json={**as_slack_reply(message), **place})
        if answer.get("ok"):
            memory["said"] = message.id
        return bool(answer.get("ok"))

    def _illustrate(self, message: Message, memory: MutableMapping[str, str], *, until: float) -> None:
        """The chart, where there is one, tried once: the words have arrived, so nothing is retried for the sake of a picture."""
        if memory.get("chart") in (message.id, "refused") or (png := drawn(message)) is None:
            return
        try:
            self._upload(png, message, memory, until)
            memory["chart"] = message.id
        except GiveUp as error:
            memory["chart"] = "refused"
            log.warning("receiver %s: no chart in this thread: %s", self._receiver.name, error)
        except RetryLater as error:
            memory["chart"] = message.id
            log.warning("receiver %s: this chart is left out: %s", self._receiver.name, error)

    def _upload(self, png: bytes, message: Message, memory: MutableMapping[str, str], until: float) -> None:
        _in_time(until)
        name = f"{message.incident_id}.png"
        given = self._client.call("files.getUploadURLExternal", params={
            "filename": name, "length": len(png), "alt_txt": f"Evidence over time: {message.title}"})
        url = str(given.get("upload_url", ""))
        if not self._may_take(url):
            raise GiveUp("Slack named an upload address that is none of its own")
        _in_time(until)
        http.judge(http.poster(self._receiver, url, timeout_seconds=self._timeout).post(png, {"Content-Type": "image/png"}))
        _in_time(until)
        self._client.call("files.completeUploadExternal", json={
            "files": [{"id": given.get("file_id"), "title": "Evidence over time"}], "channel_id": memory["channel"], "thread_ts": memory["ts"]})

    def _may_take(self, url: str) -> bool:
        """A chart goes to the API's own host or a neighbour below the same domain, by the same scheme at least as safe."""
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
        except ValueError:
            return False
        home = self._host.removeprefix("www.")
        return (host == home or host.endswith(f".{home}")) and (parts.scheme == "https" or self._client.base_url.startswith("http:"))


def _in_time(until: float) -> None:
    """A picture must not hold the message longer than its lease."""
    if time.monotonic() > until:
        raise RetryLater("Slack is slow just now")
