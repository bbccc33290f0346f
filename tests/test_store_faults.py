"""kill -9, a damaged log, a second owner, a file that is none: what was acknowledged stays, and the rest is said."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from collector.errors import Unavailable
from collector.records import BatchStats
from collector.store import Store

WRITER = """
import sys
from collector.records import BatchStats
from collector.store import Store
store = Store(sys.argv[1], threads=1)
for t in range(store.next_t(), 1_000_000):
    store.append_batch(BatchStats(t=t, opened_at=t, closed_at=t + 1.0, gains={"a": t / 7}, counts={"seen": t}))
    print(t, flush=True)
    if t % 37 == 36:
        store.checkpoint()
"""


FULL_DISK = """
import os, resource, signal, sys
from collector.errors import Unavailable
from collector.records import BatchStats
from collector.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # past the limit a write fails, as on a full disk
store = Store(sys.argv[1], threads=1)
batch = lambda t: BatchStats(t=t, opened_at=0.0, closed_at=1.0, counts={"x" * 500: t})
for t in range(20):
    store.append_batch(batch(t))
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(sys.argv[1] + ".wal") + 100, resource.RLIM_INFINITY))
for attempt in (lambda: store.append_batch(batch(20)), store.checkpoint, lambda: store.append_batch(batch(20))):
    try:
        attempt()
        print("written")
    except Unavailable as error:
        print("refused" if "free disk space" in str(error) else f"other:{error}")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.append_batch(batch(20))
print([item.t for item in store.read_batches()] == list(range(21)))
"""


def acknowledged_until_killed(path, *, lines: int) -> int:
    """Run the writer, kill -9 it after some acknowledgements, and return the last t it acknowledged."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        last = -1
        for _ in range(lines):
            last = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout.read().splitlines(keepends=True):
            last = int(line) if line.endswith("\n") else last
    return last


@pytest.mark.parametrize("lines", [3, 41])
def test_kill_9_loses_no_acknowledged_batch(tmp_path, lines):
    path = tmp_path / "k.duckdb"
    for round_ in range(2):  # the second round opens what the first left behind
        last = acknowledged_until_killed(path, lines=lines)
        with Store(path) as store:
            kept = list(store.read_batches())
        assert [item.t for item in kept] == list(range(len(kept))), "no gap"
        assert last < len(kept) <= last + 2, f"round {round_}: acknowledged {last}"
        assert all(item.counts == {"seen": item.t} and item.gains == {"a": item.t / 7} for item in kept)


def test_a_damaged_log_is_moved_aside_and_said_and_life_goes_on(tmp_path):
    path = tmp_path / "k.duckdb"
    last = acknowledged_until_killed(path, lines=30)
    wal = path.with_name("k.duckdb.wal")
    assert last >= 15
    wal.write_bytes(wal.read_bytes().replace(b'{"seen": 15}', b'{"seen": 99}'))  # inside a row: the checksum must tell
    with Store(path) as store:
        kept = [item.t for item in store.read_batches()]
        assert kept == list(range(15)), "what stood before the damage is kept, and nothing of the damaged row"
        assert "write-ahead log was damaged" in store.notices[0] and ".broken-0" in store.notices[0]
        store.append_batch(BatchStats(t=store.next_t(), opened_at=0.0, closed_at=1.0))
    assert path.with_name("k.duckdb.wal.broken-0").exists()
    with Store(path) as store:
        assert len(list(store.read_batches())) == len(kept) + 1 and not store.notices


def test_a_full_disk_refuses_in_plain_words_and_the_store_goes_on_once_there_is_room(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path / "k.duckdb")], capture_output=True, text=True)
    assert done.stdout.split() == ["refused"] * 3 + ["True"], done.stderr
    with Store(tmp_path / "k.duckdb") as store:
        assert [item.t for item in store.read_batches()] == list(range(21)) and not store.notices


def test_a_second_owner_is_refused_in_plain_words(tmp_path):
    with Store(tmp_path / "k.duckdb"):
        second = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / "k.duckdb")], capture_output=True, text=True)
    assert "Unavailable" in second.stderr and "another process owns it" in second.stderr


def test_a_file_that_is_no_store_is_refused_in_plain_words(tmp_path):
    (tmp_path / "k.duckdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(Unavailable, match="move it aside"):
        Store(tmp_path / "k.duckdb")


def test_a_newer_format_is_refused_in_plain_words(tmp_path):
    with Store(tmp_path / "k.duckdb") as store, store._cursor() as cursor:
        cursor.execute("DELETE FROM meta WHERE key = 'version'").fetchall()
        cursor.execute("INSERT INTO meta VALUES ('version', '99')").fetchall()
    with pytest.raises(Unavailable, match="store format 99"):
        Store(tmp_path / "k.duckdb")


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match=r"\[store\] path"):
        Store(tmp_path / "file" / "k.duckdb")
