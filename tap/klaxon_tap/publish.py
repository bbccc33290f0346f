"""Publish a trainer's weights as folders Klaxon believes, without holding the trainer up.

The caller's thread only copies the tensors to CPU memory; one background thread writes them: staging folder, fsync,
marker last, rename. A process that is killed at any point leaves a staging folder behind, never a version. torch and
safetensors are the trainer's own and are looked for at the first call.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import json
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from klaxon_tap import settings

log = logging.getLogger("klaxon_tap")

MARKER = "COMPLETE"
STAGING, OLD = ".klaxon-staging-", ".klaxon-old-"  # names with a dot are no versions to any follower
BESIDE = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
          "merges.txt", "tokenizer.model", "added_tokens.json", "chat_template.jinja", "chat_template.json")
EXIT_WAIT_SECONDS = 10.0
STALE_SECONDS = 3600.0  # a staging folder this old belongs to a process that died
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_WRAPPERS = ("module.", "_orig_mod.")  # what DDP and torch.compile put before parameter names
_SHARDED = ("DTensor", "FlatParameter", "ShardedTensor")


class Publisher:
    """One folder of versions. `counts`: calls, published, skipped (the write before was still going), refused, failed."""

    def __init__(self, announce: Callable[[str, str], bool]) -> None:
        self.counts = {"calls": 0, "published": 0, "skipped": 0, "refused": 0, "failed": 0}
        self._announce = announce
        self._thread: threading.Thread | None = None
        self._said: set[str] = set()
        self._swept: set[Path] = set()

    def publish(self, model: Any, version: str | int, *, every: int, folder: str | None, keep: int, config: str | None) -> bool:
        """Copy now, write later. False when nothing is being written; never raises."""
        try:
            if not _writes_here():
                return False
            number, self.counts["calls"] = self.counts["calls"], self.counts["calls"] + 1
            if number % max(1, int(every)):
                return False
            if self._thread is not None and self._thread.is_alive():
                self.counts["skipped"] += 1
                self._say("skipped", f"version {version} was not written, the version before is still being written; with every=N fewer are tried")
                return False
            root = _root(folder)
            tensors, files = snapshot(model), beside(model, config)
            return self._start(tensors, files, root, _name(version), max(1, int(keep)))
        except ValueError as refusal:
            self.counts["refused"] += 1
            self._say("refused", f"weights are not published: {refusal}")
        except Exception as error:
            self.counts["failed"] += 1
            self._say("failed", f"version {version!r} was not published ({type(error).__name__}: {error})")
        return False

    def wait(self, timeout: float | None = None) -> bool:
        """Until the write in hand is done; True when none goes on."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def _start(self, tensors: dict[str, Any], files: dict[str, bytes], root: Path, version: str, keep: int) -> bool:
        def write() -> None:
            try:
                if root not in self._swept:
                    self._swept.add(root)
                    sweep(root)
                path = write_version(tensors, files, root, version)
                self.counts["published"] += 1
                self._announce(version, str(path))
                prune(root, keep)
            except Exception as error:
                self.counts["failed"] += 1
                self._say("failed", f"version {version} was not written to {root} ({type(error).__name__}: {error})")

        if self._thread is None:
            atexit.register(self.wait, EXIT_WAIT_SECONDS)
        self._thread = threading.Thread(target=write, name="klaxon-publish", daemon=True)
        self._thread.start()
        return True

    def _say(self, kind: str, text: str) -> None:
        """Each kind of trouble once a process; the counts tell the rest."""
        if kind not in self._said:
            self._said.add(kind)
            log.warning("klaxon tap: %s", text)


def snapshot(model: Any) -> dict[str, Any]:
    """name → tensor on the CPU, contiguous, copied; tensors that share storage (tied weights) once, under the first name.

    Raises:
        ValueError: sharded or unreadable parameters, adapters, or no torch.
    """
    for library in ("torch", "safetensors"):
        if importlib.util.find_spec(library) is None:
            raise ValueError(f"{library} is not installed in the trainer's environment")
    torch = importlib.import_module("torch")
    state = model if isinstance(model, Mapping) else unwrap(model).state_dict()
    found: dict[str, Any] = {}
    seen: set[tuple] = set()
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        _check(name, tensor)
        place = (str(tensor.device), tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        found[_plain(name)] = tensor
    if not found:
        raise ValueError("there is no tensor in what was passed: pass the model, or its full state dict")
    with torch.no_grad():
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in found.items()}


