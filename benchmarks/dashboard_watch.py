"""One load of a Streamlit page, watched from the browser and on its socket; used by benchmarks/dashboard.py."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

PATIENCE_SECONDS = 120.0
SETTLED_SECONDS = 2.0
WATCH = """
window.__chart = null;
new MutationObserver(() => {
  if (window.__chart === null && document.querySelector('[data-testid=stVegaLiteChart] svg, [data-testid=stVegaLiteChart] canvas')) window.__chart = performance.now();
}).observe(document, {childList: true, subtree: true});
window.__paint = null;
new PerformanceObserver(list => { for (const one of list.getEntriesByName('first-contentful-paint')) window.__paint = one.startTime; })
  .observe({type: 'paint', buffered: true});
"""


@dataclass
class Load:
    """Seconds, and bytes."""

    paint: float = 0.0
    chart: float | None = None
    script: float = 0.0
    size: int = 0
    renderer_cpu: float = 0.0  # of the browser's own drawing process, until the page has settled
    refreshes: list[float] = field(default_factory=list)


@dataclass
class _Wire:
    """What crosses the page's socket and what it fetches, by the browser's own clock (CDP timestamps, seconds)."""

    size: int = 0
    asked: float | None = None  # the oldest question that is not answered yet
    answered: list[float] = field(default_factory=list)  # seconds from question to the end of its answer
    urls: dict[str, str] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)

    def listen(self, session: Any) -> None:
        session.on("Network.webSocketFrameSent", self.sent)
        session.on("Network.webSocketFrameReceived", self.received)
        session.on("Network.responseReceived", lambda said: self.urls.update({said["requestId"]: said["response"]["url"]}))
        session.on("Network.loadingFinished", self.fetched)
        session.send("Network.enable")

    def sent(self, said: Any) -> None:
        if self.asked is None:
            self.asked = said["timestamp"]

    def received(self, said: Any) -> None:
        frame = said["response"]
        data = base64.b64decode(frame["payloadData"]) if frame["opcode"] == 2 else frame["payloadData"].encode()
        self.size += len(data)
        if frame["opcode"] == 2 and self.asked is not None and _finished(data):
            self.answered.append(said["timestamp"] - self.asked)
            self.asked = None

    def fetched(self, said: Any) -> None:
        url = self.urls.get(said["requestId"], "")
        path = url.split("://", 1)[-1].partition("/")[2].partition("?")[0]
        if path.startswith(("_stcore/", "media/", "component/", "vendor/")) and "/static/" not in path:
            self.size += int(said["encodedDataLength"])


def _finished(data: bytes) -> bool:
    message = ForwardMsg()
    message.ParseFromString(data)
    return message.WhichOneof("type") == "script_finished" and message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN


def watch(context: Any, url: str, *, idle_seconds: float) -> Load:
    """Open a page, wait until it is finished and drawn, then watch its live refreshes for a while."""
    drawn_before = _renderer_cpu(context)
    page = context.new_page()
    session, wire = context.new_cdp_session(page), _Wire()
    wire.listen(session)
    page.goto(url, wait_until="commit")
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not wire.answered:
        if time.monotonic() > give_up:
            raise RuntimeError(f"{url}: not finished after {PATIENCE_SECONDS:g} s")
        page.wait_for_timeout(20)
    page.wait_for_timeout(SETTLED_SECONDS * 1000)
    size, first, drawn = wire.size, len(wire.answered), _renderer_cpu(context) - drawn_before
    page.wait_for_timeout(idle_seconds * 1000)
    found = page.evaluate("() => [window.__paint, window.__chart]")
    page.close()
    return Load(paint=found[0] / 1000, chart=None if found[1] is None else found[1] / 1000, script=wire.answered[0], size=size, renderer_cpu=drawn,
                refreshes=wire.answered[first:])


def _renderer_cpu(context: Any) -> float:
    """CPU seconds of all living drawing processes."""
    session = context.browser.new_browser_cdp_session()
    try:
        return sum(one["cpuTime"] for one in session.send("SystemInfo.getProcessInfo")["processInfo"] if one["type"] == "renderer")
    finally:
        session.detach()


def quantiles(values: Sequence[float]) -> tuple[float, float, float] | None:
    """(median, p95, largest); None of nothing."""
    return (float(np.median(values)), float(np.quantile(values, 0.95)), max(values)) if values else None
