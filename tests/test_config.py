from pathlib import Path

import pytest

from collector.errors import ConfigError
from klaxon.config import Config, load_config, render_defaults

ROOT = Path(__file__).parent.parent
BAD = sorted((ROOT / "tests/configs/bad").glob("*.toml"))


def test_the_config_at_the_root_shows_every_key_with_its_default():
    assert (ROOT / "config.toml").read_text() == render_defaults()
    assert load_config(ROOT / "config.toml") == Config()


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_config_is_named_with_its_fault(path):
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert path.with_suffix(".txt").read_text().strip() in message
    assert str(path) in message
    assert "verysecret" not in message


def test_a_missing_config_says_how_to_write_one(tmp_path):
    with pytest.raises(ConfigError, match=r"python -m klaxon\.config"):
        load_config(tmp_path / "none.toml")


def test_all_problems_are_told_at_once(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[daemon]\nport = 0\n[run]\nnam = 'x'\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "`daemon.port`" in str(caught.value) and "did you mean `run.name`" in str(caught.value)
