"""The packages as a user gets them: wheel and sdist of both, built from a copy of the tree, installed into clean environments outside it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import httpx
import pytest
from pip_settings import UV, uv_environment
from test_command_daemon import ROLLOUT, free_port, get, post, wait

from klaxon.cli import EXTRAS
from klaxon.demo.settings import write_config

ROOT = Path(__file__).parent.parent
ROOMS = ("klaxon", "dashboard", "alerts", "diagnosis", "detectors", "collector")
NOT_IN_BASE = ("torch", "vllm", "wandb", "transformers", "tensorboard", "apprise", "redis", "msgspec", "klaxon_tap")
MOST_PACKAGES, MOST_MB = 70, 700  # of the base install; docs/install.md has what it is

PAGE = """
import os, sys
os.environ["KLAXON_API"] = sys.argv[1]
from dashboard.launch import APP
from streamlit import config
config.set_option("server.address", "127.0.0.1")  # as dashboard.launch does on the command line
from streamlit.testing.v1 import AppTest
page = AppTest.from_file(str(APP), default_timeout=120).run()
print(*(item.value for item in page.main if hasattr(item, "value")), "exceptions", len(page.exception))
"""


def run(*argv: object, folder: Path | None = None, seconds: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=seconds, cwd=folder, env=uv_environment(), check=False)


def done(*argv: object, folder: Path | None = None) -> str:
    found = run(*argv, folder=folder)
    assert found.returncode == 0, f"{' '.join(map(str, argv))}: {found.stdout[-1000:]}{found.stderr[-3000:]}"
    return found.stdout


def tree(*under: str) -> list[str]:
    """What git tracks, or would, below the folders."""
    return done("git", "ls-files", "--cached", "--others", "--exclude-standard", *under, folder=ROOT).split()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="module")
def dist(place) -> dict[str, Path]:
    """ "rl.whl", "rl.tar.gz", "tap.whl", "tap.tar.gz" → path. uv builds the sdist from the copy, and the wheel from the sdist."""
    copy, out = place / "copy", place / "dist"
    for name in tree():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    for source in (copy, copy / "tap"):
        done(UV, "build", "--quiet", "--out-dir", out, source)
    return {f"{path.name.split('-')[0].removeprefix('klaxon_')}.{'whl' if path.suffix == '.whl' else 'tar.gz'}": path for path in out.glob("klaxon*")}


class Environment:
    """A clean virtual environment."""

    def __init__(self, folder: Path, *wheels: object) -> None:
        self.folder, self.python, self.klaxon = folder, folder / "bin" / "python", folder / "bin" / "klaxon"
        done(UV, "venv", "--quiet", "--python", sys.executable, folder)
        done(UV, "pip", "install", "--quiet", "--python", self.python, *wheels)

    def packages(self) -> set[str]:
        return {row["name"] for row in json.loads(done(UV, "pip", "list", "--quiet", "--python", self.python, "--format", "json"))}


@pytest.fixture(scope="module")
def base(place, dist) -> Environment:
    return Environment(place / "base", dist["rl.whl"])


def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def metadata(wheel: Path):
    with zipfile.ZipFile(wheel) as opened:
        (name,) = [name for name in opened.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(opened.read(name).decode())


def test_the_wheel_holds_every_file_of_the_six_rooms_and_nothing_else(dist):
    held = {name for name in names(dist["rl.whl"]) if ".dist-info/" not in name}
    assert held == set(tree(*ROOMS)), held ^ set(tree(*ROOMS))


def test_the_sdist_holds_the_tests_the_documents_and_what_is_deployed(dist):
    with tarfile.open(dist["rl.tar.gz"]) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    wanted = set(tree(*ROOMS, "tests", "docs", "deploy", "examples", "benchmarks", "tap", "README.md", "LICENSE", "CHANGELOG.md", "config.toml", "Makefile"))
    assert not wanted - held, sorted(wanted - held)
    assert not [name for name in held if name.startswith((".", "runs", "build"))]


def test_the_taps_wheel_holds_the_tap_alone_needs_nothing_and_is_a_plugin_of_vllm(dist):
    held, about = names(dist["tap.whl"]), metadata(dist["tap.whl"])
    assert {name for name in held if ".dist-info/" not in name} == {name.removeprefix("tap/") for name in tree("tap/klaxon_tap")}
    assert about["Requires-Dist"] is None and about["Requires-Python"] == ">=3.10"
    with zipfile.ZipFile(dist["tap.whl"]) as opened:
        (points,) = [opened.read(name).decode() for name in held if name.endswith("entry_points.txt")]
    assert "[vllm.general_plugins]\nklaxon = klaxon_tap.plugin:register" in points


def test_the_tap_installs_alone_and_imports_out_of_its_wheel(place, dist):
    tap = Environment(place / "tap", dist["tap.whl"])
    assert tap.packages() == {"klaxon-tap"}
    assert done(tap.python, "-I", "-c", "import klaxon_tap; print(klaxon_tap.__file__)", folder=place).startswith(str(place / "tap"))


def test_the_sdists_install_too(place, dist):
    found = Environment(place / "from-source", "--no-deps", dist["rl.tar.gz"], dist["tap.tar.gz"])
    assert found.packages() == {"klaxon-rl", "klaxon-tap"}


def test_the_extras_bring_what_they_are_named_for_and_all_brings_them_all(dist):
    about = metadata(dist["rl.whl"])
    brought = {extra: {re.match(r"[\w.-]+", line)[0] for line in about.get_all("Requires-Dist") if f'extra == "{extra}"' in line}
               for extra in about.get_all("Provides-Extra")}
    assert brought["scorer"] >= {"torch", "transformers"} and brought["sources"] >= {"msgspec", "redis"}
    assert "wandb" in brought["wandb"] and "tensorboard" in brought["tensorboard"] and "apprise" in brought["apprise"]
    wanted = ("scorer", "sources", "wandb", "tensorboard", "apprise")
    assert any(all(extra in line for extra in wanted) for line in about.get_all("Requires-Dist") if 'extra == "all"' in line)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_extra_can_be_had_on_every_python_the_package_names(dist, python):
    assert f"Programming Language :: Python :: {python}" in metadata(dist["rl.whl"]).get_all("Classifier")
    argv = [UV, "pip", "compile", "--quiet", "--no-header", "--python-version", python, "--only-binary", ":all:", "-"]
    found = subprocess.run(argv, input=f"klaxon-rl[all] @ {dist['rl.whl'].as_uri()}\n", capture_output=True, text=True, timeout=600, env=uv_environment(), check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    assert {"torch", "wandb", "duckdb", "streamlit"} <= {line.partition("==")[0] for line in found.stdout.splitlines()}


def test_the_base_install_is_light(base):
    packages = base.packages()
    megabytes = sum(path.stat().st_size for path in base.folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6
    print(f"base: {len(packages)} packages, {megabytes:.0f} MB")
    assert not packages & {name.replace("_", "-") for name in NOT_IN_BASE}
    assert len(packages) <= MOST_PACKAGES and megabytes <= MOST_MB
    assert run(base.python, "-c", f"import importlib.util as u; print([n for n in {NOT_IN_BASE} if u.find_spec(n)])").stdout == "[]\n"


def test_the_version_is_one_line_and_the_one_of_the_wheel(base, dist):
    assert done(base.klaxon, "--version") == f"klaxon {metadata(dist['rl.whl'])['Version']}\n"


def test_look_reads_a_file_in_the_base_install(base, tmp_path):
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps({**ROLLOUT, "request_id": f"r{number}"}) + "\n" for number in range(20)))
    found = run(base.klaxon, "look", "rollouts.jsonl", "--json", folder=tmp_path)
    assert found.returncode == 0 and json.loads(found.stdout)["rollouts"] == 20, found.stderr


def test_the_daemon_and_the_page_of_the_base_install_run_and_are_asked(base, tmp_path):
    port, page = free_port(), free_port()
    config = write_config(tmp_path / "config.toml", {"run": {"name": "clean", "dir": str(tmp_path / "state")}, "shadow": {"enabled": False},
                                                     "alerts": {"console": False}, "daemon": {"port": port, "batch_seconds": 1.0, "watermark_seconds": 0.2}})
    url = f"http://127.0.0.1:{port}"
    with (subprocess.Popen([base.klaxon, "run", "-c", config], env=uv_environment(), cwd=tmp_path) as daemon,
          subprocess.Popen([base.klaxon, "dashboard", "--api", url, "--port", str(page)], env=uv_environment(), cwd=tmp_path) as dashboard):
        try:
            wait(lambda: get(url, "/healthz")["ok"], seconds=300)
            assert post(url, {**ROLLOUT, "request_id": "r"}).json()["accepted"] == 1
            wait(lambda: get(url, "/v1/status")["counts"].get("scored") == 1)
            found = run(base.klaxon, "status", "--url", url, "--json")
            assert found.returncode == 0 and json.loads(found.stdout)["run"] == "clean", found.stderr
            assert run(base.python, "-m", "klaxon.healthy", config).returncode == 0
            wait(lambda: httpx.get(f"http://127.0.0.1:{page}/_stcore/health", trust_env=False).text == "ok", seconds=300)
            shown = done(base.python, "-W", "ignore", "-c", PAGE, url)
            assert "clean" in shown and "exceptions 0" in shown
        finally:
            daemon.terminate()
            dashboard.terminate()
        assert daemon.wait(60) == 0


def test_every_module_imports_in_the_base_install_or_names_the_extra_it_needs(base, place):
    modules = [name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in tree(*ROOMS) if name.endswith(".py") and "__main__" not in name
               and not name.startswith(("dashboard/entry", "dashboard/pages", "dashboard/app"))]  # scripts, run above
    code = """
