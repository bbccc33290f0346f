"""prime-rl's own transport files: rank_R.bin (micro batches, packed) and rollouts.bin (training samples); msgpack, no trainer side.

msgspec writes its structs as bare arrays, so a field is known by its place, and places moved between versions of prime-rl.
Only layouts whose columns prove themselves (kinds and equal lengths) are read; any other is refused, never guessed at.
Files appear by rename, so one that is there is complete.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from collector.errors import ConfigError, InputError
from collector.records import Rollout, Sampling
from collector.sources.formats.base import Format, Items, ReadOptions
from collector.sources.formats.sequences import column, one_temperature, split

HINT = "; this prime-rl lays its batches out differently, read its token exports instead (enable_token_export)"


def _read(path: Path, options: ReadOptions) -> Items:
    decoded = _decode(path)
    step = path.parent.name.removeprefix("step_")
    if path.name.startswith("rollouts"):
        samples = decoded[0] if decoded and isinstance(decoded[0], list) else []
        sequences = [(f"{path}[{index}]", sample, _sample) for index, sample in enumerate(samples)]
    else:
        sequences = [(f"{path}[{index}]", batch, _micro_batch) for index, batch in enumerate(decoded)]
    for where, row, layout in sequences:
        try:
            for part, columns in enumerate(layout(row)):
                yield from _one(columns, f"{where}[{part}]" if layout is _micro_batch else where, f"step{step}-{path.stem}", step)
        except InputError as error:
            yield InputError(error.reason, field=error.field, where=where)


def _one(columns: dict[str, Any], where: str, prefix: str, step: str) -> Items:
    if not any(columns["loss_mask"]):
        return  # padding, or nothing to train on
    try:
        prompt_P, completion_T, sampled_T = split(columns["input_ids"], "input_ids", columns["loss_mask"], "loss_mask")
        yield Rollout(
            request_id=prefix + where[where.index("["):], prompt_tokens_P=prompt_P, completion_tokens_T=completion_T, sampled_mask_T=sampled_T,
            engine_logprobs_T=column(columns["inference_logprobs"], "inference_logprobs", sampled_T, prompt_P.size),
            sampling=Sampling(temperature=one_temperature(columns["temperatures"], "temperatures", sampled_T, prompt_P.size)),
            traffic="train", labels={"step": step}, loss_mask_T=sampled_T, dropped=False,
        )
    except InputError as error:
        yield InputError(error.reason, field=error.field, where=where)


def _micro_batch(row: Any) -> list[dict[str, Any]]:
    """[input_ids, loss_mask, advantages, inference_logprobs, …]: one dict a packed sequence."""
    if not isinstance(row, list) or len(row) < 5:
        raise InputError("is no micro batch" + HINT)
    ids, marks, inference = row[0], row[1], row[3]
    size = len(ids) if _all(ids, int) else -1
    if size < 1 or not _all(marks, bool) or not _all(inference, float) or {len(marks), len(inference)} != {size}:
        raise InputError("input_ids, loss_mask and inference_logprobs do not stand where they should" + HINT)
    positions = next((value for value in row[4:6] if _all(value, int) and len(value) == size and value[0] == 0), None)
    if positions is None:
        raise InputError("holds no position ids, so its sequences cannot be told apart" + HINT, field="position_ids")
    temperatures = next((value for value in row[5:7] if value is not positions and _all(value, float) and len(value) == size), None)
    starts = [index for index, position in enumerate(positions) if position == 0] + [size]
    return [{"input_ids": ids[start:end], "loss_mask": marks[start:end], "inference_logprobs": inference[start:end],
             "temperatures": temperatures and temperatures[start:end]} for start, end in zip(starts, starts[1:], strict=False)]


def _sample(row: Any) -> list[dict[str, Any]]:
    """[prompt_ids, prompt_mask, completion_ids, completion_mask, completion_logprobs, temperatures?, …] or, later, [token_ids, mask, logprobs, temperatures, …]."""
    if not isinstance(row, list) or len(row) < 4 or not _all(row[0], int) or not _all(row[1], bool) or len(row[0]) != len(row[1]):
        raise InputError("is no training sample" + HINT)
    if not _all(row[3], bool) and _all(row[2], float) and len(row[2]) == len(row[0]):
        temperatures = row[3] if _all(row[3], float) else None
        return [{"input_ids": row[0], "loss_mask": row[1], "inference_logprobs": row[2], "temperatures": temperatures}]
    if len(row) < 5 or not _all(row[2], int) or not _all(row[3], bool) or not _all(row[4], float) or not len(row[2]) == len(row[3]) == len(row[4]):
        raise InputError("completion ids, mask and logprobs do not stand where they should" + HINT)
    prompt, later = len(row[0]), row[5] if len(row) > 5 else None
    temperatures = [0.0] * prompt + later if _all(later, float) and len(later) == len(row[2]) else None
    return [{"input_ids": row[0] + row[2], "loss_mask": [False] * prompt + row[3], "inference_logprobs": [0.0] * prompt + row[4],
             "temperatures": temperatures}]


def _all(values: Any, kind: type) -> bool:
    """A list of this kind alone; a whole float may come as an integer, a truth value never does."""
    allowed = (int, float) if kind is float else (kind,)
    return isinstance(values, list) and all(type(value) in allowed or (kind is float and value is None) for value in values)


def _decode(path: Path) -> list[Any]:
    try:
        import msgspec
    except ModuleNotFoundError:
        raise ConfigError(f"{path}: prime-rl's batch files need msgspec: pip install 'klaxon-rl[sources]'") from None
    try:
        decoded = msgspec.msgpack.decode(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot be opened ({error.strerror or error})", where=str(path)) from None
    except msgspec.MsgspecError as error:
        raise InputError(f"is no complete msgpack ({error}); is it cut short?", where=str(path)) from None
    if not isinstance(decoded, list):
        raise InputError("is no list of batches" + HINT, where=str(path))
    return decoded


def _matches(path: Path) -> bool:
    if path.suffix != ".bin" or not path.name.startswith(("rank_", "rollouts")):
        return False
    try:
        with path.open("rb") as stream:
            first = stream.read(1)
    except OSError:
        return False
    return bool(first) and (0x90 <= first[0] <= 0x9F or first[0] in (0xDC, 0xDD))


PRIME_BATCHES = Format(
    name="prime-rl-batches", about="prime-rl transport files, engine side only", where="`<output>/rollouts/step_N/rank_R.bin`, `rollouts.bin`",
    turn_on="filesystem transport (the default)", knows=frozenset({"ids", "engine logprobs", "sampling", "sampled mask", "loss mask"}),
    patterns=("rollouts/step_*/rank_*.bin", "step_*/rank_*.bin", "rollouts/step_*/rollouts.bin", "step_*/rollouts.bin", "*.bin"),
    matches=_matches, read_file=_read, needs="msgspec",
)
