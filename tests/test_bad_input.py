"""Bad and odd input of every source: refused or handled, counted by its reason, and shown by `klaxon status`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_command_daemon import ROLLOUT, daemon_of, get, klaxon, place, wait  # noqa: F401  (place is a fixture)

from collector.errors import InputError
from collector.sources.refusals import REASONS, added, reason_of
from collector.sources.rollout_json import rollout_or_error
from collector.sources.trainer_logprobs import TrainerTail
from klaxon.commands.status import _odd
from klaxon.config import Config
from klaxon.trainer_side import TrainerSide

GOOD = {"prompt_token_ids": [1], "token_ids": [2, 3], "logprobs": [-0.5, -1.0]}


@pytest.mark.parametrize(("change", "reason"), [
    ({"schema": 9}, "unknown_schema"), ({"logprobs": [-0.5]}, "length_mismatch"), ({"logprobs": [-0.5, 1.5]}, "above_zero"),
    ({"token_ids": None}, "missing_field"), ({"token_ids": [2, -3]}, "bad_field"), ({"token_ids": [2, 2**31]}, "bad_field"),
    ({"traffic": "fun"}, "bad_field"), ({"weight_versions": [[0, 9, "1"]]}, "bad_field"), ({"loss_mask": [1]}, "length_mismatch"),
])
def test_a_refusal_has_a_reason_that_can_be_counted(change: dict[str, Any], reason: str) -> None:
    error = rollout_or_error(GOOD | change, where="line 1")
    assert isinstance(error, InputError) and reason_of(error) == reason and reason in REASONS


def test_counts_of_the_same_name_add_up() -> None:
    assert added({"refused": 3, "a": 1}, {"refused": 2}) == {"refused": 5, "a": 1}


def test_status_says_in_words_what_was_refused_and_odd() -> None:
    counts = {"refused": 3, "refused_not_json": 2, "refused_unknown_schema": 1, "pushed_duplicates": 2, "file_duplicates": 3,
              "file_tail_rotated": 1, "left_out_tokens_token_out_of_range": 7, "seen": 9, "metrics_clock_skew": 0}
    assert _odd(counts) == [("refused", "2 not json, 1 unknown schema"),
                            ("odd input", "5 repeated, 1 files rotated, 7 tokens of another tokenizer")]
    assert _odd({"seen": 9, "refused": 0}) == []


def test_a_trainers_file_that_is_rotated_or_written_anew_is_counted_and_read_on(tmp_path: Path) -> None:
    path = tmp_path / "trainer.jsonl"
    line = lambda name: json.dumps({"request_id": name, "logprobs": [-1.0]}) + "\n"  # noqa: E731
    path.write_text(line("a"))
    tail = TrainerTail(path)
    assert [word.request_id for word in tail.poll()] == ["a"]
    path.rename(tmp_path / "trainer.jsonl.1")
    path.write_text(line("b"))
    assert [word.request_id for word in tail.poll()] == ["b"]
    path.write_text("nonsense that is longer than the line before\n")
    refused, = tail.poll()
    assert reason_of(refused) == "not_json" and tail.counts == {"tail_rotated": 1, "tail_truncated": 1}


class Shelved:
    """A store that keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def query(self, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        return []

    def append_metrics(self, step: int, at: float, values: dict[str, float], *, source: str) -> None:
        self.rows.append((step, dict(values)))


def test_metrics_repeated_backwards_or_from_the_future_are_counted_and_repeats_kept_once(tmp_path: Path) -> None:
    path, store = tmp_path / "metrics.jsonl", Shelved()
    first = [{"step": 1, "kl": 0.1}, {"step": 2, "kl": 0.2}]
    write = lambda rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows))  # noqa: E731
    write(first)
    side = TrainerSide(Config.model_validate({"trainer": {"metrics_file": str(path)}}), store, say=lambda *_: None)
    side.poll_metrics()
    write([{"step": 0, "kl": 0.05, "note": "resumed from the checkpoint of step 0"}, *first, {"step": 3, "kl": 0.3, "at": time.time() + 3600}, {"step": "x"}])
    side.poll_metrics()
    assert [step for step, _ in store.rows] == [1, 2, 0, 3] and side.refused == 1
    counts = side.input_counts
    assert counts["metrics_repeated"] == 2 and counts["metrics_clock_skew"] == 1 and counts["metrics_tail_truncated"] == 1
    assert counts["metrics_out_of_order"] == 1


def test_the_daemon_counts_bad_and_odd_pushes_by_reason(place) -> None:  # noqa: F811
    config, url, _ = place
    now = time.time()
    lines = [{**ROLLOUT, "request_id": name, "finished_at": at} for name, at in (("a", now), ("b", now + 3600), ("a", now))]
    lines += [{**ROLLOUT, "schema": 9}, {**ROLLOUT, "logprobs": [-0.5]}]
    with daemon_of(config, url):
        httpx.post(url + "/v1/ingest", content="\n".join(map(json.dumps, lines)), timeout=5, trust_env=False).raise_for_status()
        wait(lambda: get(url, "/v1/status")["counts"].get("pushed_duplicates"))
        counts = wait(lambda: (found := get(url, "/v1/status")["counts"]).get("seen") == 2 and found)
        shown = klaxon("status", "--url", url, COLUMNS="200").stdout
    assert counts["refused"] == 2 and counts["refused_unknown_schema"] == counts["refused_length_mismatch"] == 1
    assert counts["pushed_duplicates"] == 1 and counts["pushed_clock_skew"] == 1
    assert "1 unknown schema" in shown and "1 repeated" in shown
