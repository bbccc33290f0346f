"""The demo's model folder. Its download and conversion are part of `make demo` and of the end-to-end tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from collector.errors import InputError
from klaxon.demo.model import NEEDED_FILES, is_complete, prepare_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in NEEDED_FILES:
        (folder / name).write_text("{}")
    save_file({"a": np.ones((4, 4), np.float32), "b": np.ones(3, np.float32)}, folder / "model.safetensors")
    return folder


def test_a_whole_model_is_reused_without_a_word(model: Path) -> None:
    said: list[str] = []
    assert prepare_model(model, said.append) == model.resolve()
    assert said == []


@pytest.mark.parametrize("name", NEEDED_FILES)
def test_a_folder_without_one_of_its_files_is_no_model(model: Path, name: str) -> None:
    (model / name).unlink()
    assert not is_complete(model)


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_weights_cut_short_are_no_model(model: Path, keep: int) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert not is_complete(model)


def test_half_a_model_is_refused_not_overwritten(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="not a whole model; remove the folder"):
        prepare_model(model, lambda line: None)
    assert (model / "model.safetensors").read_bytes() == b"half"
    shutil.rmtree(model)
    assert not is_complete(model)
