"""EXPERIMENTAL, never run on a GPU: take weights off a trainer's broadcast group, as one more receiver, and write version folders.

PipelineRL sends an update so: it posts {"version", "parameters_info": [{"name", "shape", "dtype"}]} to /receive_weight_update of
every URL in its list and broadcasts the parameters one by one, in that order, from rank 0 (ServiceNow/PipelineRL,
pipelinerl/finetune_loop.py and vllm1.py). What arrives is written as a folder the follower believes by its marker.

A broadcast waits for every member. A receiver that dies or hangs STOPS THE TRAINER: unlike everything else here, this is no
passive look. So nothing is refused once an update has begun; what is wrong with it is found before, or told after.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

import torch
from safetensors.torch import save_file
from torch import Tensor

from collector.errors import ConfigError, InputError, Unavailable
from collector.sources.fields import shown
from collector.weights.ledger import known_version

MARKER = "COMPLETE"
DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "float64")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One tensor of an update, in the order of the broadcasts."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class Group(Protocol):
    """A joined broadcast group."""

    device: torch.device

    def broadcast(self, buffer: Tensor) -> None:
        """Fill the buffer with what rank 0 sends; returns when it is there."""
        ...

    def close(self) -> None:
        """Leave."""
        ...


class TorchGroup:
    """torch.distributed's default group, backend gloo or nccl: both sides call init_process_group.

    Raises:
        Unavailable: the others did not come within `timeout_seconds`.
    """

    def __init__(self, init_method: str, *, rank: int, world_size: int, backend: str = "gloo", timeout_seconds: float = 600.0) -> None:
        from datetime import timedelta

        import torch.distributed as distributed

        self.device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
        self._distributed = distributed
        try:
            distributed.init_process_group(backend, init_method=init_method, rank=rank, world_size=world_size,
                                           timeout=timedelta(seconds=timeout_seconds))
        except (RuntimeError, ValueError) as error:
            raise Unavailable(f"{init_method}: rank {rank} of {world_size} could not join ({str(error).splitlines()[0]})") from None

    def broadcast(self, buffer: Tensor) -> None:
        """From rank 0."""
        try:
            self._distributed.broadcast(buffer, src=0)
        except RuntimeError as error:
            raise Unavailable(f"the broadcast broke off: {str(error).splitlines()[0]}") from None

    def close(self) -> None:
        """Leave the group."""
        self._distributed.destroy_process_group()


class StatelessGroup:
    """vLLM's StatelessProcessGroup with NCCL, which PipelineRL uses: needs vllm and a GPU. Never run."""

    def __init__(self, init_method: str, *, rank: int, world_size: int) -> None:
        try:
            from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
            from vllm.distributed.utils import StatelessProcessGroup
        except ImportError as error:
            raise ConfigError(f"--transport stateless needs vllm beside Klaxon ({error})") from None
        place = urlparse(init_method)
        if not torch.cuda.is_available() or place.hostname is None or place.port is None:
            raise ConfigError(f"--transport stateless needs a GPU and a group tcp://HOST:PORT, not {init_method!r}")
        self.device = torch.device("cuda", torch.cuda.current_device())
        joined = StatelessProcessGroup.create(host=place.hostname, port=place.port, rank=rank, world_size=world_size)
        self._nccl = PyNcclCommunicator(joined, device=self.device)

    def broadcast(self, buffer: Tensor) -> None:
        """From rank 0, on the current stream."""
        self._nccl.broadcast(buffer, src=0, stream=torch.cuda.current_stream())
        torch.cuda.synchronize(self.device)

    def close(self) -> None:
        """Leave the group."""
        del self._nccl


def parse_update(message: Any) -> tuple[str, tuple[Parameter, ...]]:
    """(version, parameters in order) of a weight update request.

    Raises:
        InputError: naming the field; nothing of the broadcast has been touched yet.
    """
    if not isinstance(message, Mapping):
        raise InputError("a JSON object is expected")
    version = known_version(message.get("version"))
    if version is None or Path(version).name != version or version.startswith("."):
        raise InputError(f"{shown(message.get('version'))} names no version", field="version")
    rows = message.get("parameters_info")
    if not isinstance(rows, list) or not rows:
        raise InputError("a list of {name, shape, dtype} is expected", field="parameters_info")
    parameters = tuple(_parameter(row, number) for number, row in enumerate(rows))
    if len({one.name for one in parameters}) != len(parameters):
        raise InputError("names a parameter twice", field="parameters_info")
    return version, parameters


def _parameter(row: Any, number: int) -> Parameter:
    field = f"parameters_info[{number}]"
    name, shape, dtype = (row.get(key) if isinstance(row, Mapping) else None for key in ("name", "shape", "dtype"))
    known = DTYPES.get(str(dtype).removeprefix("torch."))
    if not isinstance(name, str) or not name or known is None:
        raise InputError(f"{shown(row)} has no name, or a dtype that is none of {', '.join(DTYPES)}", field=field)
    if not isinstance(shape, list) or any(type(size) is not int or size < 1 for size in shape):
        raise InputError(f"{shown(shape)} is no shape", field=f"{field}.shape")
    return Parameter(name=name, shape=tuple(shape), dtype=known)


class WeightReceiver:
    """Takes updates off a group and writes each to `folder`/<version>: the model's config.json, one safetensors file, the marker.

    At most `keep` versions stay; the oldest is deleted only after a new one is whole.
    """

    def __init__(self, group: Group, folder: Path, *, model: Path, keep: int = 4) -> None:
        self.group, self.folder, self.model, self.keep = group, folder, model, keep
        self.received: list[str] = []
        if not (model / "config.json").is_file():
            raise ConfigError(f"{model}: is no model folder, it has no config.json")
        folder.mkdir(parents=True, exist_ok=True)

    def receive(self, message: Any) -> Path:
        """One update, blocking until it is on disk.

        Raises:
            InputError: the request cannot be read; the group was not touched.
            Unavailable: the broadcast broke off, or the disk refused; every tensor had been received by then.
        """
        version, parameters = parse_update(message)
        tensors: dict[str, Tensor] = {}
        for one in parameters:
            buffer = torch.empty(one.shape, dtype=one.dtype, device=self.group.device)
            self.group.broadcast(buffer)
            tensors[one.name] = buffer.cpu()
        try:
            return self._write(version, tensors)
        except OSError as error:
            raise Unavailable(f"{self.folder}: version {version} is not written ({error.strerror or error})") from None

    def _write(self, version: str, tensors: dict[str, Tensor]) -> Path:
        """The folder appears whole under its name, by one rename."""
        final, working = self.folder / version, self.folder / f".{version}.tmp"
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir()
        for file in self.model.glob("*.json"):
            if not file.name.endswith("index.json"):
                shutil.copyfile(file, working / file.name)
        save_file(tensors, str(working / "model.safetensors"), metadata={"format": "pt"})
        (working / MARKER).touch()
        shutil.rmtree(final, ignore_errors=True)
        working.rename(final)
        self.received = [*(name for name in self.received if name != version), version]
        for old in self.received[:-self.keep]:
            shutil.rmtree(self.folder / old, ignore_errors=True)
        self.received = self.received[-self.keep:]
        return final
