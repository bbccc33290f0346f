"""Open .pt files without running anything they carry: torch.load(weights_only=True) with a short list of data classes.

numpy arrays (routed experts) are data. slime's and miles's Sample is allowed as a stand-in that only holds attributes.
Whatever else a file wants is refused by name.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from collector.errors import ConfigError, InputError

SAMPLE_NAMES = ("slime.utils.types.Sample", "miles.utils.types.Sample")


class Sample:
    """A stand-in for the framework's Sample: attributes, no behaviour."""


def load(path: Path) -> Any:
    """The content of a .pt file, tensors on the CPU.

    Raises:
        ConfigError: torch is not installed.
        InputError: the file is broken, or holds something that is not plain data.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise ConfigError(f"{path}: .pt files need torch: pip install 'klaxon-rl[scorer]'") from None
    try:
        with torch.serialization.safe_globals(_safe()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = next((line for line in str(error).splitlines() if "GLOBAL" in line or "class" in line.lower()), str(error).splitlines()[0])
        raise InputError(f"holds more than plain data and is refused ({unsafe.strip()[:200]}); "
                         "write the dump without custom objects, or convert it to rollout JSONL", where=str(path)) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"cannot be loaded ({str(error).splitlines()[0][:200]}); is it cut short?", where=str(path)) from None


def plain(value: Any) -> Any:
    """Tensors and arrays as lists; everything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def mentions(path: Path, *words: str, limit_bytes: int = 4 << 20) -> bool:
    """Do all words stand at the beginning of a .pt file's pickle; for sniffing, nothing is loaded."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
            if name is None:
                return False
            with archive.open(name) as stream:
                head = stream.read(limit_bytes)
    except (OSError, zipfile.BadZipFile):
        return False
    return all(word.encode() in head for word in words)


def _safe() -> list[Any]:
    from numpy._core import multiarray

    dtypes = [type(np.dtype(kind)) for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "f2", "f4", "f8", "?")]
    arrays = [(multiarray._reconstruct, f"{module}.multiarray._reconstruct") for module in ("numpy.core", "numpy._core")]
    return [*arrays, (multiarray.scalar, "numpy._core.multiarray.scalar"), (multiarray.scalar, "numpy.core.multiarray.scalar"),
            np.ndarray, np.dtype, *dtypes, *((Sample, name) for name in SAMPLE_NAMES)]
