"""`klaxon doctor` finds why no rollouts arrive: each fault is made for real, then named, explained and given a next command."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from doctor_place import Place, flowing, rollout
from klaxon_tap.sender import Sender
from test_command_daemon import free_port, get, klaxon, post, wait


def test_a_healthy_run_has_no_broken_link_and_exits_with_0(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.daemon(), place.tap() as tap, flowing(tap):
        wait(lambda: place.links()["tap"].state == "ok" and place.links()["detectors"].state == "ok")
        assert place.culprit() is None
        done = klaxon("doctor", "-c", str(place.config), "--json")
        assert done.returncode == 0, done.stdout
        found = json.loads(done.stdout)
        assert found["ok"] and found["broken"] is None and {link["name"] for link in found["links"]} >= {"tap", "daemon", "scorer", "store", "alerts"}
        shown = klaxon("doctor", "--url", place.url)
        assert shown.returncode == 0 and "● tap" in shown.stdout and "Every link" in shown.stdout


def test_an_engine_that_does_not_answer_is_the_broken_link(tmp_path: Path) -> None:
    engine = f"http://127.0.0.1:{free_port()}"
    place = Place(tmp_path, engine={"url": engine})
    with place.daemon() as daemon, place.tap():
        assert place.links()["engine"].state == "wait"
        daemon.probe.probe(time.time())  # the chore of the schedule
        found = place.until("engine", "does not answer (ConnectError")
        assert found.next == f"curl -i {engine}/health"


def test_a_tap_that_never_connected_is_told_after_a_while_and_not_at_once(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.daemon():
        assert place.links(remote=True)["tap"].state == "wait"
        found = place.until("tap", "no tap has connected since the daemon started")
        assert "KLAXON_URL" in found.next and str(place.state / "klaxon.sock") in found.text


def test_a_tap_with_a_wrong_token_or_none_is_told_from_one_that_never_connected(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KLAXON_TOKEN", "secret")
    place = Place(tmp_path)
    with place.daemon():
        for token, words in ((None, "with no token and is refused"), ("guess", "with a wrong token and is refused")):
            with place.tap(token=token):
                assert "KLAXON_TOKEN" in place.until("tap", words).next
        with place.tap(token="secret") as tap, flowing(tap):
            assert "KLAXON_TOKEN" in place.until("tap", "one of the engines is not seen").next


def test_from_another_machine_a_missing_token_is_named(tmp_path: Path, monkeypatch) -> None:
    address = next((found for found in subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split() if "." in found), None)
    if address is None:
        return
    monkeypatch.setenv("KLAXON_TOKEN", "secret")
    place = Place(tmp_path, daemon={"host": "0.0.0.0"})
    child = subprocess.Popen([sys.executable, "-m", "klaxon", "run", "-c", str(place.config)], stderr=subprocess.DEVNULL)
    try:
        wait(lambda: get(place.url, "/healthz")["ok"])
        bare = klaxon("doctor", "--url", f"http://{address}:{place.port}", "--json", KLAXON_TOKEN="")
        link = next(one for one in json.loads(bare.stdout)["links"] if one["name"] == "daemon")
        assert bare.returncode == 1 and "asks for its token" in link["text"] and "KLAXON_TOKEN" in link["next"]
        assert json.loads(klaxon("doctor", "--url", f"http://{address}:{place.port}", "--json").stdout)["links"][1]["state"] == "ok"
    finally:
        child.terminate()
        child.wait(20)


def test_a_tap_that_is_heard_but_sends_nothing_is_told_with_the_reason_it_gives(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.daemon():
        with place.tap():
            assert place.until("tap", "is heard, but no rollout has come since the start").next
        with place.tap(without_logprobs=7):
            assert "KLAXON_FORCE_LOGPROBS=1" in place.until("tap", "7 requests asked for no logprobs").next
        with place.tap() as tap:
            tap.put({"kind": "rollout", "token_ids": [1], "prompt_token_ids": [1]})
            assert place.until("tap", "every line is refused").counts["refused"] >= 1


def test_a_tap_that_fell_silent_is_told_with_when(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("klaxon.taps.ALIVE_SECONDS", 1.0)
    place = Place(tmp_path)
    with place.daemon():
        with place.tap():
            wait(lambda: get(place.url, "/v1/status")["taps"])
        found = place.until("tap", "was last heard")
        assert found.since is not None and "KLAXON_KILL_FILE" in found.text


def test_rollouts_dropped_inside_the_engine_are_told_with_the_taps_own_trouble(tmp_path: Path) -> None:
    place = Place(tmp_path)
    sender = Sender(place.url, token=None, source="plugin", about=lambda: {"engine": "e"}, heartbeat_seconds=0.2, queue_messages=2)
    assert sum(sender.put(rollout(number)) for number in range(20)) < 20  # the daemon is away
    with place.daemon():
        with flowing(sender):
            found = place.until("tap", "rollouts inside the engine")
        assert found.state == "warn" and found.counts["dropped"] >= 10 and "Connection" in found.text
        sender.close(5.0)


def test_a_clock_that_is_off_is_told_with_whose_and_how_far(tmp_path: Path) -> None:
    place = Place(tmp_path)
    code = f"""
