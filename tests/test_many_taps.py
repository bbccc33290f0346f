"""One daemon, 64 replicas: every tap is heard apart, and nothing any of them sends is lost."""

from __future__ import annotations

import time

from klaxon_tap.sender import Sender
from test_command_daemon import daemon_of, get, place, wait  # noqa: F401  (place is a fixture)

TAPS, ROLLOUTS = 64, 20


def message(tap: int, number: int) -> dict:
    return {"kind": "rollout", "request_id": f"{tap}-{number}", "engine": f"http://e{tap}:8000", "prompt_token_ids": [1, 2, tap],
            "token_ids": [5, 6, 7, number], "logprobs": [-0.5, -0.2, -0.1, -0.3], "trainer_logprobs": [-0.5, -0.2, -0.1, -0.31],
            "finished_at": time.time()}


def test_64_taps_at_once_lose_nothing(place) -> None:  # noqa: F811
    config, url, _ = place
    with daemon_of(config, url):
        senders = [Sender(url, token=None, source="plugin", about=lambda tap=tap: {"engine": f"http://e{tap}:8000"}) for tap in range(TAPS)]
        for number in range(ROLLOUTS):
            for tap, sender in enumerate(senders):
                assert sender.put(message(tap, number))
        wait(lambda: get(url, "/v1/status")["counts"].get("seen") == TAPS * ROLLOUTS)
        status = get(url, "/v1/status")
        assert len(status["taps"]) == TAPS and all(tap["alive"] for tap in status["taps"])
        assert status["counts"]["scored"] == TAPS * ROLLOUTS and status["counts"].get("dropped_by_taps", 0) == 0
        assert not status["counts"].get("refused")
        for sender in senders:
            sender.close()
        assert sum(sender.sent for sender in senders) >= TAPS * ROLLOUTS and not any(sender.dropped for sender in senders)
