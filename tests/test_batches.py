import numpy as np

from collector.records import Rollout, Score
from collector.signals import slice_stats, total
from collector.sources.trainer_logprobs import parse_trainer_word
from klaxon.batches import BatchBuilder
from klaxon.config import Config
from klaxon.filing import Filing


def builder(**change):
    return BatchBuilder(**{"started_at": 1000.0, "batch_seconds": 10.0, "watermark_seconds": 5.0, **change})


def test_a_batch_closes_after_its_watermark_and_an_empty_window_is_a_missing_batch():
    b = builder()
    t = b.window_of(1003.0, now=1003.0)
    b.add(t, counts={"seen": 1}, gains={"self_bet:+0.3": 0.5})
    assert b.close_due(1014.9) == []
    first, second = b.close_due(1026.0)
    assert (first.t, first.missing, first.gains["self_bet:+0.3"]) == (0, False, 0.5)
    assert (second.t, second.missing) == (1, True)
    assert (first.opened_at, first.closed_at, second.closed_at) == (1000.0, 1010.0, 1020.0)


def test_gains_of_one_batch_add_up_and_slices_merge():
    b = builder()
    tokens = np.arange(4, dtype=np.int32)
    rollout = Rollout(request_id="r", prompt_tokens_P=tokens, completion_tokens_T=tokens, sampled_mask_T=np.ones(4, bool),
                      engine_logprobs_T=np.full(4, -1.0, np.float32))
    score = Score(request_id="r", views={"expected": np.full(4, -1.1, np.float32)})
    for _ in range(3):
        b.add(0, slices=slice_stats(rollout, score), gains={"s": 0.25}, counts={"seen": 1})
    batch = b.close_due(1015.0)[0]
    assert batch.gains == {"s": 0.75} and len(batch.slices) == 1 and total(batch.slices).n_tokens == 12


def test_what_belongs_to_a_closed_batch_goes_into_the_oldest_open_one_and_asking_counts_nothing():
    b = builder()
    b.close_due(1015.0)
    assert [b.is_late(at, now=1016.0) for at in (1002.0, 1012.0, 1016.0)] == [True, False, False]
    t = b.window_of(1002.0, now=1016.0)
    b.add(t, counts={"seen": 1})
    assert t == 1 and b.close_due(1025.0)[0].counts == {"seen": 1}


def test_a_rollout_is_counted_as_late_once_whatever_is_said_of_it_afterwards():
    b = builder()
    filing = Filing(Config(), b, has_shadow=False)
    b.close_due(1025.0)
    rollouts = [Rollout(request_id=f"r{number}", prompt_tokens_P=np.arange(3, dtype=np.int32), completion_tokens_T=np.arange(4, dtype=np.int32) + number,
                        sampled_mask_T=np.ones(4, bool), engine_logprobs_T=np.full(4, -1.0, np.float32), finished_at=at)
                for number, at in enumerate((1001.0, 1026.0, None))]
    for rollout in rollouts:
        filing.file(rollout, rollout, None, now=1027.0)
    words = [parse_trainer_word({"request_id": f"r{number}", "logprobs": [-1.1] * 4}, where="t:1") for number in range(3)]
    compared, refused = filing.hear(words, now=1003.0)  # a round that began before the scorer was busy: its clock stands still
    assert len(compared) == 3 and not refused
    assert filing.counts["late"] == 1 and filing.counts["seen"] == 3
    assert b.close_due(1035.0)[0].counts["late"] == 1


def test_a_clock_that_runs_ahead_does_not_open_a_batch_in_the_future():
    assert builder().window_of(9999.0, now=1012.0) == 1


def test_a_daemon_that_stops_closes_what_has_begun_and_cuts_the_open_batch_short():
    b = builder()
    for at in (1003.0, 1013.0, 1022.0):
        b.add(b.window_of(at, now=1022.0), counts={"seen": 1})
    closed = b.close_all(1022.5)
    assert [(batch.t, batch.closed_at, batch.counts) for batch in closed] == [(0, 1010.0, {"seen": 1}), (1, 1020.0, {"seen": 1}), (2, 1022.5, {"seen": 1})]
    assert b.close_all(1022.5) == []


def test_an_open_batch_with_nothing_in_it_is_not_stored_when_the_daemon_stops():
    b = builder()
    b.add(0, counts={"seen": 1})
    assert [batch.t for batch in b.close_all(1012.0)] == [0]
