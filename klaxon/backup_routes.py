"""POST /v1/backup: the daemon copies its own files at one moment, while it goes on, and sends them as a tar.

It holds whatever the store holds, so it asks for the token wherever one is set, and never answers a browser.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from collector.errors import Unavailable
from collector.store import Store
from klaxon.alert_routes import refusal
from klaxon.backup import CHUNK, copy_running, manifest_of, write_tar


def backup_router(store: Store, folder: Path, *, token: str | None, keep_status: Callable[[], object]) -> APIRouter:
    """One backup at a time: a second one is answered 409. `keep_status` writes the daemon's status beside its store."""
    router, busy = APIRouter(), threading.Lock()

    @router.post("/v1/backup")
    def backup(request: Request) -> Response:
        if (refused := refusal(request, token, body=False)) is not None:
            return refused
        if not busy.acquire(blocking=False):
            return JSONResponse({"error": "a backup is being made already; wait for it"}, status_code=409)
        try:
            made = Path(tempfile.mkdtemp(prefix="klaxon-backup-"))
            try:
                keep_status()
                size = _make(store, folder, made)
            except BaseException:
                shutil.rmtree(made, ignore_errors=True)
                raise
        except OSError as error:
            raise Unavailable(f"the copy cannot be written on the daemon's machine ({error.strerror}); TMPDIR names where") from None
        finally:
            busy.release()
        return StreamingResponse(_sent(made), media_type="application/x-tar", headers={"Content-Length": str(size)})

    return router


def _make(store: Store, folder: Path, made: Path) -> int:
    files = made / "files"
    files.mkdir()
    copy_running(store, folder, files)
    with (made / "backup.tar").open("wb") as out:
        write_tar(files, manifest_of(files, now=time.time()), out)
    shutil.rmtree(files)
    return (made / "backup.tar").stat().st_size


def _sent(made: Path) -> Iterator[bytes]:
    try:
        with (made / "backup.tar").open("rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    finally:
        shutil.rmtree(made, ignore_errors=True)
