"""Every fault of a receiver against the whole delivery, over real sockets; the fault table of docs/alerts-delivery.md.

    PYTHONPATH=.:tap:tests python tests/alerts_faults.py
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import ssl
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import alerts_fault_server as server
from alerts.config import AlertsConfig, ReceiverConfig
from alerts.service import Alerts
from alerts_fault_server import TEN_MB, Fault, FaultServer, answer
from alerts_helpers import BUDGET, diagnosis, fact, mismatch, one_by_one

REDIRECT = answer(302, "Location: http://127.0.0.1:9/elsewhere")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One way for a receiver to fail."""

    name: str
    fault: Fault | None = None
    accepts: bool = False  # the receiver has taken what it then fails to acknowledge: copies are allowed
    dies: bool = False  # each message becomes a dead letter, and is sent again by hand
    tls: str = ""  # name of a certificate: instead of a fault
    how: str = "server"  # or "deaf", "dns"
    tries: int = 3  # failed attempts before it heals


SCENARIOS = (
    Scenario(name="429, Retry-After in seconds", fault=answer(429, "Retry-After: 1"), tries=2),
    Scenario(name="429, Retry-After as a date", fault=server.patience_until_a_date, tries=2),
    Scenario(name="429 without Retry-After", fault=answer(429)),
    Scenario(name="500", fault=answer(500)),
    Scenario(name="503, 10 MB body", fault=answer(503, body=b"x" * TEN_MB)),
    Scenario(name="200, 10 MB body", fault=answer(200, body=b"x" * TEN_MB), accepts=True, tries=1),
    Scenario(name="connecting takes for ever", how="deaf", tries=3),
    Scenario(name="no answer", fault=server.silence, accepts=True),
    Scenario(name="reset in the middle", fault=server.reset, accepts=True),
    Scenario(name="slow drip of headers", fault=server.drip, accepts=True, tries=2),
    Scenario(name="slow drip after 200", fault=server.drip_after_ok, accepts=True, tries=1),
    Scenario(name="not HTTP", fault=server.not_http, accepts=True),
    Scenario(name="connection refused, then back", how="refused", tries=3),
    Scenario(name="the name does not resolve", how="dns"),
    Scenario(name="TLS: self-signed", tls="self_signed"),
    Scenario(name="TLS: another name", tls="wrong_name"),
    Scenario(name="redirect", fault=REDIRECT, dies=True),
    Scenario(name="404", fault=answer(404), dies=True),
)


@dataclass(kw_only=True)
class Result:
    """What came of a scenario."""

    name: str
    failed: int  # attempts that did not count
    breaker: int  # times it opened
    dead: int  # dead letters, before they were sent again
    messages: int  # delivered to the faulty receiver
    lost: list[str] = field(default_factory=list)  # incidents whose final state it was not told
    disordered: list[str] = field(default_factory=list)
    copies: int = 0  # requests that carried an id it had already accepted
    retries: int = 0  # attempts after which the message was tried again
    other_seconds: float = 0.0  # until the healthy receiver had everything, the other still failing
    left: list[dict[str, Any]] = field(default_factory=list)  # undelivered at the end
    errors: Counter[str] = field(default_factory=Counter)  # what `klaxon status` would have said


def run(scenario: Scenario, folder: Path, tls: dict[str, ssl.SSLContext]) -> Result:
    """Four incidents change while one of two receivers fails; then it heals."""
    bad = FaultServer(fault=scenario.fault, accepts=scenario.accepts, tls=tls[scenario.tls] if scenario.tls else None)
    with server.serving(FaultServer()) as good, _place(scenario, bad, tls) as heal, _addressed(scenario, bad, folder):
        config = AlertsConfig(
            **one_by_one(), console=False, timeout_seconds=0.25, backoff_seconds=0.02, backoff_max_seconds=0.1, breaker_failures=3, breaker_seconds=0.2,
            receivers=[ReceiverConfig(name="bad", url_env="KX_BAD"), ReceiverConfig(name="good", url=f"http://127.0.0.1:{good.port}/")])
        alerts = Alerts(config, folder / "control.sqlite", run="r1", budget_text=BUDGET)
        alerts.start()
        final = _story(alerts)
        began = time.monotonic()
        wait(lambda: _final(good) == final, f"{scenario.name}: the healthy receiver was held up")
        other = time.monotonic() - began
        wait(lambda: _failures(alerts, scenario, bad) >= scenario.tries, f"{scenario.name}: too few attempts")
        if scenario.dies:
            wait(lambda: all(row["state"] == "dead" for row in alerts.undelivered()), f"{scenario.name}: not given up")
        errors = Counter(row["error"] for row in alerts.undelivered() if row["error"])
        dead = [row for row in alerts.undelivered() if row["state"] == "dead"] if scenario.dies else []
        failed = _failures(alerts, scenario, bad)
        heal()
        with contextlib.suppress(AssertionError):
            wait(lambda: _redelivered(alerts) and _final(bad) == final, "told below")
        result = Result(name=scenario.name, failed=failed, dead=len(dead), breaker=alerts.counts()["breaker_opened"], messages=alerts.delivered_count("bad"),
                        other_seconds=other, left=alerts.undelivered(), errors=errors)
        result.retries = alerts.counts()["retries"]
        alerts.stop(drain_seconds=0.0)
    told = _final(bad)
    result.lost = [incident for incident, state in final.items() if told.get(incident) != state]
    result.disordered = _disordered(bad, folder)
    result.copies = sum(count - 1 for count in Counter(body["message_id"] for body in bad.bodies()).values())
    return result


