"""`klaxon doctor` finds what stands behind the tap: trainer, weights, scorer, store, receivers. Each fault is made for real."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from rich.console import Console

from doctor_place import Place, flowing, rollout
from klaxon.commands.doctor import show
from klaxon.doctor.link import Link, first_broken, worst
from test_collector_weights import write as write_weights
from test_command_daemon import get, post, wait


def test_a_worker_that_has_ended_is_the_broken_link_and_one_that_never_scores_says_why(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.daemon() as daemon, place.tap() as tap, flowing(tap):
        wait(lambda: place.links()["tap"].state == "ok")
        daemon.worker.submit(lambda: (_ for _ in ()).throw(RuntimeError("CUDA error: out of memory")))
        found = place.until("scorer", "CUDA error: out of memory")
        assert found.since is not None and found.next.startswith("klaxon check")
        wait(lambda: place.links()["scorer"].counts.get("worker_errors") == 1)
        daemon.worker.stop()
        daemon.worker.join(20)
        wait(lambda: "has ended" in place.links()["scorer"].text)
        assert "restart the daemon" in place.links()["scorer"].next


def test_detectors_that_make_no_round_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    with place.daemon() as daemon:
        wait(lambda: place.links()["detectors"].state == "ok")
        daemon.watch.stop()
        daemon.watch.join(20)
        found = place.links()["detectors"]
        assert found.state == "broken" and "no alarm can come" in found.text and found.next


def test_a_weights_folder_that_is_empty_stale_or_of_another_run_is_told(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    place = Place(tmp_path, shadow={"enabled": True, "device": "cpu"}, weights={"dir": str(tmp_path / "w/step_*"), "version_regex": "step_(.+)"}, sources={"tap": True})
    (tmp_path / "w").mkdir()
    with place.daemon() as daemon, place.tap() as tap:
        assert "no complete version" in place.links()["weights"].text and place.links()["weights"].state == "broken"
        write_weights(tmp_path / "w/step_3")
        daemon.trainer.poll_weights()
        wait(lambda: place.links()["weights"].state == "ok")
        tap.put({**rollout(1), "weight_versions": [[0, 2, "41"]]})
        found = wait(lambda: (one := place.links()["weights"]).state == "broken" and one)
        assert "generates with version 41" in found.text and "the newest here is 3" in found.text and "ls -t" in found.next


def test_a_trainers_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    place = Place(tmp_path, sources={"trainer_files": [str(tmp_path / "said.jsonl")]})
    with place.daemon():
        found = place.links()["trainer"]
        assert found.state == "warn" and "nothing is compared with the trainer" in found.text and str(tmp_path / "said.jsonl") in found.next
        (tmp_path / "said.jsonl").write_text("")
        wait(lambda: place.links()["trainer"].state == "ok")


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # past the limit a write fails, as on a full disk
from klaxon.cli import main
sys.argv = ["klaxon", "run", "-c", sys.argv[1]]
main()
"""


def test_a_disk_that_is_full_under_a_running_daemon_is_told_and_over_once_there_is_room(tmp_path: Path) -> None:
    place = Place(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", LIMITED, str(place.config)], stderr=subprocess.DEVNULL)
    try:
        wait(lambda: get(place.url, "/healthz")["batches"] > 1)
        with place.tap() as tap, flowing(tap):
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
            found = wait(lambda: (one := place.links(remote=True)["store"]).state == "broken" and one)
            assert "has refused every write for" in found.text and found.next.startswith("df -h") and found.counts["store_errors"] >= 1
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            wait(lambda: place.links(remote=True)["store"].state == "ok")
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)


def test_a_disk_that_is_nearly_full_is_told_before_it_is(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.config.write_text(place.config.read_text() + "\n[detectors.facts]\ndisk_free_mb = 1e9\n")
    with place.daemon():
        found = place.links()["store"]
        assert found.state == "warn" and "the bound is" in found.text and "max_gb" in found.next


class Receiver(BaseHTTPRequestHandler):
    """Answers what it is told to."""

    status = 500

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("status", "words", "next_"), [(500, "times in a row", "klaxon alerts test oncall"), (400, "dead letters", "klaxon alerts unsent")])
def test_a_receiver_that_fails_or_refuses_is_told_with_what_waits(status: int, words: str, next_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), type("One", (Receiver,), {"status": status})) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("HOOK", f"http://127.0.0.1:{server.server_address[1]}/")
        place = Place(tmp_path, alerts={"receivers": [{"type": "webhook", "name": "oncall", "url_env": "HOOK", "allow_private": True}]})
        try:
            with place.daemon() as daemon:
                daemon.alerts.start()
                assert place.links()["alerts"].state == "ok"
                post(place.url, {**rollout(1), "logprobs": [None, -1.5]})  # a hard fact: it pages at once
                found = wait(lambda: (one := place.links()["alerts"]).state in ("broken", "warn") and one)
                assert words in found.text and found.next == next_ and "oncall" in found.text
        finally:
            server.shutdown()
            thread.join()


def test_what_the_store_takes_and_how_it_grows_is_told(tmp_path: Path) -> None:
    place = Place(tmp_path, store={"max_gb": 2})
    with place.daemon() as daemon:
        wait(lambda: re.search(r"[1-9]\d* batches", place.links()["store"].text))
        assert "limit 1.9 GiB" in place.links()["store"].text
        with daemon.store._cursor() as cursor:
            cursor.execute("UPDATE batches SET opened_at = ? WHERE t = 0", [time.time() - 10 * 86400]).fetchall()
        assert "grows by" in place.links()["store"].text and " free: " in place.links()["store"].text


HOSTILE = "[bold red]x[/] [link=http://evil]y[/link] \x1b[31mred\x1b[0m\x07 [/nothing]"


def test_hostile_words_from_a_tap_are_shown_as_they_are_and_drive_no_terminal(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.daemon(), place.tap(engine=HOSTILE, last_error=HOSTILE, dropped=3, host=HOSTILE):
        wait(lambda: place.links()["tap"].counts.get("dropped") == 3)
        with (tmp_path / "out.txt").open("w") as out:
            links = place.links().values()
            show(list(links), first_broken(links), Console(file=out, force_terminal=True, width=200, highlight=False, emoji=False))
    shown = (tmp_path / "out.txt").read_text()
    assert "[bold red]x[/]" in shown and "\x07" not in shown and "\x1b[31mred" not in shown and "\x1b]8;" not in shown


def test_of_two_findings_the_gravest_stays_and_the_other_is_told_behind_it() -> None:
    links = [Link(name="tap", state="ok", text="fine"), Link(name="tap", state="warn", text="odd", next="look"), Link(name="tap", state="broken", text="gone")]
    (one,) = worst(links)
    assert (one.state, one.text, one.next) == ("broken", "gone. Also: odd", "look")

