"""The demo's child processes: stopped whole, in order, and never orphaned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from collector.errors import ConfigError, Unavailable
from klaxon.demo.children import Child, Children, free_port, require_free_port

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(inner.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: object, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_a_child_that_ignores_every_polite_signal_is_killed_with_what_it_started(tmp_path: Path) -> None:
    child = Child("stubborn", [sys.executable, "-c", STUBBORN], log=tmp_path / "log")
    child.start()
    assert until(lambda: child.tail())
    inner = int(child.tail())
    child.stop(int_seconds=0.2, term_seconds=0.2)
    assert not child.running
    assert until(lambda: not alive(inner))


def test_a_polite_child_ends_by_itself_on_sigint(tmp_path: Path) -> None:
    code = "import time\ntry:\n    print('up', flush=True)\n    time.sleep(600)\nexcept KeyboardInterrupt: print('bye', flush=True)"
    child = Child("polite", [sys.executable, "-c", code], log=tmp_path / "log")
    child.start()
    assert until(lambda: "up" in child.tail())
    child.stop()
    assert child.exit_code == 0
    assert child.tail().endswith("bye")


def test_sigint_reaches_a_child_although_the_demo_itself_was_started_with_it_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = Child("sleeper", SLEEP, log=tmp_path / "log")
        child.start()
    finally:
        signal.signal(signal.SIGINT, before)
    child.stop(int_seconds=10.0, term_seconds=0.0)
    assert child.exit_code in (-signal.SIGINT, 1, 130)


def test_children_are_stopped_last_started_first(tmp_path: Path) -> None:
    code = "import sys, time\ntry:\n    print('up', flush=True)\n    time.sleep(600)\nexcept KeyboardInterrupt: open(sys.argv[1], 'a').write(sys.argv[2])"
    with Children() as children:
        for name in "abc":
            child = children.start(Child(name, [sys.executable, "-c", code, str(tmp_path / "order"), name], log=tmp_path / name))
            assert until(lambda child=child: "up" in child.tail())
    assert (tmp_path / "order").read_text() == "cba"


def test_children_are_stopped_when_the_demo_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Children() as children:
        child = children.start(Child("sleeper", SLEEP, log=tmp_path / "log"))
        raise RuntimeError
    assert not child.running


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_killing_the_demo_outright_leaves_no_orphan(tmp_path: Path) -> None:
    code = ("import sys, time\nfrom pathlib import Path\nfrom klaxon.demo.children import Child\n"
            f"child = Child('sleeper', {SLEEP!r}, log=Path({str(tmp_path / 'log')!r}))\nchild.start()\n"
            "print(child.pid, flush=True)\ntime.sleep(600)")
    demo = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(demo.stdout.readline())
    assert alive(pid)
    os.kill(demo.pid, signal.SIGKILL)
    demo.communicate()
    assert until(lambda: not alive(pid))


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="the engine could not be started: /no/such/program"):
        Child("engine", ["/no/such/program"], log=tmp_path / "log").start()


def test_a_taken_port_is_named_with_what_to_do() -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} .* the page, is taken by another program; stop it"):
            require_free_port(port, "the page", "stop it")
        assert free_port(port) != port
