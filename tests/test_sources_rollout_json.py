import gzip
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.errors import InputError
from collector.sources.formats.tail import SourceTail
from collector.sources.rollout_json import parse_rollout, read_rollouts, rollout_to_json

GOOD = {"request_id": "r1", "prompt_token_ids": [1, 2], "token_ids": [3, 4], "logprobs": [-0.5, -1.5]}


def test_missing_fields_stay_unknown():
    rollout = parse_rollout(GOOD, where="x")
    assert rollout.sampling.temperature is None and rollout.logprobs_mode == "unknown" and rollout.version is None
    assert rollout.expected_logprobs_mode == "processed_logprobs"
    assert rollout.cached_prompt_tokens is None and rollout.trainer_logprobs_T is None


@pytest.mark.parametrize(("change", "field", "words"), [
    ({"logprobs": [-0.5]}, "logprobs", "length mismatch: 1 logprobs for 2 token_ids"),
    ({"logprobs": [-0.5, 0.25]}, "logprobs", "logits mode"),
    ({"logprobs": [-0.5, "x"]}, "logprobs", "entry 1"),
    ({"logprobs": None}, "logprobs", "required"),
    ({"token_ids": [3, -4]}, "token_ids", "entry 1"),
    ({"token_ids": [3, True]}, "token_ids", "entry 1"),
    ({"token_ids": [], "logprobs": []}, "token_ids", "empty"),
    ({"token_ids": "34"}, "token_ids", "list"),
    ({"schema": 9}, "schema", "9"),
    ({"sampled_mask": [1]}, "sampled_mask", "length mismatch"),
    ({"weight_versions": [[0, 5, "1"]]}, "weight_versions", "within 0…2"),
    ({"sampling": {"temperature": -1}}, "sampling.temperature", "below 0"),
    ({"expected_logprobs_mode": "raw"}, "expected_logprobs_mode", "raw_logprobs"),
    ({"top_logprobs": [[[1, -0.5]]]}, "top_logprobs", "a token"),
    ({"inclusion_probability": 0}, "inclusion_probability", "(0, 1]"),
    ({"cached_prompt_tokens": 1.5}, "cached_prompt_tokens", "whole"),
])
def test_a_bad_field_is_refused_by_name(change, field, words):
    with pytest.raises(InputError) as caught:
        parse_rollout({**GOOD, **change}, where="f.jsonl:7")
    assert caught.value.field == field and words in str(caught.value) and "f.jsonl:7" in str(caught.value)


def test_non_finite_logprobs_are_accepted_and_become_nan():
    rollout = parse_rollout(json.loads('{"prompt_token_ids": [1], "token_ids": [1,2,3,4], "logprobs": [null, NaN, -Infinity, -1]}'), where="x")
    assert np.isnan(rollout.engine_logprobs_T).tolist() == [True, True, True, False]


def test_a_bad_line_costs_only_itself_and_names_its_number(tmp_path):
    path = tmp_path / "r.jsonl"
    lines = [json.dumps(GOOD), '{"token_ids": [1', "", json.dumps({**GOOD, "logprobs": [1.0, -1.0]}), "[1]", json.dumps(GOOD), '{"cut']
    path.write_text("\n".join(lines))
    items = list(read_rollouts(path))
    errors = [item for item in items if isinstance(item, InputError)]
    assert len(items) - len(errors) == 2
    assert [str(error).split(": ")[0].rsplit(":", 1)[1] for error in errors] == ["2", "4", "5", "7"]
    assert "cut short" in str(errors[-1])


def test_a_file_that_cannot_be_read_says_so(tmp_path):
    with pytest.raises(InputError, match="cannot be opened"):
        list(read_rollouts(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="folder"):
        list(read_rollouts(tmp_path))
    binary = tmp_path / "b.jsonl"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    assert [type(item) for item in read_rollouts(binary)] == [InputError]


def test_gzip_is_unpacked_and_a_torn_one_keeps_what_was_good(tmp_path):
    path = tmp_path / "r.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(GOOD) + "\n").encode()))
    assert [item.request_id for item in read_rollouts(path)] == ["r1"]


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-50, 0) | st.just(math.nan)), min_size=1, max_size=20))
def test_writing_and_reading_gives_the_same_rollout(pairs):
    ids, logprobs = zip(*pairs, strict=True)
    rollout = parse_rollout({**GOOD, "token_ids": list(ids), "logprobs": list(logprobs), "weight_versions": [[0, 1, "7"]],
                             "sampling": {"temperature": 0.7}, "labels": {"env": "a"}}, where="x")
    again = parse_rollout(json.loads(json.dumps(rollout_to_json(rollout))), where="y")
    np.testing.assert_array_equal(rollout.engine_logprobs_T, again.engine_logprobs_T)
    np.testing.assert_array_equal(rollout.completion_tokens_T, again.completion_tokens_T)
    assert (again.weight_versions, again.sampling, again.labels) == (rollout.weight_versions, rollout.sampling, rollout.labels)


def test_a_tailed_file_gives_each_line_once_and_waits_for_a_half_written_one(tmp_path):
    path = tmp_path / "live.jsonl"
    tail = SourceTail(path)
    assert tail.poll(4e9) == []
    line = json.dumps(GOOD)
    other = line.replace("r1", "r2")
    path.write_text(line + "\n" + other[:20])
    assert len(tail.poll(4e9)) == 1 and tail.poll(4e9) == []
    with path.open("a") as stream:
        stream.write(other[20:] + "\nbroken\n")
    second = tail.poll(4e9)
    assert second[0].request_id == "r2" and isinstance(second[1], InputError) and ":3" in str(second[1])
    path.write_text(line.replace("r1", "r3") + "\n")
    assert len(tail.poll(4e9)) == 1, "a replaced file is read from its start"
