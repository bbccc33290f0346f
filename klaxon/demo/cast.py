"""The parts of a demo and how each is started: receiver, daemon, page, engine, trainer."""

from __future__ import annotations

import base64
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from collector.errors import KlaxonError, Unavailable
from dashboard.launch import command as dashboard_command
from klaxon.client import get_json
from klaxon.demo.children import Child, Children, free_port, require_free_port
from klaxon.demo.engine import Engine, has_gpu
from klaxon.demo.folder import Folder
from klaxon.demo.model import DEFAULT_FOLDER, prepare_model
from klaxon.demo.screen import Screen
from klaxon.demo.settings import demo_alerts, write_config

TRAINER = Path(__file__).resolve().parents[2] / "examples" / "grpo" / "train.py"
TEMPERATURE = 0.7
BATCH_SECONDS = 8.0
DAEMON_PATIENCE_SECONDS = 120.0


class Cast:
    """One demo's processes. `dashboard_port` None = no page."""

    batch_seconds = BATCH_SECONDS

    def __init__(self, folder: Folder, screen: Screen, children: Children, *, api_port: int, dashboard_port: int | None) -> None:
        self.folder, self.api, self.engine_name = folder, f"http://127.0.0.1:{api_port}", ""
        self._screen, self._children = screen, children
        self._api_port, self._dashboard_port = api_port, dashboard_port
        self._parts: dict[str, Child] = {}
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
        self._secrets = {"KLAXON_RECEIVER_SECRET": secret, "KLAXON_WEBHOOK_SECRET": secret}
        self._tap = {"KLAXON_URL": f"unix://{folder.socket}", "KLAXON_TOKEN": secrets.token_urlsafe(24)}

    def start_klaxon(self) -> None:
        """The model, then receiver, daemon and page.

        Raises:
            ConfigError: a port is taken.
            Unavailable: the model cannot be had, or the daemon does not come up.
        """
        require_free_port(self._api_port, "Klaxon's API", "is another demo or daemon running? Stop it first")
        if self._dashboard_port is not None:
            require_free_port(self._dashboard_port, "the page", "is another demo running? Stop it, or add --no-dashboard")
        self._model = prepare_model(DEFAULT_FOLDER, self._screen.say)
        receiver_port, self._engine_port = free_port(8330), free_port(8210)
        self._start("receiver", [sys.executable, "-m", "klaxon.demo.receiver", "--port", str(receiver_port),
                                 "--out", str(self.folder.received)], self._secrets)
        config = write_config(self.folder.root / "config.toml", self._config(f"http://127.0.0.1:{receiver_port}"))
        self._start("daemon", [sys.executable, "-m", "klaxon", "run", "--config", str(config)], self._secrets | self._tap)
        self._wait_for_daemon()
        self._screen.say(f"alerts arrive at a local receiver: http://127.0.0.1:{receiver_port}")
        if self._dashboard_port is not None:
            self._start("dashboard", dashboard_command(port=self._dashboard_port), {"KLAXON_API": self.api, "KLAXON_TOKEN": self._tap["KLAXON_TOKEN"]})
            self._screen.say(f"page: http://127.0.0.1:{self._dashboard_port}", "bold")

    def start_engine(self, logprobs_mode: str | None) -> None:
        """The engine, from the base model; None = vLLM's default mode. Raises as Engine.start and wait_ready."""
        self._engine = Engine(model=self._model, port=self._engine_port, log=self.folder.logs / "engine.log",
                              logprobs_mode=logprobs_mode, tap=self._tap)
        self._engine.start()
        self._children.adopt(self._engine.child)
        self._parts["engine"] = self._engine.child
        with self._screen.wait("the vLLM engine starts", typical_seconds=50) as waiting:
            self._engine.wait_ready(waiting)
        try:
            self.engine_name = self._engine.describe()
        except httpx.HTTPError as error:
            raise Unavailable(f"the engine started, but does not tell its version ({error})") from None
        mode = f"--logprobs-mode {logprobs_mode}" if logprobs_mode else "vLLM's default logprobs mode"
        self._screen.say(f"engine ready: {self.engine_name}, {mode}, {self._engine.url}")

    def stop_engine(self) -> None:
        """Stop the engine; `check` does not miss it until the next start."""
        del self._parts["engine"]
        self._engine.stop()

    def start_trainer(self, arguments: Sequence[str]) -> None:
        """The GRPO loop, with extra arguments. Raises Unavailable when it cannot be run."""
        self._start("trainer", [sys.executable, str(TRAINER), "--engine", self._engine.url, "--model", str(self._model),
                                "--out", str(self.folder.training), "--temperature", str(TEMPERATURE), "--largest", "12", *arguments],
                    {**self._tap, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"})

    def check(self) -> None:
        """Raises Unavailable, with the end of its log, when a part ended that should not have."""
        for name, child in self._parts.items():
            done = name == "trainer" and child.exit_code == 0
            if not child.running and not done:
                raise Unavailable(f"the {name} ended (exit {child.exit_code}); the end of {child.log}:\n{child.tail()}")

    def _start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        child = Child(name, command, log=self.folder.logs / f"{name}.log", env=environment)
        self._parts[name] = self._children.start(child)

    def _wait_for_daemon(self) -> None:
        with self._screen.wait("Klaxon's daemon starts", typical_seconds=5) as waiting:
            began = time.monotonic()
            while not self._daemon_answers():
                self.check()
                waited = time.monotonic() - began
                if waited > DAEMON_PATIENCE_SECONDS:
                    raise Unavailable(f"Klaxon's daemon does not answer; the end of {self._parts['daemon'].log}:\n"
                                      f"{self._parts['daemon'].tail()}")
                waiting(waited)
                time.sleep(0.3)

    def _daemon_answers(self) -> bool:
        try:
            get_json(self.api, "/healthz")
        except KlaxonError:
            return False
        return True

    def _config(self, receiver_url: str) -> dict[str, dict[str, Any]]:
        return {
            "run": {"name": "demo", "dir": str(self.folder.state)},
            "daemon": {"port": self._api_port, "socket": str(self.folder.socket), "batch_seconds": BATCH_SECONDS,
                       "watermark_seconds": 4.0},
            "engine": {"url": f"http://127.0.0.1:{self._engine_port}", "probe_seconds": 5.0},
            "trainer": {"expected_logprobs_mode": "processed_logprobs"},
            "trainer.sampling": {"temperature": TEMPERATURE, "top_p": 1.0, "top_k": -1, "min_p": 0.0,
                                 "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
            # Two cores are shared with the engine and the trainer: score a part of what is sampled, whole groups at a time.
            "sampler": {"tokens_per_minute": 100_000 if has_gpu() else 6000},
            "weights": {"dir": str(self.folder.training / "weights"), "accept_unmarked": False, "poll_seconds": 1.0},
            "shadow": {"body_dtype": "bfloat16", "head_dtype": "float32", "threads": 1},
            # What the demo's own model writes is nobody's secret: the Tokens page may show it.
            "store": {"tokens": "text"},
            # A diagnosis competes with engine and trainer for the same two cores: fewer rollouts.
            "diagnosis": {"experiments": ["caching"]} | ({} if has_gpu() else {"max_rollouts": 32, "max_versions": 6, "min_tokens": 200}),
            # The demo restarts its engine on purpose and builds it slowly on a CPU: that is not an outage.
            "detectors.facts": {"startup_seconds": 1800.0, "engine_gone_seconds": 600.0, "no_rollouts_seconds": 900.0},
            "alerts": demo_alerts(receiver_url, self._dashboard_port or 8501),
        }
