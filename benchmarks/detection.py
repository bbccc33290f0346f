"""How the battery keeps its promise, and how soon it hears faults, against rules that others use. Seeded simulations.

    PYTHONPATH=. python benchmarks/detection.py nulls  [--runs 6 --batches 2900 --stated 1 --families iid,full]
    PYTHONPATH=. python benchmarks/detection.py faults [--runs 6 --horizon 300 --family full --faults "replica x2"]

nulls: false pages of healthy families at one page a `--stated` days, with a 95 % interval; evidence starts again after a page.
faults: median delay in batches against an oracle CUSUM that knows the fault's stream and size, the best CUSUM over all
streams (Bonferroni), a trailing 3-sigma rule, and river's ADWIN, Page–Hinkley and KSWIN on mean |d| of the fleet, every replica and every position, and on the fleet's clip rate, tail
and sign, each made as sensitive as the same healthy runs allow without a page. river is optional: pip install "klaxon-rl[bench]".
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from detectors import evaluate
from detectors.battery import CAP
from detectors.features import FEATURES, features, sums
from tests.simulate.fleet import Fleet
from tests.simulate.streams import FAULTS, NULLS, Fault, Simulation

A = 21_600
RAW = [FEATURES.index(name) for name in ("mean", "clip", "tail1", "sign")]


def main() -> None:
    """Parse and run one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("nulls", "faults"))
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--batches", type=int, default=2900)
    parser.add_argument("--stated", type=float, default=1.0, help="days of one accepted false page")
    parser.add_argument("--horizon", type=int, default=300)
    parser.add_argument("--healthy-days", type=float, default=30.0, help="of the family, on which every other rule is set to be silent")
    parser.add_argument("--start", type=int, default=400)
    parser.add_argument("--family", default="full")
    parser.add_argument("--families", default=",".join(NULLS))
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--seed", type=int, default=101)
    options = parser.parse_args()
    if options.table == "nulls":
        for name in options.families.split(","):
            print(null_row(name, options), flush=True)
    else:
        fault_table(options)


def null_row(name: str, options: argparse.Namespace) -> str:
    """One family: pages against what was stated."""
    began, a = time.process_time(), options.stated * 720
    fleet, pages, batches = Fleet(Simulation(family=NULLS[name], runs=options.runs, seed=options.seed)), 0, 0
    for step in fleet.watch(options.batches, ln_a=math.log(a)):
        batches += options.runs * bool(fleet.block.told.any())
        for run in np.flatnonzero(step.ln_m >= math.log(a)):
            pages += 1
            fleet.restart(run)
    stated = batches / a
    ratio, low, high = evaluate.realised(pages, stated)
    return (f"| {name} | {batches / 720:.0f} | {stated:.1f} | {pages} | {ratio:.2f} ({low:.2f} to {high:.2f}) |"
            f"  # {time.process_time() - began:.0f} s of CPU")


def fault_table(options: argparse.Namespace) -> None:
    """Every fault: delays of everyone, and where the battery said it was."""
    family = replace(NULLS[options.family], churn=0.0)
    healthy = Healthy.watch(family, options)
    rules = calibrated(healthy.raw, options.start)
    print("| fault | battery | heard | oracle CUSUM | max-CUSUM | " + " | ".join(rules) + " | right slice | change off by, batches | 90 % interval holds |")
    print("|---" * (8 + len(rules)) + "|")
    ratios, heard_all = [], []
    for name in options.faults.split(","):
        row, delays, oracle = fault_row(FAULTS[name], family, options, rules, healthy)
        print(row, flush=True)
        heard_all += delays
        ratios.append(middle(delays) / max(middle(oracle), 1.0))
    finite = [ratio for ratio in ratios if math.isfinite(ratio)]
    print(f"\nbattery / oracle: geometric mean {np.exp(np.mean(np.log(finite))):.2f} over {len(finite)} faults heard in the median, worst "
          f"{max(ratios):.1f}; heard within {options.horizon} batches: {np.mean(np.isfinite(heard_all)):.0%}")


