"""Which daemons the page shows and who may use it: files and flags read, every mistake said, nobody let in by accident."""

from __future__ import annotations

import doctest
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from alerts_served import served_daemon
from dashboard import access, daemons, fleet, guard, trouble
from dashboard.daemons import Daemon, Unusable
from dashboard.launch import SETTINGS, command, guards, provider

OIDC = ('[oidc]\npage_url = "https://klaxon.example.org"\nserver_metadata_url = "https://id.example.org/.well-known/openid-configuration"\nclient_id = "k"\n'
        'client_secret_file = "secret"\n')
HEADER = '[header]\nuser = "X-User"\n'
ROLES = '[roles]\noncall = ["ada@x.org"]\n'
PROVEN = 'secret_header = "X-Secret"\nsecret_file = "secret"\n'


@pytest.mark.parametrize("module", [access, daemons, fleet, guard, trouble])
def test_the_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(("flags", "said"), [
    (["ftp://h"], "no address"), (["http://"], "no address"), (["http://h:99999"], "no address"), (["http://user:pw@h"], "no address"),
    (["http://a", "http://b"], "NAME=URL"), (["a=http://h", "a=http://i"], "name a is given twice"), (["a=http://h", "b=http://h/"], "url http://h is given twice"),
    (["=http://h"], "needs a name"), (["a" * 101 + "=http://h"], "needs a name")])
def test_a_flag_that_names_no_daemon_is_refused(flags, said):
    with pytest.raises(Unusable, match=said):
        daemons.from_flags(flags)


@pytest.mark.parametrize(("name", "text", "said"), [
    ("d.toml", "", "lists no daemon"), ("d.toml", "[[daemons]]\nname = 'a'", "no address"), ("d.toml", "[[daemons]]\nurl = 'http://h'", "needs a name"),
    ("d.toml", "[[daemons]]\nname = 'a'\nurl = 'http://h'\ntoken = 'x'", "token is unknown"), ("d.toml", "x = [", "is no TOML"), ("d.json", "{", "is no JSON"),
    ("d.json", "[]", "a table is expected"), ("d.json", '{"daemons": [1]}', "daemon 1: a table"), ("d.toml", "other = 1", "other is unknown"),
    ("d.toml", "[[daemons]]\nname = 'a'\nurl = 'http://h'\ntoken_file = 'gone'", "gone cannot be read"),
    ("d.toml", "[[daemons]]\nname = 'a'\nurl = 'https://h'\nca_file = 'gone'", "ca_file .* cannot be used")])
def test_a_file_of_daemons_that_cannot_be_used_is_refused_with_its_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(Unusable, match=said):
        daemons.from_file(tmp_path / name)


def test_toml_and_json_name_the_same_daemons_and_the_environment_carries_them_without_tokens(tmp_path, monkeypatch):
    (tmp_path / "a.token").write_text("sesame\n")
    (tmp_path / "d.toml").write_text('[[daemons]]\nname = "a"\nurl = "http://h:1/"\ntoken_file = "a.token"\n[[daemons]]\nname = "b"\nurl = "http://h:2"\n')
    (tmp_path / "d.json").write_text(json.dumps({"daemons": [{"name": "a", "url": "http://h:1", "token_file": "a.token"}, {"name": "b", "url": "http://h:2"}]}))
    found = daemons.from_file(tmp_path / "d.toml")
    assert found == daemons.from_file(tmp_path / "d.json") and [one.name for one in found] == ["a", "b"]
    told = daemons.environment(found)
    assert "sesame" not in str(told)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert daemons.configured() == found


def test_each_daemon_gets_its_own_token_only_and_a_new_one_without_a_restart(tmp_path, monkeypatch):
    seen: list[str] = []
    transport = httpx.MockTransport(lambda request: (seen.append(request.headers.get("authorization", "")), httpx.Response(200))[1])
    monkeypatch.setenv("KLAXON_TOKEN", "for-the-flag")
    token = tmp_path / "token"
    token.write_text("first")
    for daemon in (Daemon(name="", url="http://h"), Daemon(name="b", url="http://h", from_file=True), Daemon(name="a", url="http://h", token_file=str(token), from_file=True)):
        with daemons.connect(daemon, timeout_seconds=1.0) as client, httpx.Client(transport=transport, base_url=daemon.url, auth=client.auth) as asking:
            asking.get("/")
            token.write_text("second")
            asking.get("/")
    assert seen == ["Bearer for-the-flag"] * 2 + ["", ""] + ["Bearer second"] * 2


@pytest.mark.parametrize(("text", "said"), [
    (ROLES, "either"), (OIDC + HEADER + 'proxies = ["127.0.0.1"]\n' + ROLES, "not both"), (OIDC, "lets nobody in"), (OIDC + "[roles]\noncall = 'ada'\n", "list of texts"),
    (OIDC + "[roles]\nreaders = ['a*']\n", "stand for many"), (OIDC + "[roles]\nadmins = ['a']\n", "admins is unknown"), (OIDC + "x = 1\n" + ROLES, "x is unknown"),
    (OIDC.replace("https://klaxon", "http://klaxon") + ROLES, "unencrypted"), (OIDC.replace("https://id", "http://id") + ROLES, "unencrypted"),
    (OIDC.replace(".org\"\nserver", ".org/sub\"\nserver") + ROLES, "no address"), (OIDC.replace('client_id = "k"\n', "") + ROLES, "client_id: is missing"),
    (OIDC.replace('"secret"', '"gone"') + ROLES, "gone cannot be read"), (OIDC + "hours = 0\n" + ROLES, "hours"),
    (HEADER + ROLES, "proxies: a list"), (HEADER + "proxies = []\n" + ROLES, "anybody could name himself"), (HEADER + "proxies = ['ten']\n" + ROLES, "addresses like"),
    (HEADER + "proxies = ['10.0.0.1']\n" + ROLES, "must prove itself"), (HEADER + "proxies = ['0.0.0.0/0']\n" + ROLES, "must prove itself"),
    (HEADER + "proxies = ['127.0.0.1']\nsecret_header = 'X-S'\n" + ROLES, "belong together"), (HEADER.replace("X-User", "X User") + "proxies = ['127.0.0.1']\n" + ROLES, "no name of a header"),
    (HEADER + "proxies = ['10.0.0.1']\n" + PROVEN.replace('"secret"', '"short"') + ROLES, "at least 16 characters")])
