"""Faults around a sidecar, each found by `klaxon check` and explained with what to type next: sockets, volumes, devices, memory, clocks, neighbours."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from typer.testing import CliRunner

from klaxon.checks.places import folder
from klaxon.checks.places import socket as tap_socket
from klaxon.checks.rollouts import rollouts
from klaxon.checks.scorer import available_bytes, fits, shadow, weights
from klaxon.checks.settings import daemon, metrics
from klaxon.cli import app
from test_checks_engine import config_of, serving
from test_command_daemon import free_port

FILES = Path(__file__).parent / "fixtures/formats"
NOBODY = 65534


def as_nobody(expression, imports):
    """What an expression is worth to another user, in a process that gives its rights up once all is imported."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    code = f"import json, os\n{imports}\nos.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\nprint(json.dumps({expression}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("declared", "path", "preset"), [
    ("pipelinerl", FILES / "nemo-rl", "nemo-rl"), ("nemo-rl", FILES / "pipelinerl", "pipelinerl"), ("nemo-rl", FILES / "pipelinerl/streams/actor/0/0/0.jsonl", "pipelinerl"),
    ("prime-rl", FILES / "slime", "slime"), ("open-instruct", FILES / "prime-rl/token_exports", "prime-rl"), ("slime", FILES / "verl", "verl")])
def test_files_of_another_framework_are_found_and_the_preset_that_fits_is_named(tmp_path, declared, path, preset):
    found = rollouts(config_of(tmp_path, sources={"files": [{"path": str(path), "format": declared}]}), None)
    assert found.state == "bad" and preset in found.text and f"klaxon init --framework {preset}" in found.next


def test_a_path_that_is_not_there_beside_files_of_another_framework_names_the_preset_too(tmp_path):
    missing = str(FILES / "nemo-rl/streams.jsonl")
    found = rollouts(config_of(tmp_path, sources={"files": [{"path": missing, "format": "pipelinerl"}]}), None)
    assert found.state == "bad" and "not there" in found.text and "--framework nemo-rl" in found.next


@pytest.mark.parametrize(("state", "words"), [("empty", "holds no pipelinerl file yet"), ("gone", "not there yet")])
def test_files_that_are_still_to_come_are_no_fault(tmp_path, state, words):
    path = tmp_path / "exp/streams/actor/0/0/0.jsonl"
    path.parent.mkdir(parents=True)
    if state == "empty":
        path.touch()
    found = rollouts(config_of(tmp_path, sources={"files": [{"path": str(path), "format": "pipelinerl"}]}), None)
    assert found.state == "warn" and words in found.text


def test_metric_names_of_another_framework_name_the_preset_that_fits(tmp_path):
    log = tmp_path / "m.jsonl"
    log.write_text(json.dumps({"step": 1, "actor/pg_clipfrac": 0.1, "actor/ppo_kl": 0.01}) + "\n")
    found = metrics(config_of(tmp_path, trainer={"metrics_file": str(log)}, metrics={"framework": "TRL"}))
    assert found.state == "warn" and "verl's" in found.text and "--framework verl" in found.next
    assert metrics(config_of(tmp_path, trainer={"metrics_file": str(log)}, metrics={"framework": "verl"})).state == "ok"


def test_a_file_where_the_socket_should_be_is_not_deleted_but_told(tmp_path):
    path = tmp_path / "klaxon.sock"
    path.write_text("precious")
    found = next(tap_socket(config_of(tmp_path, daemon={"socket": str(path)}), None))
    assert found.state == "bad" and "not a socket" in found.text and path.read_text() == "precious"


def test_a_socket_path_the_kernel_does_not_take_is_told_with_its_length(tmp_path):
    path = tmp_path / ("deep/" * 30) / "klaxon.sock"
    found = next(tap_socket(config_of(tmp_path, daemon={"socket": str(path)}), None))
    assert found.state == "bad" and "107" in found.text
    assert CliRunner().invoke(app(["check"]), ["check", "-c", str(_written(tmp_path, path))]).exit_code == 2


def _written(tmp_path, path):
    out = tmp_path / "c.toml"
    out.write_text(f'[run]\ndir = "{tmp_path}/s"\n[daemon]\nport = {free_port()}\nsocket = "{path}"\n')
    return out


def test_a_socket_nobody_listens_at_while_the_daemon_runs_is_found(tmp_path):
    path = tmp_path / "klaxon.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    found = next(tap_socket(config_of(tmp_path, daemon={"socket": str(path)}), {"run": "t", "taps": []}))
    assert found.state == "bad" and "refused" in found.text
    assert next(tap_socket(config_of(tmp_path, daemon={"socket": str(path)}), None)).state == "ok", "a daemon that starts replaces it"


def test_a_socket_in_a_folder_closed_to_other_users_is_told_when_no_tap_is_heard(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    path = closed / "klaxon.sock"
    config = config_of(tmp_path, daemon={"socket": str(path)})
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        silent = next(tap_socket(config, {"run": "t", "taps": []}))
        heard = next(tap_socket(config, {"run": "t", "taps": [{"alive": True, "source": "plugin", "engine": "e"}]}))
    assert silent.state == "warn" and "chmod o+x" in silent.next and heard.state == "ok"


def test_a_folder_this_user_may_not_write_names_its_owner():
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        found = as_nobody(f"cannot_write(Path({place!r}))", "from pathlib import Path\nfrom klaxon.checks.places import cannot_write")
    assert "may not write" in found and "root" in found


def test_rollouts_and_weights_this_user_may_not_read_are_bad_and_not_merely_missing(tmp_path, monkeypatch):
    secret = tmp_path / "r.jsonl"
    secret.write_text("{}")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # what the kernel answers another user
    found = rollouts(config_of(tmp_path, sources={"files": [str(secret)]}), None)
    assert found.state == "bad" and "may not be read" in found.text and "ls -ld" in found.next
    found = weights(config_of(tmp_path, weights={"dir": str(tmp_path)}), None)
    assert found.state == "bad" and "cannot read the trainer's versions" in found.text


def test_a_read_only_file_system_is_called_one(tmp_path):
    place = tmp_path / "mounted"
    place.mkdir()
    script = (f"mount -t tmpfs -o ro none {place} && {sys.executable} -c \"from klaxon.checks.places import folder; from klaxon.config import parse_config; "
              f"f = folder(parse_config({{'run': {{'dir': '{place}/state'}}}}, where='t')); print(f.state, f.text)\"")
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent.parent)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no mounts may be made here")
    assert done.stdout.startswith("bad") and "read-only file system" in done.stdout and "run.dir" in done.stdout, done.stderr


def test_a_port_another_program_holds_is_no_traceback(tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_):
            pass

    with serving(Handler) as port:
        config = _written(tmp_path, tmp_path / "k.sock")
        config.write_text(config.read_text().replace("port = ", f"port = {port} # "))
        done = CliRunner().invoke(app(["check"]), ["check", "-c", str(config)])
    assert done.exit_code == 2 and "another program answers" in " ".join(done.stdout.split()), done.stdout
    assert daemon(config_of(tmp_path), None).state == "off"


def test_a_device_that_is_not_there_says_what_this_torch_sees(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    found = shadow(config_of(tmp_path, shadow={"device": "cuda"}))
    assert found.state == "bad" and "no CUDA device" in found.text and "nvidia-smi" in found.next
    assert "CPU" in shadow(config_of(tmp_path)).text


@pytest.mark.parametrize(("free_gb", "state", "words"), [(400, "ok", "3 fit"), (170, "warn", "set versions_held = 2"), (60, "bad", "does not fit")])
def test_a_model_is_held_against_the_free_memory(tmp_path, free_gb, state, words):
    found = fits(config_of(tmp_path), 32_000_000_000, free=free_gb * 1e9, where="cuda:0")
    assert found.state == state and words in found.text and (state == "ok" or "klaxon plan --params 3.2e+10" in found.next)


def test_a_containers_limit_counts_as_memory(tmp_path):
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    meminfo.write_text("MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n")
    assert available_bytes(meminfo, group) == 8_192_000_000
    group.mkdir()
    for name, text in (("memory.max", "2000000000\n"), ("memory.current", "1500000000\n"), ("memory.stat", "anon 1\ninactive_file 300000000\n")):
        (group / name).write_text(text)
    assert available_bytes(meminfo, group) == 800_000_000
    (group / "memory.max").write_text("max\n")
    assert available_bytes(meminfo, group) == 8_192_000_000


def test_one_version_given_as_the_folder_of_versions_is_told_which_folder_to_name(tmp_path):
    (tmp_path / "v/41").mkdir(parents=True)
    (tmp_path / "v/41/config.json").write_text("{}")
    found = weights(config_of(tmp_path, weights={"dir": str(tmp_path / "v/41")}), None)
    assert found.state == "warn" and f"name the folder above it, {tmp_path / 'v'}" in found.text


def test_the_state_folder_of_another_users_daemon_is_told(tmp_path, monkeypatch):
    (tmp_path / "state").mkdir()
    (tmp_path / "state/klaxon.duckdb").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    found = folder(config_of(tmp_path))
    assert found.state == "bad" and "chown" in found.next
