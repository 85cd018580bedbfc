"""Reasons for the end of a session have kinds."""

from __future__ import annotations

from mcpbridge.processes import endings
from mcpbridge.processes.endings import KINDS, ClientLeft, Reason, kind_of


def test_each_kind_is_listed_once() -> None:
    classes = [
        each
        for each in vars(endings).values()
        if isinstance(each, type) and issubclass(each, Reason)
    ]
    assert sorted(each.kind for each in classes) == sorted(KINDS)


def test_a_reason_is_a_text_with_a_kind() -> None:
    reason = ClientLeft("it went away")
    assert (reason, kind_of(reason), f"{reason}") == ("it went away", "client_left", "it went away")
    assert kind_of("it went away") == "other"
