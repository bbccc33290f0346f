"""The process that holds W&B's client: one JSON line in, one out. Started by wandb.py; knows nothing of Klaxon.

The client starts a service, hooks sys.exit and waits for uploads when Python ends. In a process of its own none of that can
hold up the daemon, which may end this process at any time. Lines in: the settings, then {"log": {…}} or {"alert": {…}}.
Lines out: {"ok": …} or {"error": …} for each. End of input: what was logged leaves, then the process ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, TextIO

LAST_SECONDS = 60  # after the end of input, or a refused run: then the process is ended, whatever the client still waits for
STEPS = ("klaxon/trainer_step", "klaxon/batch")


def main() -> None:
    """Take settings and lines from standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # "stop run" on W&B's page interrupts the process; Klaxon stays
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the client prints is no answer
    given = json.loads(sys.stdin.readline())
    try:
        run = _open(given)
    except BaseException as error:  # its own tree, and SystemExit from deep inside: told to the daemon, which counts it
        signal.alarm(LAST_SECONDS)
        return _say(answers, error=f"{type(error).__name__}: {error}")
    _say(answers, ok=getattr(run, "url", None) or getattr(run, "dir", ""))
    axis = ""
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if "alert" in message:
                run.alert(**message["alert"], wait_duration=1)  # seconds; 0 would mean its default, a minute
            else:
                axis = _axis(run, message["log"], axis)
                run.log(message["log"])
        except Exception as error:  # as above
            _say(answers, error=f"{type(error).__name__}: {error}")
        else:
            _say(answers, ok="")
    signal.alarm(LAST_SECONDS)
    run.finish()
    _say(answers, ok="finished")


def _open(given: dict[str, Any]) -> Any:
    import wandb

    return wandb.init(**given["init"], settings=wandb.Settings(**given["settings"]))


def _axis(run: Any, values: dict[str, float], axis: str) -> str:
    """Klaxon's own x-axis: the trainer's step where the numbers have one, else the batch."""
    fitting = next((name for name in STEPS if name in values), axis)
    if fitting != axis:
        for name in STEPS:
            run.define_metric(name, hidden=True)
        run.define_metric("klaxon/*", step_metric=fitting)
    return fitting


def _say(answers: TextIO, **told: str) -> None:
    answers.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