def _redelivered(alerts: Alerts) -> bool:
    """Nothing is left; dead letters, also those that died late, are sent again."""
    left = alerts.undelivered()
    for row in left:
        if row["state"] == "dead":
            alerts.redeliver(row["id"])
    return not left


def _story(alerts: Alerts) -> dict[str, str]:
    """Opens, diagnoses, grows and resolves; returns incident id → final state."""
    now = time.time()
    faults = [fact(slice={"replica": f"engine-{i}"}) for i in range(3)]
    found = alerts.observe([mismatch(effect=0.1, effect_unit="nats"), *faults], now=now)
    alerts.attach_diagnosis(found[0].id, diagnosis(), now=now)
    alerts.resolve(found[1].fingerprint, now=now, why="gone")
    alerts.observe([mismatch(effect=0.5, effect_unit="nats")], now=now)
    alerts.resolve(found[0].fingerprint, now=now, why="gone")
    return {incident["id"]: incident["state"] for incident in alerts.incidents()}


def _final(place: FaultServer) -> dict[str, str]:
    """Incident → the last state that was accepted."""
    return {body["incident_id"]: body["state"] for body in place.bodies()}


def _failures(alerts: Alerts, scenario: Scenario, bad: FaultServer) -> int:
    counts = alerts.counts()
    return counts["retries"] + counts["dead"] if scenario.tries > 1 or scenario.dies else bad.attempts


def _disordered(bad: FaultServer, folder: Path) -> list[str]:
    """Incidents of which an older message arrived after a newer one."""
    with contextlib.closing(sqlite3.connect(folder / "control.sqlite")) as connection:
        place = dict(connection.execute("SELECT outbox_id, id FROM deliveries WHERE outbox_id IS NOT NULL").fetchall())
    arrived: dict[str, list[int]] = defaultdict(list)
    for body in bad.bodies():
        arrived[body["incident_id"]].append(place[body["message_id"]])
    return [incident for incident, order in arrived.items() if order != sorted(order)]


@contextlib.contextmanager
def _place(scenario: Scenario, bad: FaultServer, tls: dict[str, ssl.SSLContext]) -> Iterator[Callable[[], None]]:
    """The faulty receiver; yields what heals it."""
    if scenario.how == "deaf":
        with server.deaf(bad) as heal:
            yield heal
    elif scenario.how == "refused":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            bad.port = probe.getsockname()[1]
        with contextlib.ExitStack() as later:
            yield lambda: setattr(later, "server", later.enter_context(server.serving(bad)))
    else:
        with server.serving(bad):
            if scenario.how != "dns":
                yield lambda: bad.heal(tls.get("good") if scenario.tls else None)
            else:
                asked, real = [True], socket.getaddrinfo

                def resolve(host: str, *args: Any, **options: Any) -> Any:
                    if host == "localhost" and asked:
                        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
                    return real(host, *args, **options)

                with mock.patch("socket.getaddrinfo", resolve):
                    yield asked.clear


@contextlib.contextmanager
def _addressed(scenario: Scenario, bad: FaultServer, folder: Path) -> Iterator[None]:
    scheme, host = ("https", "localhost") if scenario.tls else ("http", "localhost" if scenario.how == "dns" else "127.0.0.1")
    given = {"KX_BAD": f"{scheme}://{host}:{bad.port}/secret-path"}
    if scenario.tls:
        given["SSL_CERT_FILE"] = str(folder.parent / "ca.pem")
    with mock.patch.dict(os.environ, given):
        yield


def wait(condition: Callable[[], bool], otherwise: str, seconds: float = 30.0) -> None:
    """Poll until it holds."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, otherwise
        time.sleep(0.01)


def table(results: list[Result]) -> str:
    """The fault table, as Markdown."""
    lines = ["| fault | failed attempts | breaker opened | dead letters | then delivered | lost | out of order | copies | the other receiver, s |",
             "|---|---|---|---|---|---|---|---|---|"]
    lines += [f"| {each.name} | {each.failed} | {each.breaker} | {each.dead} | {each.messages} | {len(each.lost)} | {len(each.disordered)} "
              f"| {each.copies} | {each.other_seconds:.2f} |" for each in results]
    return "\n".join(lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        keys, done = server.certificates(Path(place)), []
        for number, scenario in enumerate(SCENARIOS):
            print(f"… {scenario.name}", file=sys.stderr, flush=True)
            (here := Path(place) / str(number)).mkdir()
            done.append(run(scenario, here, keys))
    print(table(done))
    print(json.dumps({each.name: sorted(each.errors) for each in done}, indent=1, ensure_ascii=False))
