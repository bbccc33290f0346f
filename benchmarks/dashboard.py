"""How fast is the dashboard on a month of data? A live daemon over a generated month, looked at by headless Chromium.

    python benchmarks/dashboard.py [--json] [--folder .cache/dashboard-month] [--chromium PATH] [--loads 12] [--pages now slices]

The month (8 replicas, 21,600 batches, 10^8 token rows rolled up; dashboard_month.py) is made once, in about four minutes and 1 GB; every
run works on a copy whose end is moved to now. The daemon is `klaxon run`, fed with a rollout every five seconds. For every page of
dashboard/app.py, with the whole month as its window:

first paint   the browser's own first-contentful-paint, seconds since the navigation began
first chart   the first drawn canvas of a chart, seconds since the navigation began; "-" where the page has none
script        from the browser's first question to Streamlit's word that the page is finished, seconds
refresh       from a fragment's question to Streamlit's word that its answer is complete, seconds
CPU           seconds a load, until two seconds after it is finished: daemon and Streamlit + the browser's drawing process
kB            over the page's socket, and of every request that is no static file, until two seconds after the page is finished

and the same for an almost empty Streamlit page with one chart. Then the daemon's memory at most, and CPU seconds of daemon and Streamlit
(not of the browser) for a viewer's minute, with one viewer and with five. The browser's cache is warm, as on the second visit.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dashboard_watch import WATCH, Load, quantiles, watch

ROOT = Path(__file__).parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
EMPTY = '''import pandas as pd, streamlit as st
st.set_page_config(layout="wide")
st.title("One chart")
st.vega_lite_chart(pd.DataFrame({"x": range(240), "y": range(240)}), {"mark": "line", "encoding": {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y", "type": "quantitative"}}})
'''


def page_names() -> list[str]:
    """Every page of dashboard/app.py that has a file, in its order."""
    tree = ast.parse((ROOT / "dashboard" / "app.py").read_text(encoding="utf-8"))
    found = next(node.value for node in tree.body if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PAGES")
    return [name for name, *_ in ast.literal_eval(found) if (ROOT / "dashboard" / "pages" / f"{name}.py").is_file()]


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


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def started(argv: list[str], url: str, log: Path) -> Iterator[subprocess.Popen]:
    """A server that answers at `url`; what it says goes into `log`. Raises RuntimeError where it ends instead."""
    import httpx

    with log.open("w") as said:
        process = subprocess.Popen(argv, stdout=said, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tap'}"})
        try:
            while True:
                if process.poll() is not None:
                    raise RuntimeError(f"{' '.join(argv[:4])} ended:\n{log.read_text()[-2000:]}")
                try:
                    httpx.get(url, trust_env=False, timeout=60)
                    break
                except httpx.TransportError:
                    time.sleep(0.2)
            yield process
        finally:
            process.terminate()
            process.wait()


@contextmanager
def fed(api: str, replicas: int) -> Iterator[None]:
    """A rollout every five seconds."""
    import httpx
    from dashboard_month import rollout_lines

    stop = threading.Event()

    def feed() -> None:
        number = 0
        while not stop.wait(5.0 if number else 0.0):
            httpx.post(f"{api}/v1/ingest", content=rollout_lines(replicas, number), trust_env=False, timeout=30).raise_for_status()
            number += 1

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def look(folder: Path, *, given: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    """The figures."""
    from dashboard_month import move_to_now
    from playwright.sync_api import sync_playwright

    move_to_now(folder)
    ports = [free_port() for _ in range(3)]
    api, base, bare = (f"http://127.0.0.1:{port}" for port in ports)
    (folder / "config.toml").write_text(f'[run]\nname = "month"\ndir = "{folder}"\n[daemon]\nport = {ports[0]}\n[store]\nrollouts_ttl_days = 30.0\n'
                                        "evidence_ttl_days = 60.0\n", encoding="utf-8")
    (folder / "empty.py").write_text(EMPTY, encoding="utf-8")
    from dashboard.launch import APP, command

    shown_argv = [sys.executable, "-m", "dashboard.launch", "--api", api, "--port", str(ports[1])]
    bare_argv = [str(folder / "empty.py") if part == str(APP) else part for part in command(port=ports[2])]
    with (started([sys.executable, "-m", "klaxon", "run", "-c", str(folder / "config.toml")], f"{api}/healthz", folder / "daemon.log") as served,
          started(shown_argv, base, folder / "page.log") as shown, sync_playwright() as playwright,
          fed(api, json.loads((folder / "made.json").read_text())["replicas"])):
        browser = playwright.chromium.launch(executable_path=given.chromium)
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        context.add_init_script(WATCH)

        def cpu() -> float:
            return cpu_seconds(served, shown)

        with started(bare_argv, bare, folder / "bare.log") as plain:
            found: dict[str, Any] = {"load_average": os.getloadavg(), "pages": {"(empty)": _page(context, bare, given, tell, "(empty)", idle=0.0, cpu=lambda: cpu_seconds(plain))}}
        for name in given.pages or page_names():
            found["pages"][name] = _page(context, f"{base}/{name}?window={given.window}", given, tell, name, idle=given.idle, cpu=cpu)
        found["viewers"] = {viewers: _viewers(context, f"{base}/now?window={given.window}", viewers, given.minute, cpu)
                            for viewers in given.viewers}
        found["idle_daemon"] = _viewers(context, "", 0, given.minute, lambda: cpu_seconds(served))
        for viewers, seconds in found["viewers"].items():
            tell(f"{viewers} viewer{'s' * (viewers > 1)}: {seconds:.2f} CPU s for a viewer's minute; the daemon without one: {found['idle_daemon']:.2f} a minute")
        browser.close()
        found |= {"daemon_peak_mb": peak_bytes(served) / 1e6, "streamlit_peak_mb": peak_bytes(shown) / 1e6, "load_average_after": os.getloadavg()}
        tell(f"memory at most: daemon {found['daemon_peak_mb']:.0f} MB, Streamlit {found['streamlit_peak_mb']:.0f} MB; load {os.getloadavg()[0]:.1f}")
        return found


def _page(context: Any, url: str, given: argparse.Namespace, tell: Callable[[str], None], name: str, *, idle: float,
          cpu: Callable[[], float]) -> dict[str, Any]:
    """One page: a load to warm up, then given.loads of them; the last one is watched for `idle` seconds."""
    warm = watch(context, url, idle_seconds=0.0)
    before = cpu()
    loads: list[Load] = [watch(context, url, idle_seconds=0.0) for _ in range(given.loads)]
    servers = (cpu() - before) / given.loads
    loads += [watch(context, url, idle_seconds=idle)] if idle else []
    refreshes = [seconds for one in loads for seconds in one.refreshes]
    row = {"first_visit_paint": warm.paint, "first_visit_script": warm.script, "paint": quantiles([one.paint for one in loads]),
           "chart": quantiles([one.chart for one in loads if one.chart is not None]), "script": quantiles([one.script for one in loads]),
           "refresh": quantiles(refreshes), "refreshes": len(refreshes), "server_cpu": servers, "renderer_cpu": statistics.median(one.renderer_cpu for one in loads),
           "kilobytes": max(one.size for one in loads) / 1e3}
    tell(f"{name:9} " + "  ".join(f"{what} {_three(row[what])}" for what in ("paint", "chart", "script", "refresh")) + f"  CPU {servers:.2f} + {row['renderer_cpu']:.2f}  {row['kilobytes']:.0f} kB")
    return row


def _three(found: tuple[float, float, float] | None) -> str:
    return "   -,    -,    -" if found is None else ", ".join(f"{one:.2f}" for one in found)


def _viewers(context: Any, url: str, viewers: int, seconds: float, cpu: Callable[[], float]) -> float:
    """CPU seconds for a viewer's minute (a plain minute with none)."""
    pages = [context.new_page() for _ in range(viewers)]
    for page in pages:
        page.goto(url)
        page.wait_for_selector("[data-testid=stVegaLiteChart] svg, [data-testid=stVegaLiteChart] canvas", timeout=120_000)
    (pages[0].wait_for_timeout(5000) if pages else time.sleep(5))
    before, began = cpu(), time.monotonic()
    (pages[0].wait_for_timeout(seconds * 1000) if pages else time.sleep(seconds))
    used, took = cpu() - before, time.monotonic() - began
    for page in pages:
        page.close()
    return used / max(viewers, 1) * 60 / took


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "dashboard-month", help="where the month is, or is made")
    parser.add_argument("--batches", type=int, default=21_600, help="of a month that is made")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="a browser of your own (default: chromium, else Playwright's)")
    parser.add_argument("--loads", type=int, default=12, help="of each page, after one that is not counted")
    parser.add_argument("--pages", nargs="*", help="only these")
    parser.add_argument("--window", default="all", help="the pages' time range")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds of live refreshes of each page")
    parser.add_argument("--viewers", type=int, nargs="*", default=[1, 5])
    parser.add_argument("--minute", type=float, default=60.0, help="seconds the viewers are watched; the figure is for a minute")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object, and the lines for humans on stderr")
    given = parser.parse_args()
    if not (given.folder / "made.json").is_file():
        from dashboard_month import make

        part = given.folder.with_name(given.folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        make(part, batches=given.batches, replicas=given.replicas)
        part.rename(given.folder)
    with tempfile.TemporaryDirectory(prefix="klaxon-month-") as copy:
        shutil.copytree(given.folder, copy, dirs_exist_ok=True)
        found = look(Path(copy), given=given, tell=lambda text: print(text, file=sys.stderr if given.json else sys.stdout, flush=True))
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
