"""SkyRL's dumped training batches. They are pickles, and a pickle can run any code: refused unless allow_pickle is set.

Even then a restricted unpickler builds tensors and arrays only; SkyRL's own classes become plain holders, and a tensor that
was saved inside is loaded with weights_only. Sequences are padded; column c of the A response columns belongs to the token
A − c places before the end of the sequence, whichever side was padded.
"""

from __future__ import annotations

import importlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from collector.errors import ConfigError, InputError
from collector.records import Rollout
from collector.sources.fields import token_ids
from collector.sources.formats.base import Format, Items, ReadOptions, settled
from collector.sources.formats.safe_pickle import DataUnpickler
from collector.sources.formats.sequences import masked

TENSORS = {("torch._utils", "_rebuild_tensor_v2"), ("torch", "device"), ("torch", "Size")}
NEEDED = ("sequences", "attention_mask", "response_mask", "rollout_logprobs")
HOLDERS = ("TrainingInputBatch", "TensorBatch", "TensorList")


class Batch(dict):
    """A stand-in for SkyRL's TensorBatch: the fields, no behaviour."""

    def __setstate__(self, state: Any) -> None:
        for name, blob in (state.get("batch_dict") or {}).items():
            self[name] = _tensor(blob)
        self.metadata = state.get("metadata")


def rebuild(_kind: Any, state: Any) -> Batch:
    """SkyRL's _rebuild_tensor_batch."""
    batch = Batch()
    batch.__setstate__(state)
    return batch


def _tensor(blob: Any) -> Any:
    """One serialised field: numpy bytes with dtype and shape, or a torch file for dtypes numpy does not have."""
    if not isinstance(blob, dict):
        return blob
    if blob.get("format", "numpy") == "numpy" and {"data", "dtype", "shape"} <= set(blob):
        return np.frombuffer(blob["data"], dtype=np.dtype(blob["dtype"])).reshape(tuple(blob["shape"]))
    if blob.get("format") == "torch":
        return _saved_tensor(blob["data"])
    return None  # multimodal lists


def _saved_tensor(data: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


class Restricted(DataUnpickler):
    """Data, torch's tensors and dtypes, and holders for SkyRL's classes."""

    def find_class(self, module: str, name: str) -> Any:
        """The object of that name, or a harmless one in its place."""
        if module.endswith("training_batch"):
            if name == "_rebuild_tensor_batch":
                return rebuild
            if name in HOLDERS:
                return Batch
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _saved_tensor  # torch's own would unpickle anything
        if (module, name) in TENSORS or (module == "torch" and name in _torch_names()):
            return getattr(importlib.import_module(module), name)
        return super().find_class(module, name)


def _torch_names() -> set[str]:
    import torch

    return {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)} | {"FloatStorage", "LongStorage", "IntStorage", "BFloat16Storage", "BoolStorage"}


def _read(path: Path, options: ReadOptions) -> Items:
    if not options.allow_pickle:
        raise InputError("is a pickle, which can run any code when it is read: refused. If you trust whoever wrote it, say "
                         "--allow-pickle (in config.toml: allow_pickle = true); tensors and arrays are all it may then hold", where=str(path))
    batch = _load(path)
    arrays = _checked(batch, str(path))
    metadata = getattr(batch, "metadata", None)
    uids = metadata.get("uids") if isinstance(metadata, dict) else None
    step = path.name.removeprefix("global_step_").split("_")[0]
    for row in range(len(arrays["sequences"])):
        group = str(uids[row]) if isinstance(uids, list) and len(uids) > row else None
        try:
            rollout = _rollout({name: array[row] for name, array in arrays.items()}, step, row, group)
        except InputError as error:
            yield InputError(error.reason, field=error.field, where=f"{path}[{row}]")
            continue
        if rollout is None:
            options.counts["padding_rows"] += 1
        else:
            yield rollout


