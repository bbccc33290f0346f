"""Weights: half-written checkpoints are not believed, whole ones are, once; the shelf holds k of them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from collector.config import WeightsConfig
from collector.errors import Unavailable
from collector.records import WeightVersion
from collector.weights.checkpoint import inspect
from collector.weights.follower import WeightFollower
from collector.weights.shelf import WeightShelf


def write(folder: Path, *, value: float = 1.0, marker: str | None = "COMPLETE", name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file({"w": np.full((64, 64), value, np.float32)}, folder / name)
    if marker:
        (folder / marker).touch()
    return folder


def follower(tmp_path: Path, **changes) -> WeightFollower:
    return WeightFollower(WeightsConfig(dir=str(tmp_path / "step_*"), version_regex="step_(.+)", **changes))


def test_a_marked_folder_is_believed_once_under_its_label(tmp_path: Path) -> None:
    follow = follower(tmp_path)
    assert follow.poll(0.0) == ()
    write(tmp_path / "step_41")
    (found,) = follow.poll(1.0)
    assert (found.version, found.path) == ("41", str(tmp_path / "step_41"))
    assert follow.poll(2.0) == () and follow.pending == {}


def test_a_marker_over_truncated_weights_is_not_believed(tmp_path: Path) -> None:
    folder = write(tmp_path / "step_1")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    follow = follower(tmp_path)
    assert follow.poll(0.0) == ()
    assert "half-written" in follow.pending[str(folder)]
    (folder / "model.safetensors").write_bytes(whole)
    assert [v.version for v in follow.poll(1.0)] == ["1"]


@pytest.mark.parametrize("keep", [0, 5, 8, 40])
def test_a_file_cut_anywhere_is_half_written(tmp_path: Path, keep: int) -> None:
    folder = write(tmp_path / "v")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:keep])
    with pytest.raises(Unavailable, match="half-written"):
        inspect(folder)


def test_without_a_marker_a_folder_must_come_to_rest(tmp_path: Path) -> None:
    folder = write(tmp_path / "step_1", marker=None)
    follow = follower(tmp_path, settle_seconds=5)
    assert follow.poll(100.0) == () and "unchanged for 5 s" in follow.pending[str(folder)]
    (folder / "tokenizer.json").write_text("{}")
    assert follow.poll(104.0) == () and follow.poll(108.0) == ()
    assert [v.version for v in follow.poll(109.5)] == ["1"]


def test_unmarked_folders_can_be_refused_altogether(tmp_path: Path) -> None:
    folder = write(tmp_path / "step_1", marker=None)
    follow = follower(tmp_path, accept_unmarked=False, settle_seconds=0)
    assert follow.poll(0.0) == () and follow.poll(1e6) == ()
    assert follow.pending[str(folder)] == f"{folder}: no COMPLETE file yet"


def test_shards_without_index_or_with_one_missing_are_half_written(tmp_path: Path) -> None:
    folder = write(tmp_path / "v", name="model-00001-of-00002.safetensors")
    with pytest.raises(Unavailable, match="1 of 2 shards and no model.safetensors.index.json"):
        inspect(folder)
    names = {"w": "model-00001-of-00002.safetensors", "u": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(Unavailable, match="1 of 2 shards are missing, e.g. model-00002-of-00002"):
        inspect(folder)
    write(folder, name="model-00002-of-00002.safetensors")
    assert inspect(folder).version == "v"


def test_pickles_are_named_and_never_loaded(tmp_path: Path) -> None:
    folder = write(tmp_path / "v")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(Unavailable, match="pytorch_model.bin, but pickles are never loaded"):
        inspect(folder)


def test_the_digest_follows_the_weights_and_nothing_else(tmp_path: Path) -> None:
    a, b = inspect(write(tmp_path / "a")), inspect(write(tmp_path / "b"))
    changed = inspect(write(tmp_path / "c", value=1.0001))
    assert a.digest == b.digest != changed.digest


def test_a_rewritten_folder_is_a_new_version_but_a_new_file_beside_is_not(tmp_path: Path) -> None:
    folder = write(tmp_path / "step_1")
    follow = follower(tmp_path)
    (first,) = follow.poll(0.0)
    (folder / "notes.txt").write_text("hello")
    assert follow.poll(1.0) == ()
    write(folder, value=2.0)
    (second,) = follow.poll(2.0)
    assert second.version == first.version and second.digest != first.digest


def test_a_deleted_folder_is_tolerated_and_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "step_1")
    follow = follower(tmp_path)
    assert len(follow.poll(0.0)) == 1
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert follow.poll(1.0) == () and follow.counts["vanished"] == 1


def test_a_link_to_a_sibling_is_no_version(tmp_path: Path) -> None:
    write(tmp_path / "step_1")
    (tmp_path / "step_latest").symlink_to("step_1", target_is_directory=True)
    assert [v.version for v in follower(tmp_path).poll(0.0)] == ["1"]


def test_an_announced_version_is_believed_when_its_folder_is_whole(tmp_path: Path) -> None:
    follow = WeightFollower(WeightsConfig())
    follow.announce(version="7", path=tmp_path / "w", at=50.0)
    assert follow.poll(60.0) == () and "no such folder" in follow.pending[str(tmp_path / "w")]
    write(tmp_path / "w", marker=None)
    (found,) = follow.poll(61.0)
    assert (found.version, found.published_at) == ("7", 50.0)
    follow.announce(version="7", path=tmp_path / "w", at=70.0)
    assert follow.poll(71.0) == ()


def version(name: str, digest: str | None = None) -> WeightVersion:
    return WeightVersion(version=name, path=f"/{name}", published_at=0.0, digest=digest or name)


def test_the_shelf_holds_the_most_recently_used_and_reloads_the_others() -> None:
    loads: list[str] = []

    def load(item: WeightVersion, evicted: list | None) -> list:
        loads.append(item.version)
        return [item.version]

    shelf = WeightShelf(load, versions_held=2, known=[version("1"), version("2"), version("3")])
    assert [shelf.get(name)[0] for name in ("1", "2", "1", "3", "2")] == ["1", "2", "1", "3", "2"]
    assert loads == ["1", "2", "3", "2"] and shelf.held() == ["3", "2"]
    assert shelf.versions() == ["1", "2", "3"]
    assert shelf.previous("3").version == "2" and shelf.previous("1") is None and shelf.latest().version == "3"


def test_an_evicted_version_is_offered_for_refill_only_when_nobody_holds_it() -> None:
    offered: list[object] = []

    def load(item: WeightVersion, evicted: list | None) -> list:
        offered.append(evicted)
        return [item.version]

    shelf = WeightShelf(load, versions_held=1, known=[version("1"), version("2"), version("3")])
    shelf.get("1")
    kept = shelf.get("2")
    shelf.get("3")
    assert offered == [None, ["1"], None] and kept == ["2"]


def test_equal_digests_share_one_loaded_object_and_a_new_digest_replaces() -> None:
    shelf = WeightShelf(lambda item, _: object(), versions_held=3, known=[version("1", "d"), version("2", "d")])
    first = shelf.get("1")
    assert shelf.get("2") is first and shelf.counts["loads"] == 1
    shelf.add(version("1", "e"))
    assert shelf.get("1") is not first and shelf.counts["replaced"] == 1


def test_a_missing_or_unloadable_version_is_unavailable_and_counted() -> None:
    def load(item: WeightVersion, _: object) -> object:
        raise OSError("gone")

    shelf = WeightShelf(load, versions_held=2, known=[version("1")])
    with pytest.raises(Unavailable, match="cannot be loaded from /1: gone"):
        shelf.get("1")
    with pytest.raises(Unavailable, match="'9' was never published"):
        shelf.get("9")
    assert shelf.counts["unavailable"] == 2


def test_threads_that_want_the_same_version_load_it_once() -> None:
    shelf = WeightShelf(lambda item, _: object(), versions_held=1, known=[version("1")])
    got: list[object] = []
    threads = [threading.Thread(target=lambda: got.append(shelf.get("1"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, got))) == 1 and shelf.counts["loads"] == 1
