"""The tokens of a few rollouts: what is kept at which tier, for how long, what an earlier file becomes, and which rollouts they are."""

from __future__ import annotations

import doctest
import gzip
import json
from pathlib import Path

import duckdb
import numpy as np
import pytest

from collector import token_rows
from collector.errors import Unavailable
from collector.records import Rollout, Score, WeightSpan
from collector.store import Store
from collector.store_config import StoreConfig
from collector.store_migrations import VERSION
from collector.store_schema import TABLES, ddl
from collector.token_reads import AskedTokens, read_kept, read_tokens
from collector.token_rows import Kept
from klaxon.worst import WorstRollouts

OLD = Path(__file__).parent / "fixtures" / "store" / "format-1.duckdb.gz"  # three batches, written before tokens were kept
DAY, HOUR, NOW = 86_400.0, 3600.0, 1_795_314_500.0
TEXT = "<script>alert(1)</script>"


def pair(name: str, *, n: int = 8, shift: float = 0.2, prompt: int = 5, spans: tuple = (), **fields) -> tuple[Rollout, Score]:
    trainer = np.linspace(-3, -0.1, n).astype(np.float32)
    rollout = Rollout(
        request_id=name, engine="http://a:8000", prompt_tokens_P=np.arange(100, 100 + prompt, dtype=np.int32), completion_tokens_T=np.arange(n, dtype=np.int32) % 7,
        engine_logprobs_T=trainer - np.float32(shift), sampled_mask_T=np.ones(n, bool), weight_versions=tuple(WeightSpan(start=a, end=b, version=v) for a, b, v in spans),
        **{"finished_at": NOW - 1, **fields})
    return rollout, Score(request_id=name, views={"expected": trainer, "rank": np.arange(1, n + 1, dtype=np.float32)}, entropy_T=np.full(n, 0.5, np.float32))


def kept(name: str, t: int = 3, kind: str = "worst", **fields) -> Kept:
    rollout, score = pair(name, **fields)
    return Kept(t=t, rollout=rollout, score=score, kind=kind)


def words(one: Kept) -> tuple[list[str], list[str]]:
    return [TEXT] * one.rollout.prompt_tokens_P.size, [TEXT] * one.rollout.n_tokens


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "k.duckdb", threads=1) as opened:
        yield opened


def stored(store: Store, tier: str, name: str = "secret-request") -> dict:
    one = kept(name, spans=((0, 3, "7"), (3, 8, "8")))
    store.append_tokens([(one, words(one))], now=NOW, config=StoreConfig(tokens=tier))
    found = read_tokens(store, store.request_hash(name), tier="text")
    assert found is not None
    return found


def test_the_numbers_of_every_token_come_back(store):
    found = stored(store, "numbers")
    rollout, score = pair("secret-request")
    assert np.array_equal(np.float32(found["engine"]), rollout.engine_logprobs_T) and np.array_equal(np.float32(found["trainer"]), score.views["expected"])
    assert found["d"] == pytest.approx([0.2] * 8, abs=1e-6) and found["rank"] == list(range(1, 9)) and found["entropy"] == [0.5] * 8
    assert found["spans"] == [[0, 3, "7"], [3, 8, "8"]] and found["versions"] == ["7", "8"] and found["sampled"] == [True] * 8 and found["first"] == 0
    assert found["badness"] == pytest.approx(8 * 0.2 / 24, rel=1e-5) and found["n_scored"] == 8


@pytest.mark.parametrize(("tier", "kinds"), [("numbers", []), ("hashes", ["hashes"]), ("ids", ["ids"]), ("text", ["ids", "text"])])
def test_each_tier_keeps_its_words_and_no_more(tier, kinds, store):
    found = stored(store, tier)
    assert [kind for (kind,) in store.query("SELECT kind FROM token_words ORDER BY kind")] == kinds
    assert found["words"]["kind"] == (kinds[-1] if kinds else None)
    said = json.dumps(store.query("SELECT * FROM token_rollouts")) + json.dumps(store.query("SELECT * FROM token_words"))
    assert "secret-request" not in said and (TEXT in said) == (tier == "text") and ('"100"' in said) == (tier in ("ids", "text"))


