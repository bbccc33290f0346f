"""The demo's engine: its command line, and what it says when it cannot start. The real one runs in the end-to-end tests."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from collector.errors import ConfigError, Unavailable
from klaxon.demo import engine as demo_engine
from klaxon.demo.children import Child
from klaxon.demo.engine import BLOCK_SIZE, Engine, engine_command, engine_environment


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_engine, "_machine", lambda: {"cuda": False, "bf16": False})


def test_the_upgrade_is_the_absence_of_one_flag() -> None:
    proper = engine_command(Path("m"), 8000, "processed_logprobs", gpu=False, dtype="float32")
    upgraded = engine_command(Path("m"), 8000, None, gpu=False, dtype="float32")
    assert [word for word in proper if word not in upgraded] == ["--logprobs-mode", "processed_logprobs"]


def test_the_engine_listens_on_loopback_alone_because_dev_mode_runs_code() -> None:
    command = engine_command(Path("m"), 8000, None, gpu=True, dtype="bfloat16")
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert engine_environment(gpu=True)["VLLM_SERVER_DEV_MODE"] == "1"


def test_the_engine_computes_in_bfloat16_only_where_the_machine_can(monkeypatch: pytest.MonkeyPatch) -> None:
    assert demo_engine.engine_dtype() == "float32"
    monkeypatch.setattr(demo_engine, "_machine", lambda: {"cuda": False, "bf16": True})
    assert demo_engine.engine_dtype() == "bfloat16"


def test_a_taken_port_stops_the_start(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} .* the engine, is taken"):
            Engine(model=Path("m"), port=port, log=tmp_path / "log").start()


def test_an_engine_that_ends_while_starting_shows_the_end_of_its_log(tmp_path: Path) -> None:
    engine = Engine(model=Path("m"), port=1, log=tmp_path / "log")
    engine.child = Child("engine", [sys.executable, "-c", "print('out of memory'); raise SystemExit(3)"], log=tmp_path / "log")
    engine.child.start()
    with pytest.raises(Unavailable, match=r"(?s)ended while starting \(exit 3\).*out of memory"):
        engine.wait_ready()


def test_an_engine_that_never_answers_is_given_up(tmp_path: Path) -> None:
    engine = Engine(model=Path("m"), port=1, log=tmp_path / "log")
    engine.child = Child("engine", [sys.executable, "-c", "import time; time.sleep(60)"], log=tmp_path / "log")
    engine.child.start()
    waits: list[float] = []
    try:
        with pytest.raises(Unavailable, match="not ready after"):
            engine.wait_ready(waits.append, patience_seconds=0.6)
    finally:
        engine.stop()
    assert waits


def test_the_shared_system_prompt_fills_two_cache_blocks(grpo: None) -> None:
    from task import SYSTEM_PROMPT

    # SmolLM2 needs more than one token a word; the end-to-end test counts the cached ones.
    assert len(SYSTEM_PROMPT.split()) >= 1.5 * BLOCK_SIZE


@pytest.fixture
def grpo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "grpo"))
