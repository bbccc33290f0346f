"""PipelineRL's stream in a real Redis server: read, never taken; only plain data is unpickled. Skipped without server or client."""

import json
import pickle
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.errors import ConfigError, InputError
from collector.records import Rollout
from collector.sources.formats import ReadOptions
from collector.sources.formats.redis_stream import RETRY_SECONDS, RedisTail
from collector.sources.formats.safe_pickle import loads

GROUPS = [json.loads(line) for line in (Path(__file__).parent / "fixtures/formats/pipelinerl/streams/actor/0/0/0.jsonl").read_text().splitlines()]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    redis = pytest.importorskip("redis")
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(["redis-server", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port)
    for _ in range(100):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    client.url, client.process = f"redis://127.0.0.1:{port}/actor/0/0", process
    yield client
    client.close()
    process.terminate()
    process.wait(10)


def write(client: Any, data: bytes, index: int) -> None:
    """As PipelineRL's RedisStreamWriter does."""
    client.xadd("actor/0/0", {"index": index, "data": data}, maxlen=1_000_000, approximate=True)


def test_records_are_read_once_and_stay_in_the_stream(server):
    tail = RedisTail(server.url, options=ReadOptions(version_at_start=True))
    assert tail.poll(0.0) == []
    write(server, pickle.dumps(GROUPS[0]), 0)
    first = tail.poll(1.0)
    assert [item.version for item in first] == ["4096", "4096"] and tail.poll(2.0) == []
    write(server, json.dumps(GROUPS[1]).encode(), 1)
    [third] = tail.poll(3.0)
    assert third.completion_tokens_T.tolist() == [25, 90, 91, 26, 2] and not tail.counts["records_trimmed_unread"]
    assert server.xlen("actor/0/0") == 2
    tail.close()


def test_a_record_that_is_no_data_is_refused_and_the_rest_goes_on(server, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for index, data in enumerate([pickle.dumps(Evil()), b"\x80\x04junk", pickle.dumps(GROUPS[1])]):
        write(server, data, index)
    tail = RedisTail(server.url)
    evil, junk, good = tail.poll(0.0)
    assert isinstance(evil, InputError) and "not allowed" in evil.reason and "actor/0/0" in str(evil)
    assert isinstance(junk, InputError) and isinstance(good, Rollout) and not (tmp_path / "ran").exists()
    tail.close()


def test_trimmed_records_are_counted(server):
    write(server, pickle.dumps(GROUPS[0]), 3)
    write(server, pickle.dumps(GROUPS[1]), 7)
    tail = RedisTail(server.url)
    assert len(tail.poll(0.0)) == 3 and tail.counts["records_trimmed_unread"] == 3 + 3
    tail.close()


def test_a_server_that_dies_is_said_once_and_asked_again(server):
    tail = RedisTail(server.url)
    assert tail.poll(0.0) == []
    server.process.terminate()
    server.process.wait(10)
    [outage] = tail.poll(1.0)
    assert "does not answer" in str(outage)
    assert tail.poll(1.5) == [] and tail.poll(1.0 + 2 * RETRY_SECONDS) == [] and tail.counts["redis_unreachable"] == 2
    tail.close()


def test_only_plain_data_is_unpickled():
    import numpy as np

    value = {"a": [1, 2.5, None, "x"], "pixels": np.ones((2, 2), dtype=np.float32)}
    assert loads(pickle.dumps(value))["pixels"].sum() == 4
    with pytest.raises(pickle.UnpicklingError, match="builtins.eval"):
        loads(b"cbuiltins\neval\n(S'1'\ntR.")


def test_a_bad_address_is_named_and_a_password_is_never_shown():
    with pytest.raises(ConfigError, match="redis://HOST"):
        RedisTail("redis://host:6379")
    pytest.importorskip("redis")
    assert "secret" not in RedisTail("redis://user:secret@host:6379/actor/0/0").url
