"""`klaxon receive-weights`: experimental; join a trainer's weight broadcast as one more receiver."""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fastapi import FastAPI

    from collector.weights.broadcast import WeightReceiver

log = logging.getLogger("klaxon.receive_weights")


class Transport(StrEnum):
    """How the group is joined."""

    gloo = "gloo"
    nccl = "nccl"
    stateless = "stateless"


def receive_weights(
    group: Annotated[str, typer.Option(help="The trainer's weight update group, tcp://HOST:PORT.")],
    rank: Annotated[int, typer.Option(min=1, help="Klaxon's rank: the last, world size − 1.")],
    world_size: Annotated[int, typer.Option(min=2, help="Members of the group, Klaxon counted.")],
    model: Annotated[Path, typer.Option(metavar="DIR", help="The model's folder: config.json and tokenizer files are copied from it.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where versions are written; [weights] dir of the daemon.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT the trainer posts its updates to.")] = "127.0.0.1:8950",
    transport: Annotated[Transport, typer.Option(help="gloo or nccl: torch.distributed; stateless: vLLM's group, as PipelineRL joins it.")] = Transport.stateless,
    keep: Annotated[int, typer.Option(min=1, help="Versions kept on disk.")] = 4,
    timeout: Annotated[float, typer.Option(min=1, help="How long to wait for the group, seconds.")] = 600.0,
) -> None:
    """EXPERIMENTAL, never run on a GPU: receive weights from a trainer's broadcast and write them for the daemon.

    The trainer must count Klaxon as one more member (world size + 1, and this URL in its list). A broadcast waits for all
    members: while this command is down, the trainer stands still. Stops on Ctrl-C. Read docs/weights.md first.

    \b
    Examples:
      klaxon receive-weights --group tcp://trainer:29600 --rank 9 --world-size 10 --model weights/step_0 --out weights/received

    Exit codes: 0 ended by Ctrl-C, 2 the group cannot be joined.
    """
    import uvicorn

    from collector.errors import ConfigError
    from collector.weights.broadcast import Group, StatelessGroup, TorchGroup, WeightReceiver

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or not rank < world_size:
        raise ConfigError(f"--listen {listen!r} must be HOST:PORT and --rank {rank} below --world-size {world_size}")
    if not (model / "config.json").is_file():
        raise ConfigError(f"--model {model}: is no model folder, it has no config.json")
    typer.echo(f"joining {group} as rank {rank} of {world_size} …", err=True)
    joined: Group = (StatelessGroup(group, rank=rank, world_size=world_size) if transport is Transport.stateless else
                     TorchGroup(group, rank=rank, world_size=world_size, backend=transport.value, timeout_seconds=timeout))
    receiver = WeightReceiver(joined, out, model=model, keep=keep)
    typer.echo(f"joined; updates are taken on http://{listen}/receive_weight_update and written to {out}", err=True)
    try:
        uvicorn.run(build_app(receiver), host=host, port=int(port), log_level="warning")
    finally:
        joined.close()
        typer.echo(f"{len(receiver.received)} versions on disk: {', '.join(receiver.received) or 'none'}", err=True)


def build_app(receiver: WeightReceiver) -> FastAPI:
    """POST /receive_weight_update: 200 when the version is on disk, 422 for a request that cannot be read, 503 when it was lost."""
    import threading

    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import JSONResponse

    from collector.errors import InputError, KlaxonError

    app, one_at_a_time = FastAPI(docs_url=None, redoc_url=None), threading.Lock()

    def take(body: bytes) -> Path:
        import json

        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not JSON ({error})") from None
        with one_at_a_time:
            return receiver.receive(message)

    async def update(request: Request) -> JSONResponse:
        try:
            written = await run_in_threadpool(take, await request.body())
        except KlaxonError as error:
            log.error("update lost: %s", error)
            return JSONResponse({"error": str(error)}, status_code=422 if isinstance(error, InputError) else 503)
        log.info("version %s written to %s", written.name, written)
        return JSONResponse({"status": "ok"})

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"received": receiver.received})

    app.add_route("/receive_weight_update", update, methods=["POST"])
    app.add_route("/health", health)
    return app
