"""Trainer metrics out of real files: JSON lines, W&B run folders written by wandb itself, TensorBoard event files."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from collector.errors import ConfigError, InputError, Unavailable
from collector.sources.config import MetricsConfig, MetricsSourceConfig
from collector.sources.metrics import registry, source
from collector.sources.metrics.jsonl import JsonlMetrics
from collector.sources.metrics.names import FRAMEWORKS, STANDARD, NameMap, detect
from collector.sources.metrics.source import MetricsRow
from collector.sources.metrics.wandb_log import BLOCK
from collector.store import Store
from klaxon.checks import examine
from klaxon.config import Config
from klaxon.trainer_side import TrainerSide

ROOT = Path(__file__).parent.parent
NOW = 1000.0


def lines(path: Path, *steps: int, mode: str = "a", **values: float) -> None:
    with path.open(mode) as stream:
        stream.writelines(json.dumps({"step": step, "reward": step / 10, **values}) + "\n" for step in steps)


def write(path: Path, text: str) -> None:
    with path.open("a") as stream:
        stream.write(text)


def steps(rows) -> list[int]:
    return [row.step for row in rows]


# JSON lines


def test_json_lines_are_read_as_they_come_and_a_half_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = JsonlMetrics(str(path))
    assert list(tail.poll(NOW)) == []
    lines(path, 1, at=50.5, text="x", flag=True)
    write(path, '{"step": 2, "rew')
    assert list(tail.poll(NOW)) == [MetricsRow(1, {"reward": 0.1}, 50.5)]
    write(path, 'ard": 0.2}\n')
    assert list(tail.poll(NOW)) == [MetricsRow(2, {"reward": 0.2}, NOW)]


def test_a_line_without_a_whole_step_is_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"reward": 1}\nnonsense\n{"step": 1.5}\n{"step": NaN}\n{"_step": 4, "_timestamp": 9, "a": {"b": 1}}\n')
    rows = list(JsonlMetrics(str(path)).poll(NOW))
    assert [str(row) for row in rows[:2]] == [f"{path}:1: step: a whole number is expected", str(rows[1])]
    assert all(isinstance(row, InputError) for row in rows[:4])
    assert rows[4] == MetricsRow(4, {"a.b": 1.0}, 9.0)


def test_a_truncated_file_is_read_from_its_start_even_when_it_has_grown_past_the_old_place(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = JsonlMetrics(str(path))
    lines(path, 1, 2, 3)
    assert steps(tail.poll(NOW)) == [1, 2, 3]
    lines(path, 1, mode="w")
    assert steps(tail.poll(NOW)) == [1]
    path.write_text(json.dumps({"step": 7, "padding": "x" * 500}) + "\n")
    assert steps(tail.poll(NOW)) == [7]


def test_a_rotated_file_is_read_to_its_end_before_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = JsonlMetrics(str(path))
    lines(path, 1, 2)
    assert steps(tail.poll(NOW)) == [1, 2]
    lines(path, 3)
    path.rename(tmp_path / "metrics.jsonl.1")
    lines(path, 4, 5, 6)
    assert steps(tail.poll(NOW)) == [3]
    assert steps(tail.poll(NOW)) == [4, 5, 6]
    path.rename(tmp_path / "elsewhere")
    lines(path, 7)
    assert steps(tail.poll(NOW)) == [7]


# W&B

WRITE_RUN = """
import sys, wandb
folder, count, start = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
run = wandb.init(project="p", dir=folder, mode="offline", settings=wandb.Settings(x_disable_stats=True, silent=True))
for step in range(start, start + count):
    run.log({"actor/ppo_kl": step / 1000, "critic/rewards/mean": step / 10, "nested": {"a": step}, "text": "x" * 40}, step=step)
