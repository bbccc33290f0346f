"""The daemon's HTTP servers: one on a port, one on a local socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import uvicorn

from collector.errors import ConfigError, KlaxonError

if TYPE_CHECKING:
    from klaxon.app import Daemon


def _tcp(daemon: Daemon, common: dict[str, Any]) -> uvicorn.Config:
    """The port's server, with TLS where a certificate is configured.

    Raises:
        ConfigError: certificate and key cannot be used.
    """
    address = daemon.config.daemon
    config = uvicorn.Config(daemon.api, host=address.host, port=address.port, ssl_certfile=address.tls_cert or None,
                            ssl_keyfile=address.tls_key or None, **common)
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"daemon.tls_cert, daemon.tls_key: {address.tls_cert} and {address.tls_key} cannot be used "
                          f"({error.strerror or error})") from None
    return config


def servers(daemon: Daemon) -> list[uvicorn.Server]:
    """One for the port, one for the taps' socket. Raises ConfigError as `_tcp`."""
    common = {"log_level": "warning", "access_log": False, "timeout_graceful_shutdown": 2, "lifespan": "off"}
    servers = [uvicorn.Server(_tcp(daemon, common))]
    if daemon.config.sources.tap:
        daemon.socket.unlink(missing_ok=True)
        servers.append(uvicorn.Server(uvicorn.Config(daemon.api, uds=str(daemon.socket), **common)))
    for server in servers:
        server.capture_signals = contextlib.nullcontext  # one handler for the whole daemon, above
    return servers


@contextlib.asynccontextmanager
async def serving(server: uvicorn.Server, stopping: asyncio.Event) -> AsyncIterator[None]:
    """It answers inside the context; `stopping` is set where it ends by itself. Raises KlaxonError: the address is taken."""
    async def run() -> None:
        try:
            await server.serve()
        except SystemExit:  # uvicorn's way to say that it could not bind; it has logged why
            pass
        stopping.set()

    task = asyncio.create_task(run())
    while not server.started and not task.done():
        await asyncio.sleep(0.02)
    if not server.started:
        where = server.config.uds or f"{server.config.host}:{server.config.port}"
        raise KlaxonError(f"cannot listen on {where}: is another Klaxon running there? "
                          "Stop it, or set daemon.port in config.toml")
    try:
        yield
    finally:
        server.should_exit = True
        await task