def _checked(batch: Batch, where: str) -> dict[str, np.ndarray]:
    """The columns as arrays of numbers: two of the sequence's width, the others of the response's, all of the same height."""
    for name in NEEDED:
        if batch.get(name) is None:
            raise InputError("is required and missing", field=name, where=where)
    arrays = {name: _array(batch[name]) for name in (*NEEDED, "loss_mask", "action_log_probs") if batch.get(name) is not None}
    for name, array in arrays.items():
        like = arrays["sequences" if name in ("sequences", "attention_mask") else "response_mask"]
        if array.ndim != 2 or array.dtype.kind not in "biuf" or array.shape != like.shape or len(array) != len(arrays["sequences"]):
            raise InputError(f"an array of numbers of shape {like.shape} is expected, not {array.dtype} {array.shape}", field=name, where=where)
    if arrays["response_mask"].shape[1] > arrays["sequences"].shape[1]:
        raise InputError("is wider than the sequences", field="response_mask", where=where)
    return arrays


def _array(value: Any) -> np.ndarray:
    """A tensor or an array as an array; bfloat16, which numpy does not have, becomes float32."""
    if hasattr(value, "is_floating_point"):
        value = (value.float() if value.is_floating_point() else value).numpy()
    return value if isinstance(value, np.ndarray) else np.array(None)


def _rollout(row: dict[str, np.ndarray], step: str, number: int, group: str | None) -> Rollout | None:
    """One row; None for a padding row (its loss mask is empty, SkyRL copies row 0 into it)."""
    size, columns = row["sequences"].size, row["response_mask"].size
    response_C, attention_S = row["response_mask"] > 0, row["attention_mask"] > 0
    sampled_C = response_C & (row["loss_mask"] > 0) if "loss_mask" in row else response_C
    if not sampled_C.any():
        return None
    place_T = size - columns + np.flatnonzero(response_C)
    prompt_P = row["sequences"][: place_T[0]][attention_S[: place_T[0]]]
    sampled_T = sampled_C[response_C]
    trainer = row.get("action_log_probs")
    labels = {"step": step} if group is None else {"step": step, "group": group}
    return Rollout(
        request_id=f"step{step}-{number}", prompt_tokens_P=token_ids(prompt_P.tolist(), "sequences"),
        completion_tokens_T=token_ids(row["sequences"][place_T].tolist(), "sequences"),
        engine_logprobs_T=masked(row["rollout_logprobs"][response_C].tolist(), "rollout_logprobs", sampled_T), sampled_mask_T=sampled_T,
        trainer_logprobs_T=None if trainer is None else masked(trainer[response_C].tolist(), "action_log_probs", sampled_T),
        traffic="train", labels=labels, loss_mask_T=sampled_T if "loss_mask" in row else None,
    )


def _load(path: Path) -> Batch:
    try:
        with path.open("rb") as stream:
            batch = Restricted(stream).load()
    except ModuleNotFoundError:
        raise ConfigError(f"{path}: SkyRL's batches need torch: pip install 'klaxon-rl[scorer]'") from None
    except OSError as error:
        raise InputError(f"cannot be opened ({error.strerror or error})", where=str(path)) from None
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        raise InputError(f"holds more than tensors or is cut short ({str(error).splitlines()[0][:150] if str(error) else type(error).__name__})",
                         where=str(path)) from None
    if not isinstance(batch, dict):
        raise InputError("is no TrainingInputBatch", where=str(path))
    return batch


def _matches(path: Path) -> bool:
    if path.suffix != ".pkl":
        return False
    try:
        with path.open("rb") as stream:
            return b"training_batch" in stream.read(4096)
    except OSError:
        return False


SKYRL = Format(
    name="skyrl", about="SkyRL training batches, both sides per token; a pickle, read only when allowed",
    where="`<export_path>/dumped_data/global_step_N_training_input.pkl`", turn_on="`trainer.dump_data_batch=true`, and here `--allow-pickle`",
    knows=frozenset({"ids", "engine logprobs", "trainer logprobs", "sampled mask", "loss mask"}), patterns=("dumped_data/*_training_input.pkl", "*.pkl"),
    matches=_matches, read_file=_read, complete=settled, needs="torch",
)
