"""`klaxon backup`: a run's whole state in one file, while its daemon runs or after."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from collector.errors import ConfigError, Unavailable
from klaxon.backup import CHUNK, copy_stopped, manifest_of, read_manifest, write_tar

ENDINGS = {".tar": "w|", ".tar.gz": "w|gz", ".tgz": "w|gz"}
SOCKET = "klaxon.sock"
TIMEOUT = httpx.Timeout(10.0, read=600.0)  # the daemon copies before it answers


def backup(run: Annotated[str, typer.Argument(help="The run's folder ([run] dir), or the address of its daemon (http://127.0.0.1:8765).")],
           out: Annotated[Path, typer.Option("--out", "-o", help="File to write, ending in .tar or .tar.gz; it must not be there yet.")],
           force: Annotated[bool, typer.Option("--force", "-f", help="Replace the file if it is there.")] = False) -> None:
    """Write everything Klaxon knows of a run into one file: statistics, incidents, detectors' state. No rollout text, no token ids unless stored.

    A running daemon makes the copy itself, at one moment, and goes on. Ctrl-C leaves no file. KLAXON_TOKEN holds the token where the daemon asks for one.

    \b
    Examples:
      klaxon backup runs/grpo-7b -o grpo-7b.tar.gz
      klaxon backup http://10.0.0.3:8765 -o grpo-7b.tar.gz

    Exit codes: 0 written, 2 it could not be, 130 after Ctrl-C.
    """
    mode = next((mode for ending, mode in ENDINGS.items() if out.name.endswith(ending)), None)
    if mode is None:
        raise ConfigError(f"{out}: the ending says the format; use {' or '.join(ENDINGS)}")
    if out.exists() and not force:
        raise ConfigError(f"{out} is there already; name another file, or --force replaces it")
    with _whole(out) as fresh, bar_of("copying") as bar:
        if "://" in run:
            _from_daemon(run, fresh, mode, bar)
        elif (socket := Path(run) / SOCKET).is_socket() and _answers(socket):
            _from_daemon(str(socket), fresh, mode, bar)
        else:
            _from_folder(Path(run), fresh, mode, bar)
    found = read_manifest(out)
    typer.echo(f"{out}: {told(found)}, {out.stat().st_size / 2**20:.1f} MiB. Bring it back with: klaxon restore {out} NEW_FOLDER", err=True)


def told(manifest: dict[str, Any]) -> str:
    """What a backup holds, in one line."""
    def when(at: float | None) -> str:
        return "?" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"

    span = f" from {when(manifest['from'])} to {when(manifest['to'])} UTC" if manifest.get("batches") else ""
    return (f"run {manifest['run']}: {manifest['batches']} batches{span}, statistics of {manifest['rollouts']} rollouts, "
            f"{manifest['incidents']} incidents, store format {manifest['store_format']}, made {when(manifest['made_at'])} UTC by klaxon {manifest['klaxon']}")


@contextmanager
def bar_of(what: str) -> Iterator[Progress]:
    """A progress bar on standard error, gone when done."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        shown.add_task(what, total=None)
        yield shown





@contextmanager
def _whole(out: Path) -> Iterator[IO[bytes]]:
    """The file under another name until it is whole; nothing is left of one that is not, whatever ended it."""
    fresh = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(fresh, out)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror or error})") from None


def _from_folder(folder: Path, out: IO[bytes], mode: str, bar: Progress) -> None:
    with tempfile.TemporaryDirectory(prefix="klaxon-backup-") as made:
        try:
            copy_stopped(folder, Path(made))
        except Unavailable as error:
            if "in use by another process" in str(error):
                raise Unavailable(f"{folder}: its daemon is running; let it make the copy: klaxon backup http://HOST:PORT -o … ([daemon] host and port)") from None
            raise
        _pack(Path(made), out, mode, bar)


def _pack(folder: Path, out: IO[bytes], mode: str, bar: Progress) -> None:
    manifest = manifest_of(folder, now=time.time())
    bar.update(bar.task_ids[0], total=sum(one["bytes"] for one in manifest["files"].values()))
    write_tar(folder, manifest, out, mode=mode, progress=lambda done: bar.advance(bar.task_ids[0], done))


def _answers(socket: Path) -> bool:
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=3.0) as client:
            return client.get("http://klaxon/healthz").status_code == 200
    except httpx.HTTPError:
        return False


def _from_daemon(where: str, out: IO[bytes], mode: str, bar: Progress) -> None:
    """`where`: its address, or its socket's path."""
    import gzip

    url, transport = (where.rstrip("/"), None) if "://" in where else ("http://klaxon", httpx.HTTPTransport(uds=where))
    token = os.environ.get("KLAXON_TOKEN", "")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(transport=transport, timeout=TIMEOUT, trust_env=False) as client, client.stream("POST", f"{url}/v1/backup", headers=headers) as answer:
            if answer.status_code != 200 or answer.headers.get("content-type") != "application/x-tar":
                raise Unavailable(_refused(where, answer))
            bar.update(bar.task_ids[0], total=int(answer.headers.get("content-length", 0)) or None)
            sink = gzip.GzipFile(fileobj=out, mode="wb", compresslevel=6, mtime=0) if mode.endswith("gz") else out
            for chunk in answer.iter_bytes(CHUNK):
                sink.write(chunk)
                bar.advance(bar.task_ids[0], len(chunk))
            if sink is not out:
                sink.close()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(f"{where}: the backup broke off ({type(error).__name__}: {error}); is a Klaxon daemon there? `klaxon doctor --url {where}` looks") from None


def _refused(where: str, answer: httpx.Response) -> str:
    answer.read()
    try:
        said = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        said = f"answered {answer.status_code}: is that a Klaxon daemon of this release?"
    return f"{where}: {said}"
