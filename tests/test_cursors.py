"""Files are read on after a restart: each rollout, and each word of the trainer, counts once over stop, kill -9, rotation and truncation."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from alerts.db import Database
from collector.records import Rollout
from collector.sources.file_tail import JsonLinesTail
from collector.sources.formats.tail import SourceTail
from collector.store import Store
from klaxon.cursors import Cursors
from klaxon.demo.settings import write_config
from test_command_daemon import free_port, get, start, wait
from test_sources_tail import HERE, NOW, line, names


def rollout(name: str | None, *, late_by: float = 0.0, trainer: bool = True) -> str:
    """One line; without a name it has no request id, and only its place in the file tells it from another."""
    told = {"request_id": name} if name else {}
    told |= {"trainer_logprobs": [-0.51, -1.49]} if trainer else {}
    return json.dumps({"prompt_token_ids": [1, 2], "token_ids": [3, 4], "logprobs": [-0.5, -1.5], "sampling": {"temperature": 1.0},
                       "finished_at": time.time() - late_by, **told}) + "\n"


class Place:
    """A run that reads files, and its daemons one after the other."""

    def __init__(self, folder: Path, **sources: object) -> None:
        port = free_port()
        self.url, self.state = f"http://127.0.0.1:{port}", folder / "state"
        self.config = write_config(folder / "config.toml", {
            "run": {"name": "t", "dir": str(self.state)}, "shadow": {"enabled": False}, "alerts": {"console": False},
            "sources": {"tap": False, **sources}, "daemon": {"port": port, "batch_seconds": 0.4, "watermark_seconds": 0.3}})

    def up(self):
        """A daemon that answers."""
        daemon = start(self.config)
        wait(lambda: get(self.url, "/healthz")["ok"])
        return daemon

    def down(self, daemon, how: int) -> None:
        """Stop or kill it."""
        daemon.send_signal(how)
        daemon.wait(30)

    def counted(self) -> Counter[str]:
        """What all stored batches counted, and the rows of rollouts; no daemon may run."""
        found: Counter[str] = Counter()
        with Store(self.state / "klaxon.duckdb") as store:
            for batch in store.read_batches():
                found.update(batch.counts)
            found["rows"] = store.query("SELECT count(*) FROM rollouts WHERE t IN (SELECT t FROM batches)")[0][0]
            found["times"] = store.query("SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM rollouts GROUP BY read_from)")[0][0]
        return found

    def until_stored(self, name: str, number: int) -> Counter[str]:
        """Run a daemon until that many are seen since its start and two more batches are stored, stop it, count."""
        daemon = self.up()
        try:
            wait(lambda: get(self.url, "/v1/status")["counts"].get(name, 0) >= number)
            batches = get(self.url, "/healthz")["batches"]
            wait(lambda: get(self.url, "/healthz")["batches"] >= batches + 4)
        finally:
            self.down(daemon, signal.SIGTERM)
        return self.counted()


def test_every_rollout_counts_once_over_kills_at_any_moment_a_rotation_and_a_stop(tmp_path: Path) -> None:
    path, choose = tmp_path / "r.jsonl", random.Random(5)
    place, written = Place(tmp_path, files=[str(path)]), 0
    for life, how in enumerate((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)):
        daemon = place.up()
        for _ in range(12):
            with path.open("a") as stream:
                stream.writelines(rollout(f"r{written + n}" if n % 2 else None, late_by=choose.choice((0, 0, 0.5))) for n in range(5))
            written += 5
            time.sleep(choose.random() * 0.15)
        place.down(daemon, how)
        if life == 1:  # rotated while nobody looks
            path.rename(tmp_path / "r.jsonl.1")
            path.write_text(rollout("after the rotation"))
            written += 1
    assert 0 < place.counted()["seen"] <= written
    missing = written - place.counted()["seen"]
    found = place.until_stored("seen", missing) if missing else place.counted()
    assert (found["seen"], found["scored"], found["rows"], found["times"]) == (written, written, written, 1)


def test_what_was_stored_is_not_read_again_and_a_truncated_file_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    place = Place(tmp_path, files=[str(path)])
    path.write_text("".join(rollout(f"a{n}") for n in range(6)))
    assert place.until_stored("seen", 6)["seen"] == 6
    daemon = place.up()
    batches = get(place.url, "/healthz")["batches"]
    wait(lambda: get(place.url, "/healthz")["batches"] >= batches + 3)
    assert get(place.url, "/v1/status")["counts"].get("seen", 0) == 0
    place.down(daemon, signal.SIGKILL)
    shutil.copy(path, tmp_path / "r.jsonl.1")  # as logrotate's copytruncate does it, with three rollouts nobody has read
    with (tmp_path / "r.jsonl.1").open("a") as stream:
        stream.writelines(rollout(f"b{n}") for n in range(3))
    path.write_text(rollout("c0") + rollout("c1"))
    assert place.until_stored("seen", 5)["seen"] == 11


def test_whole_files_are_read_once_over_a_kill(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(HERE / "prime-rl", tmp_path / "prime"))
    place = Place(tmp_path, files=[{"path": str(folder), "format": "prime-rl"}])
    daemon = place.up()
    wait(lambda: get(place.url, "/v1/status")["counts"].get("seen") == 3)
    place.down(daemon, signal.SIGKILL)
    step = shutil.copytree(folder / "token_exports/step_3", folder / "token_exports/step_4")
    text = (step / "rank_0.jsonl").read_text().replace('"export_step": 3', '"export_step": 4')
    (step / "rank_0.jsonl").write_text(text)
    found = place.until_stored("seen", 6 - place.counted()["seen"])
    assert found["seen"] == 6
    daemon = place.up()
    batches = get(place.url, "/healthz")["batches"]
    wait(lambda: get(place.url, "/healthz")["batches"] >= batches + 3)
    place.down(daemon, signal.SIGTERM)
    assert place.counted()["seen"] == 6


def test_the_trainers_words_count_once_over_kills_and_join_rollouts_stored_by_the_daemon_before(tmp_path: Path) -> None:
    path, said = tmp_path / "r.jsonl", tmp_path / "said.jsonl"
    place = Place(tmp_path, files=[str(path)], trainer_files=[str(said)])
    path.write_text("".join(rollout(f"r{n}", trainer=False) for n in range(20)))
    words = [json.dumps({"request_id": f"r{n}", "logprobs": [-0.51, -1.49]}) + "\n" for n in range(20)]
    assert place.until_stored("seen", 20)["seen"] == 20
    said.write_text("".join(words[:8]))
    daemon = place.up()
    wait(lambda: get(place.url, "/v1/status")["counts"].get("trainer_joined", 0) >= 8)
    place.down(daemon, signal.SIGKILL)
    with said.open("a") as stream:
        stream.writelines(words[8:14])
    daemon = place.up()
    wait(lambda: get(place.url, "/v1/status")["counts"].get("trainer_joined", 0) >= 6)
    place.down(daemon, signal.SIGKILL)
    with said.open("a") as stream:
        stream.writelines(words[14:])
    found = place.until_stored("trainer_joined", 20 - place.counted()["joined"])
    assert (found["seen"], found["joined"], found["scored"], found["rows"], found["times"]) == (20, 20, 20, 20, 1)
    again = place.up()
    wait(lambda: get(place.url, "/healthz")["batches"] > 0)
    counts = get(place.url, "/v1/status")["counts"]
    place.down(again, signal.SIGTERM)
    assert counts.get("trainer_unmatched", 0) == 0 and place.counted()["joined"] == 20


def test_items_stored_out_of_their_order_are_not_read_again_and_the_others_are(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("".join(line(name) for name in "abcd"))
    tail = SourceTail(path)
    read = tail.poll(NOW)
    for place in (0, 2):
        read[place].mark.settle()
    kept = tail.states()
    assert line("a")[:20] not in json.dumps(kept), "what a file holds is not written down"
    with path.open("a") as stream:
        stream.write(line("e"))
    later = SourceTail(path, kept=kept)
    again = later.poll(NOW)
    assert names(again) == ["b", "d", "e"]
    for item in again:
        item.mark.settle()
    assert SourceTail(path, kept=later.states()).poll(NOW) == []


def test_a_file_restored_to_another_disk_is_the_same_file(tmp_path: Path) -> None:
    path, moved = tmp_path / "r.jsonl", tmp_path / "elsewhere.jsonl"
    path.write_text("".join(line(name) for name in "ab"))
    tail = JsonLinesTail(path)
    for one in tail.lines():
        tail.progress.open(one.end, 0, line=one.start[1] + 1, edge=one.edge)
    moved.write_text(path.read_text() + line("c"))
    moved.replace(path)  # another inode, the same beginning
    after = JsonLinesTail(path, state=tail.state())
    assert [json.loads(line("c"))] == [item for _, item in after.poll()] and not after.counts
    assert [where.rsplit(":", 1)[1] for where, _ in JsonLinesTail(path, state=tail.state()).poll()] == ["3"], "and its lines are numbered on"


@pytest.mark.parametrize("stored", [True, False])
def test_killed_between_the_cursor_and_the_batch_the_cursor_counts_only_with_its_batch(stored: bool, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(line("a") + line("b"))
    cursors, tail = Cursors(Database(tmp_path / "control.sqlite"), next_t=0), SourceTail(path)
    cursors.read_so_far = tail.states
    first, second = tail.poll(NOW)
    cursors.storing(0, [first.mark])
    cursors.storing(1, [second.mark])
    cursors.close()
    after = Cursors(Database(tmp_path / "control.sqlite"), next_t=2 if stored else 1)
    read = SourceTail(path, kept=after.kept).poll(NOW)
    assert [item.request_id for item in read if isinstance(item, Rollout)] == ([] if stored else ["b"])
    after.close()
