"""Lines out of a stream of bytes: every way to cut it up gives the same lines."""

from collections.abc import Iterable, Iterator
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpbridge.jsonrpc.framing import LONG_LINE_BYTES, LineFramer, split_lines
from mcpbridge.jsonrpc.oversized import END_BYTES, Oversized

NO_LIMIT = 1 << 30


def framed(pieces: Iterable[bytes], limit: int = NO_LIMIT, *, cut: bool = False) -> list[bytes]:
    """All lines of a stream that arrives in these pieces; of those too long nothing but that."""
    framer = LineFramer(limit, cut=cut)
    lines: list[bytes] = []
    for piece in pieces:
        lines += framer.receive(piece)
    last = framer.finish()
    lines += [last] if last else []
    return [*lines, *(b"TOO LONG: %d" % each.size for each in framer.take_oversized())]


def expected(stream: bytes, limit: int = NO_LIMIT, *, cut: bool = False) -> list[bytes]:
    """The same, said as shortly as can be."""
    lines: list[bytes] = []
    skipped: list[bytes] = []
    for line in stream.split(b"\n"):
        if len(line) > limit and not cut:
            skipped.append(b"TOO LONG: %d" % len(line))
            continue
        line = line[:limit].removesuffix(b"\r")
        if line.strip():
            lines.append(line)
    return lines + skipped


def all_cuts(stream: bytes) -> Iterator[list[bytes]]:
    """Every way to receive a stream in pieces."""
    for cuts in product([False, True], repeat=max(0, len(stream) - 1)):
        ends = [0, *(at for at, here in enumerate(cuts, 1) if here), len(stream)]
        yield [stream[start:end] for start, end in pairwise(ends)]


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("limit", [1, 2, NO_LIMIT])
def test_every_short_stream_cut_in_every_way(limit: int, cut: bool) -> None:
    """beat: a stdout line that pauses in its middle arrives whole."""
    for size in range(6):
        for letters in product(b"a \r\n", repeat=size):
            stream = bytes(letters)
            lines = expected(stream, limit, cut=cut)
            for pieces in all_cuts(stream):
                assert framed(pieces, limit, cut=cut) == lines, pieces


@settings(deadline=None)
@given(pieces=st.lists(st.binary(max_size=40) | st.sampled_from([b"\n", b"\r\n", b"\r"])))
def test_any_bytes_in_any_pieces(pieces: list[bytes]) -> None:
    """keep: each line of stdout is one message, as it was written."""
    assert framed(pieces) == expected(b"".join(pieces))


@pytest.mark.parametrize(
    ("stream", "lines"),
    [
        (b'{"a":1}\n', [b'{"a":1}']),
        (b"\n\n \t\n\r\n", []),
        (b"one\r\n", [b"one"]),
        (b"one\r\r\n", [b"one\r"]),
        (b"o\rn\re\r\n", [b"o\rn\re"]),
        (b" one \n", [b" one "]),
        (b"one\ntwo", [b"one", b"two"]),
    ],
)
def test_blank_lines_and_carriage_returns(stream: bytes, lines: list[bytes]) -> None:
    """beat: no event for a blank line; only the `\\r` of the line's end is removed."""
    assert framed([stream]) == lines


def test_a_line_beyond_the_limit_affects_no_other_line() -> None:
    framer = LineFramer(4)
    assert framer.receive(b"one\ntwo\n12345\nmore\n") == [b"one", b"two", b"more"]
    assert framer.has_oversized
    assert framer.take_oversized() == [Oversized(b"12345", b"12345", 5)]
    assert not framer.has_oversized


def test_a_line_too_long_is_noticed_before_its_end() -> None:
    """A backend that never ends its line costs no more memory than the limit."""
    framer = LineFramer(4)
    assert framer.receive(b"1234") == []
    assert framer.waiting == 4
    assert framer.receive(b"5") == []
    assert (framer.waiting, framer.skipped) == (0, 5)
    assert framer.receive(b"6\n") == []
    assert framer.skipped == 0
    assert [each.size for each in framer.take_oversized()] == [6]


@pytest.mark.parametrize("step", [1, 1000, END_BYTES, 50_000])
def test_both_ends_of_a_line_too_long_are_kept(step: int) -> None:
    """END_BYTES of each, however it comes."""
    line = bytes(range(11, 256)) * 200
    framer = LineFramer(10_000)
    for at in range(0, len(line), step):
        assert framer.receive(line[at : at + step]) == []
    assert framer.finish() == b""
    kept = Oversized(line[:END_BYTES], line[-END_BYTES:], len(line))
    assert framer.take_oversized() == [kept]


def test_cut_bounds_what_is_kept_of_a_line_without_end() -> None:
    framer = LineFramer(4, cut=True)
    for _ in range(1000):
        assert framer.receive(b"abc") == []
        assert framer.waiting <= 4
    assert framer.receive(b"\nnext\n") == [b"abca", b"next"]


def test_a_line_in_very_many_pieces() -> None:
    """Linear: joining what is there with each of these pieces would copy 2 TB."""
    piece = b"x" * 80
    assert framed([piece] * 200_000 + [b"\n"]) == [piece * 200_000]


def test_the_beginning_of_a_line_is_taken_away() -> None:
    """What follows is a line of its own."""
    framer = LineFramer(NO_LIMIT)
    assert framer.receive(b"one\nab") == [b"one"]
    assert framer.receive(b"cd") == []
    assert framer.begun(3) == b"abc"
    assert framer.begun(4) == b"abcd"
    assert framer.begun(5) == b""
    framer.discard(3)
    assert framer.waiting == 1
    assert framer.receive(b"e\nx\n") == [b"de", b"x"]
    for part in (b"y", b"zz", b"\xff"):
        framer.receive(part)
    assert [framer.begun(size) for size in (2, 3, 4)] == [b"yz", b"yzz", b"yzz\xff"]
    framer.discard(4)
    assert (framer.waiting, framer.finish()) == (0, b"")


def test_where_a_line_begins() -> None:
    """Also behind one that is too large, once its end has come."""
    framer = LineFramer(3)
    for data, at_start in ((b"ab", False), (b"\n", True), (b"abcd", False), (b"ab\n", True)):
        framer.receive(data)
        assert framer.is_at_start is at_start


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([0, 1, LONG_LINE_BYTES - 1, LONG_LINE_BYTES, 3 * LONG_LINE_BYTES]),
        min_size=1,
        max_size=5,
    )
)
def test_long_lines_are_split_like_short_ones(sizes: list[int]) -> None:
    data = b"\n".join(b"x" * size for size in sizes)
    assert split_lines(data) == data.split(b"\n")
    assert framed([data]) == expected(data)
