"""What is said only now and then."""

from __future__ import annotations

from twisted.internet.task import Clock

from mcpbridge.complaints import Complaints
from mcpbridge.config import COMPLAIN_SECONDS


def test_it_is_said_at_once_and_then_in_time() -> None:
    clock = Clock()
    complaints = Complaints(clock)
    complaints.add()
    assert complaints.due() == 1
    complaints.add()
    complaints.add()
    clock.advance(COMPLAIN_SECONDS - 0.001)
    assert complaints.due() is None
    clock.advance(0.001)
    assert complaints.due() == 2
    clock.advance(COMPLAIN_SECONDS)
    assert complaints.due() == 0, "something may be said that is not counted"
