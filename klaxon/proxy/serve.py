"""Runs the proxy on a socket until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket

import uvicorn

from collector.errors import ConfigError
from klaxon.proxy.app import Proxy

GRACE_SECONDS = 10  # answers under way may come to their end when the proxy is stopped
KEEP_ALIVE_SECONDS = 75


def listening(address: str) -> socket.socket:
    """A listening socket for HOST:PORT. Raises ConfigError when it is no such thing, or taken."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--listen is {address!r}; write HOST:PORT, e.g. 127.0.0.1:8900")
    host = host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.create_server((host, int(port)), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"--listen {address}: cannot listen there ({error.strerror or error}); choose another port") from None
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it; else each answer waits 40 ms
    return bound


async def serve(proxy: Proxy, bound: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; a second one does not wait for answers under way."""
    config = uvicorn.Config(proxy, lifespan="off", ws="none", access_log=False, log_config=None, server_header=False,
                            date_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_SECONDS,
                            timeout_graceful_shutdown=GRACE_SECONDS)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # uvicorn's would kill the process with the same signal afterwards

    def stop() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        await server.serve(sockets=[bound])
    finally:
        await proxy.aclose()
