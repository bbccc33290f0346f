"""How soon an alarm leaves, and what a storm of them costs.

    python benchmarks/alert_delivery.py [--open 1000] [--alarms 200] [--storm 10000] [--seconds 60] [--json]

Latency: from `observe` of the crossing batch to the first byte of the HTTP request at a local receiver (a process of its own), with so many
incidents open and a diagnosis that never comes, against the same with no other incident open; interleaved. Wanted: p99 ≤ 1 s.
Storm: so many incidents in so many seconds, every tenth of which ends again, to a receiver with Slack's rate (one message a second): growth of
this process's memory after the first hundred, messages a second; then, with the limit lifted, whether what arrives is each incident's newest state. Both of Klaxon's own damping settings (group_over, flap_window_seconds) are off: the worst case.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from alerts.config import AlertsConfig, ReceiverConfig
from alerts.service import Alerts
from collector.records import Drift


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open", type=int, default=1000, help="incidents open beside the one that is timed")
    parser.add_argument("--alarms", type=int, default=200, help="alarms timed on each side")
    parser.add_argument("--storm", type=int, default=10_000, help="incidents of the storm")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the storm takes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = {"load_average": os.getloadavg()[0], "latency": latency(options.open, options.alarms), "storm": storm(options.storm, options.seconds)}
    print(json.dumps(report)) if options.json else show(report)


def latency(others: int, alarms: int) -> dict[str, dict[str, float]]:
    """Seconds from `observe` to the request, by side."""
    took: dict[str, list[float]] = {"crowded": [], "alone": []}
    with tempfile.TemporaryDirectory() as folder, Receiver() as place:
        sides = {name: _alerts(Path(folder) / f"{name}.sqlite", hook=f"{place.url}/{name}") for name in took}
        sides["crowded"].observe([_fault(f"other-{i}") for i in range(others)], now=time.time())
        for alerts in sides.values():
            alerts.start()
        _drained(sides["crowded"])
        place.taken()
        for n in range(alarms):
            for name, alerts in sides.items():
                began = time.time()
                (incident,) = alerts.observe([_fault(f"alarm-{n}")], now=began)
                took[name].append(place.waited_for(incident.id) - began)
                alerts.resolve(incident.fingerprint, now=time.time(), why="measured")
                _drained(alerts)
                place.taken()
            _progress(f"latency {n + 1}/{alarms}", n)
        for alerts in sides.values():
            alerts.stop()
    return {name: {"p50": statistics.median(each), "p99": sorted(each)[int(0.99 * (len(each) - 1))], "max": max(each)} for name, each in took.items()}


def storm(incidents: int, seconds: float) -> dict[str, Any]:
    """What the storm cost, and what arrived."""
    steps = max(1, min(incidents, int(seconds)))
    with tempfile.TemporaryDirectory() as folder, Receiver() as place:
        alerts = _alerts(Path(folder) / "storm.sqlite", rate=1.0, slack=f"{place.url}/during")
        alerts.start()
        alerts.observe([_fault(f"early-{i}") for i in range(100)], now=time.time())
        before, began, longest = _resident_mib(), time.time(), 0.0
        for step in range(steps):
            started = time.time()
            new = [_fault(f"{step}-{i}") for i in range(incidents * step // steps, incidents * (step + 1) // steps)]
            for incident in alerts.observe(new, now=started)[::10]:
                alerts.resolve(incident.fingerprint, now=time.time(), why="over")
            longest = max(longest, time.time() - started)
            _progress(f"storm {step + 1}/{steps}", step)
            time.sleep(max(0.0, began + (step + 1) * seconds / steps - time.time()))
        took, grown = time.time() - began, _resident_mib() - before
        alerts.observe([], now=time.time() + 60)  # the next batch: the last round
        states = {incident["id"]: incident["state"] for incident in alerts.incidents(limit=1_000_000)}
        alerts.stop(drain_seconds=0.0)
        alerts, began = _alerts(Path(folder) / "storm.sqlite", rate=0.0, slack=f"{place.url}/after"), time.time()
        waiting = alerts.receivers(began)[0]["waiting"]
        alerts.start()
        _drained(alerts)
        drained = time.time() - began
        alerts.stop()
        time.sleep(1.0)  # what is still in the pipe
        got = place.taken()
    during = [at for at, path, _, _ in got if path == "/during"]
    told = {incident: state for _, _, incident, state in got}
    return {"incidents": len(states), "seconds": took, "longest_call_seconds": longest, "grown_mib": grown, "messages_during": len(during),
            "a_second": (len(during) - 1) / max(1e-9, during[-1] - during[0]),
            "most_in_a_second": max(Counter(int(at - during[0]) for at in during).values()), "waiting": waiting, "drained_seconds": drained,
            "wrong_or_missing_final_states": sum(told.get(incident) != state for incident, state in states.items() if state != "resolved" or incident in told),
            "ended_untold": sum(state == "resolved" and incident not in told for incident, state in states.items())}


class Receiver:
    """An HTTP receiver in a process of its own; says when each request came, and what it was about."""

    def __enter__(self) -> Receiver:
        context = multiprocessing.get_context("spawn")
        self._ears, mouth = context.Pipe(duplex=False)
        self._process = context.Process(target=_receive, args=(mouth,), daemon=True)
        self._process.start()
        self.url = f"http://127.0.0.1:{self._ears.recv()}"
        self._came: queue.Queue[tuple[float, str, str, str]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def _listen(self) -> None:
        try:
            while True:
                self._came.put(self._ears.recv())
        except EOFError:
            pass  # the process has ended

    def taken(self) -> list[tuple[float, str, str, str]]:
        """(UTC seconds, path, incident, state) of the requests since the last call."""
        found = []
        while not self._came.empty():
            found.append(self._came.get())
        return found

    def waited_for(self, incident: str) -> float:
        """When the first request about the incident came."""
        while True:
            at, _, about, _ = self._came.get(timeout=60.0)
            if about == incident:
                return at


def _receive(mouth: Connection) -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def parse_request(self) -> bool:
            self.came = time.time()
            return super().parse_request()

        def do_POST(self) -> None:
            data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["data"]
            mouth.send((self.came, self.path, data["incident_id"], data["state"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        mouth.send(server.server_address[1])
        server.serve_forever()


def _alerts(path: Path, *, rate: float = 0.0, **urls: str) -> Alerts:
    damping = {name: 0 for name in ("group_over", "flap_window_seconds") if name in AlertsConfig.model_fields}
    config = AlertsConfig(**damping, console=False, rates={name: rate for name in urls},
                          receivers=[ReceiverConfig(name=name, url=url) for name, url in urls.items()])
    return Alerts(config, path, run="bench", budget_text="1 per 30 days")


def _fault(replica: str) -> Drift:
    return Drift(kind="fact", stream="engine_unreachable", statistic=1.0, threshold=1.0, alarm_t=19, change_t=(19, 19), slice={"replica": replica},
                 text=f"{replica} has not answered for 31 s.")


def _drained(alerts: Alerts) -> None:
    while any(row["waiting"] for row in alerts.receivers(time.time())):
        time.sleep(0.02)


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _progress(said: str, step: int) -> None:
    if step % 10 == 9:
        print(f"… {said}", file=sys.stderr, flush=True)


def show(report: dict[str, Any]) -> None:
    """The figures beside what is wanted."""
    print(f"load average {report['load_average']:.1f}")
    for name, row in report["latency"].items():
        print(f"{name:<8} observe → request: p50 {row['p50'] * 1e3:.0f} ms, p99 {row['p99'] * 1e3:.0f} ms, max {row['max'] * 1e3:.0f} ms")
    print(f"crowded / alone, p50: {report['latency']['crowded']['p50'] / report['latency']['alone']['p50']:.1f} (wanted: p99 ≤ 1 s crowded)")
    found = report["storm"]
    print(f"storm: {found['incidents']} incidents in {found['seconds']:.0f} s, longest call {found['longest_call_seconds']:.2f} s, memory grown by "
          f"{found['grown_mib']:.0f} MiB; {found['messages_during']} messages to the limited receiver, {found['a_second']:.2f} a second, "
          f"at most {found['most_in_a_second']} within a second")
    print(f"after it: {found['waiting']} messages waited and left in {found['drained_seconds']:.0f} s once the limit was lifted; "
          f"{found['wrong_or_missing_final_states']} final states wrong or missing, {found['ended_untold']} incidents ended before anybody was told")


if __name__ == "__main__":
    main()