run.finish()
"""


def write_run(folder: Path, count: int, start: int = 0) -> Path:
    """A real offline run; returns its `.wandb` file."""
    folder.mkdir(exist_ok=True)
    before = set(folder.rglob("*.wandb"))
    env = {**os.environ, "WANDB_SILENT": "true", "HOME": str(folder)}
    subprocess.run([sys.executable, "-c", WRITE_RUN, str(folder), str(count), str(start)], check=True, env=env, timeout=120,
                   capture_output=True)
    (file,) = set(folder.rglob("*.wandb")) - before
    return file


@pytest.fixture(scope="session")
def wandb_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("wandb")
    write_run(folder, 400)
    return folder / "wandb"


def test_every_step_of_an_offline_wandb_run_is_read(wandb_folder: Path) -> None:
    from collector.sources.metrics.wandb_run import WandbRun

    (file,) = wandb_folder.glob("offline-run-*/*.wandb")
    assert file.stat().st_size > 2 * BLOCK  # records cross the edges of blocks
    for path in (wandb_folder, file.parent, file):
        reader = WandbRun(str(path))
        rows = list(reader.poll(NOW))
        assert steps(rows) == list(range(400))
        assert rows[7].values == {"actor/ppo_kl": 0.007, "critic/rewards/mean": 0.7, "nested.a": 7.0}
        assert rows[7].at > 1.6e9 and rows[7].at <= rows[8].at
        assert list(reader.poll(NOW)) == []


def test_a_growing_wandb_file_gives_each_step_once_wherever_it_is_cut(wandb_folder: Path, tmp_path: Path) -> None:
    from collector.sources.metrics.wandb_run import WandbRun

    (file,) = wandb_folder.glob("offline-run-*/*.wandb")
    whole, live = file.read_bytes(), tmp_path / "run-x.wandb"
    reader, seen = WandbRun(str(live)), list[int]()
    for end in [0, 3, *range(1001, len(whole), 3001), len(whole)]:
        live.write_bytes(whole[:end])
        seen += steps(reader.poll(NOW))
    assert seen == list(range(400))


def test_a_damaged_block_is_told_and_costs_only_its_own_steps(wandb_folder: Path, tmp_path: Path) -> None:
    from collector.sources.metrics.wandb_run import WandbRun

    (file,) = wandb_folder.glob("offline-run-*/*.wandb")
    damaged = bytearray(file.read_bytes())
    damaged[BLOCK + 5000] ^= 0xFF
    live = tmp_path / "run-x.wandb"
    live.write_bytes(damaged)
    rows = list(WandbRun(str(live)).poll(NOW))
    told = [row for row in rows if isinstance(row, InputError)]
    kept = [row.step for row in rows if isinstance(row, MetricsRow)]
    assert len(told) == 1 and "damaged block" in str(told[0])
    assert 200 < len(kept) < 400 and kept == sorted(kept) and kept[-1] == 399


def test_a_file_that_is_no_wandb_file_is_told_once(tmp_path: Path) -> None:
    from collector.sources.metrics.wandb_run import WandbRun

    path = tmp_path / "run-x.wandb"
    path.write_bytes(b"something else entirely")
    reader = WandbRun(str(path))
    assert [str(row) for row in reader.poll(NOW)] == [f"{path}: this is no .wandb file"]
    assert list(reader.poll(NOW)) == []


def test_the_newest_run_is_followed_when_the_trainer_restarts(wandb_folder: Path, tmp_path: Path) -> None:
    from collector.sources.metrics.wandb_run import WandbRun

    (file,) = wandb_folder.glob("offline-run-*/*.wandb")
    whole = file.read_bytes()
    for name, size in (("offline-run-20260101_000000-aaaa", BLOCK), ("run-20260102_000000-bbbb", len(whole))):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"run-{name[-4:]}.wandb").write_bytes(whole[:size])
        if "aaaa" in name:
            reader = WandbRun(str(tmp_path))
            first = steps(reader.poll(NOW))
            assert 0 < len(first) < 400
    assert steps(reader.poll(NOW)) == list(range(400))


def test_a_history_file_or_a_summary_is_read_where_there_is_no_wandb_file(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from collector.sources.metrics.wandb_run import WandbRun

    files = tmp_path / "run-20260101_000000-aaaa" / "files"
    files.mkdir(parents=True)
    summary = files / "wandb-summary.json"
    summary.write_text(json.dumps({"_step": 3, "_timestamp": 77.0, "loss": 0.5, "_wandb": {"runtime": 3}}))
    reader = WandbRun(str(tmp_path))
    assert list(reader.poll(NOW)) == [MetricsRow(3, {"loss": 0.5}, 77.0)]
    assert list(reader.poll(NOW)) == []
    summary.write_text(json.dumps({"_step": 4, "_timestamp": 78.0, "loss": 0.25}))
    assert list(reader.poll(NOW)) == [MetricsRow(4, {"loss": 0.25}, 78.0)]
    (files / "wandb-history.jsonl").write_text('{"_step": 0, "_timestamp": 5.0, "loss": 1.0}\n{"_step": 1, "_timestamp": 6.0, "loss": 0.9}\n')
    assert list(WandbRun(str(tmp_path)).poll(NOW)) == [MetricsRow(0, {"loss": 1.0}, 5.0), MetricsRow(1, {"loss": 0.9}, 6.0)]


ASK_SERVER = """
import json, sys
from collector.errors import Unavailable
from collector.sources.metrics.wandb_api import WandbApi
reader = WandbApi("team/project/run1")
for now in (0.0, 5.0, 40.0, 80.0):
    try:
        print(json.dumps([list(row) for row in reader.poll(now)]), flush=True)
    except Unavailable as error:
        print(json.dumps(str(error)), flush=True)
    if now == 5.0:
        sys.stdin.readline()  # the run goes on meanwhile
