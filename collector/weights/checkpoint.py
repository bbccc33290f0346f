"""Is this folder a whole checkpoint, and which weights does it hold? Reads headers and sizes, never tensors' meaning."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collector.errors import Unavailable
from collector.records import WeightVersion
from collector.weights.adapter import TENSORS, is_adapter, read_adapter

_MAX_HEADER_BYTES = 100 << 20
_SAMPLES, _SAMPLE_BYTES = 256, 4096  # per file: enough to see an update that moves one bfloat16 weight in a thousand
_SHARD = re.compile(r"-\d+-of-(\d+)\.safetensors$")


def inspect(path: str | Path, *, version: str | None = None, markers: Sequence[str] = ("COMPLETE",), kind: str = "any",
            base: str = "") -> WeightVersion:
    """Believe a checkpoint folder, or say why not. `version` defaults to the folder's name.

    Whole means: config.json parses, every safetensors file is exactly as long as its header says, and every file the
    index (or the shard numbering) names is there. published_at is the marker's time, else the newest file's. An adapter
    (kind "adapter", or "any" where there is nothing else) must be of a kind that can be merged onto `base`.

    Raises:
        Unavailable: missing, half-written or damaged; the text names the file.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise Unavailable(f"{folder}: no such folder")
    adapter = kind == "adapter" or (kind == "any" and is_adapter(folder))
    if adapter:
        extra = _check_adapter(folder, base)
        files = [folder / TENSORS]
    else:
        _refuse_sharded(folder)
        _read_json(folder / "config.json")
        extra, files = "", _files(folder)
    headers = {file.name: _header(file) for file in files}
    stamp = next((folder / name for name in markers if (folder / name).exists()), max(files, key=lambda file: file.stat().st_mtime))
    return WeightVersion(version=version if version is not None else folder.name, path=str(folder), base=base if adapter else "",
                         published_at=stamp.stat().st_mtime, digest=_digest(files, headers, extra))


def parameters(path: str | Path) -> int:
    """How many numbers the tensors of a whole checkpoint folder hold, by its headers.

    Raises:
        Unavailable: as `inspect`.
    """
    shapes = [entry["shape"] for file in _files(Path(path)) for entry in _header(file)["tensors"].values()]
    return sum(math.prod(shape) for shape in shapes)


def _check_adapter(folder: Path, base: str) -> str:
    """Settings that are part of what the weights are; raises Unavailable where it cannot be merged."""
    adapter = read_adapter(folder)
    if not base:
        raise Unavailable(f"{folder}: is a LoRA adapter: set [weights] base to the folder of the model it was trained on")
    if not (Path(base) / "config.json").is_file():
        raise Unavailable(f"{base}: [weights] base is no model folder: it has no config.json")
    if not (folder / TENSORS).is_file():
        raise Unavailable(f"{folder}: no {TENSORS} yet")
    return json.dumps([adapter.r, adapter.alpha, adapter.rank_stabilised, adapter.ranks, adapter.alphas], sort_keys=True)


def _refuse_sharded(folder: Path) -> None:
    """Checkpoints in pieces per rank hold no tensors anybody else can read: say which command makes them whole."""
    if any(folder.glob("*.safetensors")):
        return
    out = f"{folder}-whole"
    for pattern, command in (
        ("pytorch_model_fsdp_*", "accelerate merge-weights {found} {out}"),
        ("zero_to_fp32.py", "python {found} {folder} {out} --safe_serialization"),
        ("model_world_size_*_rank_*.pt", "python -m verl.model_merger merge --backend fsdp --local_dir {folder} --target_dir {out}"),
        ("common.pt", "your framework's Megatron converter, e.g. slime's tools/convert_torch_dist_to_hf.py --input-dir {folder} --output-dir {out}"),
        ("**/*.distcp", "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {parent} {out}.pt, then save its tensors as safetensors"),
        (".metadata", "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} {out}.pt, then save its tensors as safetensors"),
    ):
        if found := next(iter(sorted(folder.glob(pattern))), None):
            hint = command.format(found=found, parent=found.parent, folder=folder, out=out)
            raise Unavailable(f"{folder}: a sharded checkpoint ({found.name}), not one model: {hint}; or let the trainer call klaxon_tap.publish_weights")


def _files(folder: Path) -> list[Path]:
    """The safetensors files this checkpoint consists of, sorted by name."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise Unavailable(f"{index}: has no weight_map")
        files = sorted({folder / str(name) for name in weight_map.values()})
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise Unavailable(f"{folder}: half-written: {len(absent)} of {len(files)} shards are missing, e.g. {absent[0]}")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        hint = f" (it has {pickles[0]}, but pickles are never loaded: save safetensors)" if pickles else ""
        raise Unavailable(f"{folder}: no *.safetensors file yet{hint}")
    if shards := [int(match[1]) for file in files if (match := _SHARD.search(file.name))]:
        raise Unavailable(f"{folder}: half-written: {len(shards)} of {shards[0]} shards and no "
                          "model.safetensors.index.json")
    return files


def _header(file: Path) -> dict[str, Any]:
    """The safetensors header: 8 bytes of length, JSON, then data up to the largest data_offsets."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= _MAX_HEADER_BYTES:
                raise Unavailable(f"{file}: half-written or no safetensors file: its header length is {length}")
            text = stream.read(length)
    except OSError as error:
        raise Unavailable(f"{file}: cannot be read ({error.strerror})") from None
    try:
        header = json.loads(text)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise Unavailable(f"{file}: half-written or damaged: its header cannot be read") from None
    if size != 8 + length + end:
        raise Unavailable(f"{file}: half-written: {size} bytes, its header says {8 + length + end}")
    return {"start": 8 + length, "size": end, "tensors": tensors}


def _digest(files: list[Path], headers: dict[str, dict[str, Any]], extra: str = "") -> str:
    """blake2b over names, tensor headers and evenly spaced samples of the data; equal weights, equal digest."""
    digest = hashlib.blake2b(extra.encode(), digest_size=16)
    for file in files:
        header = headers[file.name]
        digest.update(json.dumps([file.name, header["size"], header["tensors"]], sort_keys=True).encode())
        with file.open("rb") as stream:
            last = max(0, header["size"] - _SAMPLE_BYTES)
            for index in range(_SAMPLES):
                stream.seek(header["start"] + last * index // (_SAMPLES - 1))
                digest.update(stream.read(min(_SAMPLE_BYTES, header["start"] + header["size"] - stream.tell())))
    return digest.hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unavailable(f"{file.parent}: no {file.name} yet") from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"{file}: half-written or damaged: {error}") from None
    if not isinstance(value, dict):
        raise Unavailable(f"{file}: is not a JSON object")
    return value


def fingerprint(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """(name, size, mtime in ns) of every file: has the folder changed since the last look?

    Raises:
        OSError: the folder went away.
    """
    with os.scandir(folder) as entries:
        return tuple(sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
                            for entry in entries if entry.is_file()))
