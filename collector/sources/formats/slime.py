"""slime's and miles's --dump-details: rollout_data/<id>.pt (Samples) joined with train_data/<id>[_<rank>].pt (the trainer's side).

Joined on the sample index, and only where the tokens agree. A Sample lists the weight version of each generation call, not
where one call ends: one version (or several equal ones) covers the whole response, different ones are unknown.
A sample the trainer has columns of was trained on; `remove_sample` says that it was dropped.
Under context parallelism the trainer's column is a piece of the sequence; a column of another length is left out, counted.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from collector.errors import InputError
from collector.records import Rollout, WeightSpan
from collector.sources.fields import integer, mask, number, token_ids
from collector.sources.formats.base import Format, Items, ReadOptions, natural, required, settled
from collector.sources.formats.sequences import masked
from collector.sources.formats.torch_files import load, mentions, plain

PATIENCE_SECONDS = 600.0  # how long a rollout file waits for the trainer's side before it is read alone
STATUS = {"completed": "stop", "truncated": "length", "aborted": "abort"}

Trained = dict[int | None, dict[str, Any]]  # sample index → its columns


def _read(path: Path, options: ReadOptions) -> Items:
    content = load(path)
    if not isinstance(content, dict):
        raise InputError("is no dump of slime or miles", where=str(path))
    if "samples" in content:
        trained = _trained(path, options)
        if not isinstance(content["samples"], list):
            raise InputError("a list of samples is expected", field="samples", where=str(path))
        rows = [(_fields(sample), f"{path}[{n}]") for n, sample in enumerate(content["samples"])]
    else:
        trained = {}
        rows = [(row, f"{path}[{n}]") for n, row in enumerate(_columns(content, path))]
    for row, where in rows:
        try:
            yield _rollout(row, trained.get(integer(row, "index")), path, where, options)
        except InputError as error:
            yield InputError(error.reason, field=error.field, where=where)


def _fields(sample: Any) -> dict[str, Any]:
    """A sample as slime's to_dict gives it, or as the stand-in of a Sample holds it."""
    return sample if isinstance(sample, dict) else dict(getattr(sample, "__dict__", {}))


def _rollout(row: dict[str, Any], trained: dict[str, Any] | None, path: Path, where: str, options: ReadOptions) -> Rollout:
    ids_S = token_ids(plain(required(row, "tokens")), "tokens")
    size = row.get("response_length")
    if type(size) is not int or not 0 < size <= ids_S.size:
        raise InputError(f"{size!r} is not a number of response tokens within {ids_S.size}", field="response_length")
    sampled_T = mask(plain(row.get("loss_mask")), "loss_mask", size)
    start = ids_S.size - size
    trainer = _trainer_side(trained if trained is not None else row, ids_S, sampled_T, options)
    dropped = True if row.get("remove_sample") else False if trained is not None else None
    listed = row.get("weight_versions") or []
    if not isinstance(listed, list):
        raise InputError("a list is expected", field="weight_versions")
    versions = {str(version) for version in listed}
    spans = (WeightSpan(start=0, end=size, version=next(iter(versions))),) if len(versions) == 1 else ()
    labels = {key: str(value) for key, value in (("group", row.get("group_index")), ("rollout_id", _rollout_id(path))) if value is not None}
    if len(versions) > 1:
        labels["versions"] = ",".join(map(str, listed))
    status, index = row.get("status"), row.get("index")
    return Rollout(
        request_id=f"rollout{_rollout_id(path)}-{index}" if index is not None else Path(where).name, prompt_tokens_P=ids_S[:start],
        completion_tokens_T=ids_S[start:], sampled_mask_T=sampled_T, weight_versions=spans, trainer_logprobs_T=trainer, labels=labels,
        engine_logprobs_T=masked(plain(required(row, "rollout_log_probs")), "rollout_log_probs", sampled_T), traffic=_traffic(path),
        cached_prompt_tokens=_cached(row, start), finish_reason=STATUS.get(status) if isinstance(status, str) else None,
        reward=number(row, "reward") if type(row.get("reward")) in (int, float) else None,
        loss_mask_T=None if row.get("loss_mask") is None else sampled_T, dropped=dropped,
    )


