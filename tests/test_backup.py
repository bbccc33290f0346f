"""A run's state in one file and back: from a running daemon, from a stopped one; what is damaged, hostile or half is refused whole."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from collector.records import BatchStats
from collector.store import Store
from klaxon.backup import MANIFEST
from klaxon.demo.settings import write_config
from klaxon.sealed import CONTROL, STORE
from test_command_daemon import ROLLOUT, daemon_of, free_port, get, klaxon, post, wait
from test_store_migrations import old  # noqa: F401 (a fixture)


@pytest.fixture
def place(tmp_path: Path):
    port = free_port()
    config = write_config(tmp_path / "config.toml", {
        "run": {"name": "t", "dir": str(tmp_path / "state")}, "shadow": {"enabled": False}, "alerts": {"console": False},
        "daemon": {"port": port, "batch_seconds": 0.3, "watermark_seconds": 0.1}})
    return config, f"http://127.0.0.1:{port}", tmp_path


def counted(folder: Path) -> tuple[int, int]:
    with Store(folder / STORE) as store:
        batches = list(store.read_batches())
        assert [batch.t for batch in batches] == list(range(len(batches)))
        return len(batches), sum(batch.counts.get("seen", 0) for batch in batches)


@pytest.mark.parametrize("by", ["url", "folder"])
def test_a_running_daemon_is_backed_up_while_it_goes_on_and_what_comes_back_is_taken_up(by: str, place) -> None:
    config, url, folder = place
    out, stop = folder / "b.tar.gz", threading.Event()
    with daemon_of(config, url):
        def keep_posting() -> None:
            number = 0
            while not stop.is_set():
                post(url, *({**ROLLOUT, "request_id": f"r{number + n}"} for n in range(5)))
                number += 5
                time.sleep(0.02)

        thread = threading.Thread(target=keep_posting)
        thread.start()
        try:
            wait(lambda: get(url, "/healthz")["batches"] > 3)
            done = klaxon("backup", url if by == "url" else str(folder / "state"), "-o", str(out))
            assert done.returncode == 0 and "run t:" in done.stderr and "klaxon restore" in done.stderr, done.stderr
            after = get(url, "/healthz")["batches"]
            wait(lambda: get(url, "/healthz")["batches"] > after + 1)
        finally:
            stop.set()
            thread.join()
    done = klaxon("restore", str(out), str(folder / "back"))
    assert done.returncode == 0 and "Next: set [run] dir" in done.stderr, done.stderr
    manifest = json.loads(tarfile.open(out).extractfile(MANIFEST).read())
    batches, seen = counted(folder / "back")
    assert batches == manifest["batches"] > 3 and 0 < seen and manifest["run"] == "t"
    assert oct((folder / "back").stat().st_mode & 0o777) == "0o700" and oct(out.stat().st_mode & 0o777) == "0o600"
    assert counted(folder / "state")[0] > batches
    config.write_text(config.read_text().replace(str(folder / "state"), str(folder / "back")))
    with daemon_of(config, url):
        assert get(url, "/healthz")["batches"] >= batches
        assert any(f"took up the run at batch {batches}" in event["text"] for event in get(url, "/v1/events"))


def test_a_stopped_run_of_the_release_before_is_backed_up_as_it_is_and_comes_back(old: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "b.tar"
    before = (old / STORE).read_bytes()
    assert klaxon("backup", str(old), "-o", str(out)).returncode == 0
    assert (old / STORE).read_bytes() == before
    looked = klaxon("restore", str(out), "--look")
    assert looked.returncode == 0 and "8 rollouts" in looked.stderr and "store format 1" in looked.stderr and STORE in looked.stdout
    assert klaxon("restore", str(out), str(tmp_path / "back")).returncode == 0
    assert counted(tmp_path / "back")[1] == 8
    (tmp_path / "back/mine").write_text("mine")
    again = klaxon("restore", str(out), str(tmp_path / "back"))
    assert again.returncode == 2 and "is not empty" in again.stderr and (tmp_path / "back/mine").read_text() == "mine"
    twice = klaxon("backup", str(old), "-o", str(out))
    assert twice.returncode == 2 and "--force" in twice.stderr and klaxon("backup", str(old), "-o", str(out), "--force").returncode == 0


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for info, data in members:
            info.size = len(data) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(data))


def parts(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as archive:
        return [(tarfile.TarInfo(one.name), archive.extractfile(one).read()) for one in archive]


def hostile(kind: str, members: list[tuple[tarfile.TarInfo, bytes]]) -> list[tuple[tarfile.TarInfo, bytes]]:
    manifest = json.loads(members[0][1])
    if kind in ("../evil", "/evil", "a/b", "..", "x\n"):
        manifest["files"][kind] = {"bytes": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
        members.append((tarfile.TarInfo(kind), b"x"))
    elif kind == "unnamed":
        members.append((tarfile.TarInfo("extra"), b"x"))
    elif kind == "link":
        link = tarfile.TarInfo(CONTROL)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        members = [link_or if link_or[0].name != CONTROL else (link, b"") for link_or in members]
    elif kind == "flipped":
        name, data = next((info, data) for info, data in members if info.name == STORE)
        members[members.index((name, data))] = name, data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
    elif kind == "missing":
        members = [one for one in members if one[0].name != CONTROL]
    elif kind == "twice":
        members.append(next(one for one in members if one[0].name == CONTROL))
    elif kind == "newer":
        manifest["store_format"] = 99
    members[0] = members[0][0], json.dumps(manifest).encode()
    return members


@pytest.mark.parametrize(("kind", "words"), [
    ("../evil", "which its manifest does not name or no backup holds"), ("/evil", "no backup holds"), ("a/b", "no backup holds"), ("..", "no backup holds"),
    ("x\n", "no backup holds"), ("unnamed", "does not name"), ("link", "no backup holds"), ("flipped", "digest"), ("missing", "lacks control.sqlite"),
    ("twice", "does not name"), ("newer", "store format 99")])
def test_a_hostile_or_damaged_backup_is_refused_and_leaves_nothing(kind: str, words: str, old: Path, tmp_path: Path) -> None:  # noqa: F811
    good, bad, to = tmp_path / "good.tar", tmp_path / "bad.tar", tmp_path / "in/back"
    assert klaxon("backup", str(old), "-o", str(good)).returncode == 0
    tar_of(bad, hostile(kind, parts(good)))
    done = klaxon("restore", str(bad), str(to))
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert not to.exists() and not list(tmp_path.rglob("*evil*")) and (not to.parent.exists() or not list(to.parent.iterdir()))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.6])
def test_a_backup_that_is_cut_short_or_none_at_all_is_said_in_plain_words(share: float, old: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "b.tar.gz"
    assert klaxon("backup", str(old), "-o", str(out)).returncode == 0
    out.write_bytes(out.read_bytes()[: int(out.stat().st_size * share)])
    done = klaxon("restore", str(out), str(tmp_path / "back"))
    assert done.returncode == 2 and "Traceback" not in done.stderr and ("damaged" in done.stderr or "no backup" in done.stderr)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(("arguments", "words"), [
    (("backup", "nowhere", "-o", "x.tar"), "[run] dir"), (("backup", "nowhere", "-o", "x.zip"), ".tar.gz"),
    (("backup", "http://127.0.0.1:9", "-o", "x.tar"), "klaxon doctor"), (("backup", "nowhere", "-o", "no/such/x.tar"), "cannot be written"),
    (("restore", "nowhere.tar", "back"), "is not there")])
def test_a_mistyped_backup_is_one_clear_line(arguments, words, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "klaxon", *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_a_backup_asks_for_the_token_where_one_is_set(place, monkeypatch) -> None:
    config, url, folder = place
    monkeypatch.setenv("KLAXON_TOKEN", "secret")
    with daemon_of(config, url):
        wait(lambda: get(url, "/healthz")["batches"] > 1)
        bare = klaxon("backup", url, "-o", str(folder / "a.tar"), KLAXON_TOKEN="")
        assert bare.returncode == 2 and "token" in bare.stderr and not (folder / "a.tar").exists()
        assert klaxon("backup", url, "-o", str(folder / "a.tar")).returncode == 0


def test_ctrl_c_leaves_no_half_file(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with Store(folder / STORE) as store:
        for t in range(300):
            store.append_batch(BatchStats(t=t, opened_at=t, closed_at=t + 1.0, counts={os.urandom(3000).hex(): 1}))
    child = subprocess.Popen([sys.executable, "-m", "klaxon", "backup", str(folder), "-o", str(tmp_path / "b.tar.gz")], stderr=subprocess.PIPE)
    wait(lambda: list(tmp_path.glob(".b.tar.gz.*.part")) or child.poll() is not None)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    left = [path.name for path in tmp_path.iterdir() if path.name != "state"]
    assert (child.returncode, left) in ((130, []), (0, ["b.tar.gz"])), said.decode()
