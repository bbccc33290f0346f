"""Files of other trainers through the command line and the worker: recognised, counted, refused in plain words."""

import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from collector.errors import InputError, KlaxonError
from collector.sources.formats import FORMATS
from collector.sources.inbox import TapInbox
from klaxon.batches import BatchBuilder
from klaxon.cli import app
from klaxon.config import parse_config
from klaxon.worker import Worker

HERE = Path(__file__).parent / "fixtures/formats"
TEXT_ONLY = ("verl", "trl")


def run(command: str, *arguments: str):
    return CliRunner().invoke(app([command]), [command, *arguments])


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in TEXT_ONLY])
def test_look_takes_a_folder_of_any_format(name):
    report = json.loads(run("look", str(HERE / name), "--json", "--allow-pickle").stdout)
    assert report["rollouts"] >= 2 and report["refused"]["count"] == 0
    assert report["tier"] == int("trainer logprobs" in FORMATS[name].knows)


@pytest.mark.parametrize("name", TEXT_ONLY)
@pytest.mark.parametrize("more", [(), ("--tokenizer", str(HERE / "tokenizer"))], ids=["plain", "tokenizer"])
@pytest.mark.parametrize("command", [("look",), ("score", "--model", "m"), ("diagnose", "--model", "m")], ids=lambda command: command[0])
def test_text_only_is_refused_with_what_to_turn_on(command, name, more):
    result = run(command[0], str(HERE / name), *command[1:], *more)
    assert isinstance(result.exception, InputError) and result.exit_code != 0
    for words in ("3 records", "nothing can be compared", "klaxon-tap", "proxy"):
        assert words in str(result.exception)


def test_the_formats_are_listed_without_a_file_and_at_an_unknown_name():
    listed = run("look", "--format", "help")
    assert listed.exit_code == 0 and all(name in listed.stdout for name in FORMATS)
    assert "nemo-rl" in str(run("look", "x", "--format", "nemo").exception)


def test_what_was_left_out_is_said(tmp_path):
    line = (HERE / "klaxon/rollouts.jsonl").read_text().splitlines()[0]
    path = tmp_path / "r.jsonl"
    path.write_text(f"{line}\n{line}\n")
    assert "1 repeated rollouts dropped" in run("look", str(path)).stdout
    assert json.loads(run("look", str(path), "--json").stdout)["left_out"] == {"duplicates": 1}


def test_a_pickle_needs_the_flag():
    result = run("look", str(HERE / "skyrl"))
    assert isinstance(result.exception, KlaxonError) and "--allow-pickle" in str(result.exception)


def test_the_worker_tails_every_format_side_by_side():
    files = [{"path": str(HERE / name), "allow_pickle": True} for name in FORMATS]
    config = parse_config({"sources": {"files": files}, "sampler": {"tokens_per_minute": 1_000_000}}, where="test")
    refused: list[InputError] = []
    builder = BatchBuilder(started_at=4e9, batch_seconds=60.0, watermark_seconds=1.0, first_t=0)
    worker = Worker(config, inbox=TapInbox(8), builder=builder, builder_lock=threading.Lock(), views=None, refuse=refused.append,
                    file_rollouts=lambda t, pairs: None, clock=lambda: 4e9)
    assert worker.step()
    assert worker.counts["seen"] == 3 * 6 + 2 * 2 and worker.counts["nonfinite"] == 0
    assert worker.trainer_logprobs_seen and worker.counts["scored"] == 3 * 4 + 2, "klaxon, prime-rl, nemo-rl, slime; skyrl"
    assert [one for one in refused if "klaxon-tap" not in str(one)] == [] and len(refused) == 2
    assert worker.counts["file_text_only"] == 6 and worker.counts["file_padding_rows"] == 1


@pytest.mark.parametrize(("entry", "state", "words"), [
    (str(HERE / "slime"), "ok", "(slime)"),
    ({"path": str(HERE / "verl")}, "bad", "nothing to compare"),
    (str(HERE / "tokenizer"), "warn", "recognises"),
    ("not/there", "warn", "not there yet"),
    ("redis://h:6379/actor/0/0", "ok", "actor/0/0"),
])
def test_check_says_what_stands_at_a_source(entry, state, words):
    from klaxon.checks.rollouts import rollouts as _tap

    finding = _tap(parse_config({"sources": {"files": [entry]}}, where="test"), None)
    assert finding.state == state and words in finding.text
