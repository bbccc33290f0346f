"""The plugin's wrappers on plain objects that look like vLLM's: fail open, forced logprobs, kill switch."""

from types import SimpleNamespace

import pytest

from klaxon_tap import plugin, settings


class Kept:
    running = True

    def __init__(self):
        self.messages, self.items = [], []

    def put(self, message, *, items=1):
        self.items.append(items)
        self.messages += message() if callable(message) else [message]
        return True


@pytest.fixture
def tap(monkeypatch):
    monkeypatch.setenv("KLAXON_ENGINE", "e1")
    made = plugin.Tap("http://127.0.0.1:9")
    made.sender, made.alive, made.complete = Kept(), True, True
    return made


def logprob(value, rank):
    return SimpleNamespace(logprob=value, rank=rank)


def request(**params):
    given = {"logprobs": 1, "extra_args": None, "temperature": 0.7, "top_p": 1.0, **params}
    return SimpleNamespace(sampling_params=SimpleNamespace(**given), data_parallel_rank=None, mm_features=None)


def begun(tap, req, **given):
    state = SimpleNamespace(**{
        "request_id": "0_cmpl-1", "external_req_id": "cmpl-1", "parent_req": None, "prompt_token_ids": [1, 2],
        "detokenizer": SimpleNamespace(output_token_ids=[5, 6]), "num_cached_tokens": 0, "weight_version_starts": [],
        "logprobs_processor": SimpleNamespace(logprobs=[{5: logprob(-0.5, 2), 9: logprob(-0.25, 1)},
                                                        {6: logprob(float("-inf"), 3)}]), **given})
    return tap._from_new_request(lambda **_: state, None, request=req)


def output():
    return SimpleNamespace(outputs=[SimpleNamespace(logprobs=["lp"], cumulative_logprob=-1.0)])


def finish(tap, state, reason="stop"):
    given = output()
    assert tap._make_request_output(lambda *_, **__: given, state, [6], None, reason, None) is given
    return given.outputs[0]


def test_a_finished_request_is_reported_and_the_caller_gets_what_vllm_made(tap):
    state = begun(tap, request(), weight_version_starts=[("default", 0), ("8", 1)], num_cached_tokens=64)
    tap.config = {"logprobs_mode": "raw_logprobs", "dtype": "bfloat16"}
    assert finish(tap, state).logprobs == ["lp"]
    message, = tap.sender.messages
    assert message["request_id"] == "cmpl-1" and message["engine"] == "e1" and message["cached_prompt_tokens"] == 64
    assert message["logprobs"] == [-0.5, None], "a logprob that is no number is null"
    assert message["top_logprobs"] == [[[9, -0.25], [5, -0.5]], [[6, None]]], "sorted by rank, as the engine gave them"
    assert message["weight_versions"] == [[1, 2, "8"]], "\"default\" is unknown"
    assert message["engine_sampling"] == {"temperature": 0.7, "top_p": 1.0}
    assert tap.sender.items == [2 * 2 + 1] and (tap.reported, tap.faults) == (1, 0)


def test_what_bends_the_distribution_beyond_the_usual_parameters_is_named(tap):
    finish(tap, begun(tap, request(min_tokens=8, logit_bias=None, structured_outputs=object())))
    assert tap.sender.messages[0]["labels"] == {"masks": "min_tokens,structured_outputs"}


def test_a_request_that_goes_on_is_not_reported(tap):
    finish(tap, begun(tap, request()), reason=None)
    assert tap.sender.messages == []


def test_an_aborted_request_says_so(tap):
    finish(tap, begun(tap, request()), reason="abort")
    assert tap.sender.messages[0]["aborted"] is True and tap.sender.messages[0]["finish_reason"] == "abort"


def test_a_child_of_a_group_goes_by_its_own_id(tap):
    finish(tap, begun(tap, request(), parent_req=object()))
    assert tap.sender.messages[0]["request_id"] == "0_cmpl-1"


