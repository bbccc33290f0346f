"""`klaxon init`: for every preset a config that `klaxon check` accepts, questions on a terminal, and nothing overwritten unasked."""

import json
import os
import pty
import select
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alerts.config import ReceiverConfig
from collector.errors import ConfigError
from collector.sources.formats import FORMATS
from klaxon.cli import app
from klaxon.config import load_config
from klaxon.init_config import Answers, receiver_of, render
from klaxon.presets import preset_named, preset_of_format, presets
from klaxon.presets.quickstart import index
from klaxon.presets.quickstart import render as page
from test_command_daemon import free_port
from test_probe import engine, settings  # noqa: F401  a fixture

ROOT = Path(__file__).parent.parent
FILES = ROOT / "tests/fixtures/formats"
FRAMEWORKS = ("PipelineRL", "prime-rl", "verl", "TRL", "slime", "miles", "NeMo-RL", "SkyRL", "open-instruct", "OpenRLHF", "AReaL", "ms-swift")


def run(command, *arguments):
    return CliRunner().invoke(app([command]), [command, *arguments])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def initialised(*arguments):
    done = run("init", "--port", str(free_port()), *arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def test_every_framework_of_the_list_has_a_preset_and_six_are_complete():
    assert {one.title for one in presets().values()} == set(FRAMEWORKS)
    assert [one.title for one in presets().values() if one.complete] == sorted(("PipelineRL", "prime-rl", "verl", "TRL", "slime", "miles"), key=str.lower)
    listed = run("init", "--list").stdout
    assert all(one.name in listed for one in presets().values())
    assert {one["name"] for one in json.loads(run("init", "--list", "--json").stdout)} == set(presets())


@pytest.mark.parametrize("name", presets())
def test_check_accepts_what_init_writes_for_a_framework_with_nothing_else_told(here, name):
    initialised("--framework", name)
    done = run("check", "--json")
    parts = {part["part"]: part for part in json.loads(done.stdout)["parts"]}
    assert done.exit_code == 0, parts
    assert parts["rollouts"]["state"] == "warn" and "tap" in parts["rollouts"]["text"]
    assert f"docs/quickstarts/{name}.md" in (here / "config.toml").read_text()


@pytest.mark.parametrize("name", [one.name for one in presets().values() if one.rollouts.by == "files"])
def test_check_accepts_it_with_the_frameworks_own_files_and_says_the_tier(here, name):
    preset = presets()[name]
    folder = FILES / preset.rollouts.formats[0]
    initialised("--framework", name, "--rollouts", str(folder), "--weights", str(here / "weights"))
    config = load_config("config.toml")
    assert config.sources.tailed[0].format == preset.rollouts.formats[0] and not config.sources.tap
    assert config.sources.tailed[0].allow_pickle is (name == "skyrl")
    assert config.weights.dir == str(here / "weights") and config.weights.layout == preset.weights.layout
    done = run("check", "--json")
    found = json.loads(done.stdout)
    rollouts = next(part for part in found["parts"] if part["part"] == "rollouts")
    assert done.exit_code == 0 and rollouts["state"] == "ok" and f"({preset.rollouts.formats[0]})" in rollouts["text"]
    assert found["tier"] == preset.tier_of_files or any(part["part"] == "shadow" and part["state"] == "ok" for part in found["parts"])


@pytest.mark.parametrize("preset", presets().values(), ids=list(presets()))
def test_what_a_preset_says_is_what_the_config_then_holds(preset):
    text = render(Answers(preset=preset, run="r", dir="runs/r", rollouts="x" if preset.rollouts.by == "files" else "", weights="w", trainer_logprobs="none"))
    data = tomllib.loads(text)
    for section, keys in preset.config.items():
        for key, value in keys.items():
            assert data[section][key] == value
    assert data["metrics"]["framework"] == preset.metrics
    assert preset.tier_of_files is None or ("trainer logprobs" in FORMATS[preset.rollouts.formats[0]].knows) is (preset.trainer_logprobs == "rollouts")
    assert set(preset.why) <= {f"{section}.{key}" for section, keys in preset.config.items() for key in keys}


@pytest.mark.parametrize("preset", presets().values(), ids=list(presets()))
def test_the_quickstart_is_what_the_preset_renders(preset):
    assert (ROOT / f"docs/quickstarts/{preset.name}.md").read_text() == page(preset), "python -m klaxon.presets"
    assert len(page(preset).split()) < 900, "a page"


def test_the_list_of_quickstarts_is_what_the_presets_render_and_no_page_is_left_over():
    folder = ROOT / "docs/quickstarts"
    assert (folder / "README.md").read_text() == index(list(presets().values()))
    assert {file.stem for file in folder.glob("*.md")} == {"README", *presets()}


@pytest.mark.parametrize(("typed", "name"), [("NeMo_RL", "nemo-rl"), ("primerl", "prime-rl"), ("PIPELINERL", "pipelinerl")])
def test_a_name_is_understood_however_it_is_spelt(typed, name):
    assert preset_named(typed).name == name


def test_an_unknown_framework_gets_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean verl"):
        preset_named("verll")


def test_the_framework_is_told_by_its_files(here):
    told = json.loads(initialised("--rollouts", str(FILES / "slime"), "--json").stdout)
    assert told["framework"] == "slime" and preset_of_format("slime").name == "slime"


def test_files_of_another_framework_are_refused_by_init_with_the_preset_that_fits(here):
    done = run("init", "--framework", "pipelinerl", "--rollouts", str(FILES / "nemo-rl"))
    assert isinstance(done.exception, ConfigError) and "--framework nemo-rl" in str(done.exception) and not (here / "config.toml").exists()


def test_text_only_dumps_are_refused_with_what_to_use_instead(here):
    done = run("init", "--framework", "verl", "--rollouts", str(FILES / "verl"))
    assert isinstance(done.exception, ConfigError) and "klaxon proxy" in str(done.exception)


def test_an_existing_file_stays_unless_forced_and_then_the_old_ones_are_kept(here):
    (here / "config.toml").write_text("# mine\n")
    done = run("init", "--framework", "trl")
    assert isinstance(done.exception, ConfigError) and "--force" in str(done.exception) and (here / "config.toml").read_text() == "# mine\n"
    told = json.loads(initialised("--framework", "trl", "--force", "--json").stdout)
    assert told["backup"] == "config.toml.bak" and (here / "config.toml.bak").read_text() == "# mine\n"
    second = json.loads(initialised("--framework", "verl", "--force", "--json").stdout)["backup"]
    assert second != "config.toml.bak" and "TRL" in (here / second).read_text() and (here / "config.toml.bak").read_text() == "# mine\n"


def test_a_place_that_cannot_be_written_is_a_clear_error(here):
    for out, words in ((here / "no/config.toml", "is not there"), (here, "is a folder")):
        done = run("init", "--framework", "trl", "-o", str(out))
        assert isinstance(done.exception, ConfigError) and words in str(done.exception)
    assert not list(here.iterdir())


@pytest.mark.parametrize(("text", "table"), [
    ("slack=#oncall", {"type": "slack", "channel": "#oncall", "secret_env": "SLACK_BOT_TOKEN"}),
    ("slack=C01,file:/run/secrets/slack", {"type": "slack", "channel": "C01", "secret_file": "/run/secrets/slack"}),
    ("slack_webhook=env:HOOK", {"type": "slack_webhook", "url_env": "HOOK"}),
    ("webhook=file:hook.txt,env:SIGN", {"type": "webhook", "url_file": "hook.txt", "secret_env": "SIGN"}),
    ("pagerduty=env:KEY", {"type": "pagerduty", "secret_env": "KEY"}),
    ("alertmanager=http://127.0.0.1:9093", {"type": "alertmanager", "url": "http://127.0.0.1:9093"}),
    ("wandb=me/project", {"type": "wandb", "path": "me/project", "secret_env": "WANDB_API_KEY"}),
    ("console", {"type": "console"}),
])
def test_a_receiver_is_written_as_a_table_that_holds(text, table):
    assert receiver_of(text) == table
    ReceiverConfig.model_validate(table)


@pytest.mark.parametrize("text", ["slack_webhook=https://hooks.slack.example/services/T0/B0/hunter2", "pagerduty=hunter2hunter2", "webhook=whsec_hunter2"])
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(here, text):
    done = run("init", "--framework", "trl", "--receiver", text)
    assert isinstance(done.exception, ConfigError) and "env:NAME" in str(done.exception) and "hunter2" not in str(done.exception)
    assert not (here / "config.toml").exists()


@pytest.mark.parametrize("text", ["pager=x", "slack", "alertmanager"])
def test_a_receiver_that_is_none_is_a_clear_error(text):
    with pytest.raises(ConfigError, match="--receiver"):
        receiver_of(text)


def test_flags_end_up_in_the_config(here):
    initialised("--framework", "verl", "--temperature", "0.6", "--trainer-logprobs", "said.jsonl", "--run", "r7", "--page", "--receiver", "slack=C1")
    config = load_config("config.toml")
    assert (config.trainer.sampling.temperature, config.sources.trainer_files, config.run.name) == (0.6, ["said.jsonl"], "r7")
    assert config.alerts.dashboard_url and config.alerts.receivers[0].channel == "C1"
    assert "ASSUMED" not in (here / "config.toml").read_text()
    initialised("--framework", "verl", "--force")
    assert "ASSUMED" in (here / "config.toml").read_text() and not load_config("config.toml").alerts.dashboard_url


def test_a_running_engine_is_described_and_a_wrong_logprobs_mode_is_said(here, engine):  # noqa: F811
    url, routes = engine
    told = json.loads(initialised("--framework", "trl", "--engine", url, "--json").stdout)
    assert told["engine"]["state"] == "answers" and "0.32.0" in told["engine"]["text"] and "processed_logprobs" in told["notes"][0]
    routes["/server_info"] = settings(dtype="bfloat16")
    told = json.loads(initialised("--framework", "trl", "--engine", url, "--force", "--json").stdout)
    assert "dtype bfloat16" in told["engine"]["text"] and "--logprobs-mode processed_logprobs" in told["notes"][0]


def test_an_engine_nobody_answers_for_is_said_in_clear_words_by_init_and_check(here):
    url = f"http://127.0.0.1:{free_port()}"
    done = initialised("--framework", "trl", "--engine", url)
    assert f"no engine answers at {url}" in done.stdout and "klaxon check" in done.stdout
    checked = run("check")
    assert checked.exit_code == 2 and f"curl -i {url}/health" in checked.stdout


class Terminal:
    """`klaxon init` on a pseudo-terminal, as a user types."""

    def __init__(self, folder, *arguments):
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "COLUMNS": "200"}
        self.process = subprocess.Popen([sys.executable, "-m", "klaxon", "init", *arguments], cwd=folder, stdin=slave, stdout=slave, stderr=slave,
                                        env=environment, start_new_session=True, preexec_fn=lambda: __import__("fcntl").ioctl(0, 0x540E, 0))
        os.close(slave)
        self.text = ""

    def expect(self, words, seconds=60.0):
        deadline = time.monotonic() + seconds
        while words not in self.text:
            assert time.monotonic() < deadline, f"{words!r} is not in {self.text!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.master, 65536).decode()
                except OSError:  # its end was closed
                    assert words in self.text, self.text
        self.text = self.text.partition(words)[2]

    def type(self, line):
        os.write(self.master, f"{line}\n".encode())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(30)
        os.close(self.master)


