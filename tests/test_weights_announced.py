"""Announcements alone open tier 2; what they must say to be believed; the order of versions and what is read from it."""

import json
import time
from dataclasses import replace

import pytest
import torch
from fastapi.testclient import TestClient
from transformers import AutoModelForCausalLM, LlamaConfig

from collector.records import Rollout
from collector.sources.rollout_json import parse_rollout
from collector.weights.ledger import VersionLedger
from klaxon.app import Daemon
from klaxon.config import parse_config

TINY = LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                   num_key_value_heads=2, max_position_embeddings=128, head_dim=8)


def save(folder, seed):
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(TINY).save_pretrained(folder)
    return folder


def rollout(version, request_id="r", **fields):
    return {"kind": "rollout", "request_id": request_id, "prompt_token_ids": [1, 2, 3], "token_ids": [4, 5, 6], "logprobs": [-4.0, -4.5, -5.0],
            "sampling": {"temperature": 1.0}, "finished_at": time.time(), "engine": "e", "weight_versions": [[0, 3, version]], **fields}


@pytest.fixture
def daemon(tmp_path):
    made = []

    def make(**sections):
        data = {"run": {"name": "r", "dir": str(tmp_path / "state")}, "alerts": {"console": False}, **sections}
        made.append(Daemon(parse_config(data, where="test")))
        return made[0], TestClient(made[0].api)

    yield make
    made[0].store.close()


def feed(klaxon, http, *messages):
    http.post("/v1/ingest", content="\n".join(json.dumps(message) for message in messages))
    while klaxon.worker.step():
        pass


def test_an_announcement_alone_opens_tier_2_and_its_rollouts_are_scored(daemon, tmp_path):
    klaxon, http = daemon()
    assert klaxon.worker.views is None and klaxon.live.tier == 0, "torch is not even imported before somebody announces"
    answer = http.post("/v1/weights", json={"version": "1", "path": str(save(tmp_path / "w1", 1))})
    assert answer.status_code == 202 and answer.json()["version"] == "1"
    klaxon._poll_weights()
    feed(klaxon, http, rollout("1"))
    assert klaxon.live.tier == 2 and klaxon.worker.counts["tokens_scored"] == 3
    assert klaxon.live.status()["weights"]["rollout_lag"] == {"lag_min": 0, "lag_mean": 0, "lag_max": 0, "rollouts": 1, "unknown_share": 0.0}


def test_rollouts_wait_while_the_scorers_libraries_are_imported(daemon, tmp_path):
    klaxon, http = daemon()
    http.post("/v1/weights", json={"version": "1", "path": str(save(tmp_path / "w1", 1))})
    klaxon.trainer.poll_weights()
    feed(klaxon, http, rollout("1"))
    assert klaxon.worker.counts["seen"] == 0, "believed, but the scorer is not there yet"
    klaxon._poll_weights()
    time.sleep(1.1)
    feed(klaxon, http)
    assert klaxon.worker.counts["tokens_scored"] == 3


def test_the_ingest_message_does_the_same_as_the_endpoint(daemon, tmp_path):
    klaxon, http = daemon()
    http.post("/v1/ingest", content=json.dumps({"kind": "weights", "version": 7, "path": str(save(tmp_path / "w7", 1))}))
    klaxon._poll_weights()
    assert klaxon.shadow.shelf.versions() == ["7"] and klaxon.worker.views is not None


def test_trainer_logprobs_count_until_the_first_version_is_whole(daemon, tmp_path):
    klaxon, http = daemon()
    feed(klaxon, http, rollout("1", trainer_logprobs=[-4.1, -4.4, -5.0]))
    assert klaxon.live.tier == 1 and klaxon.worker.counts["tokens_scored"] == 3


@pytest.mark.parametrize(("message", "reason"), [
    ({"version": "1", "path": "nowhere"}, "nowhere: no such folder"),
    ({"version": "default", "path": "x"}, "'default' names no version"),
    ({"version": "1"}, "KeyError: 'path'"),
    ([], "is expected"),
])
def test_a_refused_announcement_says_why(daemon, message, reason):
    klaxon, http = daemon()
    answer = http.post("/v1/weights", json=message)
    assert answer.status_code == 422 and reason in answer.json()["error"]
    assert klaxon.trainer.ledger.published() == ()


def test_half_written_weights_are_refused_by_file_and_size(daemon, tmp_path):
    klaxon, http = daemon()
    folder = save(tmp_path / "w", 1)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-7])
    answer = http.post("/v1/weights", json={"version": "1", "path": str(folder)})
    assert answer.status_code == 422 and f"model.safetensors: half-written: {len(whole) - 7} bytes, its header says {len(whole)}" in answer.json()["error"]


def test_the_token_is_asked_for_here_too(daemon, monkeypatch):
    monkeypatch.setenv("KLAXON_TOKEN", "s3cret")
    _, http = daemon()
    assert http.post("/v1/weights", json={"version": "1", "path": "x"}).status_code == 401
    assert http.post("/v1/weights", json={"version": "1", "path": "x"}, headers={"Authorization": "Bearer s3cret"}).status_code == 422


