"""What a server writes."""

from __future__ import annotations

from twisted.internet.task import Clock

from mcpbridge.jsonrpc.framing import LineFramer
from mcpbridge.jsonrpc.malformed_output import Lost, is_message
from mcpbridge.stdio.stdout_reader import REST_SECONDS, StdoutReader
from tests.fuzz.targets import fields_of, pieces_of, target
from tests.unit.mcp.test_stream_router import Routed

#: The longest line that is not cut or skipped.
_LIMIT = 300


class _Receiver:
    """Notes everything in its order."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    def messages_received(self, lines: list[bytes]) -> None:
        self.seen += [("message", line) for line in lines]

    def message_lost(self, lost: Lost) -> None:
        self.seen.append(("lost", lost))

    def diagnostics_received(self, lines: list[bytes]) -> None:
        self.seen += [("text", line) for line in lines]

    def misbehaved(self, fault: str, what: str, line: bytes) -> None:
        self.seen.append(("fault", fault))

    def pause_pipes(self) -> None:
        raise AssertionError("there is no budget")

    def resume_pipes(self) -> None:
        raise AssertionError("there is no budget")

    def output_over(self, reason: str) -> None:
        self.seen.append(("over",))


def _read(pieces: list[bytes], *, waits: bool = False) -> list[tuple[object, ...]]:
    receiver, clock = _Receiver(), Clock()
    reader = StdoutReader(receiver, receiver, "x", clock, _LIMIT, None)
    for piece in pieces:
        reader.receive(piece)
        if waits:
            clock.advance(REST_SECONDS)
    reader.finish(reported=False)
    assert not clock.getDelayedCalls()
    return receiver.seen


def _is_oversized(seen: tuple[object, ...]) -> bool:
    return isinstance(seen[-1], Lost) and seen[-1].fault == "oversized"


@target
def backend_output(data: bytes) -> None:
    """Output is understood alike however it is split, and only whole lines are messages."""
    seed, output = fields_of(data, 2)
    pieces = pieces_of(output, seed)
    whole, split = _read([output]), _read(pieces)
    # What looks like an object and is no JSON passes as a message, for the session to refuse,
    # unless a line that comes with it has to be looked at more closely.
    doubtful = any(
        line.lstrip()[:1] == b"{" and not is_message(line) for line in output.split(b"\n")
    )
    if ("over",) not in whole + split and not doubtful:
        # What was too large is reported after the other lines that came with its end.
        assert [each for each in split if not _is_oversized(each)] == [
            each for each in whole if not _is_oversized(each)
        ]
        assert list(filter(_is_oversized, split)) == list(filter(_is_oversized, whole))
    for seen in (whole, _read(pieces, waits=True)):
        for kind, *rest in seen:
            if kind == "message":
                (line,) = rest
                assert isinstance(line, bytes)
                assert b"\n" not in line
                assert line in output
                assert line.lstrip()[:1] in (b"{", b"[")
    if b"\xef\xbb\xbf" not in output:
        found = [each[1] for each in whole if each[0] == "message"]
        bare = iter([line.removesuffix(b"\r") for line in output.split(b"\n")])
        assert all(any(line == each for each in bare) for line in found), (
            "messages are lines, in their order"
        )


@target
def lines(data: bytes) -> None:
    """A framer returns the lines of a stream, without those that are blank or too long."""
    seed, stream = fields_of(data, 2)
    framer, cutting = LineFramer(_LIMIT), LineFramer(_LIMIT, cut=True)
    found: list[bytes] = []
    cut: list[bytes] = []
    for piece in pieces_of(stream, seed):
        found += framer.receive(piece)
        cut += cutting.receive(piece)
        assert framer.waiting <= _LIMIT
    found.append(framer.finish())
    cut.append(cutting.finish())
    large = framer.take_oversized()
    *ended, last = stream.split(b"\n")
    everything = [*ended, last]
    kept = [line.removesuffix(b"\r") for line in everything if len(line) <= _LIMIT]
    assert [each for each in found if each] == [each for each in kept if each.strip()]
    too_long = [line for line in everything if len(line) > _LIMIT]
    assert [each.size for each in large] == [len(line) for line in too_long]
    for each, line in zip(large, too_long, strict=True):
        assert line.startswith(each.head)
        assert line.endswith(each.tail)
    shortened = [line[:_LIMIT].removesuffix(b"\r") for line in everything]
    assert [each for each in cut if each] == [each for each in shortened if each.strip()]


@target
def server_messages(data: bytes) -> None:
    """A line of a server goes to one stream, or is counted as dropped."""
    for line in data.split(b"\n"):
        routed = Routed()
        connections = [routed.post(1), routed.post("a", token="t"), routed.post(2, 3)]
        routed.router.route(line)
        sent = [each for connection in connections for each in connection.lines]
        assert len(sent) == len(set(sent)), "a message goes on one stream"
        for each in sent:
            assert b"\n" not in each
        if not line.lstrip().startswith((b"{", b"[")):
            assert routed.router.dropped["invalid"] == 1
            assert not sent