def test_on_a_terminal_it_asks_and_enter_takes_the_defaults(here):
    with Terminal(here, "--port", str(free_port())) as terminal:
        for question, answer in (("framework (other)", "verll"), ("did you mean verl", "verl"), ("engine address", "-"), ("weight versions", ""),
                                 ("receiver, empty", "pagerduty=env:PD_KEY"), ("receiver, empty", ""), ("link alerts", ""), ("temperature the", "warm"),
                                 ("a number", "0.8")):
            terminal.expect(question)
            terminal.type(answer)
        terminal.expect("Next:")
        assert terminal.process.wait(30) == 0
    config = load_config(here / "config.toml")
    assert config.trainer.sampling.temperature == 0.8 and config.alerts.receivers[0].secret_env == "PD_KEY" and config.alerts.dashboard_url


@pytest.mark.parametrize("how", ["ctrl-c", "ctrl-d"])
def test_an_interrupted_dialogue_writes_nothing(here, how):
    with Terminal(here) as terminal:
        terminal.expect("framework (other)")
        terminal.type("trl")
        terminal.expect("engine address")
        os.write(terminal.master, b"\x03" if how == "ctrl-c" else b"\x04")
        terminal.expect("nothing was written")
        assert terminal.process.wait(30) == 130 and not list(here.iterdir())


def test_without_a_terminal_and_without_a_framework_it_says_what_to_name(here):
    done = run("init")
    assert isinstance(done.exception, ConfigError) and "--framework" in str(done.exception) and "nemo-rl" in str(done.exception)
    initialised("--yes")
    assert run("check").exit_code == 0
