"""One contract for every rollout format: the same rollouts, nothing guessed, a broken record costs only itself."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.errors import ConfigError, InputError
from collector.records import Rollout
from collector.sources.formats import FORMATS, KNOWABLE, ReadOptions, detect, read_any
from collector.sources.formats.table import render

HERE = Path(__file__).parent / "fixtures/formats"
PROMPTS = [[1, 10, 11], [1, 12], [1, 10, 11]]
COMPLETIONS = [[20, 21, 22, 2], [23, 24, 2], [25, 90, 91, 26, 2]]
SAMPLED = [[1, 1, 1, 1], [1, 1, 1], [1, 0, 0, 1, 1]]
ENGINE = [[-0.5, -1.25, -0.125, -0.0625], [-2.0, -0.25, -0.5], [-0.75, None, None, -1.5, -0.25]]
TRAINER = [[-0.5625, -1.3125, -0.125, -0.0625], [-2.125, -0.25, -0.5], [-0.75, None, None, -1.625, -0.25]]
TEXT_ONLY = ("verl", "trl")
WITH_IDS = [name for name in FORMATS if name not in TEXT_ONLY]
LINES = [name for name in WITH_IDS if FORMATS[name].parse is not None]
OPTIONS = {"allow_pickle": True, "tokenizer": str(HERE / "tokenizer")}


def data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "STABLE")


def read(path: Path, name: str | None = None, **options: object) -> tuple[list[Rollout], list[InputError], ReadOptions]:
    chosen = ReadOptions(**{**OPTIONS, **options})
    items = list(read_any(path, name, options=chosen))
    return [one for one in items if isinstance(one, Rollout)], [one for one in items if isinstance(one, InputError)], chosen


def expected(values: list[float | None], rollout: Rollout) -> np.ndarray:
    return np.where(rollout.sampled_mask_T, np.array([np.nan if value is None else value for value in values], dtype=np.float32), np.nan)


@pytest.mark.parametrize("name", WITH_IDS)
def test_every_format_gives_the_same_rollouts(name):
    rollouts, refused, _ = read(HERE / name)
    assert not refused and len(rollouts) >= 2
    for n, rollout in enumerate(rollouts):
        assert rollout.prompt_tokens_P.tolist() == PROMPTS[n] and rollout.completion_tokens_T.tolist() == COMPLETIONS[n]
        assert rollout.prompt_tokens_P.dtype == rollout.completion_tokens_T.dtype == np.int32
        assert rollout.sampled_mask_T.astype(int).tolist() == SAMPLED[n]
        np.testing.assert_array_equal(np.where(rollout.sampled_mask_T, rollout.engine_logprobs_T, np.nan), expected(ENGINE[n], rollout))
        if rollout.trainer_logprobs_T is not None:
            np.testing.assert_array_equal(np.where(rollout.sampled_mask_T, rollout.trainer_logprobs_T, np.nan), expected(TRAINER[n], rollout))
    assert len({rollout.request_id for rollout in rollouts}) == len(rollouts)


@pytest.mark.parametrize("name", WITH_IDS)
def test_lengths_agree_and_unknown_stays_unknown(name):
    knows = FORMATS[name].knows
    for rollout in read(HERE / name)[0]:
        columns = [rollout.engine_logprobs_T, rollout.sampled_mask_T, *([rollout.trainer_logprobs_T] if rollout.trainer_logprobs_T is not None else [])]
        assert {column.size for column in columns} == {rollout.n_tokens}
        assert (rollout.trainer_logprobs_T is not None) == ("trainer logprobs" in knows)
        assert (rollout.version is not None) == ("weight version" in knows)
        assert (rollout.sampling.temperature is not None) == ("sampling" in knows)
        assert (rollout.reward is not None) == ("reward" in knows)
        assert (rollout.loss_mask_T is not None) == ("loss mask" in knows)
        assert rollout.finished_at is None and rollout.logprobs_mode == "unknown" and rollout.engine == "unknown"
        assert "finish reason" in knows or rollout.finish_reason is None


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_recognised_by_its_own_format_and_by_no_other(name):
    assert detect(HERE / name) is FORMATS[name]
    for path in data_files(HERE / name):
        assert [other for other, one in FORMATS.items() if one.matches(path)] == [name], path


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_reads_like_its_folder_and_a_forced_format_like_a_recognised_one(name):
    path = data_files(HERE / name)[0]
    ids = [rollout.request_id for rollout in read(HERE / name)[0]]
    assert [rollout.request_id for rollout in read(path)[0]] == [rollout.request_id for rollout in read(path, name)[0]] == ids


@pytest.mark.parametrize("name", FORMATS)
def test_a_cut_file_loses_its_end_and_says_so(name, tmp_path):
    copy = Path(shutil.copytree(HERE / name, tmp_path / name))
    whole = len(read(HERE / name)[0])
    for path in data_files(copy):
        if "train_data/7_0" not in str(path):
            path.write_bytes(path.read_bytes()[:-20])
    try:
        rollouts, refused, _ = read(copy, name)
    except InputError as error:
        rollouts, refused = [], [error]
    assert refused and name in str(refused[0]) and len(rollouts) < whole
    assert len(rollouts) == whole - 1 or name not in LINES or name == "pipelinerl"


ID_FIELD = {"klaxon": "logprobs", "pipelinerl": "logprobs", "prime-rl": "inference_logprobs", "nemo-rl": "generation_logprobs", "open-instruct": "logprobs"}


@pytest.mark.parametrize("name", ID_FIELD)
def test_a_broken_record_costs_only_itself_and_is_named(name, tmp_path):
    copy = Path(shutil.copytree(HERE / name, tmp_path / name))
    [path] = data_files(copy)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    broken = records[0][0] if isinstance(records[0], list) else records[0]
    values = broken[ID_FIELD[name]]
    (values[0] if isinstance(values[0], list) else values)[-1] = "x"
    if name == "nemo-rl":  # its last entries are padding
        values[0][3] = "x"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    rollouts, [error], _ = read(copy)
    assert len(rollouts) == len(read(HERE / name)[0]) - 1
    assert error.field == ID_FIELD[name] and "'x'" in error.reason and error.where.startswith(f"{path}:1")


def test_a_broken_sample_of_a_dump_costs_only_itself(tmp_path):
    import torch

    copy = Path(shutil.copytree(HERE / "slime", tmp_path / "slime"))
    path = copy / "rollout_data/7.pt"
    content = torch.load(path, weights_only=False)
    content["samples"][1]["rollout_log_probs"] = [-1.0]
    torch.save(content, path)
    rollouts, [error], _ = read(copy)
    assert len(rollouts) == 2 and error.field == "rollout_log_probs" and error.where == f"{path}[1]"


def test_a_broken_micro_batch_costs_only_itself(tmp_path):
    import msgspec

    copy = Path(shutil.copytree(HERE / "prime-rl-batches", tmp_path / "batches"))
    path = copy / "rollouts/step_3/rank_0.bin"
    good = msgspec.msgpack.decode(path.read_bytes())
    other = [[1, 2], [0, 1], *good[0][2:]]  # a layout whose second column is no mask
    path.write_bytes(msgspec.msgpack.encode([other, *good]))
    rollouts, [error], _ = read(copy)
    assert len(rollouts) == 3 and error.where == f"{path}[0]" and "enable_token_export" in error.reason


@pytest.mark.parametrize("row", [
    [[1, 10, 11], [False] * 3, [20, 21, 2], [True] * 3, [-0.5, -0.25, -1.0], [0.75] * 3, "gsm8k"],
    [[1, 10, 11, 20, 21, 2], [False] * 3 + [True] * 3, [0.0] * 3 + [-0.5, -0.25, -1.0], [0.75] * 6, "gsm8k"],
])
def test_training_samples_of_both_layouts_are_read(row, tmp_path):
    import msgspec

    path = tmp_path / "rollouts.bin"
    path.write_bytes(msgspec.msgpack.encode([[row], 3]))
    [rollout], refused, _ = read(path)
    assert not refused and rollout.completion_tokens_T.tolist() == [20, 21, 2] and rollout.sampling.temperature == 0.75
    assert rollout.prompt_tokens_P.tolist() == [1, 10, 11] and rollout.engine_logprobs_T.tolist() == [-0.5, -0.25, -1.0]


junk = st.recursive(st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=3),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2), max_leaves=5)


@pytest.mark.parametrize("name", LINES)
@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_junk_in_any_field_is_a_rollout_or_a_refusal_never_a_crash(name, data):
    [path] = data_files(HERE / name)
    record = json.loads(path.read_text().splitlines()[0])
    target = record[0] if isinstance(record, list) else record
    field = data.draw(st.sampled_from(sorted(target)))
    target[field] = data.draw(junk)
    items = list(FORMATS[name].each(record, "f:1", ReadOptions()))
    assert items and all(isinstance(item, (Rollout, InputError)) for item in items)
    for item in items:
        assert isinstance(item, InputError) or item.engine_logprobs_T.size == item.n_tokens == item.sampled_mask_T.size


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_text_is_refused_with_what_to_turn_on_instead(name):
    rollouts, [error], options = read(HERE / name, tokenizer="")
    assert not rollouts and options.counts["text_only"] == 3
    assert "klaxon-tap" in str(error) and "proxy" in str(error) and "nothing can be compared" in str(error)


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_text_with_a_tokenizer_is_marked_and_has_no_logprobs(name):
    rollouts, _, options = read(HERE / name)
    assert options.counts["text_only"] == len(rollouts) == 3
    for rollout in rollouts:
        assert rollout.labels["ids"] == "retokenised" and np.isnan(rollout.engine_logprobs_T).all()
        assert rollout.completion_tokens_T.tolist() == [3, 4]
    with pytest.raises(ConfigError, match="tokenizer.json"):
        read(HERE / name, tokenizer=str(HERE))


def test_a_pickle_is_refused_until_it_is_allowed_and_then_runs_nothing(tmp_path):
    with pytest.raises(InputError, match="--allow-pickle"):
        read(HERE / "skyrl", allow_pickle=False)

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "global_step_1_training_input.pkl"
    path.write_bytes(pickle.dumps({"training_batch": 1, "evil": Evil()}))
    with pytest.raises(InputError, match="not allowed"):
        read(path, "skyrl")
    assert not (tmp_path / "ran").exists()


def test_sample_objects_are_read_as_attributes_without_the_framework(tmp_path, monkeypatch):
    import sys
    import types

    import torch

    class Sample:
        pass

    Sample.__module__, Sample.__qualname__ = "slime.utils.types", "Sample"
    for name in ("slime", "slime.utils", "slime.utils.types"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["slime.utils.types"].Sample = Sample
    sample = Sample()
    sample.__dict__.update(torch.load(HERE / "slime/rollout_data/7.pt", weights_only=False)["samples"][0])
    torch.save({"rollout_id": 7, "samples": [sample]}, tmp_path / "7.pt")
    [rollout], refused, _ = read(tmp_path / "7.pt")
    assert not refused and rollout.completion_tokens_T.tolist() == COMPLETIONS[0] and rollout.cached_prompt_tokens == 1


def test_both_ways_of_padding_are_read(tmp_path):
    """Older SkyRL pads responses on the right, newer ones push the whole sequence to the right."""
    rows = {"sequences": [[0, 1, 12, 23, 24, 2, 0], [0, 0, 1, 12, 23, 24, 2]], "attention_mask": [[0, 1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1]],
            "response_mask": [[1, 1, 1, 0], [0, 1, 1, 1]], "rollout_logprobs": [[-2.0, -0.25, -0.5, 0.0], [0.0, -2.0, -0.25, -0.5]]}
    path = tmp_path / "global_step_1_training_input.pkl"
    path.write_bytes(pickle.dumps({name: np.array(value) for name, value in rows.items()}))
    rollouts, refused, _ = read(path, "skyrl")
    assert not refused and len(rollouts) == 2
    for rollout in rollouts:
        assert rollout.prompt_tokens_P.tolist() == PROMPTS[1] and rollout.completion_tokens_T.tolist() == COMPLETIONS[1]
        assert rollout.engine_logprobs_T.tolist() == ENGINE[1] and rollout.trainer_logprobs_T is None


@pytest.mark.parametrize("value", ["1" + "0" * 400, "-1e300", "-Infinity", "null"])
def test_numbers_beyond_float32_are_as_good_as_infinite(value, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(f'{{"prompt_token_ids": [1], "token_ids": [2, 3], "logprobs": [-0.5, {value}]}}\n')
    [rollout], refused, _ = read(path)
    assert not refused and np.isnan(rollout.engine_logprobs_T).tolist() == [False, True]


def test_a_pt_file_with_code_is_refused_by_name(tmp_path):
    import torch

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "7.pt"
    torch.save({"rollout_id": 7, "samples": [Evil()]}, path)
    with pytest.raises(InputError, match="more than plain data"):
        read(path)
    assert not (tmp_path / "ran").exists()


def test_without_its_package_a_format_says_what_to_install(monkeypatch):
    import builtins

    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name in ("msgspec", "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"klaxon-rl\[sources\]"):
        read(HERE / "prime-rl-batches", "prime-rl-batches")
    with pytest.raises(ConfigError, match=r"pip install 'klaxon-rl\[scorer\]'"):
        read(HERE / "slime", "slime")


def test_the_version_at_the_start_is_believed_only_when_the_operator_says_so():
    assert {rollout.version for rollout in read(HERE / "pipelinerl")[0]} == {None}
    assert {rollout.version for rollout in read(HERE / "pipelinerl", version_at_start=True)[0]} == {"4096"}


def test_versions_that_changed_during_a_sample_are_unknown(tmp_path):
    import torch

    copy = Path(shutil.copytree(HERE / "slime", tmp_path / "slime"))
    content = torch.load(copy / "rollout_data/7.pt", weights_only=False)
    content["samples"][0]["weight_versions"] = ["7", "8"]
    torch.save(content, copy / "rollout_data/7.pt")
    first, second, _ = read(copy)[0]
    assert first.version is None and first.labels["versions"] == "7,8" and second.version == "7"


def test_a_trainer_column_of_other_tokens_is_left_out_and_counted(tmp_path):
    import torch

    copy = Path(shutil.copytree(HERE / "slime", tmp_path / "slime"))
    content = torch.load(copy / "train_data/7_0.pt", weights_only=False)
    content["rollout_data"]["log_probs"][0] = content["rollout_data"]["log_probs"][0][:2]  # a piece, as under context parallelism
    torch.save(content, copy / "train_data/7_0.pt")
    rollouts, refused, options = read(copy)
    assert [rollout.trainer_logprobs_T is None for rollout in rollouts] == [False, False, True]
    assert not refused and options.counts["trainer_side_not_matched"] == 1


def test_tools_without_a_mask_are_refused(tmp_path):
    path = tmp_path / "run_rollouts_000000.jsonl"
    record = json.loads((HERE / "open-instruct/run_rollouts_000000.jsonl").read_text().splitlines()[0])
    record["request_info"]["tool_calleds"] = True
    path.write_text(json.dumps(record) + "\n")
    rollouts, [error], _ = read(path)
    assert not rollouts and error.field == "request_info.tool_calleds"


def test_a_step_without_its_marker_waits(tmp_path):
    copy = Path(shutil.copytree(HERE / "prime-rl", tmp_path / "prime"))
    (copy / "token_exports/step_3/STABLE").unlink()
    with pytest.raises(InputError, match="still being written"):
        list(read_any(copy, now=0.0))
    assert len(read(copy / "token_exports/step_3/rank_0.jsonl")[0]) == 3, "a file that is named is read"


def test_repeated_rollouts_are_dropped_and_odd_clocks_counted(tmp_path):
    line = json.loads((HERE / "klaxon/rollouts.jsonl").read_text().splitlines()[0])
    path = tmp_path / "r.jsonl"
    same_name = {**line, "token_ids": [5, 6, 7, 8]}
    times = [{**line, "request_id": f"t{at}", "finished_at": at} for at in (1000.0, 900.0, 1070.0)]
    path.write_text("".join(json.dumps(one) + "\n" for one in (line, line, same_name, *times)))
    options = ReadOptions()
    items = list(read_any(path, options=options, now=1000.0))
    assert len(items) == 5
    assert {name: options.counts[name] for name in ("duplicates", "out_of_order", "clock_skew")} == {"duplicates": 1, "out_of_order": 1, "clock_skew": 1}


@pytest.mark.parametrize("name", LINES)
def test_gzip_is_read_whole(name, tmp_path):
    import gzip

    [source] = data_files(HERE / name)
    path = tmp_path / f"{source.name}.gz"
    path.write_bytes(gzip.compress(source.read_bytes()))
    assert detect(path) is FORMATS[name] and len(read(path)[0]) == len(read(source)[0])


def test_an_unknown_name_lists_the_formats():
    with pytest.raises(ConfigError, match="pipelinerl.*nemo-rl"):
        read(HERE / "klaxon", "nemo")


def test_an_unknown_binary_file_is_not_guessed_at(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x00" * 32)
    with pytest.raises(InputError, match="--format"):
        read(path)


def test_docs_list_every_format_and_field():
    page = Path(__file__).parent.parent / "docs/sources.md"
    assert page.read_text(encoding="utf-8") == render(), "run: python -m collector.sources.formats > docs/sources.md"
    assert all(one.knows <= set(KNOWABLE) for one in FORMATS.values())
