"""The `klaxon …` command lines of README.md and docs/, and how a test runs each: with which files, or why it only reads its options."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name != "log.md")]
_FENCE = re.compile(r"```(\w*)\n(.*?)```", re.S)
_INLINE = re.compile(r"`(klaxon [^`\n]+)`")
GRAMMAR = re.compile(r"[…|\[]|^klaxon [A-Z]|^klaxon --")  # a line with one of these describes commands, or is an option of all of them (test_help.py)

PLACES = {
    "FILE": "rollouts.jsonl", "ROLLOUTS": "rollouts.jsonl", "PATH": "rollouts.jsonl", "FILE_FROM_THE_FLOAT32_ENGINE": "rollouts.jsonl", "INCIDENT": "last", "NAME": "raw_logprobs",
    "RECEIVER": "team", "REASON": "testing", "RUN": "stopped", "RUN_DIR": "stopped", "ID": "1", "TABLE": "series", "DIR": "model", "MODEL_DIR": "model", "OLDER_DIR": "older",
    "URL": "http://127.0.0.1:9", "ENGINE_URL": "http://127.0.0.1:9", "URL_A": "http://127.0.0.1:9", "URL_B": "http://127.0.0.1:9", "A": "a.jsonl", "B": "b.jsonl",
    "NAME.toml": "config.toml", "other.toml": "config.toml",
}
"""A word of capitals in the documents → what the test's folder holds."""

READ_ONLY = {
    "run": "started and stopped in test_command_daemon.py and test_docs_commands.py", "demo": "the demos have tests of their own", "dashboard": "serves until it is stopped",
    "serve": "serves until it is stopped", "proxy": "serves until it is stopped", "receive-weights": "waits for a trainer's group", "preflight": "needs an engine: test_preflight.py",
    "compare-engines": "needs two engines: test_preflight.py", "audit": "needs an engine: test_audit.py", "score": "needs a model: test_command_diagnose.py",
    "diagnose": "needs a model: test_command_diagnose.py", "init": "run by test_docs_commands.py in folders of its own",
}
"""Command → why its lines are only parsed here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One documented command line."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """Its words after `klaxon`, comments gone, placeholders put in."""
        plain = re.sub(r"^\$ ", "", self.text)
        return [PLACES.get(word, re.sub(r"^<.*>", "given", word)) for word in shlex.split(plain.split(" > ")[0], comments=True)[1:]]


def lines() -> list[Line]:
    """Each different one once, in the order of the pages."""
    found: dict[str, Line] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fenced = [line.strip() for _, body in _FENCE.findall(text) for line in body.splitlines()]
        shown = [part for line in [*fenced, *_INLINE.findall(_FENCE.sub("", text))] for part in line.split(" && ") if re.match(r"(\$ )?klaxon ", part)]
        for line in shown:
            if not GRAMMAR.search(line):
                found.setdefault(re.sub(r"\s+#.*", "", line), Line(page=str(page.relative_to(ROOT)), text=line))
    return list(found.values())


def shell_lines() -> list[tuple[str, str]]:
    """(page, line) of the other commands in console blocks: somebody else's programs."""
    return [(str(page.relative_to(ROOT)), line.strip()) for page in PAGES for language, body in _FENCE.findall(page.read_text(encoding="utf-8")) if language in ("console", "bash", "sh")
            for line in body.replace("\\\n", " ").splitlines() if line.strip() and not re.match(r"\s*(\$ )?(klaxon |#)", line)]
