"""What the battery costs a stream: time of one update and bytes, against the same arithmetic one stream at a time in Python.

    python benchmarks/detection_speed.py [--streams 10000] [--batches 200]

Prints the time of a batch, per stream-update, and of a plain-Python CUSUM loop over the same streams (no front end at all) as
the named alternative; and the time of a whole batch of a fleet through Battery (slices in, evidence out).
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np

from detectors.battery import Battery
from detectors.block import Block
from detectors.config import BatteryConfig
from detectors.frontend import Settings
from detectors.looks import Cell, Look


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--batches", type=int, default=200)
    options = parser.parse_args()
    times, bytes_a_stream = block(options.streams, options.batches)
    plain = cusum_loop(options.streams, 5)
    best, middle = min(times), float(np.median(times))
    print(f"block of {options.streams} streams: {best * 1e3:.2f} ms a batch at best, {middle * 1e3:.2f} ms median, "
          f"{best / options.streams * 1e6:.3f} µs a stream-update, {bytes_a_stream:.0f} bytes a stream")
    print(f"a bare CUSUM in a Python loop over the same streams: {plain * 1e3:.2f} ms a batch, {plain / best:.1f} times the block")
    for replicas in (8, 300):
        spent, streams = fleet(replicas, 60)
        print(f"{replicas} replicas × 4 positions ({streams} streams), slices in, evidence out: {spent * 1e3:.2f} ms a batch")


def block(streams: int, batches: int) -> tuple[list[float], float]:
    """(CPU seconds of each batch after the warm-up, bytes a stream)."""
    config = BatteryConfig(warmup_batches=40)
    made = Block(Settings(warmup=40, delay=config.delay_batches, memory=config.memory_batches), {"all": 1.0})
    made.add([str(i) for i in range(streams)], family="all", kinds=["up"] * streams, slopes=[1.0] * streams, floors=[0.01] * streams,
             dead_bands=[0.01] * streams)
    rng, spent = np.random.default_rng(0), []
    for t in range(120 + batches):
        x, z1, z2 = 0.1 * rng.normal(size=streams), rng.normal(size=streams), 0.1 * rng.normal(size=streams)
        n = rng.integers(8, 16, streams).astype(float)
        began = time.process_time()
        made.step(t, x, z1, z2, n, cap=5.0)
        spent.append(time.process_time() - began)
    return spent[120:], made.nbytes / streams


def cusum_loop(streams: int, batches: int) -> float:
    """CPU seconds of a batch of the simplest detector there is, one stream at a time."""
    x = np.random.default_rng(0).normal(size=(batches, streams)).tolist()
    sums, began = [0.0] * streams, time.process_time()
    for row in x:
        for i, value in enumerate(row):
            sums[i] = max(0.0, sums[i] + 0.5 * value - 0.125)
    return (time.process_time() - began) / batches


def fleet(replicas: int, batches: int) -> tuple[float, int]:
    """(CPU seconds of a batch, streams) of a Battery fed with slices."""
    battery, rng, spent = Battery(BatteryConfig(warmup_batches=20, delay_batches=5), share=0.3), np.random.default_rng(0), []
    share = np.array([0.2, 0.15, 0.1, 0.04, 0.008, 0.001, 0.0005, 0.0003, 0.0001, 0.00005, 0.00003, 0.00002])
    for t in range(batches):
        counts = rng.poisson(2000 * np.tile(share, 2), size=(replicas, 4, 24))
        cells = tuple(Cell(replica=str(r), position=str(p), counts=counts[r, p], n_sequences=16.0) for r in range(replicas) for p in range(4))
        began = time.process_time()
        battery.update(Look(t=t, cells=cells, unsure=math.log(0.5)), cap=5.0)
        battery.block.contributions()
        battery.leading()
        spent.append(time.process_time() - began)
    return float(np.median(spent[batches // 2:])), battery.block.size


if __name__ == "__main__":
    main()
