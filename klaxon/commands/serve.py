"""`klaxon serve`: the read API over the files of a run whose daemon is gone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from collector.errors import ConfigError, InputError


def serve(folder: Annotated[Path, typer.Argument(help="The run's folder ([run] dir), its daemon stopped.")],
          read_only: Annotated[bool, typer.Option("--read-only", help="Required, so that nobody takes this for a daemon: nothing is watched, stored or sent.")] = False,
          host: Annotated[str, typer.Option(help="Address to listen on; loopback only.")] = "127.0.0.1",
          port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8765) -> None:
    """Serve a stopped run to the dashboard and the command line, from a copy of its files. Ctrl-C ends it.

    \b
    Examples:
      klaxon serve --read-only runs/grpo-7b

    Exit codes: 0 ended by Ctrl-C, 2 the files cannot be served.
    """
    if not read_only:
        raise InputError("is missing: `klaxon serve` only reads; `klaxon run` is the daemon", field="--read-only", where="klaxon serve")
    if host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(f"--host {host} would be reachable from outside; listen on 127.0.0.1 and let a proxy that knows its people pass requests on")
    import uvicorn

    from collector.store import Store
    from klaxon.sealed import CONTROL, STORE, copied, open_alerts, sealed_api

    with tempfile.TemporaryDirectory(prefix="klaxon-serve-") as copy:
        size = copied(folder, Path(copy))
        with Store(Path(copy) / STORE) as store:
            alerts = open_alerts(Path(copy), run="")
            typer.echo(f"{folder} ({size / 2**20:.1f} MiB, {'with' if (folder / CONTROL).is_file() else 'without'} incidents) on http://{host}:{port}; the page: "
                       f"klaxon dashboard --api http://{host}:{port}", err=True)
            try:
                uvicorn.run(sealed_api(Path(copy), store, alerts), host=host, port=port, log_level="warning", access_log=False)
            except SystemExit:
                raise ConfigError(f"{host}:{port} is taken; choose another with --port") from None
            finally:
                alerts.stop(drain_seconds=0.0)
