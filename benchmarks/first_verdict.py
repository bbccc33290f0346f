"""From nothing to the first verdict, as a new user: wheels, a clean environment, init, check, run, rollouts, `klaxon status`.

    python benchmarks/first_verdict.py                     everything, defaults (a batch of 120 s), three frameworks
    python benchmarks/first_verdict.py --pip               pip instead of uv
    python benchmarks/first_verdict.py --batch-seconds 10  not what a new user has; for a quick look
    python benchmarks/first_verdict.py --tree              the environment this script runs in instead of wheels

Prints a table and, with --json FILE, writes the seconds of every step. Real: wheels, environments, every klaxon command, the
daemon, the tap's own sender. Played: what the frameworks write (framework_rollouts.py: tokens and logprobs of a real engine).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import framework_rollouts as frameworks

ROOT = Path(__file__).resolve().parent.parent
RECORDINGS = ROOT / "klaxon/recordings"
FRAMEWORKS = {"pipelinerl": "PipelineRL, files, tier 0", "nemo-rl": "NeMo-RL, files, tier 1", "verl": "verl, tap socket and pushed logprobs, tier 1"}
POLL_SECONDS = 0.5


class Clock:
    """Seconds of named steps, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._at = time.monotonic()

    def step(self, name: str) -> None:
        """The time since the last step goes to this one."""
        now = time.monotonic()
        self.seconds[name], self._at = self.seconds.get(name, 0.0) + now - self._at, now


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, ok: tuple[int, ...] = (0,)) -> str:
    """Standard output of a command that must end with one of the codes `ok`."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode not in ok:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def install(work: Path, *, with_pip: bool, clock: Clock) -> Path:
    """Build both wheels, install them into a clean environment; returns its folder of programs."""
    wheels = work / "wheels"
    for source in (ROOT, ROOT / "tap"):
        run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", wheels, source)
    clock.step("wheels")
    names = [str(path) for path in wheels.glob("*.whl")]
    if with_pip:
        run(sys.executable, "-m", "venv", work / "env")
        run(work / "env/bin/python", "-m", "pip", "install", "--quiet", *names)
    else:
        uv = _uv(work, clock)
        run(uv, "venv", "--quiet", "--python", sys.executable, work / "env")
        run(uv, "pip", "install", "--quiet", "--python", work / "env/bin/python", *names)
    clock.step("install")
    run(work / "env/bin/klaxon", "--version")
    clock.step("--version")
    return work / "env/bin"


def _uv(work: Path, clock: Clock) -> Path:
    """uv, in an environment of its own; the time to get it is nobody's who has it."""
    run(sys.executable, "-m", "venv", work / "uv")
    run(work / "uv/bin/python", "-m", "pip", "install", "--quiet", "uv")
    clock.step("getting uv (not counted)")
    return work / "uv/bin/uv"


def first_verdict(name: str, work: Path, klaxon: list[str], python: str, *, batch_seconds: float | None) -> dict[str, float | str]:
    """One framework: the seconds of each step and the verdict's words."""
    home, clock = work / name, Clock()
    home.mkdir()
    rows, port = frameworks.rows(RECORDINGS), _free_port()
    url = f"http://127.0.0.1:{port}"
    prepare, more = _player(name, home, rows, python)
    prepare()
    run(*klaxon, "init", *_flags(name), "--yes", "--port", str(port), cwd=home)
    if batch_seconds:
        config = home / "config.toml"
        config.write_text(config.read_text().replace("[daemon]\n", f"[daemon]\nbatch_seconds = {batch_seconds}\n"))
    clock.step("init")
    run(*klaxon, "check", cwd=home)
    clock.step("check")
    with _daemon(klaxon, home), _playing(more):
        _until(klaxon, url, lambda said: said.get("counts", {}).get("seen", 0) > 0)
        clock.step("run: compared so far is told")
        said = _until(klaxon, url, lambda said: said.get("first_batch", 1) is None and said["verdict"] != "starting")
        clock.step("run: first verdict")
    return {**clock.seconds, "total": sum(clock.seconds.values()), "tier": said["tier"], "verdict": f"{said['verdict']}: {said['verdict_text']}"}


def _flags(name: str) -> list[str]:
    rollouts = {"pipelinerl": ["--rollouts", "exp/streams/actor/0/0/0.jsonl"], "nemo-rl": ["--rollouts", "logs"], "verl": []}
    return ["--framework", name, *rollouts[name], "--temperature", "0.7"]


