"""Where `klaxon report` reads from: a running daemon, the files of a stopped run, or a file of rollouts. All three answer the read API."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from collector.store import Store
from klaxon.api import build_api
from klaxon.in_process import client_of
from klaxon.sealed import STORE, copied, open_alerts, sealed_api


@contextmanager
def daemon(url: str, *, timeout_seconds: float) -> Iterator[httpx.Client]:
    """A running daemon, with the token of KLAXON_TOKEN where it is set."""
    token = os.environ.get("KLAXON_TOKEN", "")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=url.rstrip("/"), timeout=timeout_seconds, trust_env=False, headers=headers) as client:
        yield client


@contextmanager
def folder(run: Path) -> Iterator[httpx.Client]:
    """A stopped run, over a copy of its files. Raises Unavailable: a daemon still writes it, or it cannot be copied."""
    with tempfile.TemporaryDirectory(prefix="klaxon-report-") as copy:
        copied(run, Path(copy))
        with Store(Path(copy) / STORE) as store:
            alerts = open_alerts(Path(copy), run="")
            try:
                with client_of(sealed_api(Path(copy), store, alerts)) as client:
                    yield client
            finally:
                alerts.stop(drain_seconds=0.0)


@contextmanager
def file(path: str, *, trainer: str = "", format: str = "", tokenizer: str = "", allow_pickle: bool = False,
         progress: Callable[[str], None] = lambda said: None) -> Iterator[httpx.Client]:
    """A file of rollouts as `klaxon look` judges it, its batches in a store of their own.

    Raises:
        InputError: it cannot be read, or nothing in it can be used.
    """
    from klaxon.commands.look import with_trainer
    from klaxon.commands.rollout_files import nothing_usable, read_contents
    from klaxon.report_file import FileRun

    contents = read_contents(path, format=format, tokenizer=tokenizer, allow_pickle=allow_pickle)
    if not contents.rollouts:
        raise nothing_usable(path, contents)
    rollouts = with_trainer(contents.rollouts, trainer, contents.refused) if trainer else contents.rollouts
    progress(f"judging {len(rollouts):,} rollouts")
    with tempfile.TemporaryDirectory(prefix="klaxon-report-") as made, Store(Path(made) / STORE) as store:
        run = FileRun(path, rollouts, refused=contents.refused, notes=contents.notes, store=store)
        with client_of(build_api(store, run)) as client:
            yield client
