"""Why nothing new comes from the daemon, as words and as the band that says what to do. Pure."""

from __future__ import annotations

from typing import Literal

from dashboard.words import Verdict, duration, plain

TroubleKind = Literal["away", "refused", "error", "odd"]
TITLES: dict[str, str] = {"away": "Disconnected", "refused": "Disconnected · no access", "error": "Disconnected · the daemon fails", "odd": "Disconnected · an odd answer"}
ADVICE: dict[str, str] = {
    "away": "Start it with `klaxon run`, or set `KLAXON_API` for this page (now `{api}`; `klaxon dashboard --api URL`).",
    "refused": "Give this page the daemon's token: `KLAXON_TOKEN` in its environment, or `token_file` in the file of `--daemons`.",
    "error": "It runs, and something in it is broken: look at its log (`klaxon run` writes it to standard error), and restart it; nothing recorded is lost.",
    "odd": "Is `{api}` the address of a Klaxon daemon (`klaxon run`; set `KLAXON_API` or `--api`), and of the same version as this page?"}


class Trouble(str):
    """Why nothing new came, in words fit for the page, and of which kind."""

    __slots__ = ("kind",)

    def __new__(cls, text: str, kind: TroubleKind = "away") -> Trouble:
        made = super().__new__(cls, text)
        made.kind = kind
        return made


def band(problem: str, *, api: str, as_of: str = "", age_seconds: float | None = None) -> Verdict:
    """What to say while nothing new comes. `as_of`: the daemon's clock in what is still shown; `age_seconds`: since it came.

    >>> band(Trouble("it answers 500", "error"), api="http://h", as_of="12:00:00 UTC", age_seconds=90.0).text.split(".")[1]
    ' What stands below is from 12:00:00 UTC (1 min 30 s ago) and is no longer true for sure'
    """
    kind = getattr(problem, "kind", "away")
    age = f" ({duration(age_seconds)} ago)" if age_seconds is not None else ""
    seen = f" What stands below is from {as_of}{age} and is no longer true for sure." if as_of else ""
    advice = ADVICE[kind].format(api=api.replace("`", ""))
    return Verdict(state="disconnected", tone="warn", title=TITLES[kind], text=(
        f"{plain(problem[:1].upper() + problem[1:])}.{seen}\n\n{advice} This page tries again by itself every few seconds. The training run itself is not affected."))
