"""Ask a running engine, its model folder and Klaxon's daemon for every fact `klaxon audit` judges. GETs only."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from collector.errors import InputError, Unavailable
from diagnosis.engine_told import Told
from klaxon.client import get_json

TIMEOUT_SECONDS = 10.0
SERVER_INFO_SECONDS = 90.0  # the first /server_info runs vLLM's collect_env: programs and package lists
CACHE_INFO = "vllm:cache_config_info"
CALLS = 2000  # newest events of the daemon looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was told, and how each source answered."""

    told: Told
    sources: dict[str, str] = field(default_factory=dict)  # source → "answers" or why it told nothing


def ask(url: str, *, model: str = "", daemon: str = "", progress: Callable[[str], None] = lambda source: None) -> Asked:
    """Every fact the engine behind `url` gives. `progress` is called with each source before it is asked.

    Raises:
        Unavailable: nobody answers there, or what answers is no vLLM engine; or the named daemon does not answer.
        InputError: the model folder of --model is not there, or its JSON cannot be read.
    """
    sources: dict[str, str] = {}
    client = _client(url)

    def get(path: str, **options: Any) -> httpx.Response | None:
        progress(path)
        response, sources[path] = _get(client, path, **options)
        return response

    with closing(client):
        version = _text(_object(get("/version"), "/version", sources).get("version"))
        models = _object(get("/v1/models"), "/v1/models", sources).get("data")
        metrics = _metrics(get("/metrics"), sources)
        label = _object(get("/weight_info"), "/weight_info", sources).get("weight_version")
        info = _object(get("/server_info", params={"config_format": "json"}, timeout=SERVER_INFO_SECONDS), "/server_info", sources)
    config = info.get("vllm_config") if isinstance(info.get("vllm_config"), dict) else None
    if info and config is None:
        sources["/server_info"] = "answers without a readable vllm_config; is it a vLLM engine?"
    if version is None and config is None and not metrics:
        raise Unavailable(f"{url} answers, but not as a vLLM engine (no version in /version, no vLLM metrics in /metrics); name the engine's own address, not a proxy's")
    folder = _folder(model, config, models)
    generation, hf_config = _files(folder, config, sources, named=bool(model))
    tap, calls = _daemon(daemon, url, sources, progress) if daemon else ({}, ())
    env = info.get("vllm_env")
    told = Told(version=version, config=config, env=env if isinstance(env, dict) else {}, weight_label=_text(label), tap=tap, calls=calls,
                generation_config=generation, model_config=hf_config, **metrics)
    return Asked(told=told, sources=sources)


def _client(url: str) -> httpx.Client:
    try:
        client = httpx.Client(base_url=url.rstrip("/"), timeout=TIMEOUT_SECONDS, trust_env=False)
    except (httpx.InvalidURL, ValueError):
        client = None
    if client is None or client.base_url.scheme not in ("http", "https") or not client.base_url.host:
        raise InputError("is no address of an engine; write e.g. http://127.0.0.1:8000", where=url)
    try:
        client.get("/health")
    except httpx.HTTPError as error:
        client.close()
        raise Unavailable(f"no engine answers at {url} ({type(error).__name__}): is `vllm serve` up, and are host and port right? "
                          "Try `curl -i ENGINE_URL/health`") from None
    return client


def _get(client: httpx.Client, path: str, **options: Any) -> tuple[httpx.Response | None, str]:
    try:
        response = client.get(path, **options)
    except httpx.HTTPError as error:
        return None, f"no answer ({type(error).__name__})"
    if response.status_code == 200:
        return response, "answers"
    hint = {404: "dev mode is off" if path in ("/server_info", "/weight_info") else "no such route", 401: "wants an API key"}.get(response.status_code, "")
    return None, f"{response.status_code}" + (f": {hint}" if hint else "")


def _object(response: httpx.Response | None, path: str, sources: dict[str, str]) -> dict[str, Any]:
    """The JSON object of an answer; {} where there is none, said in `sources`."""
    if response is None:
        return {}
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        return body
    sources[path] = "its answer is no JSON object"
    return {}