"""


class WandbServer(http.server.ThreadingHTTPServer):
    """Answers the GraphQL questions of `wandb.Api().run(…).scan_history(…)` as the real server does."""

    def __init__(self) -> None:
        self.rows = [{"_step": step, "_timestamp": 50.0 + step, "rl/kl_new_old": step / 100} for step in range(3)]
        self.known = True
        super().__init__(("127.0.0.1", 0), WandbHandler)

    def answer(self, query: str, variables: dict) -> dict:
        if "viewer" in query and "project" not in query:
            return {"viewer": {"id": "1", "entity": "team", "username": "u", "email": "u@x", "flags": "{}", "teams": {"edges": []}}}
        if not self.known:
            return {"project": None}
        if "history(" in query:
            page = [json.dumps(row) for row in self.rows if variables["minStep"] <= row["_step"] < variables["maxStep"]]
            return {"project": {"run": {"history": page}}}
        run = dict.fromkeys(("sweepName", "group", "jobType", "commit", "description", "notes"))
        return {"project": {"internalId": "1", "run": run | {
            "id": "1", "projectId": "1", "name": "run1", "displayName": "run1", "state": "running", "config": "{}", "tags": [],
            "readOnly": False, "createdAt": "2026-01-01T00:00:00", "heartbeatAt": "2026-01-01T00:00:00", "systemMetrics": "{}",
            "summaryMetrics": "{}", "historyLineCount": len(self.rows), "user": {"name": "u", "username": "u"},
            "historyKeys": {"lastStep": self.rows[-1]["_step"], "keys": {}}}}}


class WandbHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        asked = json.loads(body) if self.path.endswith("/graphql") else {}
        answer = json.dumps({"data": self.server.answer(asked.get("query", ""), asked.get("variables") or {})}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def test_the_real_wandb_client_is_asked_for_new_steps_only(tmp_path: Path) -> None:
    """Against a local server; api.wandb.ai itself has not been reached by a test."""
    pytest.importorskip("wandb")
    with WandbServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {**os.environ, "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "x" * 40,
               "HOME": str(tmp_path), "WANDB_SILENT": "true"}
        with subprocess.Popen([sys.executable, "-c", ASK_SERVER], env=env, cwd=ROOT, text=True, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdin is not None
            assert json.loads(child.stdout.readline()) == [[step, {"rl/kl_new_old": step / 100}, 50.0 + step] for step in range(3)]
            assert json.loads(child.stdout.readline()) == []  # 5 seconds later: not asked again
            server.rows += [{"_step": 9, "_timestamp": 70.0, "rl/kl_new_old": 0.5}]
            child.stdin.write("\n")
            child.stdin.flush()
            assert json.loads(child.stdout.readline()) == [[9, {"rl/kl_new_old": 0.5}, 70.0]]
            server.known = False
            told = json.loads(child.stdout.readline())
            child.communicate(timeout=30)
        server.shutdown()
    assert isinstance(told, str) and "wandb run team/project/run1" in told and "WANDB_API_KEY" in told


# TensorBoard


@pytest.fixture
def tensorboard_writer(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util import tensor_util

    writer = EventFileWriter(str(tmp_path / "tb"))

    def put(step: int, at: float, *, tensor: bool = False, **scalars: float) -> None:
        for tag, value in scalars.items():
            made = (summary_pb2.Summary.Value(tag=tag, tensor=tensor_util.make_tensor_proto(value)) if tensor
                    else summary_pb2.Summary.Value(tag=tag, simple_value=value))
            writer.add_event(event_pb2.Event(wall_time=at, step=step, summary=summary_pb2.Summary(value=[made])))
        writer.flush()

    yield put
    writer.close()


def test_scalars_of_a_real_event_file_are_read_as_they_are_written(tensorboard_writer, tmp_path: Path) -> None:
    from collector.sources.metrics.tensorboard import TensorBoardMetrics

    reader = TensorBoardMetrics(str(tmp_path))
    tensorboard_writer(1, 10.0, loss=0.5, reward=1.0)
    tensorboard_writer(2, 11.0, tensor=True, loss=0.25)
    rows = list(reader.poll(NOW))
    assert rows == [MetricsRow(1, {"loss": 0.5, "reward": 1.0}, 10.0), MetricsRow(2, {"loss": 0.25}, 11.0)]
    assert list(reader.poll(NOW)) == []
    tensorboard_writer(3, 12.0, loss=0.125)
    assert list(reader.poll(NOW)) == [MetricsRow(3, {"loss": 0.125}, 12.0)]


def test_an_event_file_cut_in_the_middle_of_a_record_goes_on_when_the_rest_comes(tensorboard_writer, tmp_path: Path) -> None:
    from collector.sources.metrics.tensorboard import TensorBoardMetrics

    for step in range(30):
        tensorboard_writer(step, 10.0 + step, loss=step / 2)
    (file,) = (tmp_path / "tb").iterdir()
    whole, live = file.read_bytes(), tmp_path / "copy" / file.name
    live.parent.mkdir()
    reader, seen = TensorBoardMetrics(str(live.parent)), list[int]()
    for end in [*range(5, len(whole), 97), len(whole)]:
        with live.open("ab") as stream:
            stream.write(whole[stream.tell():end])
        seen += steps(reader.poll(NOW))
    assert seen == list(range(30))


# configuration


@pytest.mark.parametrize("kind, library", [("wandb", "wandb"), ("wandb_api", "wandb"), ("tensorboard", "tensorboard")])
def test_a_missing_library_is_named_with_the_command_that_installs_it(kind: str, library: str, monkeypatch) -> None:
    def absent(name: str):
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(source.importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=rf'pip install "klaxon-rl\[{library}\]"'):
        registry.open_sources([MetricsSourceConfig(type=kind, path="x")])


def test_an_unknown_type_is_refused_and_a_class_of_ones_own_is_loaded() -> None:
    with pytest.raises(ConfigError, match="'mlflow' is none of jsonl, wandb, wandb_api, tensorboard"):
        registry.open_sources([MetricsSourceConfig(type="mlflow", path="x")])
    (own,) = registry.open_sources([MetricsSourceConfig(type="collector.sources.metrics.jsonl:JsonlMetrics", path="x")])
    assert isinstance(own, JsonlMetrics)


def test_the_older_key_is_one_source_more(tmp_path: Path) -> None:
    opened = registry.open_sources([MetricsSourceConfig(type="jsonl", path="b")], metrics_file="a")
    assert [type(item) for item in opened] == [JsonlMetrics, JsonlMetrics]
    with pytest.raises(ValueError, match="no standard name"):
        MetricsConfig(names={"rewards": "x"})


# names

LOGGED = {
    "verl": ({"actor/pg_clipfrac": 1, "actor/ppo_kl": 2, "actor/entropy": 3, "critic/rewards/mean": 4, "perf/mfu": 5},
             {"clip_rate": 1, "kl": 2, "entropy": 3, "reward": 4, "perf/mfu": 5}),
    "TRL": ({"train/clip_ratio/region_mean": 1, "train/kl": 2, "train/reward": 3, "train/loss": 4, "train/epoch": 5},
            {"clip_rate": 1, "kl_ref": 2, "reward": 3, "loss": 4, "train/epoch": 5}),
    "OpenRLHF": ({"train/ppo_clip_ratio": 1, "train/ppo_kl": 2, "train/kl": 3, "train/vllm_kl": 4}, {"clip_rate": 1, "kl": 2, "kl_ref": 3, "mismatch_kl": 4}),
    "NeMo-RL": ({"train/gen_kl_error": 1, "train/loss": 2, "train/grad_norm": 3}, {"mismatch_kl": 1, "loss": 2, "grad_norm": 3}),
    "PipelineRL": ({"rl/kl_new_old": 1, "rl/ess": 2, "stats/lag": 3, "rl/clamp_log_ratio_new_old_indicator": 4, "rl/kl": 5},
                   {"kl": 1, "ess": 2, "lag": 3, "clip_rate": 4, "kl_ref": 5}),
    "prime-rl": ({"mismatch_kl/all/mean": 1, "entropy/all/mean": 2, "optim/grad_norm": 3}, {"mismatch_kl": 1, "entropy": 2, "grad_norm": 3}),
    "SkyRL": ({"policy/ppo_clip_ratio": 1, "policy/policy_kl": 2, "reward/avg_raw_reward": 3}, {"clip_rate": 1, "kl_ref": 2, "reward": 3}),
    "slime": ({"train/pg_clipfrac": 1, "train/ppo_kl": 2, "train/kl_loss": 3, "rollout/raw_reward": 4}, {"clip_rate": 1, "kl": 2, "kl_ref": 3, "reward": 4}),
    "open-instruct": ({"objective/kl_avg": 1, "policy/clipfrac_avg": 2, "loss/policy_avg": 3}, {"kl_ref": 1, "clip_rate": 2, "loss": 3}),
    "AReaL": ({"ppo_actor/update/clip_ratio/avg": 1, "ppo_actor/task_reward/avg": 2}, {"clip_rate": 1, "reward": 2}),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_is_told_by_its_names_and_they_become_the_standard_ones(framework: str) -> None:
    logged, standard = LOGGED[framework]
    names = NameMap()
    assert names.standard(logged) == standard and names.framework == framework
    assert set(FRAMEWORKS[framework].names) <= set(STANDARD)


def test_standard_and_unknown_names_are_left_alone() -> None:
    pushed = {"reward": 1.0, "kl": 2.0, "entropy": 3.0, "clip_rate": 4.0, "mine/too": 5.0}
    names = NameMap()
    assert names.standard(pushed) == pushed and names.framework is None
    assert detect(["actor/pg_loss", "rl/ess"]) is None  # a tie is no answer


def test_the_first_rows_may_be_silent_about_the_framework() -> None:
    names = NameMap()
    assert names.standard({"loss": 1.0, "kl": 2.0}) == {"loss": 1.0, "kl": 2.0}
    names.standard({"clip_ratio/region_mean": 0.1})
    assert names.standard({"loss": 1.0, "kl": 2.0}) == {"loss": 1.0, "kl_ref": 2.0}


def test_names_of_the_config_come_first_and_a_standard_name_that_is_logged_stays() -> None:
    config = MetricsConfig(names={"reward": "env/score"})
    row = {"env/score": 9.0, "critic/rewards/mean": 1.0, "actor/pg_clipfrac": 0.1, "clip_rate": 0.2}
    assert config.name_map().standard(row) == {"reward": 9.0, "critic/rewards/mean": 1.0, "actor/pg_clipfrac": 0.1, "clip_rate": 0.2}
    assert MetricsConfig(framework="none").name_map().standard(row) == row


# the daemon's side


class Kept:
    def __init__(self) -> None:
        self.rows: list[tuple] = []
        self.said: list[tuple[str, str]] = []

    def query(self, sql: str, parameters: object = None) -> list[tuple]:
        return []

    def append_metrics(self, step, at, values, *, source) -> None:
        self.rows.append((step, at, values, source))

    def say(self, kind: str, text: str, data: dict) -> None:
        self.said.append((kind, text))


def trainer_side(kept: Kept, **sections) -> TrainerSide:
    return TrainerSide(Config.model_validate(sections), kept, kept.say)


def test_the_daemon_files_every_source_under_standard_names(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", 1, at=5.0)
    (tmp_path / "b.jsonl").write_text('{"step": 1, "at": 6, "actor/ppo_kl": 0.5, "perf/mfu": 0.3}\nbad\n')
    kept = Kept()
    side = trainer_side(kept, trainer={"metrics_file": str(tmp_path / "a.jsonl")},
                        metrics={"sources": [{"type": "jsonl", "path": str(tmp_path / "b.jsonl")}]})
    side.poll_metrics()
    assert kept.rows == [(1, 5.0, {"reward": 0.1}, "file"), (1, 6.0, {"kl": 0.5, "perf/mfu": 0.3}, "file#2")]
    assert side.refused == 1 and [kind for kind, _ in kept.said] == ["metrics_named", "metrics_refused"]


def test_a_restarted_daemon_stores_only_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Store(tmp_path / "k.duckdb") as store:
        for step in (1, 2):
            lines(path, step, at=10.0 * step)
            TrainerSide(Config.model_validate({"trainer": {"metrics_file": str(path)}}), store, Kept().say).poll_metrics()
        assert store.query('SELECT step, "at", value, source FROM metrics ORDER BY step') == [(1, 10.0, 0.1, "file"), (2, 20.0, 0.2, "file")]


def test_a_failing_source_is_told_once_counted_and_does_not_stop_the_others(tmp_path: Path) -> None:
    class Failing:
        name = "failing"
        error: Exception | None = Unavailable("no answer")

        def poll(self, now: float):
            if self.error:
                raise self.error
            return iter([MetricsRow(9, {"loss": 1.0}, now)])

    kept = Kept()
    side = trainer_side(kept, trainer={"metrics_file": str(tmp_path / "a.jsonl")})
    failing = Failing()
    side.sources.insert(0, failing)
    lines(tmp_path / "a.jsonl", 1)
    side.poll_metrics()
    failing.error = RuntimeError("worse")
    side.poll_metrics()
    assert side.counts["failing"] == 2 and [row[0] for row in kept.rows] == [1]
    assert [kind for kind, _ in kept.said] == ["metrics_unavailable"]
    failing.error = None
    side.poll_metrics()
    assert [row[0] for row in kept.rows] == [1, 9]


@pytest.mark.parametrize("sources, state, text", [
    ([], "off", "only what the trainer pushes"),
    ([{"type": "jsonl", "path": "METRICS"}], "ok", "file 1: 2 rows"),
    ([{"type": "jsonl", "path": "METRICS"}, {"type": "jsonl", "path": "later.jsonl"}], "warn", "nothing to read yet in file 2"),
    ([{"type": "csv", "path": "x"}], "bad", "'csv' is none of jsonl"),
])
def test_klaxon_check_polls_each_source_once(sources, state: str, text: str, tmp_path: Path) -> None:
    lines(tmp_path / "m.jsonl", 1, 2)
    named = [{**item, "path": item["path"].replace("METRICS", str(tmp_path / "m.jsonl"))} for item in sources]
    config = Config.model_validate({"metrics": {"sources": named}, "run": {"dir": str(tmp_path)}, "daemon": {"port": 1}})
    (found,) = (item for item in examine(config) if item.part == "metrics")
    assert found.state == state and text in found.text


def test_a_whole_run_is_read_at_once_from_either_kind_of_folder(tensorboard_writer, wandb_folder: Path, tmp_path: Path) -> None:
    from collector.sources.metrics.history import read_history

    logged = read_history(str(wandb_folder))
    assert logged.framework == "verl" and logged.series["kl"].steps.tolist() == list(range(400))
    assert logged.series["reward"].values[7] == pytest.approx(0.7) and "nested.a" in logged.series
    for step in range(5):
        tensorboard_writer(step, 10.0 + step, loss=step / 2)
    assert read_history(str(tmp_path / "tb")).series["loss"].values.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
