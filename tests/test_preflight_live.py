"""`klaxon preflight` on a real vLLM with the real model: one engine, with vLLM's own default of raw logprobs."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from klaxon.cli import app
from klaxon.demo.children import free_port
from klaxon.demo.engine import Engine
from klaxon.demo.model import DEFAULT_FOLDER

pytestmark = pytest.mark.engine


def test_a_raw_engine_fails_by_name_and_passes_where_the_trainer_expects_raw_logprobs(tmp_path):
    engine = Engine(model=DEFAULT_FOLDER.resolve(), port=free_port(8640), log=tmp_path / "engine.log", logprobs_mode=None)
    engine.start()
    try:
        engine.wait_ready(patience_seconds=900.0)
        code, found = run(engine.url, "--temperature", "0.7")
        expecting = tmp_path / "config.toml"
        expecting.write_text('[trainer]\nexpected_logprobs_mode = "raw_logprobs"\n[canary]\nmax_tokens = 12\n', encoding="utf-8")
        healthy_code, healthy = run(engine.url, "--temperature", "0.7", "--config", expecting)
    finally:
        engine.stop()
    rows = {row["name"]: row for row in found["rows"]}
    assert code == 1
    assert rows["settings"]["state"] == "failed" and rows["settings"]["cause"] == "raw_logprobs"
    assert rows["logprobs"]["state"] == "failed" and found["diagnosis"]["verdict"] == "raw_logprobs", found["diagnosis"]
    assert "--logprobs-mode processed_logprobs" in rows["logprobs"]["do"]
    assert healthy_code == 0, healthy["rows"]
    states = {row["name"]: row["state"] for row in healthy["rows"]}
    assert states["logprobs"] == states["canaries"] == states["settings"] == states["tokenizer"] == states["weights"] == "passed"
    assert states["prefix cache"] == "passed" and healthy["diagnosis"]["verdict"] == "healthy"


def run(url, *args):
    """(exit code, the JSON object) of one preflight."""
    result = CliRunner().invoke(app(["preflight"]), ["preflight", "--engine", url, "--model", str(DEFAULT_FOLDER), "--max-tokens", "12", "--body-dtype", "float32", "--json", *map(str, args)])
    return result.exit_code, json.loads(result.stdout)
