"""[alerts]: secrets stay out of config.toml, and every mistake says what to write instead."""

from __future__ import annotations

import sqlite3

import pytest
from pydantic import ValidationError

from alerts.config import AlertsConfig, ReceiverConfig
from alerts.db import Database
from alerts.notifiers import build
from alerts.service import Alerts
from alerts_helpers import BUDGET
from collector.errors import ConfigError, InputError, Unavailable


@pytest.mark.parametrize("url", ["https://hooks.slack.com/services/T0/B0/key", "http://10.0.0.1/x", "https://127.0.0.1/x",
                                 "http://127.0.0.1.evil.test/", "http://user:key@127.0.0.1/", "ftp://127.0.0.1/", "http://[bad"])
def test_an_address_that_could_be_a_secret_is_refused_and_not_repeated(url) -> None:
    with pytest.raises(ValidationError, match="url_env or url_file") as caught:
        ReceiverConfig(type="slack_webhook", url=url)
    assert url not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8330/services/demo", "http://localhost:1/", "http://[::1]:8330/x"])
def test_a_local_address_may_be_written_down(url) -> None:
    assert ReceiverConfig(type="slack_webhook", url=url).address() == url


def test_exactly_one_address_is_asked_for() -> None:
    with pytest.raises(ValidationError, match="none is set"):
        ReceiverConfig(type="webhook")
    with pytest.raises(ValidationError, match="url_env and url_file are set"):
        ReceiverConfig(type="webhook", url_env="A", url_file="b")
    with pytest.raises(ValidationError, match="a console has no address"):
        ReceiverConfig(type="console", url_env="A")


def test_two_receivers_of_one_name_and_unknown_keys_are_errors() -> None:
    twice = [ReceiverConfig(type="webhook", url_env="A"), ReceiverConfig(type="webhook", url_env="B")]
    with pytest.raises(ValidationError, match="two receivers are called 'webhook'"):
        AlertsConfig(receivers=twice)
    with pytest.raises(ValidationError, match="Extra inputs"):
        ReceiverConfig(type="webhook", url_env="A", adress="x")


def test_the_address_is_read_from_the_environment_or_a_file(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("KX_URL", " https://hooks.example.test/key \n")
    assert ReceiverConfig(type="webhook", url_env="KX_URL").address() == "https://hooks.example.test/key"
    file = tmp_path / "url"
    file.write_text("https://hooks.example.test/file\n")
    assert ReceiverConfig(type="webhook", url_file=str(file)).address() == "https://hooks.example.test/file"


@pytest.mark.parametrize(("value", "said"), [
    (None, "environment variable KX_URL is not set or empty"), ("hooks.example.test/key", "not an http\\(s\\) URL"),
    ("http://hooks.example.test/key", "allow_http"), ("https://me:key@hooks.example.test/", "user name or password"),
    ("https://hooks.example.test/k ey", "not an http\\(s\\) URL"), ("https://hooks.example.test:99999/key", "not an http\\(s\\) URL"),
])
def test_an_unusable_address_stops_the_start_and_is_not_repeated(monkeypatch, value, said) -> None:
    monkeypatch.delenv("KX_URL", raising=False)
    if value is not None:
        monkeypatch.setenv("KX_URL", value)
    with pytest.raises(ConfigError, match=said) as caught:
        ReceiverConfig(type="webhook", url_env="KX_URL").address()
    assert "key" not in str(caught.value) and "ey" not in str(caught.value).split()


def test_a_missing_file_and_a_secret_that_is_none_stop_the_start(monkeypatch, tmp_path) -> None:
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        ReceiverConfig(type="webhook", url_file=str(tmp_path / "no")).address()
    monkeypatch.setenv("KX_SECRET", "whsec_!")
    receiver = ReceiverConfig(type="webhook", url="http://127.0.0.1:9/", secret_env="KX_SECRET")
    with pytest.raises(ConfigError, match="base64, usually written whsec_") as caught:
        build(receiver, timeout_seconds=1.0)
    assert "whsec_!" not in str(caught.value)


def test_the_console_is_on_unless_switched_off_or_listed() -> None:
    assert [r.type for r in AlertsConfig().all_receivers()] == ["console"]
    assert AlertsConfig(console=False).all_receivers() == ()
    named = AlertsConfig(receivers=[ReceiverConfig(type="console", name="screen")])
    assert [r.name for r in named.all_receivers()] == ["screen"]


def test_a_file_that_is_no_database_says_so(tmp_path) -> None:
    path = tmp_path / "control.sqlite"
    path.write_text("not a database, but long enough to be looked at as one" * 20)
    with pytest.raises(Unavailable, match="move it aside"):
        Alerts(AlertsConfig(), path, run="r1", budget_text=BUDGET)


def test_a_file_of_a_newer_klaxon_is_left_alone(tmp_path) -> None:
    path = tmp_path / "control.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(Unavailable, match="newer Klaxon"):
        Database(path)


def test_a_change_that_cannot_be_stored_raises_and_changes_nothing(tmp_path) -> None:
    database = Database(tmp_path / "control.sqlite")
    with pytest.raises(Unavailable, match="refuses the change"), database.transaction() as connection:
        connection.execute("INSERT INTO receivers VALUES ('a', 1.0)")
        connection.execute("INSERT INTO nowhere VALUES (1)")
    assert database.rows("SELECT * FROM receivers") == []
    database.close()


def test_an_unknown_incident_is_named(tmp_path) -> None:
    alerts = Alerts(AlertsConfig(), tmp_path / "control.sqlite", run="r1", budget_text=BUDGET)
    with pytest.raises(InputError, match="no incident 'inc_x'"):
        alerts.acknowledge("inc_x", by="ada", now=0.0)
    assert alerts.resolve("r1/mismatch", now=0.0, why="x") is None
    alerts.stop()