import time
real = time.time
time.time = lambda: real() + 300.0
from klaxon_tap.sender import Sender
sender = Sender({place.url!r}, token=None, source="plugin", about=lambda: {{"engine": "http://ahead:8000"}}, heartbeat_seconds=0.2)
for number in range(10**6):
    sender.put({{"kind": "rollout", "request_id": f"a{{number}}", "prompt_token_ids": [1], "token_ids": [2], "logprobs": [-0.5], "finished_at": time.time()}})
    time.sleep(0.2)
"""
    with place.daemon():
        child = subprocess.Popen([sys.executable, "-c", code])
        try:
            found = place.until("clock", "http://ahead:8000 300 s ahead")
            assert "timedatectl" in found.next and found.counts["from_the_future"] >= 1
        finally:
            child.kill()
            child.wait()


def test_two_machines_under_one_name_and_a_tap_beside_a_proxy_are_told(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.daemon(), place.tap(host="gpu-1", pid=10) as tap, flowing(tap):
        with place.tap(host="gpu-2", pid=11):
            assert "KLAXON_ENGINE" in place.until("tap", "2 machines report as one engine http://e:8000 (gpu-1, gpu-2)").next
    (tmp_path / "c").mkdir()
    other = Place(tmp_path / "c")
    with other.daemon(), other.tap(), other.tap(source="proxy") as proxy, flowing(proxy):
        assert "KLAXON_TAP=off" in other.until("tap", "a tap and a proxy both report http://e:8000").next


def test_a_second_daemon_on_the_same_engine_says_so_itself(tmp_path: Path) -> None:
    engine = f"http://127.0.0.1:{free_port()}"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = Place(tmp_path / "a", engine={"url": engine}), Place(tmp_path / "b", engine={"url": engine}, run={"name": "u"})
    children = []
    try:
        for place in (first, second):
            children.append(subprocess.Popen([sys.executable, "-m", "klaxon", "run", "-c", str(place.config)], stderr=subprocess.DEVNULL))
            wait(lambda place=place: get(place.url, "/healthz")["ok"])
        for how in (True, False):
            found = wait(lambda how=how: (one := second.links(remote=how)["daemon"]).state != "ok" and one)
            assert "already watched by run t" in found.text and first.url in found.next
    finally:
        for child in children:
            child.terminate()
            child.wait(20)


def test_an_engine_that_came_back_as_another_version_is_told_until_it_is_declared(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.daemon():
        with place.tap(vllm_version="0.18.1", pid=1):
            wait(lambda: get(place.url, "/v1/status")["taps"])
        with place.tap(vllm_version="0.32.0", pid=2) as tap, flowing(tap):
            found = place.until("engine", "vLLM went from 0.18.1 to 0.32.0 under this daemon")
            assert found.next == 'klaxon rebaseline "vLLM 0.32.0"'
            post(place.url, {"kind": "rebaseline", "reason": "vLLM 0.32.0"})
            wait(lambda: place.links()["engine"].state == "off" and place.culprit() is None)


def test_a_full_inbox_is_told_while_the_worker_is_busy(tmp_path: Path) -> None:
    place, free = Place(tmp_path, sources={"inbox_rollouts": 8}), threading.Event()
    with place.daemon() as daemon:
        daemon.worker.submit(free.wait)  # as a long diagnosis
        time.sleep(0.5)
        with place.tap():
            assert post(place.url, *(rollout(number) for number in range(8))).status_code == 202
            assert post(place.url, rollout(9)).status_code == 429
            found = place.links()["inbox"]
            assert found.state == "broken" and "8 of 8 rollouts wait" in found.text and found.counts["deferred_bodies"] >= 1 and "tokens_per_minute" in found.next
            free.set()
            wait(lambda: place.links()["inbox"].state == "ok")


def test_files_that_are_missing_or_may_not_be_read_are_named(tmp_path: Path) -> None:
    place = Place(tmp_path, sources={"tap": False, "files": [str(tmp_path / "r.jsonl")]})
    with place.daemon():
        assert str(tmp_path / "r.jsonl") in place.until("tap", "is not there (yet)").next
        (tmp_path / "r.jsonl").write_text(json.dumps(rollout(1)) + "\n")
        wait(lambda: place.links()["tap"].state == "ok")


def test_another_program_at_the_address_is_told(tmp_path: Path) -> None:
    place = Place(tmp_path)
    from http.server import HTTPServer, SimpleHTTPRequestHandler

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", place.port), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            assert "no Klaxon daemon" in place.until("daemon", "something answers", remote=True).text
            assert "another program answers" in place.until("daemon", "cannot start").text
        finally:
            server.shutdown()
            thread.join()
