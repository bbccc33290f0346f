"""`klaxon proxy`: stand in front of an engine that has no tap inside."""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from klaxon.client import DEFAULT_URL

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from collector.sources.proxy.retokenise import TokenizerIds
    from klaxon.proxy.app import Proxy
    from klaxon.proxy.observer import Observer
    from klaxon_tap.sender import Sender


class DialectName(StrEnum):
    """What `--dialect` takes: the names in collector/sources/proxy/dialects.py."""

    auto = "auto"
    openai = "openai"
    vllm = "vllm"
    sglang = "sglang"
    tgi = "tgi"
    llamacpp = "llamacpp"


def proxy(upstream: Annotated[str, typer.Option(help="The engine, e.g. http://127.0.0.1:8000.")],
          listen: Annotated[str, typer.Option(help="HOST:PORT for the engine's clients.")] = "127.0.0.1:8900",
          klaxon: Annotated[str, typer.Option(envvar="KLAXON_URL", help="The daemon: http(s)://HOST:PORT or "
                                              "unix:///path/klaxon.sock.")] = DEFAULT_URL,
          engine: Annotated[str, typer.Option(envvar="KLAXON_ENGINE", help="The name this engine goes by.",
                                              show_default="its URL")] = "",
          dialect: Annotated[DialectName, typer.Option(help="The engine's own dialect on its own routes; OpenAI's "
                                                       "routes are always read.")] = DialectName.auto,
          tokenizer: Annotated[Path | None, typer.Option(metavar="DIR", help="The model's folder: map token texts back "
                                                         "to ids where that is exact.")] = None,
          verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False) -> None:
    """Forward an engine's traffic unchanged and report what it generates to Klaxon.

    For engines without Klaxon's tap: SGLang, TGI, llama.cpp, TensorRT-LLM, MLC LLM, vLLM. Point the engine's clients at
    --listen instead of the engine. Only generations whose answer tells logprobs and token ids can be reported;
    docs/proxy.md says what to ask each engine for. A daemon that is away costs the traffic nothing. Stops on Ctrl-C.

    \b
    Examples:
      klaxon proxy --upstream http://127.0.0.1:30000 --dialect sglang
      klaxon proxy --upstream http://127.0.0.1:8000 --listen 127.0.0.1:8900 --klaxon http://127.0.0.1:8765

    Exit codes: 0 ended by Ctrl-C, 2 it cannot listen or an option is wrong.
    """
    import asyncio

    from klaxon.proxy.app import Proxy
    from klaxon.proxy.observer import Observer
    from klaxon.proxy.serve import listening, serve

    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING,
                        format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sender, on = _sender(klaxon, about=lambda: {**observer.heartbeat(), "proxy": dict(app.counts)})
    observer = Observer(sink=sender, engine=engine or upstream.rstrip("/"), only=dialect.value,
                        tokenizer=_tokenizer(tokenizer), on=on)
    app = Proxy(upstream, observer)
    bound = listening(listen)
    typer.echo(f"Klaxon proxy: http://{listen} → {app.name} (engine {observer.engine}); rollouts go to {klaxon}", err=True)
    sender.start()
    try:
        asyncio.run(serve(app, bound))
    finally:
        sender.close()
        typer.echo(_summary(app, observer, sender), err=True)


def _sender(url: str, *, about: Callable[[], dict[str, Any]]) -> tuple[Sender, Callable[[], bool]]:
    """(the tap's sender, its kill switch)."""
    from collector.errors import ConfigError

    try:
        from klaxon_tap import settings
        from klaxon_tap.sender import Sender, connect
    except ImportError:
        raise ConfigError("the proxy sends with klaxon-tap, which is not installed: pip install klaxon-tap") from None
    try:
        connect(url).close()
    except ValueError:
        raise ConfigError(f"--klaxon is {url!r}; write http://HOST:PORT, https://HOST:PORT or unix:///path/klaxon.sock") from None
    return Sender(url, token=settings.token(), source="proxy", about=about), settings.KillSwitch().on


def _tokenizer(folder: Path | None) -> TokenizerIds | None:
    if folder is None:
        return None
    from collector.sources.proxy.retokenise import TokenizerIds

    return TokenizerIds(folder)


def _summary(app: Proxy, observer: Observer, sender: Sender) -> str:
    """What passed by, in one line a dialect."""
    lines = [f"forwarded {app.counts['requests']} requests" + "".join(
        f", {name} {count}" for name, count in sorted(app.counts.items()) if name != "requests" and count)]
    lines += [f"{name}: " + ", ".join(f"{key} {count}" for key, count in sorted(counts.items()))
              for name, counts in sorted(observer.counts.items())]
    lines.append(f"messages to the daemon: {sender.sent} sent, {sender.dropped} dropped, {observer.faults} faults")
    return "\n".join(lines)