def _trainer_side(row: dict[str, Any], ids_S: np.ndarray, sampled_T: np.ndarray, options: ReadOptions) -> np.ndarray | None:
    values = plain(row.get("log_probs"))
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != sampled_T.size or plain(row["tokens"]) != ids_S.tolist():
        options.counts["trainer_side_not_matched"] += 1
        return None
    return masked(values, "log_probs", sampled_T)


def _trained(path: Path, options: ReadOptions) -> Trained:
    """The trainer's columns of every sample of this rollout, from all ranks; a file that cannot be read is counted."""
    found: Trained = {}
    for file in companions(path):
        try:
            found.update({integer(row, "index"): row for row in _columns(load(file), file) if row.get("log_probs") is not None})
        except InputError:
            options.counts["trainer_files_unreadable"] += 1
    return found


def _columns(content: dict[str, Any], path: Path) -> Iterator[dict[str, Any]]:
    """The fields of each sample from a train_data file, which keeps one list a field."""
    data = content.get("rollout_data") if isinstance(content, dict) else None
    if not isinstance(data, dict) or not isinstance(data.get("tokens"), list):
        raise InputError("holds no rollout_data with tokens", where=str(path))
    names = {"tokens": "tokens", "response_lengths": "response_length", "loss_masks": "loss_mask", "rollout_log_probs": "rollout_log_probs",
             "log_probs": "log_probs", "sample_indices": "index"}
    count = len(data["tokens"])
    known = {one: data[many] for many, one in names.items() if isinstance(data.get(many), list) and len(data[many]) == count}
    for n in range(count):
        yield {name: plain(values[n]) for name, values in known.items()}


def companions(path: Path) -> list[Path]:
    """train_data files of the same rollout id."""
    folder = path.parent.parent / "train_data"
    return sorted([*folder.glob(f"{path.stem}.pt"), *folder.glob(f"{path.stem}_*.pt")], key=natural)


def both_sides(path: Path, now: float) -> bool:
    """Are the file and the trainer's side of it written out."""
    files = [path, *companions(path)] if path.parent.name == "rollout_data" else [path]
    if not all(settled(file, now) for file in files):
        return False
    return len(files) > 1 or not (path.parent.parent / "train_data").exists() or now - path.stat().st_mtime > PATIENCE_SECONDS


def _cached(row: dict[str, Any], n_prompt: int) -> int | None:
    """Cached prompt tokens when the sample was one call with this prompt; a sum over several calls says nothing."""
    info = row.get("prefix_cache_info")
    if not isinstance(info, dict) or info.get("total_prompt_tokens") != n_prompt or type(info.get("cached_tokens")) is not int:
        return None
    return info["cached_tokens"]


def _rollout_id(path: Path) -> str:
    """Its number, with eval_ before it where it was one; the rank a train_data file ends with is left out."""
    return path.stem if path.parent.name != "train_data" else path.stem.rsplit("_", 1)[0]


def _traffic(path: Path) -> str:
    return "eval" if path.stem.startswith("eval_") else "train"


def _matches(path: Path) -> bool:
    """By its content, or, when it is cut short, by the folder it lies in."""
    if path.suffix != ".pt":
        return False
    if path.parent.name in ("rollout_data", "train_data") and not zipfile.is_zipfile(path):
        return True
    return mentions(path, "rollout_id", "samples") or mentions(path, "rollout_id", "rollout_data")


SLIME = Format(
    name="slime", about="slime and miles dumps, both sides per token", where="`<dump>/rollout_data/<id>.pt` + `<dump>/train_data/<id>_<rank>.pt`",
    turn_on="`--dump-details DIR`",
    knows=frozenset({"ids", "engine logprobs", "trainer logprobs", "weight version", "sampled mask", "loss mask", "reward", "finish reason"}),
    patterns=("rollout_data/*.pt", "train_data/*.pt", "*.pt"), matches=_matches, read_file=_read, complete=both_sides, needs="torch",
)
