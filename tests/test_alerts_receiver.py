"""The local receiver of the demo: Slack's contract, signatures, the page, a clean end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime

import httpx
import pytest
from standardwebhooks import Webhook

from alerts_helpers import SECRET, receiver
from klaxon.demo import receiver_page


@pytest.mark.parametrize(("body", "status", "said"), [
    (b'{"text": "hello"}', 200, "ok"), (b"{", 400, "invalid_payload"), (b"", 400, "invalid_payload"), (b"[1]", 400, "invalid_payload"),
    (b"{}", 400, "no_text"), (b'{"text": ""}', 400, "no_text"), (b'{"text": "x", "blocks": [{"type": "nonsense"}]}', 400, "invalid_blocks"),
    (json.dumps({"blocks": [{"type": "header", "text": {"type": "plain_text", "text": "x" * 151}}]}).encode(), 400, "invalid_blocks"),
])
def test_it_answers_as_slack_does(body, status, said) -> None:
    with receiver() as (server, box):
        answer = httpx.post(f"{server.url}/services/T/B/key", content=body)
    assert (answer.status_code, answer.text, len(box.messages)) == (status, said, int(status == 200))


def test_it_asks_for_patience_as_often_as_told() -> None:
    with receiver(fail_first=1, retry_after=7) as (server, box):
        first, second = (httpx.post(f"{server.url}/services/x", json={"text": "hi"}) for _ in range(2))
    assert (first.status_code, first.headers["retry-after"], second.status_code) == (429, "7", 200)


def test_only_signed_webhooks_pass() -> None:
    body, at = '{"type": "klaxon.incident.firing"}', datetime.now(UTC)
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": Webhook(SECRET).sign("msg_1", at, body)}
    with receiver() as (server, box):
        assert httpx.post(f"{server.url}/webhook", content=body, headers=headers).status_code == 204
        assert httpx.post(f"{server.url}/webhook", content=body + " ", headers=headers).status_code == 401
        assert httpx.post(f"{server.url}/webhook", content=body).status_code == 401
    assert [message["id"] for message in box.messages] == ["msg_1"]


def test_the_page_shows_what_arrived_and_escapes_it(tmp_path) -> None:
    out = tmp_path / "seen.jsonl"
    evil = "<script>alert(1)</script> <javascript:alert(1)|x> <https://ok.test/a?b=1&amp;c=2|*Docs*>\n*bold*\n```rm &lt;x&gt;```"
    with receiver(out=out) as (server, _):
        httpx.post(f"{server.url}/services/x", json={"text": "t", "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": evil}}]})
        page = httpx.get(server.url).text
        assert httpx.get(f"{server.url}/messages").json()[0]["body"]["text"] == "t"
    assert "<script>" not in page and "&lt;script&gt;" in page and 'href="javascript' not in page
    assert '<a href="https://ok.test/a?b=1&amp;c=2"' in page and "<strong>bold</strong>" in page and "<pre>rm &lt;x&gt;</pre>" in page
    assert json.loads(out.read_text())["kind"] == "slack"


def test_an_empty_page_says_so() -> None:
    assert "No message yet." in receiver_page.render([])


def test_it_runs_as_a_command_and_ends_cleanly_on_ctrl_c(tmp_path) -> None:
    child = subprocess.Popen([sys.executable, "-m", "klaxon.demo.receiver", "--port", "0", "--out", str(tmp_path / "seen.jsonl")],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = child.stdout.readline().split()[2].rstrip("/")
    assert httpx.post(f"{url}/services/demo", json={"text": "hello <you>"}).text == "ok"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=10)
    assert (child.returncode, err) == (0, "") and "hello <you>" in out and "1 messages; stopped" in out
