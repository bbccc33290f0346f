"""`klaxon demo`: a real engine, a real GRPO loop, Klaxon and its page, and a real fault halfway through."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from collector.errors import KlaxonError
from klaxon.client import get_json
from klaxon.demo import folder as demo_folder
from klaxon.demo.cast import Cast
from klaxon.demo.children import Children
from klaxon.demo.screen import Screen
from klaxon.demo.story import CAUSES, Metrics, Story, delivered_count

SETTLE_SECONDS = 300.0
"""How long --exit waits for alarm, diagnosis and delivery after the last step."""

QUIET_BATCHES = 3
"""How many batches --exit waits after the last step when no fault was made."""

POLL_SECONDS = 0.5

STALE_LEARNING_RATE = "1.2e-4"
"""Learning rate from the stale-cache fault on: updates large enough that old keys and values matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What `klaxon demo` was asked for. Without `exit_after` the run goes on until Ctrl-C."""

    fault: str = "raw-logprobs"
    steps: int = 24
    exit_after: bool = False
    dashboard: bool = True
    as_json: bool = False
    directory: Path = Path(".cache/demo")
    api_port: int = 8765
    dashboard_port: int = 8501


def run_demo(options: DemoOptions) -> int:
    """Run it. Returns 0 when the expected thing happened, 1 when it did not, 2 on failure, 130 when stopped before the end."""
    console = Console(stderr=options.as_json)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with demo_folder.claim(options.directory) as folder, Screen(console) as screen, Children() as children:
            cast = Cast(folder, screen, children, api_port=options.api_port,
                        dashboard_port=options.dashboard_port if options.dashboard else None)
            director = Director(options, cast, screen)
            try:
                director.start()
                director.watch()
            except KeyboardInterrupt:
                screen.say("stopping; Ctrl-C again kills at once")
            story = director.story() if director.complete else None
    except KeyboardInterrupt:
        return 130
    except KlaxonError as error:
        console.print(f"klaxon demo: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    if story is None:
        return 130
    _tell(console, story)
    if options.as_json:
        print(json.dumps(story.summary()), flush=True)
    return 0 if story.as_expected() else 1


class Director:
    """Starts the cast, follows the run, makes the fault, and knows when it is over."""

    def __init__(self, options: DemoOptions, cast: Cast, screen: Screen) -> None:
        self._options, self._cast, self._screen = options, cast, screen
        self._metrics = Metrics(cast.folder.training / "metrics.jsonl")
        self._fault_at: float | None = None
        self._complete_at: float | None = None
        self._shown: set[str] = set()

    @property
    def complete(self) -> bool:
        """Whether all steps were done, so that there is something to judge."""
        return self._complete_at is not None

    def start(self) -> None:
        """Everything, in order. Raises KlaxonError when a part cannot start."""
        options = self._options
        half, early = options.steps // 2, options.steps * 2 // 5
        self._cast.start_klaxon()
        self._cast.start_engine("processed_logprobs")
        fault = {"raw-logprobs": ["--hold-at", str(half)],
                 "stale-prefix-cache": ["--stale-cache-from", str(early), "--stale-learning-rate", STALE_LEARNING_RATE]}
        self._cast.start_trainer(["--steps", str(options.steps if options.exit_after else 0), *fault.get(options.fault, [])])
        self._screen.say("GRPO starts: sums of small numbers at T = 0.7, new weights in the engine after every step")

    def watch(self) -> None:
        """Until it is over (--exit) or Ctrl-C. Raises Unavailable when a part ended that should not have."""
        while not self._over():
            self._cast.check()
            self._show_steps()
            self._show_incidents()
            if self._cast.folder.held.exists() and self._fault_at is None:
                self._upgrade_engine()
            time.sleep(POLL_SECONDS)

    def story(self) -> Story:
        """What happened so far."""
        return Story(fault=self._options.fault, fault_at=self._fault_at, engine=self._cast.engine_name,
                     status=get_json(self._cast.api, "/v1/status"), incidents=get_json(self._cast.api, "/v1/incidents"),
                     delivered=delivered_count(self._cast.folder.received))

    def _over(self) -> bool:
        if len(self._metrics.rows) < self._options.steps:
            return False
        if self._complete_at is None:
            self._complete_at = time.monotonic()
            self._screen.say("all steps done; the last batches close" if self._options.exit_after else
                             "the demo is complete and goes on; Ctrl-C stops everything", "bold")
        if not self._options.exit_after:
            return False
        waited = time.monotonic() - self._complete_at
        if self._options.fault not in CAUSES:
            return waited > QUIET_BATCHES * self._cast.batch_seconds
        return waited > SETTLE_SECONDS or self.story().settled()

    def _upgrade_engine(self) -> None:
        self._screen.say("FAULT: the engine is \"upgraded\": restarted without --logprobs-mode, so with vLLM's default", "bold yellow")
        self._cast.stop_engine()
        self._cast.start_engine(None)
        self._fault_at = time.time()
        self._cast.folder.go_on.touch()

    def _ask(self, path: str) -> Any:
        """GET from the daemon; None, and said once, when it cannot answer just now. A dead daemon is `check`'s affair."""
        try:
            return get_json(self._cast.api, path)
        except KlaxonError as error:
            if str(error) not in self._shown:
                self._shown.add(str(error))
                self._screen.say(str(error), "yellow")
            return None

    def _show_steps(self) -> None:
        fresh = self._metrics.poll()
        status = self._ask("/v1/status") if fresh else None
        for row in fresh:
            self._screen.step(row, self._options.steps, status)
            if row["stale_cache"] and self._fault_at is None:
                self._fault_at = row["at"]
                self._screen.say("FAULT: from now on new weights are loaded without resetting the prefix cache", "bold yellow")

    def _show_incidents(self) -> None:
        for incident in reversed(self._ask("/v1/incidents") or []):
            cause = incident["diagnosis"]
            known = "" if cause is None else f" · {cause['verdict']}{'' if cause['confident'] else ', diagnosing'}"
            line = f"{incident['state'].upper()} {incident['title']}{known}"
            if line not in self._shown:
                self._shown.add(line)
                self._screen.say(f"ALARM {line}", "bold red")


def _tell(console: Console, story: Story) -> None:
    """The end of the story in a few words."""
    found, good = story.summary(), story.as_expected()
    if found["alarm_at"] is not None:
        text = (f"Alarm {found['alarm_at'] - found['fault_at']:.0f} s ({found['batches_to_alarm']} batches) after the fault; "
                f"cause {found['cause']}; {found['alerts_delivered']} alerts delivered.")
    else:
        text = f"No alarm after {found['rollouts_scored']} scored rollouts." if good else "The alarm did not come."
    if found["false_alarms_before_fault"]:
        text += f" {found['false_alarms_before_fault']} false alarms."
    console.print(f"{text} {'As expected.' if good else 'NOT as expected.'}", style="bold green" if good else "bold red",
                  markup=False, highlight=False, soft_wrap=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
