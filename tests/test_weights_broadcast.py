"""Weights off a broadcast group: a trainer process, Klaxon's receiver process, gloo on the CPU; and requests that are wrong."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from test_command_daemon import free_port, get, wait

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from collector.config import WeightsConfig  # noqa: E402
from collector.errors import InputError  # noqa: E402
from collector.weights.broadcast import parse_update  # noqa: E402
from collector.weights.follower import WeightFollower  # noqa: E402

TRAINER = """
import datetime, json, sys, threading, time, urllib.request
import torch, torch.distributed as dist
group, url = sys.argv[1:]
dist.init_process_group("gloo", init_method=group, rank=0, world_size=2, timeout=datetime.timedelta(seconds=180))
urllib.request.install_opener(urllib.request.build_opener(urllib.request.ProxyHandler({})))
for attempt in range(1800):  # a trainer asks for updates only once its receivers answer
    try:
        urllib.request.urlopen(url + "/health", timeout=5)
        break
    except OSError:
        time.sleep(0.1)
for version in (1, 2):
    torch.manual_seed(version)
    weights = {"model.embed_tokens.weight": torch.randn(7, 4), "model.norm.weight": torch.randn(4).to(torch.bfloat16)}
    info = [{"name": name, "shape": list(one.shape), "dtype": str(one.dtype)} for name, one in weights.items()]
    body = json.dumps({"kind": "weight_update_request", "version": version, "parameters_info": info}).encode()
    post = urllib.request.Request(url + "/receive_weight_update", body, {"Content-Type": "application/json"})
    answers = []
    asking = threading.Thread(target=lambda: answers.append(urllib.request.urlopen(post, timeout=180).status))
    asking.start()
    for one in weights.values():
        dist.broadcast(one, src=0)
    asking.join()
    print(version, answers[0], flush=True)
dist.destroy_process_group()
"""


@contextlib.contextmanager
def running(*command: str):
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_what_a_trainer_broadcasts_is_written_and_believed(tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "versions"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    group, port = f"tcp://127.0.0.1:{free_port()}", free_port()
    url = f"http://127.0.0.1:{port}"
    with running("-c", TRAINER, group, url) as trainer, running(
            "-m", "klaxon", "receive-weights", "--group", group, "--rank", "1", "--world-size", "2", "--model", str(model),
            "--out", str(out), "--listen", f"127.0.0.1:{port}", "--transport", "gloo", "--timeout", "180", "--keep", "1") as receiver:
        said, errors = trainer.communicate(timeout=240)
        assert trainer.returncode == 0, errors
        assert said.splitlines() == ["1 200", "2 200"]
        assert wait(lambda: get(url, "/health"))["received"] == ["2"]
        wrong = httpx.post(f"{url}/receive_weight_update", content="{}", timeout=5, trust_env=False)
        assert wrong.status_code == 422 and "version" in wrong.json()["error"]
        assert receiver.poll() is None
    follower = WeightFollower(WeightsConfig(dir=str(out), layout="marker"))
    (version,) = follower.poll(0.0)
    assert version.version == "2" and not follower.pending
    torch.manual_seed(2)
    found = load_file(out / "2/model.safetensors")
    assert torch.equal(found["model.embed_tokens.weight"], torch.randn(7, 4))
    assert torch.equal(found["model.norm.weight"], torch.randn(4).to(torch.bfloat16))


GOOD = {"version": 3, "parameters_info": [{"name": "a", "shape": [2, 3], "dtype": "torch.bfloat16"}]}


def test_a_request_names_version_and_tensors_in_order() -> None:
    version, (one,) = parse_update(GOOD)
    assert (version, one.name, one.shape, one.dtype) == ("3", "a", (2, 3), torch.bfloat16)


@pytest.mark.parametrize(("change", "field"), [
    ({"version": None}, "version"), ({"version": "../x"}, "version"), ({"parameters_info": []}, "parameters_info"),
    ({"parameters_info": GOOD["parameters_info"] * 2}, "parameters_info"),
    ({"parameters_info": [{"name": "a", "shape": [0], "dtype": "float32"}]}, "parameters_info[0].shape"),
    ({"parameters_info": [{"name": "a", "shape": [1], "dtype": "int4"}]}, "parameters_info[0]"), ({"parameters_info": ["a"]}, "parameters_info[0]"),
])
def test_a_request_that_cannot_be_read_is_refused_before_the_group_is_touched(change: dict, field: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_update(json.loads(json.dumps(GOOD | change)))
    assert refused.value.field == field
