"""The container images, built and run: read-only root, no capabilities, no root user; drained by SIGTERM; the page in a browser.

Slow (minutes) and skipped where buildah, debootstrap, root or disk space are missing.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy_container import ROOT, Builder, build, builder
from test_command_daemon import ROLLOUT, free_port, get, post, wait
from test_dashboard_browser import PATIENCE_MS, browser, visit  # noqa: F401  (browser is a fixture)

from collector.store import Store
from klaxon.demo.settings import write_config

CONTAINERFILE = ROOT / "deploy/container/Containerfile"
USER = 10001
TORCH_CPU = f"torch=={importlib.metadata.version('torch').partition('+')[0]}+cpu"


def test_hadolint_finds_nothing_in_the_containerfile():
    done = subprocess.run([str(Path(sys.executable).parent / "hadolint"), str(CONTAINERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "", done.stdout


def test_a_build_sees_the_packages_and_nothing_that_changes_without_them():
    seen = {line[1:] for line in (ROOT / ".containerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for line in re.findall(r"^COPY (?!--)(.+)$", CONTAINERFILE.read_text(), re.M) for word in line.split()[:-1]}
    assert seen == copied and (ROOT / ".dockerignore").resolve() == (ROOT / ".containerignore").resolve()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Iterator[Builder]:
    with builder() as found:
        build(found, tmp_path_factory.mktemp("build"), "collector")
        yield found


class Place:
    """Folders a container mounts, and where its daemon answers."""

    def __init__(self, folder: Path, **daemon: object) -> None:
        self.state, self.conf, self.port = folder / "state", folder / "conf", free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        for path in (self.state, self.conf):
            path.mkdir()
        os.chown(self.state, USER, USER)
        write_config(self.conf / "config.toml", {
            "run": {"name": "boxed", "dir": "/var/lib/klaxon/run"}, "shadow": {"enabled": False}, "alerts": {"console": False},
            "daemon": {"port": self.port, **daemon}})
        os.chmod(folder, 0o755)

    @property
    def volumes(self) -> dict[Path, str]:
        return {self.state: "/var/lib/klaxon", self.conf: "/etc/klaxon:ro"}


def inside(made: Builder, image: str, place: Place, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a fresh container of the image."""
    with made.container(image) as container:
        return subprocess.run(made.sealed(container, *argv, volumes=place.volumes), capture_output=True, text=True, timeout=300, env=made.environment(), check=False)


