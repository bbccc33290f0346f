import numpy as np

from collector.records import Rollout, WeightSpan
from collector.shadow.plan import older_than_their_group


def rollout(prompt, *, version="9", cached):
    tokens = np.arange(3, dtype=np.int32)
    return Rollout(request_id="r", prompt_tokens_P=np.array(prompt, np.int32), completion_tokens_T=tokens,
                   engine_logprobs_T=np.full(3, -1.0, np.float32), sampled_mask_T=np.ones(3, bool),
                   weight_versions=(WeightSpan(start=0, end=3, version=version),), cached_prompt_tokens=cached)


def test_only_what_was_cached_before_the_group_began_can_be_older_than_its_version():
    """The first request of a group finds the shared system prompt cached; the others also hit what it has just computed."""
    group = [rollout([1, 2], cached=128), rollout([1, 2], cached=160), rollout([1, 2], cached=160)]
    assert [r.cached_prompt_tokens for r in older_than_their_group(group)] == [128, 128, 128]


def test_other_prompts_other_versions_and_unknown_counts_are_left_alone():
    mixed = [rollout([1, 2], cached=160), rollout([1, 3], cached=128), rollout([1, 2], version="10", cached=64),
             rollout([1, 2], cached=None)]
    assert [r.cached_prompt_tokens for r in older_than_their_group(mixed)] == [160, 128, 64, None]


def test_a_group_whose_first_request_found_nothing_cached_holds_nothing_old():
    assert [r.cached_prompt_tokens for r in older_than_their_group([rollout([5], cached=0), rollout([5], cached=32)])] == [0, 0]