def test_an_engine_that_changed_shape_is_left_alone_and_the_fault_counted_and_said_once(tap, caplog):
    for _ in range(3):
        state = begun(tap, request())
        del state.detokenizer
        assert finish(tap, state).logprobs == ["lp"]
    assert tap.faults == 3 and tap.sender.messages == []
    assert len(caplog.records) == 1 and "was not seen" in caplog.text
    assert not tap.working, "the middleware takes over"


def test_what_vllm_itself_raises_passes_through_untouched(tap):
    def broken(*_, **__):
        raise KeyError("vLLM's own")

    with pytest.raises(KeyError, match="vLLM's own"):
        tap._make_request_output(broken, begun(tap, request()), [6], None, "stop", None)
    assert tap.faults == 0


def test_without_logprobs_there_is_nothing_to_compare_only_to_count(tap):
    finish(tap, begun(tap, request(logprobs=None)))
    assert tap.sender.messages == [] and tap._about()["without_logprobs"] == 1


def test_a_request_with_pictures_is_counted_not_reported(tap):
    """Its ids hold placeholders: scored without the pixels they would look like a mismatch."""
    seen = request()
    seen.mm_features = [object()]
    finish(tap, begun(tap, seen))
    assert tap.sender.messages == [] and tap._about()["multimodal"] == 1


def test_forced_logprobs_are_capped_by_the_engine_and_never_reach_the_caller(tap):
    tap._force, tap._max_logprobs = 50, 20
    req = tap._process_inputs(lambda *_: request(logprobs=None), None)
    assert req.sampling_params.logprobs == 20
    state = begun(tap, req)
    assert finish(tap, state, reason=None).logprobs is None, "streamed pieces too"
    seen = finish(tap, state)
    assert seen.logprobs is None and seen.cumulative_logprob is None and len(tap.sender.messages) == 1
    del state.detokenizer
    assert finish(tap, state).logprobs is None, "also when the report itself fails"


def test_who_asked_for_logprobs_gets_them_with_forcing_on(tap):
    tap._force = 1
    req = tap._process_inputs(lambda *_: request(logprobs=5), None)
    assert req.sampling_params.logprobs == 5 and finish(tap, begun(tap, req)).logprobs == ["lp"]


def test_forcing_stops_where_stripping_could_fail(tap):
    tap._force, tap.complete = 1, False
    assert tap._process_inputs(lambda *_: request(logprobs=None), None).sampling_params.logprobs is None
    tap.complete, tap.faults = True, 1
    assert tap._process_inputs(lambda *_: request(logprobs=None), None).sampling_params.logprobs is None


def test_the_kill_file_stops_reporting_and_forcing_in_a_running_engine(tap, tmp_path, monkeypatch):
    monkeypatch.setenv("KLAXON_KILL_FILE", str(tmp_path / "kill"))
    monkeypatch.setattr(settings, "KILL_CHECK_SECONDS", 0.0)
    tap._kill, tap._force = settings.KillSwitch(), 1
    forced = begun(tap, tap._process_inputs(lambda *_: request(logprobs=None), None))
    (tmp_path / "kill").touch()
    assert tap._process_inputs(lambda *_: request(logprobs=None), None).sampling_params.logprobs is None
    assert finish(tap, forced).logprobs is None, "what was forced before is still kept from the caller"
    assert tap.sender.messages == [] and tap._about()["killed"]
    (tmp_path / "kill").unlink()
    finish(tap, begun(tap, request()))
    assert len(tap.sender.messages) == 1


def test_a_whole_vocabulary_of_logprobs_is_cut_to_its_first_ranks(tap):
    position = {i: logprob(-float(i), i + 1) for i in range(1000)}
    finish(tap, begun(tap, request(logprobs=-1), logprobs_processor=SimpleNamespace(logprobs=[position, position])))
    message, = tap.sender.messages
    assert [len(row) for row in message["top_logprobs"]] == [32, 32] and message["logprobs"] == [-5.0, -6.0]
