"""Pieces become one, also where they are more than is joined in one step."""

from __future__ import annotations

import pytest

from mcpbridge.jsonrpc.pieces import JOINED_BYTES, Pieces

PIECE = b"0123456789abcdef" * 4096


@pytest.mark.parametrize("size", [0, 1, JOINED_BYTES, JOINED_BYTES + 1, 3 * JOINED_BYTES])
def test_pieces_become_one(size: int) -> None:
    whole = (PIECE * (size // len(PIECE) + 1))[:size]
    pieces = Pieces()
    for begin in range(0, size, len(PIECE)):
        pieces.add(whole[begin : begin + len(PIECE)])
    assert pieces.size == size
    assert pieces.first(len(PIECE) + 3) == whole[: len(PIECE) + 3]
    assert pieces.join() == whole


def test_pieces_may_follow_what_was_read() -> None:
    """What `first` and `join` have returned does not change."""
    pieces = Pieces()
    pieces.add(PIECE * (JOINED_BYTES // len(PIECE)))
    pieces.add(b"x")
    before, first = pieces.join(), pieces.first(3)
    pieces.add(b"y")
    assert (len(before), first) == (JOINED_BYTES + 1, b"012")
    assert pieces.join() == before + b"y"


def test_nothing_is_left_of_pieces_that_were_dropped() -> None:
    pieces = Pieces()
    for more in (b"x", b"x" * (JOINED_BYTES + 1)):
        pieces.add(more)
        pieces.clear()
        assert (pieces.size, pieces.join(), pieces.first(1)) == (0, b"", b"")


def test_what_is_more_than_joined_bytes_is_not_joined_again() -> None:
    """The last step copies nothing: what is returned is the buffer itself."""
    pieces = Pieces()
    for _ in range(2 * JOINED_BYTES // len(PIECE)):
        pieces.add(PIECE)
    assert pieces.join() is pieces.join()
