"""TLS as receivers use it: a trusted certificate is spoken to, any other is refused before a byte of the message leaves."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import time
from http.server import ThreadingHTTPServer

import pytest

import receiver_services
from alerts.notifiers import build
from collector.errors import RetryLater
from receiver_kinds import GUARDED, KINDS, life
from receiver_services import Reply, Service, served


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=receiver", "-addext",
                    "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"], check=True, capture_output=True)
    return folder


@pytest.fixture
def over_tls(certificate, monkeypatch):
    """Makes `served` speak TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")

    class Server(ThreadingHTTPServer):
        def get_request(self):
            connection, address = self.socket.accept()
            connection.settimeout(20)
            return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, request, client_address) -> None:
            pass  # a client that breaks the handshake off, as the test wants

    monkeypatch.setattr(receiver_services, "ThreadingHTTPServer", Server)
    return certificate / "cert.pem"


@pytest.mark.parametrize("name", GUARDED)
def test_a_trusted_receiver_gets_the_message(name, over_tls, monkeypatch) -> None:
    kind = KINDS[name]
    monkeypatch.setenv("SSL_CERT_FILE", str(over_tls))
    with served(kind.service(secret=kind.secret)) as service:
        kind.plant(monkeypatch, service.url.replace("http:", "https:"))
        build(kind.config(), timeout_seconds=10.0).send(life()["first"], now=time.time(), memory={})
    assert service.accepted


@pytest.mark.parametrize("name", GUARDED)
def test_a_certificate_nobody_vouches_for_is_refused(name, over_tls, monkeypatch) -> None:
    kind = KINDS[name]
    with served(kind.service(secret=kind.secret)) as service:
        kind.plant(monkeypatch, service.url.replace("http:", "https:"))
        with pytest.raises(RetryLater, match="certificate is not trusted"):
            build(kind.config(), timeout_seconds=10.0).send(life()["first"], now=time.time(), memory={})
    assert service.seen == []


def test_a_long_answer_over_tls_is_bounded(over_tls, monkeypatch) -> None:
    kind = KINDS["slack_webhook"]
    monkeypatch.setenv("SSL_CERT_FILE", str(over_tls))
    with served(Service(script=[Reply(status=500, body=b"x" * 10_000_000)])) as service:
        kind.plant(monkeypatch, service.url.replace("http:", "https:"))
        with pytest.raises(RetryLater, match="HTTP 500"):
            build(kind.config(), timeout_seconds=10.0).send(life()["first"], now=time.time(), memory={})