@contextlib.contextmanager
def running(made: Builder, image: str, place: Place, *argv: str, log: Path) -> Iterator[subprocess.Popen]:
    """A command that goes on in a fresh container; whatever is left of it is killed with its namespaces."""
    with made.container(image) as container, open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen(made.sealed(container, *argv, volumes=place.volumes), stdout=out, stderr=out, env=made.environment())
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def descendant(process: subprocess.Popen, *words: str) -> int:
    """The process id of the daemon itself below buildah."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    below = {process.pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    (found,) = [pid for pid in below if (argv := _argv(pid)) and Path(argv[0]).name.startswith("python") and set(words) <= set(argv)]
    return found


def _argv(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def test_the_image_says_who_runs_what_and_how_its_health_is_asked(made):
    config = made.image("klaxon-collector")
    assert config["User"] == f"{USER}:{USER}" and config["StopSignal"] == "SIGTERM"
    assert config["Entrypoint"] == ["klaxon"] and config["Cmd"] == ["run", "--config", "/etc/klaxon/config.toml"]
    assert config["Healthcheck"]["Test"] == ["CMD", "python3", "-m", "klaxon.healthy"]


def test_the_collector_holds_the_command_and_no_torch_and_nothing_of_the_builder(made, tmp_path):
    place = Place(tmp_path)
    (place.conf / "rollouts.jsonl").write_text(json.dumps({**ROLLOUT, "request_id": "r"}) + "\n")
    version = inside(made, "klaxon-collector", place, "klaxon", "--version")
    assert (version.returncode, version.stdout) == (0, f"klaxon {importlib.metadata.version('klaxon-rl')}\n"), version.stderr
    script = ("id -u; grep -E 'Cap(Prm|Eff)|NoNewPrivs' /proc/self/status; "
              "touch /opt/klaxon/x; python3 -c 'import torch'; ls /src /etc/pip.conf; klaxon score /etc/klaxon/rollouts.jsonl --model /tmp")
    done = inside(made, "klaxon-collector", place, "sh", "-c", script)
    assert done.stdout.split() == [str(USER), "CapPrm:", "0" * 16, "CapEff:", "0" * 16, "NoNewPrivs:", "1"]
    assert "Read-only file system" in done.stderr and "No module named 'torch'" in done.stderr and done.stderr.count("No such file") == 2
    assert "klaxon-rl[scorer]" in done.stderr and done.stderr.count("Traceback") == 1  # torch's own, asked for above


def test_the_daemon_runs_sealed_is_healthy_and_stores_what_it_took_before_sigterm_ends_it(made, tmp_path):
    place = Place(tmp_path, batch_seconds=3600.0)
    config = made.image("klaxon-collector")
    health = config["Healthcheck"]["Test"][1:]
    with running(made, "klaxon-collector", place, *config["Entrypoint"], *config["Cmd"], log=tmp_path / "log") as process:
        wait(lambda: get(place.url, "/healthz")["ok"], seconds=300)
        daemon = descendant(process, "run", "/etc/klaxon/config.toml")
        status = Path(f"/proc/{daemon}/status").read_text()
        assert f"Uid:\t{USER}\t{USER}" in status and "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
        assert any(fields[4:6] == ["/", "ro"] or (fields[4] == "/" and "ro" in fields[5].split(","))
                   for fields in map(str.split, Path(f"/proc/{daemon}/mountinfo").read_text().splitlines()))
        assert inside(made, "klaxon-collector", place, *health).returncode == 0
        answer = post(place.url, *({**ROLLOUT, "request_id": f"r{number}"} for number in range(100)))
        os.kill(daemon, signal.SIGTERM)
        assert answer.json()["accepted"] == 100 and process.wait(timeout=60) == 0, (tmp_path / "log").read_text()
    with Store(place.state / "run/klaxon.duckdb") as store:
        assert [batch.counts["seen"] for batch in store.read_batches()] == [100]
    assert inside(made, "klaxon-collector", place, *health).returncode == 1


@pytest.mark.browser
def test_the_page_is_served_out_of_a_sealed_container(made, tmp_path, browser):  # noqa: F811
    place, port = Place(tmp_path, batch_seconds=1.0), free_port()
    with (running(made, "klaxon-collector", place, "klaxon", "run", "--config", "/etc/klaxon/config.toml", log=tmp_path / "daemon.log"),
          running(made, "klaxon-collector", place, "klaxon", "dashboard", "--api", place.url, "--port", str(port), log=tmp_path / "page.log")):
        wait(lambda: get(place.url, "/healthz")["ok"], seconds=300)
        wait(lambda: get(f"http://127.0.0.1:{port}", "/_stcore/host-config"), seconds=300)
        page = visit(browser, f"http://127.0.0.1:{port}")
        page.get_by_text("boxed").first.wait_for(timeout=PATIENCE_MS)
        page.screenshot(path=tmp_path / "page.png")
        page.close()


def test_a_test_that_is_killed_leaves_no_process_and_no_mount(made, tmp_path):
    place = Place(tmp_path)
    with made.container("klaxon-collector") as container:
        argv = made.sealed(container, "sleep", "61.75", volumes=place.volumes)
        code = f"import subprocess\nsubprocess.run({argv!r})"
        test = subprocess.Popen([sys.executable, "-c", code], env=made.environment())
        wait(lambda: any((argv := _argv(int(entry.name))) and argv[0].endswith("sleep") and "61.75" in argv for entry in Path("/proc").iterdir() if entry.name.isdigit()), seconds=300)
        test.kill()
        test.wait()
        wait(lambda: not any("61.75" in _argv(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()))
        assert str(made.storage) not in Path("/proc/mounts").read_text()


def test_the_scorer_holds_torch_and_scores(made, tmp_path):
    asked = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet", TORCH_CPU]
    index = ["--extra-index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
    if subprocess.run([*asked, *index], capture_output=True, check=False).returncode:
        pytest.skip(f"no registry here has {TORCH_CPU}: name one in TORCH_INDEX")
    build(made, tmp_path, "scorer", "--build-context", "collector=container-image://localhost/klaxon-collector", "--build-arg", f"TORCH={TORCH_CPU}",
          *(["--build-arg", f"TORCH_INDEX={os.environ['TORCH_INDEX']}"] if index else []))
    assert made.image("klaxon-scorer")["User"] == f"{USER}:{USER}"
    place = Place(tmp_path)
    done = inside(made, "klaxon-scorer", place, "python3", "-c", "import torch, transformers, klaxon.shadow_views; print(torch.__version__, torch.ones(3).sum().item())")
    assert done.returncode == 0 and done.stdout.split()[1] == "3.0", done.stderr
