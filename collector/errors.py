"""The error tree, split by who can mend the fault. Six classes, and no more.

    KlaxonError          anything Klaxon raises on purpose
    ├── ConfigError      the operator mends config.toml or a command line
    ├── InputError       somebody's data are wrong: names file, line and field
    ├── Unavailable      another process (engine, trainer, daemon) does not answer or a file is not there yet
    ├── RetryLater       a receiver said "not now": the outbox tries again
    └── GiveUp           a receiver said "never": the message becomes a dead letter
"""

from __future__ import annotations


class KlaxonError(Exception):
    """Base of every error Klaxon raises on purpose; its text is fit to be shown to a user."""


class ConfigError(KlaxonError):
    """The configuration or the command line is wrong; the text says what to write instead."""


class InputError(KlaxonError):
    """Bad data. `where` names the file and line (or the sender), `field` the field, `reason` what is wrong."""

    def __init__(self, reason: str, *, field: str | None = None, where: str | None = None) -> None:
        self.reason, self.field, self.where = reason, field, where
        super().__init__(": ".join(part for part in (where, field, reason) if part))


class Unavailable(KlaxonError):
    """Another part does not answer, or its file is missing or incomplete; trying again may help."""


class RetryLater(KlaxonError):
    """A receiver asked for patience. `after_seconds` is its Retry-After, or None when it gave none."""

    def __init__(self, reason: str, *, after_seconds: float | None = None) -> None:
        self.after_seconds = after_seconds
        super().__init__(reason)


class GiveUp(KlaxonError):
    """A receiver refused for good (bad token, unknown channel, malformed message)."""
