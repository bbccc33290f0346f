"""The folder a demo lives in."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.errors import ConfigError
from klaxon.demo.folder import claim


def test_a_folder_is_emptied_of_the_last_demo_and_of_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    with claim(root) as folder:
        (folder.training / "metrics.jsonl").write_text("old\n")
        folder.received.write_text("old\n")
    (root / "notes.txt").write_text("mine")
    with claim(root) as folder:
        assert not (folder.training / "metrics.jsonl").exists()
        assert not folder.received.exists()
        assert (folder.training / "weights").is_dir()
    assert (root / "notes.txt").read_text() == "mine"


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds other files; name a new or empty folder"), claim(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_two_demos_cannot_share_a_folder(tmp_path: Path) -> None:
    with claim(tmp_path / "demo"), pytest.raises(ConfigError, match="another demo runs in"), claim(tmp_path / "demo"):
        pass


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"), claim(tmp_path / "file" / "demo"):
        pass


def test_the_socket_moves_to_a_short_path_when_the_folder_is_deep(tmp_path: Path) -> None:
    with claim(tmp_path / ("d" * 60) / ("e" * 60)) as folder:
        assert len(str(folder.socket)) <= 100
        short = folder.socket.parent
        assert short.is_dir()
    assert not short.exists()