def test_equal_tokens_have_equal_hashes_which_only_the_key_explains(tmp_path):
    hashes = []
    for name in ("a", "b"):
        with Store(tmp_path / f"{name}.duckdb", threads=1) as one:
            hashes.append(stored(one, "hashes")["words"]["completion"])
    assert hashes[0][0] == hashes[0][7] and len(set(hashes[0])) == 7 and not set(hashes[0]) & set(hashes[1])


def test_words_are_told_only_as_far_as_the_tier_of_now_allows(store):
    stored(store, "text")
    at = {tier: read_tokens(store, store.request_hash("secret-request"), tier=tier)["words"]["kind"] for tier in ("off", "numbers", "hashes", "ids", "text")}
    assert at == {"off": None, "numbers": None, "hashes": None, "ids": "ids", "text": "text"}


def test_of_a_long_rollout_the_stretch_furthest_off_is_kept(store):
    rollout, score = pair("long", n=50, shift=0.0)
    rollout.engine_logprobs_T[30:34] -= 2.0
    rollout.sampled_mask_T[31] = False
    one = Kept(t=0, rollout=rollout, score=score, kind="worst")
    store.append_tokens([(one, words(one))], now=NOW, config=StoreConfig(tokens="text", tokens_longest=10, tokens_prompt=2))
    found = read_tokens(store, store.request_hash("long"), tier="text")
    assert found["first"] <= 30 and found["first"] + 10 >= 34 and len(found["engine"]) == len(found["words"]["completion"]) == 10
    assert len(found["words"]["prompt"]) == 2 and found["ids"]["prompt"] == ["103", "104"] and found["n_tokens"] == 50
    hidden = 31 - found["first"]
    assert not found["sampled"][hidden] and np.isnan(found["trainer"][hidden]) and found["engine"][hidden] < -2


def test_words_go_before_numbers_and_both_go(store):
    config = StoreConfig(tokens="text", tokens_ttl_days=2, tokens_words_ttl_hours=5)
    one = kept("a")
    store.append_tokens([(one, words(one))], now=NOW, config=config)
    for hours, gone in ((4, (0, 0)), (6, (0, 2))):
        deleted = store.retention(NOW + hours * HOUR, config)
        assert (deleted["token_rollouts"], deleted["token_words"]) == gone
    assert read_tokens(store, store.request_hash("a"), tier="text")["words"]["kind"] is None
    assert store.retention(NOW + 2 * DAY + 1, config)["token_rollouts"] == 1 and read_tokens(store, store.request_hash("a"), tier="text") is None


@pytest.mark.parametrize(("tier", "left"), [("off", (0, [])), ("numbers", (1, [])), ("hashes", (1, [])), ("ids", (1, ["ids"])), ("text", (1, ["ids", "text"]))])
def test_a_lower_tier_deletes_what_a_higher_one_stored(tier, left, store):
    stored(store, "text")
    store.token_retention(NOW, StoreConfig(tokens=tier))
    numbers = store.query("SELECT count(*) FROM token_rollouts")[0][0]
    assert (numbers, [kind for (kind,) in store.query("SELECT kind FROM token_words ORDER BY kind")]) == left


def test_of_too_many_rollouts_the_oldest_go(store):
    config = StoreConfig(tokens="ids", tokens_rollouts=3)
    for i in range(6):
        store.append_tokens([(kept(str(i)), None)], now=NOW + i, config=config)
    assert store.token_retention(NOW + 9, config) == {"token_words": 3, "token_rollouts": 3}
    assert {row["request"] for row in read_kept(store, AskedTokens()).to_pylist()} == {store.request_hash(name) for name in "345"}


def test_a_file_an_earlier_klaxon_wrote_opens_and_keeps_what_it_holds(tmp_path):
    path = tmp_path / "k.duckdb"
    path.write_bytes(gzip.decompress(OLD.read_bytes()))
    for n in (1, 2):
        with Store(path, threads=1) as store:
            assert [(batch.t, batch.counts) for batch in store.read_batches()] == [(t, {"seen": 1}) for t in range(3)] and store.notices == []
            assert store.query("SELECT request FROM rollouts WHERE t = 0") == [(store.request_hash("r0"),)], "the key of the hashes stays"
            assert store.query("SELECT value FROM meta WHERE key = 'version'") == [(str(VERSION),)]
            assert stored(store, "ids", f"new-{n}")["words"]["kind"] == "ids" and store.query("SELECT count(*) FROM token_rollouts") == [(n,)]


