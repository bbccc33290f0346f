"""The real Alertmanager: what it shows of an incident from first to last, and its own webhook body beside ours."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from alerts.config import ReceiverConfig
from alerts.notifiers import build
from alerts.render_events import as_alertmanager_webhook, fingerprint, labels
from receiver_kinds import life
from receiver_services import Service, served

BINARY, AMTOOL = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager"), shutil.which("amtool")
pytestmark = pytest.mark.skipif(not (BINARY and AMTOOL), reason="no Alertmanager on this machine (Debian: apt-get install prometheus-alertmanager)")
CONFIG = """
route: {{receiver: hook, group_by: [alertname, run], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}}
receivers: [{{name: hook, webhook_configs: [{{url: "{url}/", send_resolved: true}}]}}]
"""


def until(found: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    """The first true answer."""
    ends_at = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < ends_at, "it did not come"
        time.sleep(0.1)
    return answer


@contextmanager
def started(folder):
    """Alertmanager on a free port, ready."""
    for _ in range(5):  # another process may take the port between the look and the start
        with socket.socket() as looked:
            looked.bind(("127.0.0.1", 0))
            port = looked.getsockname()[1]
        url, log = f"http://127.0.0.1:{port}", (folder / "log").open("wb")
        child = subprocess.Popen([BINARY, f"--config.file={folder / 'config.yml'}", f"--storage.path={folder / 'data'}",
                                  f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="], stdout=log, stderr=log)
        try:
            if until(lambda: child.poll() is not None or answers(port)) and child.poll() is None:  # noqa: B023
                yield url
                return
        finally:
            child.terminate()
            child.wait(timeout=30)
            log.close()
    pytest.fail((folder / "log").read_text())


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/-/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@dataclass
class Real:
    url: str
    hook: Service

    def alerts(self) -> list[dict[str, Any]]:
        """amtool's view."""
        said = subprocess.run([AMTOOL, f"--alertmanager.url={self.url}", "alert", "query", "-o", "json"], capture_output=True, text=True, timeout=60)
        return json.loads(said.stdout) if said.returncode == 0 else []


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alertmanager")
    with served(Service()) as hook:
        (folder / "config.yml").write_text(CONFIG.format(url=hook.url))
        with started(folder) as url:
            yield Real(url, hook)


def keys(body: Any) -> Any:
    """The shape of a body: names, without values; labels and annotations are data."""
    if isinstance(body, dict):
        return {name: "data" if name.endswith(("abels", "nnotations")) else keys(value) for name, value in body.items()}
    return [keys(each) for each in body] if isinstance(body, list) else type(body).__name__


def test_an_incident_lives_in_the_real_alertmanager(real) -> None:
    told, memory = life(began=time.time() - 7600, slice={"replica": 'http://10.0.0.3:8000/"quoted"'}), {}
    notifier = build(ReceiverConfig(type="alertmanager", url=real.url), timeout_seconds=10.0)

    notifier.send(told["first"], now=time.time(), memory=memory)
    (first,) = until(real.alerts)
    assert first["labels"] == labels(told["first"]) and first["fingerprint"] == fingerprint(first["labels"])
    assert first["annotations"]["summary"] == "Rollout logprobs no longer match the trainer" and first["status"]["state"] in ("active", "unprocessed")
    body = until(lambda: real.hook.accepted)[0]
    ours = as_alertmanager_webhook(told["first"], receiver="hook")
    assert keys(body) == keys(ours)
    for name in ("receiver", "status", "groupLabels", "commonLabels", "commonAnnotations", "version", "groupKey", "truncatedAlerts"):
        assert body[name] == ours[name], name
    assert (body["alerts"][0]["fingerprint"], body["alerts"][0]["endsAt"]) == (ours["alerts"][0]["fingerprint"], ours["alerts"][0]["endsAt"])

    notifier.send(told["diagnosed"], now=time.time(), memory=memory)
    (known,) = until(lambda: [alert for alert in real.alerts() if "cause" in alert["labels"]])
    assert known["labels"] == labels(told["diagnosed"])
    until(lambda: len(real.alerts()) == 1)  # the one without a cause is over

    notifier.send(told["resolved"], now=time.time(), memory=memory)
    until(lambda: real.alerts() == [])
    until(lambda: any(alert["status"] == "resolved" and alert["labels"] == known["labels"] for body in real.hook.accepted for alert in body["alerts"]))
