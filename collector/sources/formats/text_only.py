"""verl's and TRL's dumps hold text: no token ids and no logprobs, so there is nothing to compare.

Said once for each file, with what to turn on instead; the records are counted as text_only. With a tokenizer they become
rollouts whose ids are re-tokenised (label ids = retokenised; decoding and encoding is no bijection) and whose logprobs
are all unknown: good for looking at, never for judging an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from collector.errors import ConfigError, InputError
from collector.records import Rollout
from collector.sources.fields import number
from collector.sources.formats.base import Format, Items, ReadOptions, first_keys, required, settled
from collector.sources.lines import json_lines

INSTEAD = ("{name} writes text only here: no token ids and no logprobs, so nothing can be compared. Turn on the tap "
           "(pip install klaxon-tap beside vLLM, docs/tap.md) or put a proxy in front of the engine that records ids and logprobs")

Records = Iterator[tuple[str, dict[str, Any] | InputError]]


def is_text_only(rollout: Rollout) -> bool:
    """Were its ids made up from text; it has no logprobs."""
    return rollout.labels.get("ids") == "retokenised"


def _read(path: Path, options: ReadOptions, *, name: str, records: Callable[[Path], Records], prompt: str, completion: str, reward: str) -> Items:
    refusal = InputError(INSTEAD.format(name=name), where=str(path))
    if not options.tokenizer:
        yield refusal
    for where, record in records(path):
        if isinstance(record, InputError):
            yield record
            continue
        options.counts["text_only"] += 1
        if not options.tokenizer:
            continue
        try:
            yield _rollout(record, where, options.tokenizer, prompt, completion, reward)
        except InputError as error:
            yield InputError(error.reason, field=error.field, where=where)


def _rollout(record: dict[str, Any], where: str, tokenizer: str, prompt: str, completion: str, reward: str) -> Rollout:
    encode = _tokenizer(tokenizer)
    texts = [_text(required(record, field), field) for field in (prompt, completion)]
    prompt_P, completion_T = (np.array(encode(text), dtype=np.int32) for text in texts)
    if not completion_T.size:
        raise InputError("is empty: nothing was sampled", field=completion)
    known = {"step": record.get("step"), "group": record.get("uid")}  # verl's uid names the prompt, not the response
    return Rollout(
        request_id=Path(where).name, prompt_tokens_P=prompt_P, completion_tokens_T=completion_T,
        engine_logprobs_T=np.full(completion_T.size, np.nan, dtype=np.float32), sampled_mask_T=np.ones(completion_T.size, dtype=bool),
        reward=number(record, reward) if type(record.get(reward)) in (int, float) else None, traffic="train",
        labels={"ids": "retokenised", **{name: str(value) for name, value in known.items() if value is not None}},
    )


def _text(value: Any, field: str) -> str:
    """A string; a chat, which TRL keeps for conversational data, needs a template nobody recorded."""
    if isinstance(value, str):
        return value
    raise InputError(f"text is expected, not {type(value).__name__} (a chat cannot be re-tokenised without its template)", field=field)


@lru_cache(maxsize=2)
def _tokenizer(folder: str) -> Callable[[str], list[int]]:
    file = Path(folder) / "tokenizer.json" if Path(folder).is_dir() else Path(folder)
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise ConfigError("re-tokenising needs tokenizers: pip install 'klaxon-rl[scorer]'") from None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception for a missing or broken file
        raise ConfigError(f"{file}: is no tokenizer ({str(error)[:100]}); name a folder with tokenizer.json") from None
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _json_records(path: Path) -> Records:
    for where, item in json_lines(path):
        yield where, item if isinstance(item, (dict, InputError)) else InputError("a JSON object is expected", where=where)


def _parquet_records(path: Path) -> Records:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number_ = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield f"{path}[{number_}]", row
                    number_ += 1
    except (OSError, pa.ArrowException) as error:
        yield str(path), InputError(f"is no complete Parquet file ({str(error).splitlines()[0][:150]})", where=str(path))


def _read_verl(path: Path, options: ReadOptions) -> Items:
    yield from _read(path, options, name="verl", records=_json_records, prompt="input", completion="output", reward="score")


def _read_trl(path: Path, options: ReadOptions) -> Items:
    yield from _read(path, options, name="TRL", records=_parquet_records, prompt="prompt", completion="completion", reward="reward")


def _is_verl(path: Path) -> bool:
    return first_keys(path) >= {"input", "output", "step"}


def _is_trl(path: Path) -> bool:
    if path.suffix != ".parquet":
        return False
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return {"prompt", "completion", "step"} <= set(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):
        return path.name.startswith("completions_")  # broken, and still TRL's by its name


VERL = Format(
    name="verl", about="verl rollout dump: text only, nothing to compare", where="`<rollout_data_dir>/<step>.jsonl`", turn_on="`trainer.rollout_data_dir`",
    knows=frozenset({"reward"}), patterns=("*.jsonl",), matches=_is_verl, read_file=_read_verl, complete=settled,
)
TRL = Format(
    name="trl", about="TRL completions: text only, nothing to compare", where="`<output_dir>/completions/completions_<step>.parquet`",
    turn_on="`log_completions=True`", knows=frozenset({"reward"}), patterns=("completions/**/*.parquet", "*.parquet"), matches=_is_trl, read_file=_read_trl, complete=settled,
)