def test_a_file_of_a_later_format_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "k.duckdb"
    with duckdb.connect(str(path)) as later:
        later.execute("CREATE TABLE meta (key VARCHAR, value VARCHAR); INSERT INTO meta VALUES ('version', '99'), ('request_key', 'ab')")
    with pytest.raises(Unavailable, match="store format 99"):
        Store(path)
    with duckdb.connect(str(path)) as later:
        assert later.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("meta",)]


def test_every_table_of_the_schema_is_made(store):
    assert {name for (name,) in store.query("SELECT table_name FROM duckdb_tables()")} == set(TABLES) and len(ddl()) == len(TABLES)


def test_the_list_can_be_narrowed_and_refuses_what_it_does_not_know(store):
    rows = [kept("a", t=1, finished_at=10.0, labels={"env": "code"}, cached_prompt_tokens=16), kept("b", t=2, finished_at=20.0, shift=0.5, spans=((0, 8, "9"),)),
            kept("c", t=3, finished_at=None, shift=0.1, prompt=5000), kept("d", t=3, kind="ordinary", shift=9.0)]
    store.append_tokens([(one, None) for one in rows], now=NOW, config=StoreConfig())
    names = {store.request_hash(name): name for name in "abcd"}

    def found(**asked) -> str:
        return "".join(names[row["request"]] for row in read_kept(store, AskedTokens(**asked)).to_pylist())

    assert found() == "bac" and found(kind="all") == "dbac" and found(kind="ordinary") == "d" and found(limit=1) == "b"
    assert found(start=15.0, end=30.0) == "b" and found(batches=(2, None)) == "bc" and found(start=NOW - 5) == "c"
    assert found(only={"env": "code"}) == "a" and found(only={"version": "9"}) == "b" and found(only={"cached": "hit"}) == "a"
    assert found(only={"position": "4k-16k"}) == "c" and found(only={"position": "0-1k"}) == "ba" and found(only={"replica": "nobody"}) == ""
    for asked in ({"kind": "best"}, {"only": {"lag": "1"}}, {"only": {"position": "2k"}}):
        with pytest.raises(ValueError, match="is none of"):
            found(**asked)


def test_a_batch_keeps_its_worst_and_some_drawn_without_regard_to_how_they_went(store):
    chosen = WorstRollouts(StoreConfig(tokens_worst=2, tokens_ordinary=3), store, clock=lambda: NOW)
    for i in np.random.default_rng(1).permutation(40):
        chosen.offer(5, [pair(f"r{i}", shift=0.01 * int(i))])
    chosen.offer(5, [pair("canary", shift=9.0, traffic="canary")])
    chosen.offer(6, [pair("next", shift=0.3)])
    chosen.keep(5)
    rows = store.query("SELECT request, kind FROM token_rollouts ORDER BY badness DESC")
    assert rows[:2] == [(store.request_hash("r39"), "worst"), (store.request_hash("r38"), "worst")] and [kind for _, kind in rows[2:]] == ["ordinary"] * 3
    chosen.keep()
    chosen.keep()
    assert store.query("SELECT count(*) FROM token_rollouts WHERE t = 6") == [(1,)] and chosen.counts["token_rollouts_kept"] == 6


def test_off_keeps_nothing_and_a_store_that_refuses_is_counted(tmp_path, caplog):
    store = Store(tmp_path / "k.duckdb", threads=1)
    silent, lost = WorstRollouts(StoreConfig(tokens="off"), store), WorstRollouts(StoreConfig(), store)
    for chosen in (silent, lost):
        chosen.offer(0, [pair("a")])
    silent.keep()
    assert store.query("SELECT count(*) FROM token_rollouts") == [(0,)]
    store.close()
    lost.keep()
    assert lost.counts["token_rollouts_lost"] == 1 and "not stored" in caplog.text


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(token_rows, extraglobs={"np": np}).failed == 0
