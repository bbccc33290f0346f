"""An HTTP(S) receiver over real sockets that misbehaves as told, until it is healed."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

Fault = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
TEN_MB = 10 * 2**20


def answer(status: int, *headers: str, body: bytes = b"no") -> Fault:
    """A fault that answers with this status."""
    head = "\r\n".join([f"HTTP/1.1 {status} Script", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]).encode()
    return lambda connection: connection.sendall(head + body)


def patience_until_a_date(connection: socket.socket) -> None:
    """429, and the time as an HTTP date some 1.5 s ahead."""
    answer(429, f"Retry-After: {formatdate(time.time() + 1.5, usegmt=True)}")(connection)


def silence(connection: socket.socket) -> None:
    """No answer until the client goes."""
    with contextlib.suppress(OSError):
        connection.recv(1)


def reset(connection: socket.socket) -> None:
    """Half a status line, then RST."""
    connection.sendall(b"HTTP/1.1 200 O")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def drip(connection: socket.socket) -> None:
    """A header without end, a byte every 50 ms: each comes within the time limit, the whole never does."""
    with contextlib.suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        for _ in range(1200):
            connection.sendall(b"z")
            time.sleep(0.05)


def drip_after_ok(connection: socket.socket) -> None:
    """200, then a body without end."""
    with contextlib.suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(1200):
            connection.sendall(b"z")
            time.sleep(0.05)


def not_http(connection: socket.socket) -> None:
    """Something else listens there."""
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


@dataclass
class FaultServer:
    """`seen`: whole requests, accepted or not, oldest first, as (time, accepted, body)."""

    fault: Fault | None = None
    tls: ssl.SSLContext | None = None
    accepts: bool = False  # a request that meets the fault counts as accepted
    port: int = 0
    seen: list[tuple[float, bool, dict[str, Any]]] = field(default_factory=list)
    attempts: int = 0  # connections while a fault was on

    def bodies(self) -> list[dict[str, Any]]:
        """What was accepted."""
        return [body for _, accepted, body in list(self.seen) if accepted]

    def heal(self, tls: ssl.SSLContext | None = None) -> None:
        """From now on it answers as it should."""
        self.tls, self.fault = tls or self.tls, None

    def serve(self, listener: socket.socket) -> None:
        """Accept until the socket is closed."""
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        fault, tls = self.fault, self.tls
        self.attempts += fault is not None or tls is not None
        try:
            with connection, (tls.wrap_socket(connection, server_side=True) if tls else connection) as channel:
                channel.settimeout(20.0)
                if (body := _request(channel)) is None:
                    return
                self.seen.append((time.time(), fault is None or self.accepts, body))
                (fault or (lambda each: each.sendall(OK)))(channel)
        except (OSError, ValueError):
            pass  # the client has gone, or refused the certificate


def _request(channel: socket.socket) -> dict[str, Any] | None:
    got = b""
    while b"\r\n\r\n" not in got:
        if not (piece := channel.recv(65536)):
            return None
        got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        if not (piece := channel.recv(65536)):
            return None
        body += piece
    found = json.loads(body)
    return {"path": head.split()[1].decode(), **found.get("data", found)}


@contextlib.contextmanager
def serving(server: FaultServer) -> Iterator[FaultServer]:
    """The server on a free port of this machine, or on its own where it has one."""
    with socket.create_server(("127.0.0.1", server.port), backlog=256) as listener:
        server.port = listener.getsockname()[1]
        thread = threading.Thread(target=server.serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


@contextlib.contextmanager
def deaf(server: FaultServer) -> Iterator[Callable[[], None]]:
    """A port whose queue of connections is full, so that connecting takes for ever; the yielded function lets it accept."""
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        server.port = listener.getsockname()[1]
        for _ in range(4):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        thread = threading.Thread(target=server.serve, args=(listener,), daemon=True)

        def heal() -> None:
            server.heal()
            waiting.close()
            thread.start()

        try:
            yield heal
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            if thread.is_alive():
                thread.join(10)


def certificates(folder: Path) -> dict[str, ssl.SSLContext]:
    """Server contexts "good" (localhost, by the CA in folder/ca.pem), "wrong_name" (the same CA), "self_signed" (no CA at all).

    Raises:
        FileNotFoundError: there is no openssl program.
    """
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    _openssl("req", "-x509", *key, "-subj", "/CN=Test CA", "-keyout", str(folder / "ca.key"), "-out", str(folder / "ca.pem"))
    found = {}
    for name, host in (("good", "localhost"), ("wrong_name", "elsewhere.test"), ("self_signed", "localhost")):
        signer = () if name == "self_signed" else ("-CA", str(folder / "ca.pem"), "-CAkey", str(folder / "ca.key"))
        cert, secret = folder / f"{name}.pem", folder / f"{name}.key"
        _openssl("req", "-x509", *key, *signer, "-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}",
                 "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", str(secret), "-out", str(cert))
        found[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        found[name].load_cert_chain(cert, secret)
    return found


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
