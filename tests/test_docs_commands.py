"""Every command in the documents: Klaxon's own are run, or at least understood; somebody else's are valid shell."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from dashboard_served import faulty_run
from documented_commands import READ_ONLY, ROOT, lines, shell_lines
from klaxon import cli
from test_dashboard_browser import free_port

LINES = lines()
RECORDINGS = ROOT / "klaxon" / "recordings"
NEEDS_MORE = {"requires an argument", "is missing", "Missing argument", "Missing option", "Missing command"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the documents' placeholders name, and a daemon's address."""
    folder = tmp_path_factory.mktemp("documents")
    shutil.copy(RECORDINGS / "v0181_raw_t07.jsonl", folder / "rollouts.jsonl")
    (folder / "config.toml").write_text('[run]\nname = "r1"\ndir = "state"\n[daemon]\nport = ' + str(free_port()) + '\nbatch_seconds = 10.0\n[shadow]\nenabled = false\n')
    steps = [{"step": n, "reward": 0.1 * (n % 5), "clip_rate": 0.01 + 0.001 * (n % 3)} for n in range(60)]
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text("\n".join(json.dumps(step) for step in steps))
    with faulty_run(folder / "old") as gone:
        gone.daemon.keep_status()
        stopped = Path(gone.daemon.config.run.dir)
    shutil.copytree(stopped, folder / "stopped")
    with faulty_run(folder / "live") as served:
        yield folder, served.url


def ran(words: list[str], monkeypatch, capsys) -> tuple[int, str]:
    """Exit code and everything said of one command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["klaxon", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
        raise SystemExit(0)
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out + said.err


def takes(command: str, option: str) -> bool:
    found = typer.main.get_command(cli.app(list(cli.COMMANDS)))
    for word in command.split():
        found = getattr(found, "commands", {}).get(word, found)
    return any(option in parameter.opts for parameter in found.params)


@pytest.mark.parametrize("line", LINES, ids=lambda line: re.sub(r"\W+", "-", line.text)[:60])
def test_a_documented_command_is_understood_and_run(line, place, monkeypatch, capsys):
    folder, url = place
    words = line.words
    assert words and words[0] in cli.COMMANDS, f"{line.page}: there is no command {line.text!r}"
    if words[0] in READ_ONLY:
        code, said = ran([*words, "--help"], monkeypatch, capsys)  # unknown options are refused before the help is shown
        assert code == 0 and "Examples:" in said, f"{line.page}: {line.text}\n{said}"
        return
    if takes(" ".join(words[:2]), "--url") and "--url" not in words:
        words = [*words, "--url", url]
    words = [url if re.fullmatch(r"http://(HOST|127\.0\.0\.1):8765", word) else word for word in words]
    monkeypatch.chdir(folder)
    code, said = ran(words, monkeypatch, capsys)
    assert "Traceback" not in said and "No such option" not in said and "No such command" not in said, f"{line.page}: {line.text}\n{said}"
    assert code in (0, 1) or any(hint in said for hint in NEEDS_MORE) or "klaxon:" in said, f"{line.page}: {line.text}\n{said}"


def test_reasons_are_of_commands_that_exist_and_most_lines_are_run():
    assert set(READ_ONLY) <= set(cli.COMMANDS)
    run = [line for line in LINES if line.words[0] not in READ_ONLY]
    assert len(LINES) >= 60 and len(run) >= 0.5 * len(LINES)


@pytest.mark.parametrize("line", [line for line in LINES if line.words[0] == "init" and "--framework" in line.words], ids=lambda line: line.words[line.words.index("--framework") + 1])
def test_a_quickstarts_init_writes_a_config(line, tmp_path):
    words = [*line.words, *([] if "--yes" in line.words else ["--yes"])]
    done = subprocess.run([sys.executable, "-m", "klaxon", *words], cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=None)
    if words[words.index("--framework") + 1] == "raw_logprobs":
        assert done.returncode == 2 and "Traceback" not in done.stderr
        return
    assert done.returncode == 0 and (tmp_path / "config.toml").is_file(), done.stderr


@pytest.mark.parametrize(("page", "line"), shell_lines(), ids=lambda text: re.sub(r"\W+", "-", text)[:50])
def test_somebody_elses_command_is_valid_shell(page, line):
    checked = subprocess.run(["bash", "-n", "-c", line.replace("…", "")], capture_output=True, text=True)
    assert checked.returncode == 0, f"{page}: {line}\n{checked.stderr}"
    if line.startswith("make "):
        target = line.split()[1]
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"{page}: make has no target {target}"