def _player(name: str, home: Path, rows: list[dict], python: str) -> tuple[Callable[[], object], Callable[[int], object]]:
    """(what stands there before Klaxon comes, what is written in round N while it runs)."""
    if name == "pipelinerl":
        return (lambda: frameworks.write_pipelinerl(home / "exp", rows[:8])), lambda n: frameworks.write_pipelinerl(home / "exp", rows, again=n)
    if name == "nemo-rl":
        return (lambda: frameworks.write_nemo_rl(home / "logs", rows, step=0)), lambda n: frameworks.write_nemo_rl(home / "logs", rows, step=n)
    env = {**os.environ, "KLAXON_URL": f"unix://{home}/runs/verl/klaxon.sock"}
    script = [python, str(ROOT / "benchmarks/framework_rollouts.py"), "verl", str(RECORDINGS), frameworks.HEALTHY]
    return (lambda: None), lambda n: subprocess.run([*script, str(n)], env=env, check=True)


@contextlib.contextmanager
def _playing(more: Callable[[int], object]) -> Iterator[None]:
    """A round of rollouts every ten seconds, as a trainer at work."""
    over = threading.Event()

    def play() -> None:
        number = 1
        while not over.is_set():
            more(number)
            number += 1
            over.wait(10.0)

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _daemon(klaxon: list[str], home: Path) -> Iterator[None]:
    daemon = subprocess.Popen([*klaxon, "run"], cwd=home, stderr=(home / "daemon.log").open("w"))
    try:
        yield
    finally:
        daemon.terminate()
        daemon.wait(60)


def _until(klaxon: list[str], url: str, enough: Callable[[dict], bool]) -> dict:
    """`klaxon status --json` until it says so, as somebody who types it again and again."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        done = subprocess.run([*klaxon, "status", "--json", "--url", url], capture_output=True, text=True)
        said = json.loads(done.stdout) if done.stdout.startswith("{") else {}
        if said and enough(said):
            return said
        time.sleep(POLL_SECONDS)
    sys.exit(f"no verdict within ten minutes: {done.stdout}{done.stderr}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def table(setup: dict[str, float], found: dict[str, dict]) -> str:
    """Markdown."""
    counted = sum(seconds for name, seconds in setup.items() if "not counted" not in name)
    lines = ["| s | " + " | ".join(FRAMEWORKS[name] for name in found) + " |", "|---|" + "---|" * len(found)]
    lines += [f"| {step} | " + " | ".join(["%.1f" % seconds] + ["same"] * (len(found) - 1)) + " |" for step, seconds in setup.items()]
    for step in [name for name in next(iter(found.values())) if name not in ("total", "tier", "verdict")]:
        lines.append(f"| {step} | " + " | ".join("%.1f" % one[step] for one in found.values()) + " |")
    lines.append("| **from nothing** | " + " | ".join("**%.0f**" % (counted + one["total"]) for one in found.values()) + " |")
    return "\n".join([*lines, "", *(f"- {FRAMEWORKS[name]}: tier {one['tier']}, {one['verdict']}" for name, one in found.items())])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frameworks", nargs="*", help=f"some of {', '.join(FRAMEWORKS)}; all by default")
    parser.add_argument("--pip", action="store_true", help="pip instead of uv")
    parser.add_argument("--tree", action="store_true", help="no wheels: this Python environment and this tree")
    parser.add_argument("--batch-seconds", type=float, default=None)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    if unknown := set(told.frameworks) - set(FRAMEWORKS):
        parser.error(f"{', '.join(sorted(unknown))}: none of {', '.join(FRAMEWORKS)}")
    with tempfile.TemporaryDirectory(prefix="kv-") as folder:
        work, clock = Path(folder), Clock()
        if told.tree:
            os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tap'}"
            klaxon, python = [sys.executable, "-m", "klaxon"], sys.executable
        else:
            os.environ.pop("PYTHONPATH", None)
            programs = install(work, with_pip=told.pip, clock=clock)
            klaxon, python = [str(programs / "klaxon")], str(programs / "python")
        found = {name: first_verdict(name, work, klaxon, python, batch_seconds=told.batch_seconds) for name in told.frameworks or FRAMEWORKS}
    print(table(clock.seconds, found))
    if told.json:
        told.json.write_text(json.dumps({"setup": clock.seconds, "frameworks": found, "load": os.getloadavg()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