import importlib, json, sys
missing = {}
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing[name] = error.name
print(json.dumps(missing))
"""
    found = subprocess.run([base.python, "-W", "ignore", "-c", code], input=json.dumps(modules), capture_output=True, text=True, env=uv_environment(), cwd=place, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    missing = json.loads(found.stdout.splitlines()[-1])
    assert set(missing.values()) <= {*EXTRAS, "klaxon_tap"}, missing


@pytest.mark.parametrize(("arguments", "words"), [
    (["score", "r.jsonl", "--model", "m"], "pip install 'klaxon-rl[scorer]'"),
    (["diagnose", "r.jsonl", "--model", "m"], "pip install 'klaxon-rl[scorer]'"),
    (["receive-weights", "--group", "tcp://127.0.0.1:9", "--rank", "1", "--world-size", "2", "--model", "m", "--out", "o"], "pip install 'klaxon-rl[scorer]'"),
    (["run", "-c", "weights.toml"], "klaxon-rl[scorer]"),
    (["look", "batch.pt", "--format", "slime"], "klaxon-rl[scorer]"),
    (["run", "-c", "wandb.toml"], "klaxon-rl[wandb]"),
    (["run", "-c", "apprise.toml"], "klaxon-rl[apprise]"),
    (["run", "-c", "redis.toml"], "klaxon-rl[sources]"),
    (["proxy", "--upstream", "http://127.0.0.1:9"], "pip install klaxon-tap"),
])
def test_a_command_that_needs_an_extra_names_it_and_shows_no_traceback(base, tmp_path, arguments, words):
    (tmp_path / "r.jsonl").write_text(json.dumps({**ROLLOUT, "request_id": "r"}) + "\n")
    (tmp_path / "batch.pt").write_bytes(b"PK\x03\x04 a torch file, as far as its first bytes say")
    (tmp_path / "m").mkdir()
    daemon = {"run": {"dir": "state"}, "daemon": {"port": free_port()}}
    write_config(tmp_path / "weights.toml", {**daemon, "weights": {"dir": "m"}})
    write_config(tmp_path / "wandb.toml", {**daemon, "metrics": {"sources": [{"type": "wandb", "path": "m"}]}})
    write_config(tmp_path / "apprise.toml", {**daemon, "alerts": {"receivers": [{"type": "apprise", "name": "mail", "url_env": "MAIL_URL"}]}})
    write_config(tmp_path / "redis.toml", {**daemon, "sources": {"files": ["redis://127.0.0.1:9/actor/0/0"]}})
    found = run("env", "MAIL_URL=mailto://u:p@127.0.0.1", base.klaxon, *arguments, folder=tmp_path)
    assert found.returncode == 2 and words in found.stderr + found.stdout and "Traceback" not in found.stderr, (found.stdout, found.stderr)
