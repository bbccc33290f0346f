"""The tap on vLLM's own classes without an engine, and what it says when a vLLM lacks what it needs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from tap_daemon import Daemon, wait

from collector.sources.rollout_json import parse_rollout
from klaxon.demo.engine import engine_environment
from klaxon.demo.model import DEFAULT_FOLDER
from klaxon_tap import plugin

ROOT = Path(__file__).parents[1]


def load_checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_hooks", ROOT / "tap" / "check_hooks.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["check_hooks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checker = load_checker()


def installed() -> Path:
    """The folder that holds the installed vLLM."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parents[1]


@pytest.fixture(scope="module")
def seam(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What the tap reported of vLLM's output processor, and what the caller got."""
    daemon, log = Daemon(("127.0.0.1", 0)), tmp_path_factory.mktemp("seam") / "log"
    unset = {name: value for name, value in os.environ.items() if not name.startswith("KLAXON_")}
    command = [sys.executable, str(Path(__file__).with_name("tap_seam.py")), str(Path(DEFAULT_FOLDER).resolve())]
    with log.open("wb") as lines:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=lines, stderr=subprocess.STDOUT,
                                   env=unset | engine_environment(gpu=False) | {"KLAXON_URL": daemon.url, "KLAXON_ENGINE": "seam"})
    try:
        wait(lambda: process.poll() is not None or len(daemon.of("rollout")) == 4, seconds=600)
        process.communicate(timeout=120)
        assert process.returncode == 0, log.read_text()[-3000:]
        said = next(line for line in log.read_text().splitlines() if line.startswith('{"got"'))
        return SimpleNamespace(**json.loads(said), rollouts={one["request_id"]: one for one in daemon.of("rollout")})
    finally:
        process.kill()
        daemon.close()


@pytest.mark.engine
def test_tokens_past_a_stop_string_are_in_neither_the_answer_nor_the_rollout(seam: SimpleNamespace) -> None:
    got, rollout = seam.got["stopped"], seam.rollouts["stopped"]
    assert got["finish_reason"] == "stop" and got["text"] == " one two" and len(got["token_ids"]) < len(seam.words)
    assert rollout["token_ids"] == got["token_ids"] and rollout["logprobs"] == got["logprobs"] and rollout["finish_reason"] == "stop"
    assert len(rollout["top_logprobs"]) == len(rollout["token_ids"]) == len(rollout["logprobs"])


@pytest.mark.engine
def test_a_request_on_an_adapter_names_it_and_others_name_none(seam: SimpleNamespace) -> None:
    assert seam.rollouts["adapter"]["labels"] == {"lora": "poet"} and seam.rollouts["stopped"]["labels"] == {}


@pytest.mark.engine
def test_a_request_with_pictures_is_answered_counted_and_not_reported(seam: SimpleNamespace) -> None:
    assert len(seam.got["picture"]["token_ids"]) == 2
    assert "picture" not in seam.rollouts and seam.about["multimodal"] == 1 and seam.about["faults"] == 0


@pytest.mark.engine
def test_an_aborted_request_is_reported_as_far_as_it_came(seam: SimpleNamespace) -> None:
    rollout = seam.rollouts["aborted"]
    assert rollout["aborted"] and rollout["finish_reason"] == "abort" and rollout["token_ids"] == seam.words[:3]
    assert len(rollout["logprobs"]) == 3


@pytest.mark.engine
def test_tokens_before_the_first_label_are_of_unknown_weights(seam: SimpleNamespace) -> None:
    assert seam.rollouts["labelled"]["weight_versions"] == [[2, len(seam.words), "41"]]
    assert "weight_versions" not in seam.rollouts["stopped"]


@pytest.mark.engine
def test_the_rank_is_the_one_vllms_load_balancer_chose(seam: SimpleNamespace) -> None:
    assert [seam.rollouts[name]["dp_rank"] for name in ("stopped", "adapter", "aborted", "labelled")] == [0, 1, 1, 0]
    assert parse_rollout(seam.rollouts["adapter"], where="tap").replica == "seam#dp1"


@pytest.mark.engine
def test_the_installed_vllm_has_every_hook() -> None:
    assert [hook.what for hook in checker.missing_hooks(installed())] == []


@pytest.mark.engine
@pytest.mark.parametrize("hook", checker.HOOKS, ids=lambda hook: hook.what)
def test_a_release_without_a_hook_is_told_which_one_it_lacks(hook, tmp_path: Path) -> None:
    """The installed release with that one name changed, packed as a wheel."""
    name = "finish_reason" if "(" in hook.what else "args.middleware" if hook.what == "args.middleware" else hook.what
    word = name if "." not in name or name.startswith(("vllm.", "args.")) else name.partition(".")[2]
    wheel = tmp_path / "vllm.whl"
    with zipfile.ZipFile(wheel, "w") as files:
        for path in {path for each in checker.HOOKS for path in each.path.split()}:
            if (source := installed() / path).is_file():
                text = source.read_text(encoding="utf-8")
                files.writestr(path, text.replace(word, "renamed_" + word.replace(".", "_")) if path in hook.path.split() else text)
    assert hook in checker.missing_hooks(wheel)


def test_a_vllm_without_a_needed_method_is_left_as_it_is_and_the_middleware_stays_in_charge(monkeypatch, caplog) -> None:
    monkeypatch.setenv("KLAXON_ENGINE", "e1")
    state, processor = type("RequestState", (), {"from_new_request": classmethod(lambda cls: None)}), type("OutputProcessor", (), {})
    for name, members in {"output_processor": {"RequestState": state, "OutputProcessor": processor}, "input_processor": None, "core_client": None}.items():
        module = None if members is None else SimpleNamespace(**members)
        monkeypatch.setitem(sys.modules, f"vllm.v1.engine.{name}", module)
    for package in ("vllm", "vllm.v1", "vllm.v1.engine", "vllm.version"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    tap = plugin.Tap("http://127.0.0.1:9")
    tap.install()
    assert not tap.complete and not tap.working
    assert "no RequestState.make_request_output" in caplog.text and "data-parallel ranks" in caplog.text and "config stays unknown" in caplog.text
    assert not hasattr(state, "make_request_output"), "nothing is put where nothing was"
