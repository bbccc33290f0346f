"""publish_weights with real torch and safetensors: what it writes is believed and loads; a kill never leaves a lie."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tap_daemon import Daemon, wait
from transformers import AutoModelForCausalLM, LlamaConfig

import klaxon_tap
from collector.config import WeightsConfig
from collector.weights.checkpoint import inspect
from collector.weights.follower import WeightFollower
from klaxon_tap import publish

TINY = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 8}


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No state of an earlier test: publisher, sender, environment."""
    for name in ("KLAXON_URL", "KLAXON_WEIGHTS_DIR", "KLAXON_TAP", "KLAXON_KILL_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(klaxon_tap, "_publisher", None)
    monkeypatch.setattr(klaxon_tap, "_sender", None)
    yield
    if klaxon_tap._publisher:
        klaxon_tap._publisher.wait(10)
    if klaxon_tap._sender:
        klaxon_tap._sender.close()


def model(seed=0, **changes):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(LlamaConfig(**TINY | changes)).eval()


def done():
    assert klaxon_tap._publisher.wait(20)
    return klaxon_tap._publisher.counts


def versions(folder):
    return sorted(path.name for path in Path(folder).iterdir() if not path.name.startswith("."))


def same(path, reference):
    tokens = torch.arange(12)[None]
    loaded = AutoModelForCausalLM.from_pretrained(path).eval()
    with torch.no_grad():
        return torch.equal(loaded(tokens).logits, reference(tokens).logits)


def test_what_is_published_is_believed_announced_and_loads_bit_for_bit(tmp_path, monkeypatch):
    daemon = Daemon(("127.0.0.1", 0))
    monkeypatch.setenv("KLAXON_URL", daemon.url)
    monkeypatch.setenv("KLAXON_WEIGHTS_DIR", str(tmp_path))
    source = model()
    assert klaxon_tap.publish_weights(source, 41)
    assert done() == {"calls": 1, "published": 1, "skipped": 0, "refused": 0, "failed": 0}
    wait(lambda: daemon.of("weights"))
    assert (daemon.of("weights")[0]["version"], daemon.of("weights")[0]["path"]) == ("41", str(tmp_path / "41"))
    (found,) = WeightFollower(WeightsConfig(dir=str(tmp_path), accept_unmarked=False)).poll(0.0)
    assert found.version == "41" and same(tmp_path / "41", source)
    assert klaxon_tap._about("me")["weights"]["published"] == 1
    daemon.close()


def test_a_later_training_step_does_not_reach_into_a_version(tmp_path, monkeypatch):
    source, gate = model(), threading.Event()
    expected = model()
    monkeypatch.setattr(publish, "sweep", lambda root: gate.wait(5))
    klaxon_tap.publish_weights(source, 1, folder=str(tmp_path))
    with torch.no_grad():
        source.lm_head.weight.zero_()
    gate.set()
    done()
    assert same(tmp_path / "1", expected)


def test_tied_weights_are_saved_once_and_wrappers_are_looked_through(tmp_path):
    class DistributedDataParallel(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    tied = model(tie_word_embeddings=True)
    assert klaxon_tap.publish_weights(DistributedDataParallel(tied), 1, folder=str(tmp_path))
    done()
    with safe_open(tmp_path / "1/model.safetensors", framework="pt") as tensors:
        names = list(tensors.keys())
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names and not [n for n in names if n.startswith("module.")]
    assert same(tmp_path / "1", tied)


def test_a_full_state_dict_takes_its_config_and_tokenizer_from_a_folder(tmp_path):
    source = model()
    source.save_pretrained(tmp_path / "base")
    (tmp_path / "base/tokenizer.json").write_text("{}")
    state = {f"module._orig_mod.{name}": tensor for name, tensor in source.state_dict().items()}
    assert klaxon_tap.publish_weights(state, "s1", folder=str(tmp_path / "w"), config=str(tmp_path / "base"))
    done()
    assert (tmp_path / "w/s1/tokenizer.json").exists() and same(tmp_path / "w/s1", source)


def test_every_nth_call_is_written_and_old_versions_of_ours_alone_are_removed(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/COMPLETE").write_text("somebody else's\n")
    source = model()
    for step in range(9):
        assert klaxon_tap.publish_weights(source, step, every=2, folder=str(tmp_path), keep=2) == (step % 2 == 0)
        done()
    assert versions(tmp_path) == ["6", "8", "precious"] and done()["published"] == 5


def test_a_call_during_a_write_is_skipped_counted_and_returns_at_once(tmp_path, monkeypatch, caplog):
    gate = threading.Event()
    monkeypatch.setattr(publish, "sweep", lambda root: gate.wait(5))
    source = model()
    assert klaxon_tap.publish_weights(source, 1, folder=str(tmp_path))
    started = time.perf_counter()
    assert not any(klaxon_tap.publish_weights(source, step, folder=str(tmp_path)) for step in range(2, 50))
    assert time.perf_counter() - started < 4, "the write holds for 5 s"
    gate.set()
    assert done()["skipped"] == 48 and versions(tmp_path) == ["1"] and caplog.text.count("still being written") == 1


def test_the_same_version_again_replaces_it_whole(tmp_path):
    for seed in (1, 2):
        klaxon_tap.publish_weights(model(seed), 1, folder=str(tmp_path))
        done()
    assert same(tmp_path / "1", model(2)) and [path.name for path in tmp_path.iterdir()] == ["1"]


class DTensor(torch.Tensor):
    """Stands for torch's own by name; sharding a real one needs a process group."""


def refusal(caplog, *arguments, **options):
    caplog.clear()
    klaxon_tap._publisher = None
    assert not klaxon_tap.publish_weights(*arguments, **options)
    assert len(caplog.records) == 1
    return caplog.text


def test_what_cannot_be_published_is_refused_with_one_line_that_says_what_to_pass(tmp_path, caplog):
    where = {"folder": str(tmp_path / "w"), "config": None}
    sharded = {"w": torch.zeros(2).as_subclass(DTensor)}
    assert "w is sharded (FSDP); pass a full state dict" in refusal(caplog, sharded, 1, **where)
    assert "sharded" in refusal(caplog, {"layer._flat_param": torch.zeros(2)}, 1, **where)
    assert "meta tensor" in refusal(caplog, {"w": torch.zeros(2, device="meta")}, 1, **where)
    assert "save it with model.save_pretrained" in refusal(caplog, {"q.lora_A.weight": torch.zeros(2)}, 1, **where)
    assert "pass config=FOLDER" in refusal(caplog, {"w": torch.zeros(2)}, 1, **where)
    assert "has no config.json" in refusal(caplog, {"w": torch.zeros(2)}, 1, folder="w", config=str(tmp_path))
    assert "no tensor" in refusal(caplog, {}, 1, **where)
    assert "cannot be a folder's name" in refusal(caplog, model(), "../up", folder="w")
    assert "set KLAXON_WEIGHTS_DIR" in refusal(caplog, model(), 1)
    assert not (tmp_path / "w").exists()


def test_real_fsdp2_parameters_are_refused(tmp_path, caplog):
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.device_mesh import init_device_mesh

    init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        sharded = model()
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        assert "is sharded (FSDP)" in refusal(caplog, sharded, 1, folder=str(tmp_path / "w"))
    finally:
        destroy_process_group()


def test_missing_libraries_are_named(monkeypatch, caplog):
    find = publish.importlib.util.find_spec
    monkeypatch.setattr(publish.importlib.util, "find_spec", lambda name: None if name == "safetensors" else find(name))
    assert "safetensors is not installed" in refusal(caplog, {"w": torch.zeros(1)}, 1, folder="w")


def test_importing_the_tap_imports_neither_torch_nor_safetensors():
    code = "import sys, klaxon_tap; assert not {'torch', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_kill_switch_and_a_full_disk_leave_training_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("KLAXON_TAP", "off")
    assert not klaxon_tap.publish_weights(model(), 1, folder=str(tmp_path)) and klaxon_tap._publisher is None
    monkeypatch.delenv("KLAXON_TAP")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publish, "_sync", full)
    assert klaxon_tap.publish_weights(model(), 1, folder=str(tmp_path))
    assert done()["failed"] == 1 and versions(tmp_path) == []


DRIVER = textwrap.dedent("""
    import json, os, signal, sys
    from pathlib import Path

    import torch
    from safetensors import torch as saving
    import klaxon_tap
    from klaxon_tap import publish
    from collector.config import WeightsConfig
    from collector.weights.follower import WeightFollower

    weights, base = sys.argv[1:]
    calls = at = 0

    def dies(function):
        def wrapped(*arguments, **options):
            global calls
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return wrapped

    for holder, name in ((publish, "_sync"), (Path, "rename"), (Path, "mkdir"), (Path, "write_bytes"), (Path, "write_text"),
                         (publish.shutil, "rmtree"), (saving, "save_file")):
        setattr(holder, name, dies(getattr(holder, name)))
    for value in (1.0, 2.0):
        for at in range(1, 40):
            child = os.fork()
            if not child:
                klaxon_tap.publish_weights({"w": torch.arange(64.0) + value}, "1", folder=weights, config=base)
                klaxon_tap._publisher.wait()
                os._exit(0)
            killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
            believed = WeightFollower(WeightsConfig(dir=weights, settle_seconds=0)).poll(0.0)
            held = [saving.load_file(Path(version.path) / "model.safetensors")["w"][0].item() for version in believed]
            print(json.dumps([value, killed, held]), flush=True)
            if not killed:
                break
""")


def test_a_kill_before_any_step_of_a_write_never_leaves_a_believed_folder_that_is_not_whole(tmp_path):
    """SIGKILL before the k-th file operation, for every k until a write gets through; then the same over an old version."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    ended = subprocess.run([sys.executable, "-c", DRIVER, str(tmp_path / "w"), str(base)], capture_output=True, text=True, timeout=120,
                           env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr
    outcomes = [json.loads(line) for line in ended.stdout.splitlines()]
    first, second = ([row for row in outcomes if row[0] == value] for value in (1.0, 2.0))
    assert len(first) > 8 and len(second) > 8, "the kill hit every step, not only the first"
    assert [killed for _, killed, _ in first][-1] is False and first[-1][2] == [1.0]
    assert first[0] == [1.0, True, []] and all(held in ([], [1.0]) for _, _, held in first)
    assert second[-1][1:] == [False, [2.0]] and all(held in ([], [1.0], [2.0]) for _, _, held in second)
    assert inspect(tmp_path / "w/1").digest and json.loads((tmp_path / "w/1/COMPLETE").read_text())["version"] == "1"
