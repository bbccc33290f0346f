"""Live sources of any format: lines as they are appended, step files when their writer is done, nothing twice, nothing lost."""

import json
import os
import shutil
from pathlib import Path

import pytest

from collector.errors import ConfigError, InputError
from collector.records import Rollout
from collector.sources.file_tail import JsonLinesTail
from collector.sources.formats import ReadOptions
from collector.sources.formats.tail import LIMIT, SourceTail
from klaxon.config import parse_config

HERE = Path(__file__).parent / "fixtures/formats"
NOW = 4e9  # long after every fixture was written, so that every file has settled
LINE = (HERE / "klaxon/rollouts.jsonl").read_text().splitlines(keepends=True)[0]


def line(name: str) -> str:
    return json.dumps({**json.loads(LINE), "request_id": name}) + "\n"


def names(items: list) -> list[str]:
    return [item.request_id if isinstance(item, Rollout) else str(item.where) for item in items]


@pytest.mark.parametrize("name", ["klaxon", "pipelinerl", "nemo-rl", "open-instruct"])
def test_a_line_format_is_tailed_line_by_line(name, tmp_path):
    [source] = [path for path in (HERE / name).rglob("*.jsonl")]
    text = source.read_text()
    path = tmp_path / source.name
    tail = SourceTail(path)
    assert tail.poll(NOW) == []
    cut = text.index("\n") + 20
    path.write_text(text[:cut])
    first = tail.poll(NOW)
    assert first and tail.poll(NOW) == [], "a half-written line waits"
    with path.open("a") as stream:
        stream.write(text[cut:])
    ids = names(first + tail.poll(NOW))
    assert len(ids) == len(set(ids)) == {"open-instruct": 2}.get(name, 3)
    assert tail.poll(NOW) == []


def test_a_rotated_file_is_read_to_its_end_before_the_new_one(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(line("a"))
    tail = SourceTail(path)
    assert names(tail.poll(NOW)) == ["a"]
    with path.open("a") as stream:
        stream.write(line("b"))
    path.rename(tmp_path / "r.jsonl.1")
    assert tail.poll(NOW) == []
    path.write_text(line("c"))
    assert names(tail.poll(NOW) + tail.poll(NOW)) == ["b", "c"]
    assert tail.counts["tail_rotated"] == 1


def test_a_file_written_anew_in_place_is_read_again_without_repeats(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(line("a") + line("b"))
    tail = SourceTail(path)
    assert names(tail.poll(NOW)) == ["a", "b"]
    path.write_text(line("c"))
    os.utime(path, (1, 1))
    assert names(tail.poll(NOW)) == ["c"] and tail.counts["tail_truncated"] == 1
    path.write_text(line("a") + line("d") + line("e"))  # longer than before: only its beginning tells
    assert names(tail.poll(NOW)) == ["d", "e"] and tail.counts["tail_truncated"] == 2 and tail.counts["duplicates"] == 1


def test_a_line_longer_than_a_poll_arrives_whole(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"pad": "x" * 5000}) + "\n" + json.dumps({"n": 2}) + "\n")
    tail = JsonLinesTail(path)
    found = [item for _ in range(4) for _, item in tail.poll(limit_bytes=1000)]
    assert [sorted(item) for item in found] == [["pad"], ["n"]]


def test_files_of_a_folder_are_followed_as_they_appear(tmp_path):
    tail = SourceTail(tmp_path)
    (tmp_path / "a.jsonl").write_text(line("a"))
    assert names(tail.poll(NOW)) == ["a"]
    (tmp_path / "b.jsonl").write_text(line("b"))
    assert tail.poll(NOW + 0.1) == [], "a folder is not listed at every poll"
    assert names(tail.poll(NOW + 3)) == ["b"]


def test_a_step_is_read_once_and_only_after_its_marker(tmp_path):
    step = tmp_path / "token_exports/step_3"
    shutil.copytree(HERE / "prime-rl/token_exports/step_3", step)
    (step / "STABLE").unlink()
    tail = SourceTail(tmp_path, "prime-rl")
    assert tail.poll(NOW) == []
    (step / "STABLE").touch()
    assert len(tail.poll(NOW + 3)) == 3 and tail.poll(NOW + 6) == []
    later = tmp_path / "token_exports/step_4"
    shutil.copytree(step, later)
    text = (later / "rank_0.jsonl").read_text().replace('"export_step": 3', '"export_step": 4')
    (later / "rank_0.jsonl").write_text(text)
    assert [item.labels["step"] for item in tail.poll(NOW + 9)] == ["4"] * 3


def test_a_dump_waits_for_the_trainers_side_but_not_for_ever(tmp_path):
    copy = Path(shutil.copytree(HERE / "slime", tmp_path / "slime"))
    both = (copy / "train_data/7_0.pt").read_bytes()
    (copy / "train_data/7_0.pt").unlink()
    written = (copy / "rollout_data/7.pt").stat().st_mtime
    tail = SourceTail(copy, "slime")
    assert tail.poll(written + 60) == [], "the trainer's side is not there yet"
    (copy / "train_data/7_0.pt").write_bytes(both)
    here = (copy / "train_data/7_0.pt").stat().st_mtime
    assert tail.poll(here + 1) == [], "it may still be being written"
    assert all(item.trainer_logprobs_T is not None for item in tail.poll(here + 10))
    (copy / "train_data/7_0.pt").unlink()
    alone = SourceTail(copy, "slime").poll(written + 3600)
    assert len(alone) == 3 and all(item.trainer_logprobs_T is None for item in alone)


def test_a_large_file_is_given_out_in_portions(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("".join(line(f"r{n}") for n in range(LIMIT + 10)))
    tail = SourceTail(path)
    assert [len(tail.poll(NOW)) for _ in range(3)] == [LIMIT, 10, 0]


def test_text_never_reaches_the_detectors_and_is_counted(tmp_path):
    tail = SourceTail(HERE / "verl", options=ReadOptions(tokenizer=str(HERE / "tokenizer")))
    assert tail.poll(NOW) == [] and tail.counts["text_only"] == 3
    [refusal] = SourceTail(HERE / "verl").poll(NOW)
    assert isinstance(refusal, InputError) and "klaxon-tap" in str(refusal)


def test_a_file_of_nothing_but_bad_lines_is_not_silent(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"prompt": 1}\n')
    [error] = SourceTail(path).poll(NOW)
    assert isinstance(error, InputError) and "required" in str(error)


def test_a_missing_package_or_a_refused_pickle_is_one_refusal_not_a_crash():
    tail = SourceTail(HERE / "skyrl")
    [refusal] = tail.poll(NOW)
    assert "--allow-pickle" in str(refusal) and tail.poll(NOW + 3) == []
    assert len(SourceTail(HERE / "skyrl", options=ReadOptions(allow_pickle=True)).poll(NOW)) == 2


def test_the_config_takes_paths_and_tables_and_names_what_is_wrong():
    sources = parse_config({"sources": {"files": ["a.jsonl", {"path": "b", "format": "slime"}]}}, where="c").sources
    assert [(one.path, one.format) for one in sources.tailed] == [("a.jsonl", ""), ("b", "slime")]
    for bad, words in (({"path": "b", "format": "slim"}, "slim"), ({"format": "slime"}, "path"), ({"path": "b", "fmt": "x"}, "fmt"), (3, "files")):
        with pytest.raises(ConfigError, match=words):
            parse_config({"sources": {"files": [bad]}}, where="c")
