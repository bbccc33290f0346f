"""The `klaxon` command. Every command imports its own parts, so that `klaxon look` needs no torch and starts fast."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence

import typer

from collector.errors import KlaxonError

COMMANDS = {
    "init": "klaxon.commands.init", "run": "klaxon.commands.run", "demo": "klaxon.commands.demo", "look": "klaxon.commands.look",
    "check": "klaxon.commands.check", "audit": "klaxon.commands.audit", "plan": "klaxon.commands.plan",
    "preflight": "klaxon.commands.preflight", "compare-engines": "klaxon.commands.compare_engines",
    "score": "klaxon.commands.score", "diagnose": "klaxon.commands.diagnose",
    "detect": "klaxon.commands.detect", "replay": "klaxon.commands.replay", "backtest": "klaxon.commands.backtest",
    "export": "klaxon.commands.export", "serve": "klaxon.commands.serve", "dashboard": "klaxon.commands.dashboard",
    "status": "klaxon.commands.status",
    "incidents": "klaxon.commands.incidents", "explain": "klaxon.commands.explain", "ack": "klaxon.commands.ack",
    "silence": "klaxon.commands.silence", "report": "klaxon.commands.report",
    "rebaseline": "klaxon.commands.rebaseline", "quarantine": "klaxon.commands.quarantine",
    "proxy": "klaxon.commands.proxy", "receive-weights": "klaxon.commands.receive_weights",
    "alerts": "klaxon.commands.alerts", "runbook": "klaxon.commands.runbook",
    "doctor": "klaxon.commands.doctor", "backup": "klaxon.commands.backup", "restore": "klaxon.commands.restore",
    "reference": "klaxon.commands.reference", "compare": "klaxon.commands.compare",
}
"""Name → module; the module holds a function of the command's name, _ for - (its docstring is the help), or a group of commands."""

EXTRAS = {"torch": "scorer", "transformers": "scorer", "safetensors": "scorer", "msgspec": "sources", "redis": "sources", "wandb": "wandb",
          "tensorboard": "tensorboard", "tokenizers": "scorer", "apprise": "apprise", "gguf": "demo", "accelerate": "demo"}
"""Package that the base install is without → the extra of klaxon-rl that brings it."""

HELP = """Klaxon watches a live LLM RL run and says when the rollout engine's logprobs stop meaning what the trainer
thinks they mean, why, and what to do.

\b
Examples:
  klaxon look rollouts.jsonl       what a file of rollouts says by itself
  klaxon check                     is config.toml right, does every part answer?
  klaxon run                       the daemon
  klaxon status                    its verdict
  klaxon --install-completion      completes commands and options in bash, zsh and fish

Exit codes: 0 healthy, 1 mismatch found, 2 nothing usable or failure. Each command's --help says its own."""


def app(names: list[str]) -> typer.Typer:
    """The command line with the given commands registered."""
    cli = typer.Typer(name="klaxon", help=HELP, no_args_is_help=True, add_completion=True, rich_markup_mode=None,
                      pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})
    cli.callback(invoke_without_command=True)(_version)
    for name in names:
        command = getattr(importlib.import_module(COMMANDS[name]), name.replace("-", "_"))
        if isinstance(command, typer.Typer):
            cli.add_typer(command, name=name)
        else:
            cli.command(name)(command)
    return cli


def main() -> None:
    """Entry point: a user's mistake is one clear line and exit code 2, Ctrl-C is 130, never a traceback."""
    try:
        app(needed(sys.argv[1:], os.environ))()
    except KlaxonError as error:
        print(f"klaxon: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        print(f"klaxon: this needs {package}: pip install 'klaxon-rl[{EXTRAS[package]}]'", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if str(error) != "Query interrupted":  # what DuckDB makes of Ctrl-C while it works
            raise
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(2)


def needed(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The commands this call can mean: to import all of them takes seconds, and a shell that completes a word waits for it."""
    if arguments[:1] == ["--version"]:
        return []
    if "_KLAXON_COMPLETE" in environment:
        line = environment.get("COMP_WORDS") or environment.get("_TYPER_COMPLETE_ARGS", "")
        arguments = line.split()[1:] if line.endswith((" ", "\n")) else line.split()[1:-1]  # the last word is not whole yet
    return [name for name in arguments[:1] if name in COMMANDS] or list(COMMANDS)


def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"klaxon {installed('klaxon-rl')}")
        raise typer.Exit


if __name__ == "__main__":
    main()
