"""`klaxon plan`: before the run, what will a shadow GPU see of it, and how fast will a fault be found?"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from collector.errors import ConfigError
from detectors.config import DetectorsConfig
from klaxon import planning
from klaxon.planning import GPUS, Run
from klaxon.planning_faults import delay, typical


def plan(params: Annotated[float, typer.Option(help="Parameters of the model, e.g. 32e9.")],
         gpu: Annotated[str, typer.Option(help=f"The shadow's device: {', '.join(GPUS)}.")] = "H200",
         dtype: Annotated[str, typer.Option(help="The trainer's body: bf16, fp16 or fp32.")] = "bf16",
         active_params: Annotated[float, typer.Option(help="Parameters a token goes through, of a mixture of experts; 0 = dense.")] = 0,
         replicas: Annotated[int, typer.Option(help="Engine replicas.")] = 1,
         tokens_per_second: Annotated[float, typer.Option(help="Completion tokens a second of one replica.")] = 2000,
         tokens_per_rollout: Annotated[float, typer.Option(help="Completion tokens of a rollout.")] = 2000,
         prompt_tokens: Annotated[float, typer.Option(help="Prompt tokens.")] = 500,
         group: Annotated[int, typer.Option(help="Rollouts of one prompt.")] = 8,
         vocab: Annotated[int, typer.Option(help="Vocabulary.")] = 152_000,
         hidden: Annotated[int, typer.Option(help="Hidden size; 0 = estimated.")] = 0,
         update_seconds: Annotated[float, typer.Option(help="Seconds between weight updates.")] = 60,
         every: Annotated[int, typer.Option(help="[weights] every: score every N-th version; 0 = chosen here.")] = 0,
         json_: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False) -> None:
    """What one shadow GPU can score of a run: coverage, memory, disk, batches until each fault is found.

    \b
    Examples:
      klaxon plan --params 32e9 --replicas 64
      klaxon plan --params 235e9 --active-params 22e9 --gpu H200 --json

    Exit codes: 0 the model fits, 1 it does not, 2 an option is wrong.
    """
    run = Run(params=params, gpu=_gpu(gpu), dtype=_dtype(dtype), active_params=active_params or None, replicas=replicas,
              tokens_per_second=tokens_per_second, tokens_per_rollout=tokens_per_rollout, prompt_tokens=prompt_tokens, group=group,
              vocab=vocab, hidden=hidden or None, update_seconds=update_seconds)
    _check(run)
    found = work_out(run, every=every or None)
    if json_:
        typer.echo(json.dumps(found))
    else:
        _show(found)
    raise typer.Exit(0 if found["fits"] else 1)


def work_out(run: Run, *, every: int | None = None) -> dict[str, Any]:
    """The whole plan as plain data."""
    need, config = planning.memory(run), DetectorsConfig()
    run = replace(run, versions_held=max(1, min(need.versions, 5)))
    can = planning.capacity(run, every=every)
    fits = need.versions >= 1
    coverage = can.coverage if fits else 0.0
    scored, seen = planning.rollouts_a_batch(run, coverage), planning.rollouts_a_batch(run, 1.0)
    delays = [delay(fault, scored=scored, seen=seen, tokens=run.tokens_per_rollout, batch_seconds=run.batch_seconds,
                    update_seconds=run.update_seconds, config=config) for fault in typical(run.replicas, versions_held=run.versions_held if fits else 0)]
    return {
        "run": asdict(run) | {"hidden": run.hidden_size}, "fits": fits, "passes": run.passes, "coverage": coverage, "every": can.every,
        "scored_tokens_per_second": can.tokens_per_second if fits else 0.0, "offered_tokens_per_second": run.offered,
        "tokens_per_minute": int(60 * can.tokens_per_second) if fits else 0,
        "load_seconds": can.load_seconds, "loading_share": can.loading_share, "scored_rollouts_a_batch": scored,
        "memory_gb": asdict(need) | {"versions_that_fit": need.versions},
        "disk_gb_a_day": planning.disk_gb_a_day(run, can.tokens_per_second if fits else 0.0),
        "faults": [{"fault": one.fault.name, "size": one.fault.size, "batches": one.batches, "by": one.stream,
                    "minutes": None if one.batches is None else one.batches * run.batch_seconds / 60} for one in delays],
        "verdict": sentence(run, need, can), "instead": instead(run, need, can),
    }


def sentence(run: Run, need: planning.Memory, can: planning.Capacity) -> str:
    """The answer in one sentence."""
    size = f"{run.params / 1e9:g}B {run.dtype}"
    if need.versions < 1:
        return (f"Impossible on one {run.gpu}: a version of {size} is {need.version:.0f} GB, {need.usable:.0f} GB are usable beside nothing "
                f"else, and {need.kv + need.head + need.activations:.1f} GB go to KV, head and activations.")
    stride = f", of every {_nth(can.every)} version" if can.every > 1 else ""
    return (f"One {run.gpu} scores {planning.share(can.coverage)} of the tokens{stride} ({can.tokens_per_second:,.0f} of {run.offered:,.0f} tokens/s); "
            f"{need.versions} weight version{'s' if need.versions > 1 else ''} of {need.version:.1f} GB fit.")


def instead(run: Run, need: planning.Memory, can: planning.Capacity) -> list[str]:
    """What would work, or work better."""
    lines = []
    if need.versions < 2:
        n, bigger = planning.gpus_needed(run), planning.smallest_gpu(run)
        if n > 1:
            lines.append(f"two versions (what bets on stale weights compare) need the layers split over {n} {run.gpu}s")
        if bigger and bigger != run.gpu:
            lines.append(f"one {bigger} holds two versions")
        if need.versions == 1:
            lines.append("[shadow] versions_held = 1: nothing is bet on stale weights or stale KV, the rest is four times as fast")
    if need.versions < 1:
        lines.append("tier 1 needs no GPU: let the trainer's recomputed logprobs come along (trainer_logprobs), or push its metrics")
        lines.append("tier 0 needs nothing at all: self-bets and hard facts see every rollout")
    if need.versions >= 1 and can.every > 1:
        lines.append(f"[weights] every = {can.every}: a version takes {can.load_seconds:.0f} s to load, updates come every {run.update_seconds:g} s; "
                     "the rollouts of the versions between are counted as skipped_by_stride")
    if need.versions >= 1 and can.coverage < 1:
        lines.append(f"[sampler] tokens_per_minute = {int(60 * can.tokens_per_second)} keeps the scorer just busy")
    if need.versions >= 2:
        lines.append(f"[shadow] versions_held = {run.versions_held}")
    return lines


def _gpu(name: str) -> str:
    known = {key.lower(): key for key in GPUS}
    if name.lower() not in known:
        raise ConfigError(f"--gpu {name!r} is none of {', '.join(GPUS)}")
    return known[name.lower()]


def _dtype(name: str) -> str:
    short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(name, name)
    if short not in planning.DTYPE_BYTES:
        raise ConfigError(f"--dtype {name!r} is none of {', '.join(planning.DTYPE_BYTES)}: it is the TRAINER's dtype, which an fp8 engine does not change")
    return short


def _check(run: Run) -> None:
    for name in ("params", "active", "replicas", "tokens_per_second", "tokens_per_rollout", "group", "vocab", "update_seconds"):
        if not getattr(run, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0")
    if run.active > run.params:
        raise ConfigError("--active-params is more than --params")


def _nth(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def _show(found: dict[str, Any]) -> None:
    console, run, need = Console(), found["run"], found["memory_gb"]
    console.print(found["verdict"], style="bold", highlight=False, soft_wrap=True)
    for line in found["instead"]:
        console.print(f"  · {line}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"\nMemory: weights {need['version']:.1f} GB a version, KV {need['kv']:.1f}, head chunk {need['head']:.2f}, activations "
                  f"{need['activations']:.1f}, of {need['usable']:.0f} usable.", highlight=False, soft_wrap=True)
    disk = found["disk_gb_a_day"]
    console.print(f"Disk: {sum(disk.values()):.2f} GB a day in DuckDB (slices {disk['slices']:.2f}, rollouts {disk['rollouts']:.2f}, batches {disk['batches']:.2f}).", highlight=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("fault", "size", "batches", "minutes", "by"):
        table.add_column(name, overflow="fold")
    for row in found["faults"]:
        table.add_row(row["fault"], row["size"], *((str(row["batches"]), f"{row['minutes']:.0f}") if row["batches"] else ("–", "–")),
                      row["by"] or "not by statistics")
    console.print()
    console.print(table, highlight=False)
    console.print(f"\nAssumes {planning.FLOPS_EFFICIENCY:.0%} of the peak flops and {planning.BANDWIDTH_EFFICIENCY:.0%} of the bandwidth, 2 flops per active "
                  f"parameter and token plus the head, {found['passes']} passes a rollout, hidden size {run['hidden']}, {run['prompt_tokens']:g} prompt tokens in groups of "
                  f"{run['group']}, weights read at {planning.DISK_BYTES_PER_SECOND / 1e9:g} GB/s, one batch every {run['batch_seconds']:g} s, one false alarm in 30 "
                  "days, bf16 floor 0.029 nats. Fault sizes: docs/planning.md. The battery needs 170 batches of warm-up and a fault that begins after them.",
                  style="dim", highlight=False, soft_wrap=True)