def test_a_sign_in_that_would_not_hold_is_refused(tmp_path, text, said):
    (tmp_path / "secret").write_text("s" * 32)
    (tmp_path / "short").write_text("s" * 8)
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(Unusable, match=said):
        access.read(tmp_path / "s.toml")


def test_a_sign_in_file_makes_streamlits_secrets_or_a_guard(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("s" * 32)
    path = tmp_path / "s.toml"
    monkeypatch.setenv(SETTINGS, str(path))
    path.write_text(OIDC + ROLES)
    told = provider()["auth"]
    assert told["redirect_uri"] == "https://klaxon.example.org/oauth2callback" and told["client_secret"] == "s" * 32 and len(told["cookie_secret"]) >= 32
    assert provider()["auth"]["cookie_secret"] != told["cookie_secret"] and [one.cls for one in guards()] == [guard.ComeBack]
    path.write_text(HEADER + "proxies = ['10.0.0.0/8']\n" + PROVEN + ROLES)
    assert provider() == {} and [one.cls for one in guards()] == [guard.ProxyOnly]


def test_only_the_proxys_address_with_its_secret_and_one_name_is_believed():
    header = access.Header(user="X-User", proxies=("10.0.0.0/8", "::1"), secret_header="X-Secret", secret_file="x")
    good = [("x-user", "ada@x.org"), ("X-SECRET", "s")]
    assert not access.not_the_proxy("10.1.2.3", good, header, secret="s") and not access.not_the_proxy("::ffff:10.1.2.3", good, header, secret="s")
    for peer, headers in (("11.0.0.1", good), (None, good), ("127.0.0.1", good), ("nonsense", good), ("10.1.2.3", good[:1]), ("10.1.2.3", good[1:]),
                          ("10.1.2.3", [*good, ("X-User", "bob@x.org")]), ("10.1.2.3", [("X-User", "a\x00b"), good[1]]), ("10.1.2.3", [("X-User", " "), good[1]])):
        assert access.not_the_proxy(peer, headers, header, secret="s"), (peer, headers)


@pytest.mark.parametrize("claims", [{}, {"email": 7}, {"email": ["ada@x.org"]}, {"email": "ada@x.org", "email_verified": "false"}, {"groups": {"sre": 1}}, {"groups": 5},
                                    {"email": "@x.org"}, {"email": "group:sre"}, {"email": "Group:SRE"}, {"email": "*"}, {"email": "*@x.org"}])
def test_odd_claims_make_nobody_on_call(claims):
    settings = access.SignIn(oidc=access.Oidc(page_url="", server_metadata_url="", client_id="", client_secret_file=""), header=None, oncall=("ada@x.org", "group:sre"), readers=())
    assert access.from_claims(claims, settings).role is None


def run(*options: str, **environ: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "klaxon", "dashboard", *options], capture_output=True, text=True, timeout=120, env={**os.environ, **environ})
    return done.returncode, done.stderr


def test_the_command_says_what_is_wrong_in_one_line_and_starts_nothing(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options, said in ((["--port", port], "is taken"), (["--address", "0.0.0.0"], "--sign-in FILE"), (["--address", "::"], "--sign-in FILE"),
                              (["--address", "192.0.2.1", "--sign-in", str(tmp_path / "gone.toml")], "cannot be read"),
                              (["--daemons", str(tmp_path / "gone.toml")], "cannot be read"), (["--api", "http://h", "--daemons", "x"], "one of them")):
            code, text = run(*options)
            assert code == 2 and said in text and text.startswith("klaxon: ") and text.count("\n") == 1, text


def test_the_page_without_its_launcher_is_closed_off_loopback(tmp_path, monkeypatch):
    from streamlit.testing.v1 import AppTest

    monkeypatch.setattr("streamlit.get_option", lambda name: "0.0.0.0" if name == "server.address" else None)
    app = AppTest.from_file(str(Path(command()[4])), default_timeout=60).run()
    assert not app.exception and "Closed" in app.error[0].value and not app.get("page_link")


def test_a_glance_says_how_each_daemon_is_and_never_waits_for_a_dead_one(tmp_path):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()  # takes connections, answers none
        silent = Daemon(name="deaf", url=f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with served_daemon(tmp_path) as served:
            here = Daemon(name="here", url=served.url)
            watch = fleet.Fleet([here, silent])
            assert watch.look()[silent.url].state == "asking"
            seen = watch.look(patience_seconds=30.0)
            assert (seen[here.url].state, seen[here.url].run, seen[silent.url].state) == ("starting", "r1", "unreachable")
        assert fleet.ask(here).state == "unreachable"
