"""`--set SECTION.KEY=VALUE` on top of a config file."""

import subprocess
import sys

import pytest

from collector.errors import ConfigError
from klaxon.config import load_config


def test_a_setting_wins_over_the_file_and_is_validated_like_it(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[run]\nname = "file"\n')
    loaded = load_config(path, ["run.dir=/shared/a b", "daemon.port=9001", 'run.name="set"', "alerts.console=false"])
    assert (loaded.run.name, loaded.run.dir, loaded.daemon.port, loaded.alerts.console) == ("set", "/shared/a b", 9001, False)


@pytest.mark.parametrize(("setting", "said"), [
    ("run.dir", "SECTION.KEY=VALUE"), ("dir=/x", "SECTION.KEY=VALUE"), ("run.name.deep=1", "no section"), ("run.dri=/x", "did you mean `run.dir`"),
    ("daemon.port=many", "daemon.port"),
])
def test_a_wrong_setting_is_refused_in_words(tmp_path, setting, said):
    path = tmp_path / "config.toml"
    path.write_text('[run]\nname = "file"\n')
    with pytest.raises(ConfigError, match=said):
        load_config(path, [setting])


def test_the_command_line_takes_it(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[run]\nname = "file"\n')
    done = subprocess.run([sys.executable, "-m", "klaxon", "check", "--config", str(path), "--set", "daemon.port=zero"], capture_output=True, text=True)
    assert done.returncode == 2 and "daemon.port" in done.stderr and "Traceback" not in done.stderr
