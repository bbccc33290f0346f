"""The trainers' hooks: `klaxon_tap.trl.watch` on TRL's own GRPOTrainer, `klaxon_tap.verl.watch` on verl's shapes."""

from __future__ import annotations

import logging
import types

import pytest
import torch
from tap_daemon import Daemon, wait

import klaxon_tap
import klaxon_tap.trl
import klaxon_tap.verl
from collector.sources.trainer_logprobs import parse_trainer_word
from collector.weights.checkpoint import inspect
from test_tap_publish import fresh, model, versions  # noqa: F401

WORDS = "one two three four five six seven eight nine ten plus is what the answer".split()


@pytest.fixture
def daemon(monkeypatch):
    running = Daemon(("127.0.0.1", 0))
    monkeypatch.setenv("KLAXON_URL", running.url)
    yield running
    running.close()


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's own, on a machine without a GPU
def test_trl_pushes_metrics_logprobs_and_weights(daemon, tmp_path, monkeypatch):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    monkeypatch.setenv("KLAXON_WEIGHTS_DIR", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    config = trl.GRPOConfig(output_dir=str(tmp_path / "out"), per_device_train_batch_size=4, num_generations=4, num_iterations=2, max_completion_length=6,
                            max_steps=4, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False, learning_rate=1e-3, disable_tqdm=True)
    asked = datasets.Dataset.from_list([{"prompt": f"what is {one} plus {other}"} for one in WORDS[:4] for other in WORDS[:4]])
    trainer = trl.GRPOTrainer(model=model(), args=config, train_dataset=asked, processing_class=tokenizer(),
                              reward_funcs=lambda completions, **_: [float(len(text)) for text in completions])
    klaxon_tap.trl.watch(trainer)
    trainer.train()
    klaxon_tap._publisher.wait(20)
    wait(lambda: len(daemon.of("metrics")) >= 4 and len(daemon.of("trainer_logprobs")) >= 8 and daemon.of("weights"), seconds=60)
    assert [message["step"] for message in daemon.of("metrics")][:4] == [1, 2, 3, 4]
    assert {"loss", "reward", "entropy"} <= set(daemon.of("metrics")[0]["metrics"])
    for message in daemon.of("trainer_logprobs"):
        word = parse_trainer_word(message, where="test")
        assert 0 < len(message["token_ids"]) <= 6 and len(message["token_ids"]) == len(message["logprobs"]) == len(message["loss_mask"])
        assert all(logprob <= 0 for logprob in message["logprobs"]) and 0 not in message["prompt_token_ids"], "no padding"
        assert word is not None and message["version"] in {"0", "2"}, "generated after steps 0 and 2"
    assert versions(tmp_path / "weights"), "written after each step"
    assert inspect(tmp_path / "weights" / versions(tmp_path / "weights")[-1], version="x").version == "x"


def verl_trainer(folder, *, bypass=False):
    """What `watch` sees of a RayPPOTrainer: names and shapes of verl 0.9.1."""
    old = torch.log(torch.tensor([[0.5, 0.25, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]]))
    rows = {"prompts": torch.tensor([[0, 5, 6], [7, 8, 9]]), "responses": torch.tensor([[11, 12, 13, 0], [14, 15, 0, 0]]),
            "attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 0]]), "response_mask": torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0]]),
            "old_log_probs": old}
    if bypass:
        rows["rollout_log_probs"] = old
    trainer = types.SimpleNamespace(global_steps=7, config=types.SimpleNamespace(trainer=types.SimpleNamespace(default_local_dir=str(folder))))
    trainer._update_actor = lambda batch: types.SimpleNamespace(meta_info={"metrics": {"actor/ppo_kl": [0.1, 0.3], "actor/pg_clipfrac": 0.25}})
    trainer._save_checkpoint = lambda: "saved"
    return trainer, types.SimpleNamespace(batch=rows)


def test_verl_pushes_what_it_recomputed_and_the_actors_metrics(daemon, tmp_path):
    trainer, batch = verl_trainer(tmp_path)
    klaxon_tap.verl.watch(trainer)
    assert trainer._update_actor(batch).meta_info["metrics"]["actor/pg_clipfrac"] == 0.25
    wait(lambda: len(daemon.of("trainer_logprobs")) == 2 and daemon.of("metrics"))
    first, second = daemon.of("trainer_logprobs")
    assert (first["prompt_token_ids"], first["token_ids"], first["loss_mask"], first["version"]) == ([5, 6], [11, 12, 13], [1, 0, 1], "6")
    assert first["logprobs"] == pytest.approx([-0.6931, -1.3863, -0.6931], abs=1e-4) and second["token_ids"] == [14, 15]
    [metrics] = daemon.of("metrics")
    assert metrics["step"] == 7 and metrics["metrics"] == pytest.approx({"actor/ppo_kl": 0.2, "actor/pg_clipfrac": 0.25})


def test_verl_in_bypass_mode_has_no_word_of_its_own(daemon, tmp_path):
    trainer, batch = verl_trainer(tmp_path, bypass=True)
    klaxon_tap.verl.watch(trainer)
    trainer._update_actor(batch)
    wait(lambda: daemon.of("metrics"))
    assert not daemon.of("trainer_logprobs")


def test_verl_announces_a_checkpoint_that_holds_hugging_face_weights(daemon, tmp_path):
    trainer, _ = verl_trainer(tmp_path)
    klaxon_tap.verl.watch(trainer)
    assert trainer._save_checkpoint() == "saved"  # nothing there yet: nothing is announced, nothing is raised
    folder = tmp_path / "global_step_7" / "actor" / "huggingface"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"")
    trainer._save_checkpoint()
    wait(lambda: daemon.of("weights"))
    assert [(message["version"], message["path"]) for message in daemon.of("weights")] == [("7", str(folder))]


def test_a_trainer_of_another_shape_goes_on_and_the_log_says_why(daemon, tmp_path, caplog):
    trainer, batch = verl_trainer(tmp_path)
    batch.batch["responses"] = None
    klaxon_tap.verl.watch(trainer)
    with caplog.at_level(logging.WARNING, logger="klaxon_tap"):
        assert trainer._update_actor(batch).meta_info
    assert "was not pushed" in caplog.text
