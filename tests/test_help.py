"""Every command's --help: a paragraph, examples that parse, exit codes. And what the shell completes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest
import typer.main

from klaxon.cli import COMMANDS, HELP, app, needed

CLI = typer.main.get_command(app(list(COMMANDS)))


def leaves(command, path=()):
    """(words, command) of everything one can call."""
    for name, below in getattr(command, "commands", {}).items():
        if hasattr(below, "commands"):
            yield from leaves(below, (*path, name))
        else:
            yield (*path, name), below


LEAVES = dict(leaves(CLI))
ids = [" ".join(words) for words in LEAVES]


def examples(text: str) -> list[str]:
    """The command lines below "Examples:", what is piped into them left out."""
    lines = text.partition("Examples:\n")[2].split("\n\n")[0].splitlines()
    return [line.strip().rpartition(" | ")[2] for line in lines]


def parse(line: str) -> tuple[str, ...]:
    """The words of the command that the line calls. Raises where the line does not parse."""
    name, *words = shlex.split(line)
    assert name == "klaxon"
    command, context, path = CLI, None, ()
    while hasattr(command, "commands"):
        command, path, words = command.commands[words[0]], (*path, words[0]), words[1:]
        if not hasattr(command, "commands"):
            context = command.make_context(path[-1], list(words))
    assert context is not None
    return path


@pytest.mark.parametrize("words", LEAVES, ids=ids)
def test_every_command_has_a_paragraph_an_example_that_parses_and_its_exit_codes(words):
    text = LEAVES[words].help
    assert text.split("\n")[0].rstrip(".?") != "" and "Exit codes: 0" in text
    assert examples(text)
    for line in examples(text):
        assert parse(line) == words


@pytest.mark.parametrize("line", ["klaxon look", "klaxon status --no-such-option", "klaxon plan --params many"])
def test_a_line_that_is_no_call_would_be_noticed(line):
    with pytest.raises(Exception, match="(?i)missing|no such|valid number"):
        parse(line)


def test_the_first_page_shows_where_to_begin():
    text = subprocess.run([sys.executable, "-m", "klaxon", "--help"], capture_output=True, text=True, check=True).stdout
    assert "klaxon look rollouts.jsonl" in text and "Exit codes: 0" in text and all(f"  {name} " in text for name in COMMANDS)
    assert all(line.split()[1] in (*COMMANDS, "--install-completion") for line in examples(HELP))


def complete(line: str) -> list[str]:
    """What bash would offer after the line."""
    words = line.split(" ")
    code = "import sys; sys.argv = ['klaxon']; from klaxon.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env={
        **os.environ, "_KLAXON_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)})
    return done.stdout.split()


@pytest.mark.parametrize(("line", "offered"), [
    ("klaxon comp", {"compare", "compare-engines"}), ("klaxon silence ", {"add", "list", "expire"}),
    ("klaxon demo --fault ", {"raw-logprobs", "stale-prefix-cache", "none"}), ("klaxon status --u", {"--url"})])
def test_the_shell_completes_commands_options_and_their_values(line, offered):
    assert set(complete(line)) == offered


def test_only_the_command_that_is_meant_is_imported():
    assert needed(["--version"], {}) == [] and needed(["look", "x"], {}) == ["look"] and needed(["--help"], {}) == list(COMMANDS)
    assert needed([], {"_KLAXON_COMPLETE": "complete_bash", "COMP_WORDS": "klaxon compare --m"}) == ["compare"]
    assert needed([], {"_KLAXON_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "klaxon compare"}) == list(COMMANDS)