def unwrap(model: Any) -> Any:
    """The model inside DistributedDataParallel, a DeepSpeed engine or torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel", "DeepSpeedEngine"):
            inner = model.module
        if inner is None:
            return model
        model = inner


def beside(model: Any, config: str | None) -> dict[str, bytes]:
    """file name → content of what stands next to the tensors: config.json and the tokenizer's files.

    Raises:
        ValueError: no config.json is to be had.
    """
    if config is not None:
        source = Path(config)
        files = {name: (source / name).read_bytes() for name in ("config.json", *BESIDE) if (source / name).is_file()}
        if "config.json" not in files:
            raise ValueError(f"config={config!r} has no config.json: name the folder the run started from")
        return files
    inner = None if isinstance(model, Mapping) else unwrap(model)
    described = getattr(inner, "config", None)
    if not hasattr(described, "to_json_string"):
        raise ValueError("a state dict or a model without .config says nothing about its architecture: pass config=FOLDER, "
                      "the Hugging Face folder the run started from")
    settings = json.loads(described.to_json_string(use_diff=False))
    settings["architectures"] = settings.get("architectures") or [type(inner).__name__]
    return {"config.json": json.dumps(settings, indent=2).encode()}


def write_version(tensors: dict[str, Any], files: dict[str, bytes], root: Path, version: str) -> Path:
    """Write root/version so that it exists whole or not at all; a version written before is replaced."""
    save_file = importlib.import_module("safetensors.torch").save_file
    root.mkdir(parents=True, exist_ok=True)
    staging, target = root / f"{STAGING}{version}-{os.getpid()}", root / version
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    save_file(tensors, str(staging / "model.safetensors"), metadata={"format": "pt"})
    _sync(staging / "model.safetensors")
    for name, content in files.items():
        (staging / name).write_bytes(content)
        _sync(staging / name)
    (staging / MARKER).write_text(json.dumps({"version": version, "by": "klaxon_tap", "at": time.time()}) + "\n", encoding="utf-8")
    _sync(staging / MARKER)
    _sync(staging)
    if target.exists():
        old = root / f"{OLD}{version}-{os.getpid()}"
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        staging.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        staging.rename(target)
    _sync(root)
    return target


def prune(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` versions this function wrote; folders of anybody else are left alone."""
    ours = sorted((folder for folder in root.iterdir() if not folder.name.startswith(".") and _ours(folder / MARKER)),
                  key=lambda folder: (folder / MARKER).stat().st_mtime)
    for folder in ours[:-keep]:
        gone = root / f"{OLD}{folder.name}-{os.getpid()}"  # renamed first: nobody believes a folder that is half deleted
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove what killed processes left behind."""
    if not root.is_dir():
        return
    for folder in root.iterdir():
        if folder.name.startswith((STAGING, OLD)) and time.time() - folder.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _check(name: str, tensor: Any) -> None:
    kinds = {kind.__name__ for kind in type(tensor).__mro__}
    full = "pass a full state dict: publish_weights(full_state_dict, version, config=FOLDER)"
    if kinds & set(_SHARDED) or name.rpartition(".")[2].lstrip("_") == "flat_param":
        raise ValueError(f"{name} is sharded (FSDP); {full}")
    if tensor.is_meta or hasattr(tensor, "ds_id"):
        raise ValueError(f"{name} holds no data on this rank ({'meta tensor' if tensor.is_meta else 'DeepSpeed ZeRO-3'}); {full}")
    if ".lora_" in name or ".base_layer." in name:
        raise ValueError(f"{name} belongs to an adapter: save it with model.save_pretrained(DIR), call announce_weights(version, DIR), "
                      "and set [weights] base (docs/weights.md)")


def _plain(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def _name(version: str | int) -> str:
    if not _VERSION.fullmatch(str(version)):
        raise ValueError(f"version {version!r} cannot be a folder's name: use letters, digits, dots, dashes")
    return str(version)


def _root(folder: str | None) -> Path:
    named = folder or settings.weights_dir()
    if not named:
        raise ValueError("no folder: set KLAXON_WEIGHTS_DIR, or pass folder=")
    return Path(os.path.abspath(named))


def _ours(marker: Path) -> bool:
    try:
        return json.loads(marker.read_text(encoding="utf-8"))["by"] == "klaxon_tap"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _writes_here() -> bool:
    """In a data-parallel run rank 0 writes, whoever calls."""
    torch = sys.modules.get("torch")
    distributed = getattr(torch, "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return True
    return distributed.get_rank() == 0


def _sync(path: Path) -> None:
    """Onto the disk, not only into its cache."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