def _metrics(response: httpx.Response | None, sources: dict[str, str]) -> dict[str, Any]:
    """cache_info, prefix_queries and prefix_hits of Told out of a Prometheus page; {} where it holds none."""
    if response is None:
        return {}
    found: dict[str, Any] = {}
    try:
        for family in text_string_to_metric_families(response.text):
            for sample in family.samples:
                if sample.name == CACHE_INFO:
                    found["cache_info"] = dict(sample.labels)
                elif key := {"vllm:prefix_cache_queries_total": "prefix_queries", "vllm:prefix_cache_hits_total": "prefix_hits"}.get(sample.name):
                    found[key] = found.get(key, 0.0) + sample.value
    except (ValueError, KeyError, IndexError):
        sources["/metrics"] = "its answer is no Prometheus text"
        return {}
    if not found:
        sources["/metrics"] = "answers without vLLM's families"
    return found


def _folder(model: str, config: Mapping[str, Any] | None, models: Any) -> Path | None:
    """--model, else the path the engine names; None when it names none that is a folder here."""
    if model:
        if not Path(model).is_dir():
            raise InputError("is no folder; --model names the one the engine was started from", where=model)
        return Path(model)
    section = (config or {}).get("model_config")
    named = [section.get("model")] if isinstance(section, dict) else []
    named += [card.get("root") for card in models if isinstance(card, dict)] if isinstance(models, list) else []
    return next((Path(path) for path in named if isinstance(path, str) and Path(path).is_absolute() and Path(path).is_dir()), None)


def _files(folder: Path | None, config: Mapping[str, Any] | None, sources: dict[str, str],
           *, named: bool) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """generation_config.json (of the folder --generation-config names, where it does) and config.json."""
    if folder is None:
        sources["model folder"] = "not readable here; name it with --model"
        return None, None
    section = (config or {}).get("model_config")
    other = section.get("generation_config") if isinstance(section, dict) else None
    elsewhere = Path(other) if isinstance(other, str) and other not in ("auto", "vllm") else None
    sources["model folder"] = "answers"
    generation = None
    if elsewhere is None or elsewhere.is_dir():
        generation = _file((elsewhere or folder) / "generation_config.json", sources, strict=named)
    hf_config = _file(folder / "config.json", sources, strict=named)
    return generation, hf_config or None


def _file(path: Path, sources: dict[str, str], *, strict: bool) -> dict[str, Any] | None:
    """A JSON object; {} when the file is not there; None, said, when it cannot be read (an error when the user named its folder)."""
    if not path.exists():
        return {}
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(body, dict):
            raise ValueError("no JSON object")
        return body
    except (OSError, ValueError) as error:
        if strict:
            raise InputError(f"cannot be read ({error})", where=str(path)) from None
        sources["model folder"] = f"{path.name} cannot be read"
        return None


def _daemon(daemon: str, url: str, sources: dict[str, str], progress: Callable[[str], None]) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    """The tap's account of this engine, and the weight-update calls it saw succeed, oldest first."""
    progress("Klaxon's daemon")
    status = get_json(daemon, "/v1/status")
    engine = status.get("engine") if isinstance(status, dict) else None
    if not isinstance(engine, dict) or not engine.get("engine"):
        sources["tap"] = "the daemon has heard no tap"
        return {}, ()
    if not any(_same(url, str(engine.get(key) or "")) for key in ("engine", "url")):
        sources["tap"] = f"the daemon speaks of another engine ({engine['engine']}); its account is not used"
        return {}, ()
    sources["tap"] = "answers"
    if len({tap.get("engine") for tap in status.get("taps", []) if tap.get("source") != "trainer"}) > 1:
        return engine, ()  # an update call does not say which of several engines it went to
    events = get_json(daemon, f"/v1/events?limit={CALLS}")
    rows = [row for row in events if isinstance(row, dict) and row.get("kind") == "engine_call"] if isinstance(events, list) else []
    data = [row["data"] for row in rows if isinstance(row.get("data"), dict)]
    return engine, tuple((str(one.get("path", "")), str(one.get("query", ""))) for one in reversed(data) if one.get("status") == 200)


def _same(url: str, name: str) -> bool:
    """Do the two name one server? A tap says http://HOSTNAME:PORT where the engine listens on all addresses.

    >>> _same("http://127.0.0.1:8000", "http://127.0.0.1:8000/"), _same("http://127.0.0.1:8000", "replica-3")
    (True, False)
    """
    try:
        ours, theirs = urlsplit(url.rstrip("/")), urlsplit(name.rstrip("/"))
        here = ours.hostname in ("127.0.0.1", "localhost", "::1") and theirs.hostname == socket.gethostname().lower()
        return bool(theirs.hostname) and ours.port == theirs.port and (here or ours.hostname == theirs.hostname)
    except ValueError:
        return False


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
