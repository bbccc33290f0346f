"""What does the tap cost the engine? Interleaved A/B on one live vLLM engine, no scorer anywhere.

    python benchmarks/tap_overhead.py [--pairs 30] [--json]

A = the tap silent (its kill file is there), B = the tap at work at 100 % capture, in pairs, the order of each pair drawn by a
coin. Throughput ratio B / A with its 95 % interval (t over log ratios), and CPU seconds of the engine's processes for 1,000 tokens.
Once with the daemon alive (it takes every rollout), once hung (it accepts and never answers), once dead (nobody listens).
`forced` is apart: the requests ask for no logprobs, B has the engine compute one per token all the same (KLAXON_FORCE_LOGPROBS=1).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from scipy import stats

from klaxon.demo.children import free_port
from klaxon.demo.engine import MODEL_NAME, Engine
from klaxon.demo.model import DEFAULT_FOLDER

REQUESTS, TOKENS = 16, 24
KILL_SECONDS = 1.2  # the tap looks at its kill file once a second
TICKS = os.sysconf("SC_CLK_TCK")


class Taker(BaseHTTPRequestHandler):
    """A daemon that takes everything at once."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies += 1
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def daemon(state: str) -> Iterator[tuple[str, object]]:
    """A URL whose daemon is alive, hung or dead."""
    if state in ("alive", "forced"):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Taker)
        server.bodies = 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", server
        server.shutdown()
        server.server_close()
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if state == "hung":
            listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", None


def cpu_seconds(root: int) -> float:
    """User and system time of a process and all its descendants, seconds."""
    parents, spent = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            spent[int(entry.name)] = (int(fields[11]) + int(fields[12])) / TICKS
    family, grown = {root}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in family} - family
        family, grown = family | more, bool(more)
    return sum(spent.get(pid, 0.0) for pid in family)


def burst(client: httpx.Client, pool: ThreadPoolExecutor, *, ask: bool) -> tuple[float, int]:
    """(seconds, tokens) of one burst of concurrent requests, which ask for logprobs or do not."""
    body = {"model": MODEL_NAME, "max_tokens": TOKENS, "temperature": 0.7, "ignore_eos": True} | ({"logprobs": 1} if ask else {})
    prompts = [[1, *random.sample(range(300, 40_000), 20)] for _ in range(REQUESTS)]
    began = time.perf_counter()
    answers = list(pool.map(lambda prompt: client.post("/v1/completions", json=body | {"prompt": prompt}).raise_for_status().json(), prompts))
    return time.perf_counter() - began, sum(answer["usage"]["completion_tokens"] for answer in answers)


def measure(state: str, pairs: int) -> dict[str, object]:
    """The A/B of one state of the daemon."""
    forced = state == "forced"
    with tempfile.TemporaryDirectory() as folder, daemon(state) as (url, server):
        kill = Path(folder) / "off"
        engine = Engine(model=Path(DEFAULT_FOLDER).resolve(), port=free_port(8310), log=Path(folder) / "engine.log",
                        tap={"KLAXON_URL": url, "KLAXON_KILL_FILE": str(kill)} | ({"KLAXON_FORCE_LOGPROBS": "1"} if forced else {}))
        engine.start()
        try:
            engine.wait_ready()
            with httpx.Client(base_url=engine.url, timeout=300.0, trust_env=False) as client, ThreadPoolExecutor(REQUESTS) as pool:
                burst(client, pool, ask=not forced)
                found = [_pair(client, pool, kill, engine.child.pid, ask=not forced) for _ in range(pairs)]
        finally:
            engine.stop()
        return _summary(state, found) | {"bodies_taken": getattr(server, "bodies", None)}


def _pair(client: httpx.Client, pool: ThreadPoolExecutor, kill: Path, pid: int, *, ask: bool) -> dict[str, tuple[float, float]]:
    """{"A" or "B": (tokens a second, CPU seconds for 1,000 tokens)}."""
    found = {}
    for arm in random.sample("AB", 2):
        kill.touch() if arm == "A" else kill.unlink(missing_ok=True)
        time.sleep(KILL_SECONDS)
        before = cpu_seconds(pid)
        seconds, tokens = burst(client, pool, ask=ask)
        found[arm] = (tokens / seconds, 1000 * (cpu_seconds(pid) - before) / tokens)
    return found


def _summary(state: str, found: list[dict[str, tuple[float, float]]]) -> dict[str, object]:
    logs = [math.log(pair["B"][0] / pair["A"][0]) for pair in found]
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    reach = float(stats.t.ppf(0.975, len(logs) - 1)) * error
    cpu = [pair["B"][1] - pair["A"][1] for pair in found]
    return {"daemon": state, "pairs": len(found), "ratio": math.exp(mean), "low": math.exp(mean - reach), "high": math.exp(mean + reach),
            "tokens_per_second": statistics.median(pair["A"][0] for pair in found),
            "cpu_seconds_per_1000_tokens": statistics.median(pair["A"][1] for pair in found), "extra_cpu_seconds_per_1000_tokens": statistics.median(cpu)}


def main() -> None:
    """Print one line a state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--states", default="alive,hung,dead,forced")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for state in options.states.split(","):
        row = measure(state, options.pairs)
        if options.json:
            print(json.dumps(row), flush=True)
        else:
            print(f"daemon {row['daemon']:6} {row['pairs']} pairs: throughput with / without the tap {row['ratio']:.4f} (95 %: {row['low']:.4f} to {row['high']:.4f}), "
                  f"{row['tokens_per_second']:.0f} tokens/s, CPU {row['cpu_seconds_per_1000_tokens']:.2f} s per 1,000 tokens, "
                  f"with the tap {row['extra_cpu_seconds_per_1000_tokens']:+.3f} s", flush=True)


if __name__ == "__main__":
    main()
