"""The tap in engines that run inside the caller's own process, `LLM()` and `AsyncLLM`: with the daemon there, late, or gone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tap_daemon import Daemon, wait

from collector.sources.rollout_json import parse_rollout
from klaxon.demo.children import free_port
from klaxon.demo.engine import engine_environment, has_gpu
from klaxon.demo.model import DEFAULT_FOLDER

pytestmark = pytest.mark.engine
SCRIPT = Path(__file__).with_name("tap_inprocess.py")
PATIENCE = 600.0
MODEL = str(Path(DEFAULT_FOLDER).resolve())


class InProcess:
    """The script with an engine in it."""

    def __init__(self, kind: str, folder: Path, url: str, *more: str, **environment: str) -> None:
        self.answers, self.log, self._heard = folder / "answers", folder / "log", 0
        self.answers.touch()
        unset = {name: value for name, value in os.environ.items() if not name.startswith(("KLAXON_", "VLLM_PLUGINS"))}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), kind, MODEL, str(self.answers), *more], stdin=subprocess.PIPE, stdout=log,
                stderr=subprocess.STDOUT, text=True, env=unset | engine_environment(gpu=has_gpu()) | {"KLAXON_URL": url} | environment)

    @property
    def name(self) -> str:
        """What the tap calls an engine nobody named."""
        return f"{socket.gethostname()}:{self.process.pid}"

    def hear(self) -> Any:
        """The next answer."""
        deadline = time.monotonic() + PATIENCE
        while self.answers.read_text().count("\n") <= self._heard:
            assert self.process.poll() is None, f"the engine's process ended: {self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"waited in vain: {self.log.read_text()[-3000:]}"
            time.sleep(0.05)
        self._heard += 1
        return json.loads(self.answers.read_text().splitlines()[self._heard - 1])

    def ask(self, **what: Any) -> Any:
        """Send one line, wait for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self.hear()

    def generate(self, *prompts: list[int], **sampling: Any) -> list[dict[str, Any]]:
        """Completions as the caller got them."""
        return self.ask(prompts=prompts, **{"max_tokens": 4, "temperature": 0.7, "logprobs": 1, **sampling})

    def end(self) -> int:
        """Close its stdin; its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def engine(kind: str, folder: Path, url: str, *more: str, **environment: str) -> Iterator[InProcess]:
    """Started and ready; stopped at the end, if it has not ended by itself."""
    made = InProcess(kind, folder, url, *more, **environment)
    try:
        assert made.hear() == "ready"
        yield made
    finally:
        if made.process.poll() is None:
            made.process.terminate()
            try:
                made.process.wait(60)
            except subprocess.TimeoutExpired:
                made.process.kill()
                made.process.wait()


def same(messages: list[dict[str, Any]], got: list[dict[str, Any]], name: str) -> None:
    """The rollouts are what the caller got, to the last bit, under this engine's name, of unknown weights."""
    assert len(messages) == len(got) and len({message["request_id"] for message in messages}) == len(got)
    assert sorted((m["prompt_token_ids"], m["token_ids"], m["logprobs"], m["finish_reason"]) for m in messages) == sorted(
        (one["prompt"], one["token_ids"], one["logprobs"], one["finish_reason"]) for one in got)
    for message in messages:
        assert message["engine"] == name and message["source"] == "plugin" and message["engine_dtype"] == "float32"
        assert message["logprobs_mode"] == "processed_logprobs" and "weight_versions" not in message
        assert parse_rollout(message, where="tap").weight_versions == ()


def test_llm_with_its_core_in_another_process_reports_what_the_caller_got(tmp_path: Path) -> None:
    """And the trainer's way of changing weights in process, which tells no version, leaves the version unknown."""
    daemon = Daemon(("127.0.0.1", 0))
    try:
        with engine("llm", tmp_path, daemon.url, VLLM_ENABLE_V1_MULTIPROCESSING="1") as running:
            got = running.generate([1, 300, 301], [1, 400, 401, 402], n=2)
            assert len(got) == 4
            wait(lambda: len(daemon.of("rollout")) == 4, seconds=120)
            same(daemon.of("rollout"), got, running.name)
            assert running.ask(reload=MODEL) == "reloaded"
            got = running.generate([1, 300, 301])
            assert running.generate([1, 500], logprobs=None)[0]["logprobs"] is None
            assert running.end() == 0
            wait(lambda: len(daemon.of("rollout")) == 5, seconds=120)
            same(daemon.of("rollout")[4:], got, running.name)
            assert {beat["pid"] for beat in daemon.of("heartbeat")} == {running.process.pid}, "the caller's process alone beats"
            assert daemon.of("heartbeat")[-1]["faults"] == 0
    finally:
        daemon.close()


def test_llm_in_one_process_waits_for_no_daemon_and_reports_to_one_that_comes_late(tmp_path: Path) -> None:
    port = free_port(8300)
    with engine("llm", tmp_path, f"http://127.0.0.1:{port}", VLLM_ENABLE_V1_MULTIPROCESSING="0") as running:
        got = running.generate([1, 300, 301], n=2)
        daemon = Daemon(("127.0.0.1", port))
        try:
            wait(lambda: len(daemon.of("rollout")) == 2, seconds=120)
            same(daemon.of("rollout"), got, running.name)
        finally:
            daemon.close()
        assert len(running.generate([1, 400, 401], n=2)) == 2
        assert running.end() == 0, "nobody listens any more: the process ends all the same"
    assert "klaxon tap" in running.log.read_text(), "the daemon's absence was said in the engine's log"


def test_async_llm_reports_what_the_caller_got(tmp_path: Path) -> None:
    daemon = Daemon(("127.0.0.1", 0))
    try:
        with engine("async", tmp_path, daemon.url) as running:
            got = running.generate([1, 300, 301], [1, 400, 401, 402], n=2)
            assert len(got) == 4
            assert running.end() == 0
            wait(lambda: len(daemon.of("rollout")) == 4, seconds=120)
            same(daemon.of("rollout"), got, running.name)
            assert all("dp_rank" not in message for message in daemon.of("rollout"))
            assert {beat["pid"] for beat in daemon.of("heartbeat")} == {running.process.pid}
    finally:
        daemon.close()
