"""docs/v0-to-v1.md is what docs/v0_to_v1.py prints, and the story it tells is in the numbers."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("klaxon_v0_to_v1", ROOT / "docs" / "v0_to_v1.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(script) -> dict:
    return {name: script.measured(name, script.from_kept_scores) for name in script.ENGINES}


def test_the_page_and_its_picture_hold_what_the_script_prints(script, rows):
    """`PYTHONPATH=. python docs/v0_to_v1.py --write`"""
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.page_with(script.tables(list(rows.values())), page) == page
    assert script.PICTURE.read_text(encoding="utf-8") == script.picture(list(rows.values()))


def test_a_page_without_the_marks_is_refused_not_overwritten(script):
    with pytest.raises(ValueError, match="begin"):
        script.page_with("tables\n", "# a page\n")


def test_the_upgrade_is_named_for_sure_and_the_flag_mends_it(rows):
    upgraded, fixed = rows["v0181_raw_t07"], rows["v0181_processed_t07"]
    assert (upgraded.verdict.verdict, upgraded.verdict.confident) == ("raw_logprobs", True)
    assert (fixed.verdict.verdict, fixed.verdict.confident) == ("healthy", True)
    assert "--logprobs-mode processed_logprobs" in upgraded.verdict.fix
    assert upgraded.sums["clip_rate"] > 10 * fixed.sums["clip_rate"] and upgraded.sums["mean_abs_d"] > 5 * fixed.sums["mean_abs_d"]
    assert upgraded.rollouts_to_alarm is not None and fixed.rollouts_to_alarm is None


def test_v0_in_float32_agrees_to_the_last_digits_and_k1_of_raw_logprobs_is_below_zero(rows):
    assert rows["v085f32_t07"].sums["mean_abs_d"] < 1e-5
    assert rows["v0181_raw_t07"].sums["k1"] < -0.05


def test_every_command_on_the_page_exists():
    from klaxon.cli import COMMANDS

    page = (ROOT / "docs" / "v0-to-v1.md").read_text(encoding="utf-8")
    said = set(re.findall(r"^ {4}klaxon ([\w-]+)", page, re.M)) | set(re.findall(r"`klaxon ([\w-]+)", page))
    assert said and said <= set(COMMANDS)
