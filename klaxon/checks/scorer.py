"""Tier 2: weights that are there and readable, a device that exists, and memory for what has to lie on it."""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from collector.errors import ConfigError, Unavailable
from klaxon.checks.finding import Finding
from klaxon.checks.places import cannot_read
from klaxon.config import Config
from klaxon.shadow import why_no_shadow

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
ROOM = 1.15  # of a model's parameters: buffers, the head's float32 rows, what the allocator keeps
BESIDES = 1 << 29  # bytes of one pass: logits, KV, activations; `klaxon plan` says it better for large models
CGROUP = Path("/sys/fs/cgroup")


def weights(config: Config, status: dict[str, Any] | None) -> Finding:
    """The folder that is followed, or the versions that were announced."""
    if not config.weights.dir:
        return _announced(config, status)
    if why := cannot_read(Path(config.weights.dir)):
        return Finding(part="weights", state="bad", text=f"{why}: the scorer cannot read the trainer's versions", next=f"ls -ld {config.weights.dir}")
    if not glob.has_magic(config.weights.dir) and not Path(config.weights.dir).is_dir():
        return Finding(part="weights", state="warn", text=f"{config.weights.dir} is not there yet")
    from collector.weights.follower import WeightFollower

    follower = WeightFollower(config.weights)
    found = follower.poll(time.time())
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(follower.pending.items())[:2]) or _empty(Path(config.weights.dir))
        return Finding(part="weights", state="warn", text=f"no complete version in {config.weights.dir} ({reasons}); "
                       f"layout {config.weights.layout}: {follower.layout.note}")
    return Finding(part="weights", state="ok", text=f"{len(found)} complete versions, newest {found[-1].version}")


def _empty(folder: Path) -> str:
    if (folder / "config.json").is_file():
        return f"it is one version itself: name the folder above it, {folder.parent}"
    return "the folder is empty"


def _announced(config: Config, status: dict[str, Any] | None) -> Finding:
    """Without a folder versions come from announcements, or not at all."""
    if not config.weights.announced or why_no_shadow(config):
        return Finding(part="weights", state="off", text="no folder and no announcements are followed: no shadow (tiers 0 and 1)")
    seen = (status or {}).get("weights") or {}
    if not seen.get("versions_seen"):
        return Finding(part="weights", state="off", text="no version announced yet: call klaxon_tap.publish_weights(model, version) in "
                       "the trainer, or set weights.dir (docs/weights.md)")
    pending = f"; not believed: {seen['pending'][0]}" if seen.get("pending") else ""
    return Finding(part="weights", state="warn" if pending else "ok", text=f"{seen['versions_seen']} versions announced, newest {seen['trainer_version']}{pending}")


def shadow(config: Config) -> Finding:
    """The scorer's libraries and its device."""
    if why := why_no_shadow(config):
        broken = bool(config.weights.dir and config.shadow.enabled)
        return Finding(part="shadow", state="bad" if broken else "off", text=why, next="pip install 'klaxon-rl[scorer]'" if broken else "")
    from collector.shadow.devices import pick_devices

    try:
        devices = pick_devices(config.shadow)
    except ConfigError as error:
        return Finding(part="shadow", state="bad", text=f"{error}{_cpu_build()}", next="nvidia-smi   # does the machine, or the container, have a GPU at all?")
    names = ", ".join(_device_name(device) for device in devices)
    asked = "" if config.shadow.devices or config.shadow.device != "auto" or devices[0].type == "cuda" else " (auto: torch sees no GPU)"
    return Finding(part="shadow", state="ok", text=f"{config.shadow.body_dtype} body, {config.shadow.head_dtype} head, on {names}{asked}")


def memory(config: Config) -> Iterator[Finding]:
    """Does the newest complete version fit where it is to be scored; nothing where no version is known yet."""
    if not config.weights.dir or why_no_shadow(config):
        return
    from collector.shadow.devices import pick_devices
    from collector.weights.checkpoint import parameters
    from collector.weights.follower import WeightFollower

    try:
        devices = pick_devices(config.shadow)
        found = WeightFollower(config.weights).poll(time.time())
        counted = parameters(found[-1].base or found[-1].path) if found else 0
    except (ConfigError, Unavailable):
        return
    if counted:
        yield fits(config, counted, free=sum(free_bytes(device) for device in devices) / (len(devices) if config.shadow.split == "replicas" else 1),
                   where=", ".join(map(str, devices)))


def fits(config: Config, parameters: int, *, free: float, where: str) -> Finding:
    """The verdict on a model of so many parameters against so many free bytes."""
    version = parameters * BYTES[config.shadow.body_dtype] * ROOM
    held = config.shadow.versions_held
    room = int((free - BESIDES) // version)
    said = f"a version of {parameters / 1e9:.2g}B parameters in {config.shadow.body_dtype} takes {version / 1e9:.1f} GB, {max(free, 0) / 1e9:.1f} GB are free on {where}"
    plan = f"klaxon plan --params {parameters:.3g}"
    if room < 1:
        return Finding(part="memory", state="bad", next=plan, text=f"{said}: it does not fit. Free memory, another shadow.device, several in shadow.devices, or shadow.enabled = false for tiers 0 and 1")
    if room < held:
        return Finding(part="memory", state="warn", next=plan, text=f"{said}: {room} of shadow.versions_held = {held} fit; set versions_held = {room}")
    return Finding(part="memory", state="ok", text=f"{said}: {held} fit")


def free_bytes(device: Any) -> float:
    """Free memory of a torch device; of a CPU what the machine and the container's limit leave."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.mem_get_info(device)[0])
    return available_bytes(Path("/proc/meminfo"), CGROUP)


def available_bytes(meminfo: Path, cgroup: Path) -> float:
    """The smaller of MemAvailable and what the control group may still take, bytes."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines() if ":" in line)
    machine = 1024.0 * int(lines["MemAvailable"].split()[0])
    try:
        limit, used = (cgroup / "memory.max").read_text().strip(), int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return machine
    return machine if limit == "max" else min(machine, int(limit) - used + int(stat.get("inactive_file", 0)))


def _device_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _cpu_build() -> str:
    import torch

    return "" if torch.version.cuda or torch.version.hip else f" (this torch, {torch.__version__}, is a CPU build: install one with CUDA)"
