"""How fast is the dashboard on a month of data? A generated store, served read-only, looked at by headless Chromium.

    python benchmarks/dashboard.py make FOLDER [--batches 21600] [--replicas 8]     # once; a month of two-minute batches
    python benchmarks/dashboard.py look FOLDER [--chromium PATH] [--loads 12] [--json]

For every page: seconds from the address to the first chart or message (median, p95), seconds of a live refresh (from the browser's
question to the last answer), bytes over the page's socket; for the API's process its memory at most; CPU seconds of page and API for a
viewer's minute, with one viewer and with five. Static files are Streamlit's own and are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

PAGES = ("now", "incident", "slices", "training", "engine", "klaxon")
BATCH_SECONDS = 120.0
POOL, TOKENS = 48, 193  # sets of slices that batches draw from; tokens a rollout: three rollouts a replica and batch make 10^8 in a month
DRAWN = "[data-testid=stVegaLiteChart], [data-testid=stAlert]"
TICKS = os.sysconf("SC_CLK_TCK")


def make(folder: Path, *, batches: int, replicas: int) -> None:
    """Write the store and one incident."""
    from rich.progress import track

    from alerts.config import AlertsConfig
    from alerts.service import Alerts
    from collector.records import BatchStats, Drift, Evidence
    from collector.store import Store

    folder.mkdir(parents=True, exist_ok=True)
    rng, pool = np.random.default_rng(5), _pool()
    began = time.time() - batches * BATCH_SECONDS
    with Store(folder / "klaxon.duckdb") as store:
        for t in track(range(store.next_t(), batches), description="batches"):
            closed, version = began + (t + 1) * BATCH_SECONDS, str(t // 15)
            slices = [replace(one, replica=f"http://10.0.0.{k}:8000", version=version) for k in range(replicas) for one in pool[int(rng.integers(POOL))]]
            streams = [Evidence(t=t, stream=f"battery:mean:{k}", weight=0.01, log_sr=float(rng.normal()), gain=0.0, started_at=max(0, t - 5)) for k in range(12)]
            batch = BatchStats(t=t, opened_at=closed - BATCH_SECONDS, closed_at=closed, slices=slices,
                               counts={"seen": 3 * replicas, "scored": 3 * replicas, "tokens_seen": 3 * TOKENS * replicas})
            store.append_batch(batch, streams, ln_m=float(rng.normal()), ln_a=10.0)
            if t % 15 == 0:
                store.append_event(closed, "weight_update", f"version {version}", {})
                store.append_weights(version, seen_at=closed, engine_at=closed + 5)
                store.append_metrics(t // 15, closed, {"reward": 0.5, "clip_rate": 0.002, "kl": 0.001, "entropy": 1.0, "grad_norm": 1.0})
    alerts = Alerts(AlertsConfig(), folder / "control.sqlite", run="month", budget_text="1 per 30 days", batch_seconds=BATCH_SECONDS)
    drift = Drift(kind="statistical", stream="battery:mean:0", statistic=12.0, threshold=10.0, alarm_t=batches - 200, change_t=(batches - 230, batches - 205),
                  slice={}, text="Evidence of a mismatch")
    alerts.observe([drift], now=began + (batches - 199) * BATCH_SECONDS)
    alerts.stop(drain_seconds=0.0)


def _pool() -> list[list[Any]]:
    from collector import signals
    from collector.records import Rollout, Sampling, Score, WeightSpan

    rng = np.random.default_rng(4)
    made = []
    for _ in range(POOL):
        slices = []
        for prompt in (200, 2000, 6000):  # one position bucket each
            engine = -rng.gamma(1.0, 0.5, TOKENS).astype(np.float32)
            rollout = Rollout(request_id="r", prompt_tokens_P=np.zeros(prompt, dtype=np.int32), completion_tokens_T=np.zeros(TOKENS, dtype=np.int32),
                              engine_logprobs_T=engine, sampled_mask_T=np.ones(TOKENS, dtype=bool), sampling=Sampling(temperature=1.0), cached_prompt_tokens=0,
                              weight_versions=(WeightSpan(start=0, end=TOKENS, version="0"),))
            score = Score(request_id="r", views={"expected": engine + rng.normal(0, 0.02, TOKENS).astype(np.float32)})
            slices += signals.slice_stats(rollout, score)
        made.append(slices)
    return made


@dataclass
class Seen:
    """What one page cost, a load each."""

    first: list[float] = field(default_factory=list)  # seconds to the first chart or message
    size: list[int] = field(default_factory=list)  # bytes over the socket until it was drawn
    refresh: list[float] = field(default_factory=list)  # seconds of a live refresh


def load(context: Any, url: str, seen: Seen, *, idle_seconds: float) -> None:
    """Open a page, wait until it is drawn, then watch its live refreshes for a while."""
    page = context.new_page()
    frames: list[tuple[float, str, int]] = []

    def socket(found: Any) -> None:
        found.on("framesent", lambda data: frames.append((time.monotonic(), "sent", len(data))))
        found.on("framereceived", lambda data: frames.append((time.monotonic(), "received", len(data))))

    page.on("websocket", socket)
    began = time.monotonic()
    page.goto(url, wait_until="commit")
    page.wait_for_selector(DRAWN, timeout=120_000)
    seen.first.append(time.monotonic() - began)
    page.wait_for_timeout(1500)
    seen.size.append(sum(size for _, kind, size in frames if kind == "received"))
    quiet = len(frames)
    page.wait_for_timeout(idle_seconds * 1000)
    asked: float | None = None
    last = 0.0
    for at, kind, _ in frames[quiet:]:
        if kind == "sent":
            if asked is not None and last > asked:
                seen.refresh.append(last - asked)
            asked = at
        else:
            last = at
    page.close()


def cpu_seconds(*processes: subprocess.Popen) -> float:
    """User and system time so far."""
    total = 0
    for process in processes:
        parts = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        total += int(parts[11]) + int(parts[12])
    return total / TICKS


def peak_bytes(process: subprocess.Popen) -> int:
    """Resident memory at most."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def look(folder: Path, *, chromium: str | None, loads: int, port: int, minute: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """The figures."""
    import httpx
    from playwright.sync_api import sync_playwright

    api, base = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"
    served = subprocess.Popen([sys.executable, "-m", "klaxon", "serve", "--read-only", str(folder), "--port", str(port)])
    shown = subprocess.Popen([sys.executable, "-m", "dashboard.launch", "--api", api, "--port", str(port + 1)], stdout=subprocess.DEVNULL)
    try:
        for url, process in ((f"{api}/healthz", served), (base, shown)):
            while process.poll() is None:
                try:
                    httpx.get(url, trust_env=False, timeout=5)
                    break
                except httpx.TransportError:
                    time.sleep(0.3)
        found: dict[str, Any] = {"pages": {}, "viewers": {}}
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium)
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            for name in PAGES:
                seen = Seen()
                for number in range(loads + 1):
                    load(context, f"{base}/{name}?window=all", seen if number else Seen(), idle_seconds=10.0 if number == loads else 0.0)  # the first load is warm-up
                row = {"first_median": statistics.median(seen.first), "first_p95": float(np.quantile(seen.first, 0.95)), "kilobytes": max(seen.size) / 1e3,
                       "refresh_median": statistics.median(seen.refresh) if seen.refresh else None,
                       "refresh_p95": float(np.quantile(seen.refresh, 0.95)) if seen.refresh else None}
                found["pages"][name] = row
                tell(f"{name:9} first {row['first_median']:.2f} s, p95 {row['first_p95']:.2f} s; refresh "
                     + (f"{row['refresh_median']:.2f} s, p95 {row['refresh_p95']:.2f} s" if seen.refresh else "none seen") + f"; {row['kilobytes']:.0f} kB")
            for viewers in (1, 5):
                pages = [context.new_page() for _ in range(viewers)]
                for page in pages:
                    page.goto(f"{base}/now?window=24h")
                    page.wait_for_selector(DRAWN, timeout=120_000)
                before = cpu_seconds(served, shown)
                pages[0].wait_for_timeout(minute * 1000)
                found["viewers"][viewers] = (cpu_seconds(served, shown) - before) / viewers * 60 / minute
                tell(f"{viewers} viewers: {found['viewers'][viewers]:.2f} CPU s for a viewer's minute")
                for page in pages:
                    page.close()
            browser.close()
        found["api_peak_mb"] = peak_bytes(served) / 1e6
        tell(f"API's memory at most {found['api_peak_mb']:.0f} MB")
        return found
    finally:
        for process in (shown, served):
            process.terminate()
            process.wait()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "look"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batches", type=int, default=21_600)
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--chromium", help="a browser of your own (default: Playwright's)")
    parser.add_argument("--loads", type=int, default=12)
    parser.add_argument("--port", type=int, default=8920)
    parser.add_argument("--minute", type=float, default=30.0, help="seconds a viewer is watched; the figure is for a minute")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.what == "make":
        make(given.folder, batches=given.batches, replicas=given.replicas)
        return
    found = look(given.folder, chromium=given.chromium, loads=given.loads, port=given.port, minute=given.minute,
                 tell=lambda text: print(text, file=sys.stderr if given.json else sys.stdout, flush=True))
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