@pytest.mark.parametrize(("sections", "reason"), [({"shadow": {"enabled": False}}, "shadow.enabled is false"), ({"weights": {"announced": False}}, "announcements are not taken")])
def test_where_nothing_scores_an_announcement_is_refused_with_the_key_to_change(daemon, sections, reason):
    _, http = daemon(**sections)
    answer = http.post("/v1/weights", json={"version": "1", "path": "x"})
    assert answer.status_code == 422 and reason in answer.json()["error"]


def test_the_stride_keeps_every_nth_version_and_counts_the_rollouts_of_the_others(daemon, tmp_path):
    klaxon, http = daemon(weights={"every": 2})
    for version in range(3):
        http.post("/v1/weights", json={"version": str(version), "path": str(save(tmp_path / f"w{version}", version))})
    klaxon._poll_weights()
    assert klaxon.shadow.shelf.versions() == ["0", "2"] and list(klaxon.shadow.strided) == ["1"]
    feed(klaxon, http, *(rollout(str(version), request_id=f"r{version}") for version in range(3)))
    assert klaxon.worker.counts["skipped_by_stride"] == 1 and klaxon.worker.counts["tokens_skipped_by_stride"] == 3
    assert klaxon.worker.counts["tokens_scored"] == 6 and klaxon.live.status()["scorer"]["coverage"] == pytest.approx(6 / 9)
    assert [label for label, _ in klaxon.trainer.ledger.published()] == ["0", "1", "2"], "hard facts see every version"


def events(klaxon, kind):
    return [text for (text,) in klaxon.store.query("SELECT text FROM events WHERE kind = ?", [kind])]


def test_a_resume_is_told_once_and_lag_is_counted_in_published_versions(daemon, tmp_path):
    klaxon, http = daemon()
    for version in (48, 50, 30, 31):
        klaxon.trainer.take_weights({"version": version, "path": str(tmp_path / "none")})
    assert events(klaxon, "weights_backwards") == ["weight version went back from 50 to 30: a resume or a rollback?"]
    feed(klaxon, http, *(rollout(version, request_id=f"r{version}") for version in ("31", "48", "9", "default")))
    assert klaxon.trainer.ledger.figures() == {"lag_min": 0, "lag_mean": 1.5, "lag_max": 3, "rollouts": 4, "unknown_share": 0.5}


def test_an_engine_that_never_moves_is_a_fact_by_announcements_alone(daemon, tmp_path):
    klaxon, http = daemon(shadow={"enabled": False})
    for version in range(21):
        klaxon.trainer.take_weights({"version": version, "path": str(tmp_path / "none")})
    feed(klaxon, http, rollout("0"))
    from detectors.hardfacts import facts

    (fact,) = facts(None, klaxon.live.observation(time.time()), klaxon.config.detectors.facts)
    assert fact.name == "weights_never_move" and "e still generates with version 0; the trainer has published 20 newer ones" in fact.text
    late = replace(klaxon.live.observation(time.time() + 301), last_rollout_at=time.time() + 300)
    assert late.versions == {}, "a replica that is gone accuses nobody"


def test_labels_that_move_over_the_same_weights_are_a_fact_by_announcements_alone(daemon, tmp_path):
    klaxon, http = daemon()
    folder = save(tmp_path / "w", 1)
    for version in range(5):
        copy = tmp_path / f"w{version}"
        copy.symlink_to(folder)
        http.post("/v1/weights", json={"version": str(version), "path": str(copy)})
    klaxon._poll_weights()
    from detectors.hardfacts import facts

    assert [f.name for f in facts(None, klaxon.live.observation(time.time()), klaxon.config.detectors.facts)] == ["label_moved_weights_same"]


def test_a_label_of_default_or_nothing_is_unknown():
    for label in ("default", "", None, "  "):
        assert parse_rollout(rollout(label), where="x").weight_versions == ()


def test_the_ledger_fills_in_what_was_announced_and_moves_what_is_published_again():
    ledger = VersionLedger()
    assert ledger.announce("1") is None and ledger.announce("1") is None and ledger.announce("2") is None
    assert ledger.believe([("1", "a"), ("2", "b")]) is None and ledger.published() == (("1", "a"), ("2", "b"))
    assert ledger.believe([("1", "a")]) is None, "found again, nothing new"
    assert ledger.believe([("1", "c")]) == ("2", "1") and ledger.published() == (("2", "b"), ("1", "c"))


def test_versions_found_together_out_of_order_are_no_step_back():
    ledger = VersionLedger()
    assert ledger.believe([("3", "a"), ("1", "b"), ("2", "c")]) is None
    assert ledger.believe([("final", "d")]) is None and isinstance(parse_rollout(rollout("3"), where="x"), Rollout)