def fault_row(fault: Fault, family: object, options: argparse.Namespace, rules: dict, healthy: Healthy) -> tuple[str, list[float], list[float]]:
    """One fault: (row, the battery's delays, the oracle's)."""
    simulation = Simulation(family=family, runs=options.runs, seed=options.seed, fault=fault, start=options.start)  # type: ignore[arg-type]
    fleet, told, raw, u = Fleet(simulation), {}, [], []
    batches = iter(simulation.batches(options.start + options.horizon))
    fleet.simulation = replace(simulation)
    for batch in batches:
        fleet.take(batch, CAP * math.log(A))
        raw.append(raw_series(batch.counts))
        u.append(last_u(fleet))
        worth = (fleet.weights + fleet.block.bets.mean_log_sr()).reshape(options.runs, -1)
        for run in np.flatnonzero(np.logaddexp.reduce(worth, axis=1) >= math.log(A)):
            if run not in told and batch.t >= options.start:
                column = fleet.leading(worth[run])
                told[run] = (batch.t - options.start + 1, fleet.keys[column], *fleet.block.bets.change(column + run * len(fleet.keys)))
    own = [told[run][0] if run in told else math.inf for run in range(options.runs)]
    told_u, knows = np.stack(u), fleet.keys.index(true_stream(fault))
    oracle = evaluate.oracle_delays(told_u[:, :, knows], healthy.u[:, :, knows], start=options.start, spread=bool(fault.variance))
    most = evaluate.delays(evaluate.most_cusum(told_u, start=options.start) > healthy.most_cusum)
    others = {name: rule(np.stack(raw)) for name, rule in rules.items()}
    right = [where_of(item[1]) == wanted(fault) for item in told.values()]
    off = [item[2] - options.start for item in told.values()]
    inside = [item[3] <= options.start <= item[4] for item in told.values()]
    cells = [fault.name, shown(own), f"{len(told)}/{options.runs}", shown(oracle), shown(most), *(shown(found) for found in others.values()),
             f"{np.mean(right):.0%}" if right else "", f"{np.median(np.abs(off)):.0f}" if off else "", f"{np.mean(inside):.0%}" if inside else ""]
    return "| " + " | ".join(cells) + " |", own, oracle


def wanted(fault: Fault) -> tuple[int | None, int | None]:
    """(replica, position) of the fault."""
    return fault.replica, fault.position


def where_of(key: str) -> tuple[int | None, int | None]:
    """(replica, position) a stream is about."""
    words = dict(part.split("=") for part in key.split(":", 2)[2].split(",") if "=" in part)
    return tuple(int(words[name]) if name in words else None for name in ("replica", "position"))  # type: ignore[return-value]


