"""Taps on other machines: https with a token, against a real daemon process."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from test_command_daemon import free_port, klaxon, wait

from klaxon.demo.settings import write_config

PUSH = """
import klaxon_tap, sys, time
klaxon_tap.push(7, {"kl": 0.5})
deadline = time.monotonic() + float(sys.argv[1])
while time.monotonic() < deadline and not klaxon_tap._sender.sent: time.sleep(0.05)
print(klaxon_tap._sender.sent, klaxon_tap._sender.errors)
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=klaxon", "-addext",
                    "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


def config(folder: Path, port: int, cert: Path, key: Path) -> Path:
    return write_config(folder / "config.toml", {
        "run": {"name": "t", "dir": str(folder / "state")}, "shadow": {"enabled": False}, "alerts": {"console": False},
        "daemon": {"port": port, "batch_seconds": 0.5, "watermark_seconds": 0.2, "tls_cert": str(cert), "tls_key": str(key)}})


def push(url: str, *, seconds: float, **environment: str) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", PUSH, str(seconds)], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "KLAXON_URL": url, **environment})
    sent, errors = done.stdout.split()
    return int(sent), int(errors)


def test_a_tap_speaks_https_with_a_token_and_a_stranger_does_not(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    port = free_port()
    url = f"https://127.0.0.1:{port}"
    daemon = subprocess.Popen([sys.executable, "-m", "klaxon", "run", "--config", str(config(tmp_path, port, cert, key))],
                              stderr=subprocess.DEVNULL, env={**os.environ, "KLAXON_TOKEN": "s3cret"})
    try:
        client = httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=str(cert)), trust_env=False, timeout=5)
        wait(lambda: client.get("/healthz").is_success)
        assert client.post("/v1/ingest", content=b"{}").status_code == 401
        assert push(url, seconds=2.0, KLAXON_TOKEN="s3cret")[0] == 0, "a certificate nobody vouches for is not trusted"
        assert push(url, seconds=20.0, KLAXON_TOKEN="s3cret", SSL_CERT_FILE=str(cert))[0] == 1
        wait(lambda: client.get("/v1/status").json()["trainer"].get("step") == 7)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False, timeout=5)
        client.close()
    finally:
        daemon.terminate()
        assert daemon.wait(20) == 0


@pytest.mark.parametrize(("made", "words"), [("", "cannot be used"), ("nonsense", "cannot be used")])
def test_a_certificate_that_cannot_be_used_is_one_clear_line(tmp_path: Path, made: str, words: str) -> None:
    cert = tmp_path / "cert.pem"
    if made:
        cert.write_text(made)
    found = klaxon("run", "--config", str(config(tmp_path, free_port(), cert, tmp_path / "key.pem")))
    assert found.returncode == 2 and words in found.stderr and "tls_cert" in found.stderr and "Traceback" not in found.stderr


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path / "config.toml", {"daemon": {"tls_cert": "cert.pem"}})
    found = klaxon("run", "--config", str(path))
    assert found.returncode == 2 and "belong together" in found.stderr
