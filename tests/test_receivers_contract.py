"""The contract of every notifier, over real HTTP: accepted, later or never, guarded, silent about secrets, deaf to markup."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time

import pytest

from alerts.notifiers import NOTIFIERS, build
from alerts_helpers import NOW, alerts_of, mismatch
from collector.errors import GiveUp, RetryLater
from receiver_kinds import CANARY, EVERY, GUARDED, KINDS, life, running
from receiver_services import Reply, Service, served

FIRST = life()["first"]
HOSTILE = "<!channel> <@U1> <https://evil.test|x> <script>alert(1)</script> \"';--{{}}[a](b) `*_~ \x00\u202e"


def test_every_type_stands_in_the_suite() -> None:
    assert {kind.type for kind in KINDS.values()} | {"console"} == set(NOTIFIERS)


@pytest.mark.parametrize("name", EVERY)
def test_the_service_takes_every_state_of_an_incident(name, monkeypatch) -> None:
    memory: dict[str, str] = {}
    with running(name, monkeypatch) as (notifier, service):
        for told in life().values():
            before = len(service.accepted)
            notifier.send(told, now=time.time(), memory=memory)
            assert len(service.accepted) > before
            json.dumps(notifier.preview(told), allow_nan=False)
    assert json.loads(json.dumps(memory)) == memory and all(isinstance(value, str) for value in memory.values())
    assert "Rollout logprobs no longer match the trainer" in json.dumps(service.accepted[-1 if KINDS[name].type != "pagerduty" else 0])


@pytest.mark.parametrize("name", EVERY)
def test_429_asks_for_patience_as_long_as_the_service_says(name, monkeypatch) -> None:
    with running(name, monkeypatch) as (notifier, service):
        service.script.append(Reply(status=429, headers={"Retry-After": "7"}, body=b'{"ok": false, "error": "ratelimited"}'))
        with pytest.raises(RetryLater) as caught:
            notifier.send(FIRST, now=time.time(), memory={})
    assert KINDS[name].own_http or caught.value.after_seconds == 7.0


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("status", [500, 503])
def test_a_service_in_trouble_is_tried_again(name, status, monkeypatch) -> None:
    with running(name, monkeypatch) as (notifier, service):
        service.script.append(Reply(status=status, body=b"x" * 10_000_000))
        with pytest.raises(RetryLater) as caught:
            notifier.send(FIRST, now=time.time(), memory={})
    assert len(str(caught.value)) < 300


def silent(until: threading.Event):
    return Reply(act=lambda handler: until.wait(30))


def dripping(until: threading.Event):
    def act(handler):
        for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 3000:
            handler.wfile.write(bytes([byte]))
            if until.wait(0.02):
                break

    return Reply(act=act)


def reset(_: threading.Event):
    def act(handler):
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        handler.close_connection = True
        handler.wfile.close()
        handler.rfile.close()
        handler.connection.close()

    return Reply(act=act)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("fault", [silent, dripping, reset])
def test_no_answer_a_dripping_one_and_a_broken_one_are_tried_again(name, fault, monkeypatch) -> None:
    if KINDS[name].own_http and fault is dripping:
        pytest.skip("apprise's own HTTP waits between bytes, not for the whole")
    over = threading.Event()
    with running(name, monkeypatch, patience=0.5) as (notifier, service):
        service.script.append(fault(over))
        started = time.monotonic()
        try:
            with pytest.raises(RetryLater):
                notifier.send(FIRST, now=time.time(), memory={})
        finally:
            over.set()
        assert time.monotonic() - started < 20.0  # the drip alone would take 60 s


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_not_followed(name, status, monkeypatch) -> None:
    with served(Service()) as trap, running(name, monkeypatch) as (notifier, service):
        service.script.append(Reply(status=status, headers={"Location": f"{trap.url}/"}))
        with pytest.raises(GiveUp, match="redirect"):
            notifier.send(FIRST, now=time.time(), memory={})
        assert len(service.seen) == 1 and trap.seen == []


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("address", ["10.1.2.3", "192.168.0.9", "169.254.169.254", "127.0.0.1", "100.64.0.1", "0.0.0.0", "224.0.0.1",
                                     "::1", "fd00::1", "fe80::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::"])
def test_a_name_that_leads_into_a_private_network_is_refused(name, address, monkeypatch) -> None:
    kind = KINDS[name]
    kind.plant(monkeypatch, "http://hooks.example.test")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(family, socket.SOCK_STREAM, 6, "", (address, 80))])
    with pytest.raises(GiveUp, match="allow_private"):
        build(kind.config(allow_http=True), timeout_seconds=0.5).send(FIRST, now=time.time(), memory={})


@pytest.mark.parametrize("name", GUARDED)
def test_a_name_that_is_not_found_may_be_found_later(name, monkeypatch) -> None:
    def lookup(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    KINDS[name].plant(monkeypatch, "http://hooks.example.test")
    monkeypatch.setattr("socket.getaddrinfo", lookup)
    with pytest.raises(RetryLater, match="gaierror") as caught:
        build(KINDS[name].config(allow_http=True), timeout_seconds=0.5).send(FIRST, now=time.time(), memory={})
    assert "example" not in str(caught.value)


@pytest.mark.parametrize("name", GUARDED)
def test_the_address_that_was_checked_is_the_one_connected_to(name, monkeypatch) -> None:
    """A second DNS answer has no chance: a name is looked up once a connection, and that very answer is used."""
    asked, connected = [], []

    def lookup(*_, **__):
        asked.append(1)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14" if len(asked) == 1 else "127.0.0.1", 80))]

    def connect(self, where):
        connected.append(where)
        raise ConnectionRefusedError

    KINDS[name].plant(monkeypatch, "http://hooks.example.test")
    notifier = build(KINDS[name].config(allow_http=True), timeout_seconds=0.5)
    monkeypatch.setattr("socket.getaddrinfo", lookup)
    monkeypatch.setattr("socket.socket.connect", connect)
    with pytest.raises(RetryLater):
        notifier.send(FIRST, now=time.time(), memory={})
    assert (len(asked), connected) == (1, [("93.184.215.14", 80)])


@pytest.mark.parametrize("name", EVERY)
def test_markup_in_labels_stays_text(name, monkeypatch) -> None:
    memory: dict[str, str] = {}
    with running(name, monkeypatch) as (notifier, service):
        for told in life(slice={"replica": HOSTILE, "__name__": HOSTILE, "alertname": "x", "9 lives": "y"}, stream=HOSTILE).values():
            notifier.send(told, now=time.time(), memory=memory)
        kept = json.dumps(service.accepted, ensure_ascii=False)
    assert "\x00" not in kept and "\u202e" not in kept
    if KINDS[name].type in ("slack", "slack_webhook", "wandb", "apprise"):
        assert "script&gt;" in kept
        assert not any(raw in kept for raw in ("<!channel>", "<@U1>", "<https://evil.test|x>", "<script>"))


@pytest.mark.parametrize("name", EVERY)
def test_a_secret_leaves_no_trace_even_when_the_service_echoes_it(name, monkeypatch, tmp_path, caplog, capsys) -> None:
    kind = KINDS[name]
    caplog.set_level(logging.DEBUG)
    for logger in ("slack_sdk", "urllib3", "apprise"):
        logging.getLogger(logger).setLevel(logging.DEBUG)

    def echo(request):
        return Reply(status=400, body=f"{request.path} {request.headers} ".encode() + request.body)

    with served(kind.service(secret=kind.secret)) as service:
        kind.plant(monkeypatch, service.url)
        alerts = alerts_of(tmp_path / "control.sqlite", kind.config(), timeout_seconds=20.0)
        service.script += [echo, echo]
        alerts.observe([mismatch()], now=NOW)
        alerts.deliver_due(time.time())
        (waiting,) = alerts.undelivered()
        service.script.clear()
        alerts.resolve("r1/mismatch", now=NOW + 9, why="gone")
        alerts.deliver_due(time.time() + 1)
        preview = json.dumps(build(kind.config(), timeout_seconds=0.5).preview(FIRST))
        alerts.stop()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    shown = capsys.readouterr()
    told = "".join((str(waiting), preview, repr(kind.config()), caplog.text, shown.out, shown.err))
    assert waiting["error"] and b"inc_" in stored
    for secret in {kind.secret, CANARY} - {""}:
        assert secret not in told and secret.encode() not in stored