def middle(delays: Iterable[float]) -> float:
    """The median; infinity where half were never heard."""
    ordered = sorted(delays)
    return ordered[(len(ordered) - 1) // 2] if ordered else math.inf


def shown(delays: Iterable[float]) -> str:
    """The median delay in words."""
    found = middle(delays)
    return f"{found:.0f}" if math.isfinite(found) else "not heard"


def true_stream(fault: Fault) -> str:
    """The stream the oracle looks at."""
    where = "global" if fault.replica is None and fault.position is None else (
        f"replica={fault.replica}" if fault.position is None else f"position={fault.position}")
    feature = "tail1" if fault.broken or fault.tail_only else "clip|mean" if fault.clip else "sign" if fault.sign else "mean"
    return f"battery:{feature}:{where}"


def raw_series(counts: np.ndarray) -> np.ndarray:
    """What a dashboard would plot: mean, clip, tail and sign of the fleet, every replica, every position [runs, 4 · (1 + R + P)]."""
    replica, position = counts.sum(axis=2), counts.sum(axis=1)
    sides = np.concatenate([replica.sum(axis=1, keepdims=True), replica, position], axis=1).astype(float)
    return features(sums(sides))[..., RAW].reshape(len(counts), -1)


@dataclass(frozen=True, kw_only=True)
class Healthy:
    """What every rule must stay silent on: `--healthy-days` of the family, all runs together."""

    raw: np.ndarray  # [batches, runs, series]
    u: np.ndarray  # [batches, runs, streams]
    most_cusum: float

    @classmethod
    def watch(cls, family: object, options: argparse.Namespace) -> Healthy:
        """Simulate it."""
        fleet = Fleet(Simulation(family=family, runs=options.runs, seed=options.seed + 1))  # type: ignore[arg-type]
        raw, u = [], []
        for batch in fleet.simulation.batches(options.start + int(options.healthy_days * 720 / options.runs)):
            fleet.take(batch, CAP * math.log(A))
            raw.append(raw_series(batch.counts))
            u.append(last_u(fleet).astype(np.float32))
        return cls(raw=np.stack(raw), u=np.stack(u), most_cusum=float(evaluate.most_cusum(np.stack(u), start=options.start).max()))


def last_u(fleet: Fleet) -> np.ndarray:
    """Whitened residuals of the last batch [runs, streams]."""
    front = fleet.block.front
    return front.ring[(front.calls - 1) % front.settings.delay][4].reshape(fleet.simulation.runs, -1).copy()


Rule = Callable[[np.ndarray], list[float]]


def calibrated(raw: np.ndarray, start: int) -> dict[str, Rule]:
    """Each rule at the most sensitive setting that never fires on the healthy runs from `start` on."""
    z = np.nan_to_num(np.abs(trailing(raw)))[start:]
    limit = float(z.max())
    rules: dict[str, Rule] = {"3-sigma": lambda x: evaluate.delays(np.nan_to_num(np.abs(trailing(x)))[start:].max(axis=2) > limit)}
    try:
        from river import drift
    except ImportError:
        return rules
    grids = {"ADWIN": [lambda d=d: drift.ADWIN(delta=d) for d in (2e-3, 1e-4, 1e-6, 1e-9, 1e-14, 1e-25)],
             "Page-Hinkley": [lambda d=d: drift.PageHinkley(threshold=d, delta=0.01) for d in (2, 5, 10, 20, 50, 100, 1e3)],
             "KSWIN": [lambda d=d: drift.KSWIN(alpha=d, seed=1) for d in (1e-5, 1e-8, 1e-12, 1e-20)]}
    for name, grid in grids.items():
        good = next((make for make in grid if all(math.isinf(delay) for delay in river_delays(raw, make, start))), None)
        if good is not None:
            rules[name] = lambda x, make=good: river_delays(x, make, start)
    return rules


def trailing(raw: np.ndarray, window: int = 200) -> np.ndarray:
    """(x − mean)/sd over the `window` batches before."""
    out = np.zeros_like(raw)
    for t in range(window, len(raw)):
        past = raw[t - window:t]
        out[t] = (raw[t] - np.nanmean(past, axis=0)) / np.maximum(np.nanstd(past, axis=0), 1e-9)
    return out


def river_delays(raw: np.ndarray, make: Callable[[], object], start: int) -> list[float]:
    """The first detector of a run to fire from `start` on, one a series; a detector that fired before starts again by itself."""
    delays = []
    for run in range(raw.shape[1]):
        found = math.inf
        width = raw.shape[2] // len(RAW)
        seen = [i for i in range(raw.shape[2]) if i % len(RAW) == 0 or i < len(RAW)]  # mean |d| of all, everything of the fleet
        for column in np.nan_to_num(raw[max(0, start - 200):, run][:, seen[:width + len(RAW)]]).T:
            detector = make()
            for t, value in enumerate(column.tolist(), start=-min(start, 200)):
                detector.update(value)  # type: ignore[attr-defined]
                if t >= found:
                    break
                if t >= 0 and detector.drift_detected:  # type: ignore[attr-defined]
                    found = min(found, t + 1)
                    break
        delays.append(found)
    return delays


if __name__ == "__main__":
    main()
