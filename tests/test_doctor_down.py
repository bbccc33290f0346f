"""`klaxon doctor` without a daemon that answers: the lock, the port, the folder, the device say why. Each fault is made for real."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from alerts.lock import StateLock, holder_of
from collector.store import Store
from doctor_place import Place, as_nobody, elsewhere, read_only
from klaxon.doctor.down import held
from klaxon.sealed import CONTROL, STORE
from test_command_daemon import daemon_of, get, klaxon, wait


def test_a_daemon_that_was_never_started_or_was_killed_is_told_with_its_last_words(tmp_path: Path) -> None:
    place = Place(tmp_path)
    found = place.culprit()
    assert found.name == "daemon" and "it never ran in" in found.text and found.next == f"klaxon run -c {place.config}"
    with daemon_of(place.config, place.url):
        wait(lambda: get(place.url, "/healthz")["batches"] > 1)
    found = place.culprit()
    assert "the last daemon wrote its status" in found.text and "verdict" in found.text
    done = klaxon("doctor", "-c", str(place.config), "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["broken"] == "daemon"
    assert not list((tmp_path / "state").glob("*.new")) and (tmp_path / "state" / STORE).is_file()


def test_from_another_machine_a_daemon_that_is_down_is_all_that_can_be_said(tmp_path: Path) -> None:
    place = Place(tmp_path)
    links = place.links(remote=True)
    assert links["daemon"].state == "broken" and "klaxon doctor -c config.toml" in links["daemon"].next
    assert {link.state for name, link in links.items() if name not in ("daemon", "exporters")} == {"unknown"}


def test_a_folder_that_another_daemon_holds_is_told_with_who(tmp_path: Path) -> None:
    first = Place(tmp_path)
    (tmp_path / "second").mkdir()
    second = Place(tmp_path / "second", run={"dir": str(first.state)})
    child = subprocess.Popen([sys.executable, "-m", "klaxon", "run", "-c", str(first.config)], stderr=subprocess.DEVNULL)
    try:
        wait(lambda: get(first.url, "/healthz")["ok"])
        found = second.culprit()
        assert found.name == "daemon" and f"is in use by another process (pid {child.pid})" in found.text and "klaxon doctor --url" in found.next
        found = elsewhere(second.config, second.url)
        assert found["name"] == "daemon" and "of another container or machine" in found["text"] and f"there pid {child.pid}" in found["text"]
        child.send_signal(signal.SIGSTOP)  # it hangs
        stuck = held(first.state, first.state / STORE)
        assert stuck is not None and str(child.pid) in stuck
    finally:
        child.send_signal(signal.SIGCONT)
        child.terminate()
        assert child.wait(30) == 0, "looking at its lock takes nothing from it"


def test_a_store_held_without_the_runs_lock_is_found_by_the_kernels_own_word(tmp_path: Path) -> None:
    code = "import sys, time\nfrom collector.store import Store\nstore = Store(sys.argv[1])\nprint('up', flush=True)\ntime.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / STORE)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "up\n"
        assert f"pid {holder.pid} holds" in held(tmp_path, tmp_path / STORE)
        script = f"from pathlib import Path; from klaxon.doctor.down import held; print(held(Path({str(tmp_path)!r}), Path({str(tmp_path / STORE)!r})))"
        if os.geteuid() == 0 and not subprocess.run(["unshare", "-pf", "--mount-proc", "true"], capture_output=True).returncode:
            seen = subprocess.run(["unshare", "-pf", "--mount-proc", sys.executable, "-c", script], capture_output=True, text=True).stdout
            assert "shows as pid 0" in seen and "another container or on the host" in seen
            refused = subprocess.run(["unshare", "-pf", "--mount-proc", sys.executable, "-c", f"from collector.store import Store; Store({str(tmp_path / STORE)!r})"],
                                     capture_output=True, text=True).stderr
            assert "PID 0" in refused and "not visible from here, in another container" in refused
        holder.kill()
    assert held(tmp_path, tmp_path / STORE) is None
    with Store(tmp_path / STORE):
        assert f"pid {os.getpid()}" not in (held(tmp_path, tmp_path / "none") or "")


def test_what_a_lock_file_says_is_read_with_care() -> None:
    assert holder_of("12") == " (pid 12)" and holder_of("") == "" and holder_of("x 1 h") == ""
    assert "there pid 7, host ab;" in holder_of("7 1 a\x1bb") and "\x1b" not in holder_of("7 1 \x1bh[red]")


def test_a_lock_is_told_from_its_own_namespace(tmp_path: Path) -> None:
    lock = StateLock(tmp_path / CONTROL)
    assert held(tmp_path, tmp_path / STORE) == f"{tmp_path / CONTROL} is in use by another process (pid {os.getpid()})"
    lock.release()
    assert held(tmp_path, tmp_path / STORE) is None


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", place.port))
        holder.listen()
        holder.settimeout(0.2)
        done = klaxon("run", "-c", str(place.config))
        assert done.returncode == 2 and "cannot listen" in done.stderr


@pytest.mark.parametrize("what", ["folder", "file", "above"])
def test_a_folder_or_store_of_another_user_is_told_to_that_user(what: str, tmp_path: Path) -> None:
    for one in (tmp_path, *tmp_path.parents):
        if one.stat().st_uid == os.geteuid() and one != Path("/"):
            one.chmod(one.stat().st_mode | 0o055)
    place = Place(tmp_path)
    place.config.chmod(0o644)
    place.state.mkdir()
    with Store(place.state / STORE):
        pass
    if what == "folder":
        place.state.chmod(0o755)
    elif what == "file":
        place.state.chmod(0o777)
        (place.state / STORE).chmod(0o600)
    else:
        place.state.chmod(0o700)
    found = as_nobody(place.config, place.url)
    assert found["name"] == "state" and found["state"] == "broken" and str(place.state) in found["text"] and found["next"]


def test_a_read_only_file_system_is_told_and_where(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.state.mkdir()
    found = read_only(place.config, place.url, place.state)
    assert found["name"] == "state" and "read-only file system" in found["text"] and "mount a volume" in found["text"]


def test_a_device_that_is_not_there_keeps_the_daemon_down_and_is_named(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "w").mkdir()
    place = Place(tmp_path, shadow={"enabled": True, "device": "cuda:7"}, weights={"dir": str(tmp_path / "w")})
    found = place.culprit()
    assert found.name == "daemon" and "it cannot start: shadow:" in found.text and "cuda:7" in found.text and "nvidia-smi" in found.next
    assert place.links()["scorer"].state == "broken"


def test_a_model_that_does_not_fit_into_the_memory_is_told_before_it_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import numpy as np

    folder = tmp_path / "w/step_1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file({"w": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}}).encode()
    with (folder / "model.safetensors").open("wb") as stream:  # a sparse file of four terabytes
        stream.write(len(header).to_bytes(8, "little") + header)
        try:
            stream.truncate(8 + len(header) + (1 << 42))
        except OSError:
            pytest.skip("this file system takes no sparse file of that size")
    (folder / "COMPLETE").touch()
    place = Place(tmp_path, shadow={"enabled": True, "device": "cpu"}, weights={"dir": str(tmp_path / "w/step_*"), "version_regex": "step_(.+)", "marker": "COMPLETE"})
    found = place.links()["scorer"]
    assert found.state == "broken" and "does not fit" in found.text and "klaxon plan" in found.next


def test_weights_that_may_not_be_read_are_told(tmp_path: Path) -> None:
    for one in (tmp_path, *tmp_path.parents):
        if one.stat().st_uid == os.geteuid() and one != Path("/"):
            one.chmod(one.stat().st_mode | 0o055)
    (tmp_path / "w").mkdir(mode=0o700)
    place = Place(tmp_path, shadow={"enabled": True, "device": "cpu"}, weights={"dir": str(tmp_path / "w")})
    place.config.chmod(0o644)
    place.state.mkdir(mode=0o777)
    place.state.chmod(0o777)
    found = as_nobody(place.config, place.url)["links"]["weights"]
    assert found["state"] == "broken" and f"{tmp_path / 'w'} may not be read by nobody" in found["text"] and found["next"] == f"ls -ld {tmp_path / 'w'}"


@pytest.mark.parametrize(("arguments", "words"), [(("-c", "nowhere.toml"), "cannot be read"), (("-c", "bad.toml"), "unknown key")])
def test_a_config_that_cannot_be_read_is_exit_code_2(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[run]\nnam = 1\n")
    done = subprocess.run([sys.executable, "-m", "klaxon", "doctor", *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
