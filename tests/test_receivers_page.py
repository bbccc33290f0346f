"""docs/receivers.md: its payloads are those of today, and every type and every key of a receiver is on it."""

from __future__ import annotations

import re

from alerts.config import ReceiverConfig
from alerts.receiver_types import TYPES
from receiver_kinds import KINDS
from receivers_page import BLOCK, PAGE, page_with


def test_the_page_shows_what_the_services_receive(monkeypatch) -> None:
    """`PYTHONPATH=.:tap:tests python tests/receivers_page.py --write`"""
    page = PAGE.read_text(encoding="utf-8")
    assert page_with(page, monkeypatch) == page


def test_every_kind_but_apprise_has_its_payload_on_the_page() -> None:
    blocks = {found[2].split()[1] for found in BLOCK.finditer(PAGE.read_text(encoding="utf-8")) if found[2] != "types"}
    assert blocks == {name for name, kind in KINDS.items() if not kind.own_http}


def test_every_type_and_every_key_is_explained() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in (*TYPES, *ReceiverConfig.model_fields):
        assert f"`{name}`" in page, name
    configs = re.findall(r"(?m)^ {4}(\w+) = ", page)
    assert configs and set(configs) <= set(ReceiverConfig.model_fields)
