"""A receiver that fails in every way there is: nothing lost, order kept, nobody else held up. The table: alerts_faults.py."""

from __future__ import annotations

import logging
import subprocess

import alerts_fault_server
import alerts_faults
import pytest
from alerts_faults import SCENARIOS


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    try:
        return folder, alerts_fault_server.certificates(folder)
    except (OSError, subprocess.CalledProcessError):
        return folder, {}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_failing_receiver_loses_nothing_and_holds_nobody_up(scenario, tls, caplog) -> None:
    place, contexts = tls
    if scenario.tls and not contexts:
        pytest.skip("needs the openssl program, 3.0 or newer, to make certificates")
    caplog.set_level(logging.DEBUG)
    (folder := place / str(SCENARIOS.index(scenario))).mkdir()
    found = alerts_faults.run(scenario, folder, contexts)
    assert (found.lost, found.disordered, found.left) == ([], [], [])
    assert found.messages >= 4 and (found.dead > 0) == scenario.dies
    assert found.copies <= found.retries  # a copy needs an attempt that was not acknowledged
    assert "secret-path" not in caplog.text + str(found.errors)
