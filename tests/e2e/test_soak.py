"""
Many sessions that end in every way, and what is left of them: nothing.

`MCPBRIDGE_SOAK` says how many; `make soak` takes a thousand.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from itertools import count

import pytest

from tests.e2e.harness import (
    BACKENDS,
    PATIENCE,
    Bridge,
    Stream,
    Streamable,
    request,
    serving,
    until,
)

CYCLES = int(os.environ.get("MCPBRIDGE_SOAK", "84"))
AT_A_TIME = 8
#: Sessions before the first look at memory: caches fill once.
WARM_UP = 28

KINDS = ("plain", "crash", "deaf", "children", "daemon", "flood", "mute")
ENDS = ("close", "reset", "half_close")
#: Of every second cycle, which is over Streamable HTTP; `drop` leaves the
#: session to its idle timeout.
STREAMABLE_ENDS = ("delete", "drop")

#: What fills a pipe.
UNREAD = b'{"jsonrpc":"2.0","method":"unread","params":{"text":"%b"}}' % (b"x" * 60_000)

#: What may grow however flat memory is: an arena of the allocator.
GROWTH_BYTES = 6 * 1024 * 1024

pytestmark = pytest.mark.slow


def cycle(bridge: Bridge, number: int) -> str:
    """connect - initialize - call - abort, in one of the ways; which one it was."""
    half, streamable = divmod(number, 2)
    kind = KINDS[half % len(KINDS)]
    ends = STREAMABLE_ENDS if streamable else ENDS
    end = ends[half // len(KINDS) % len(ends)]
    (streamable_cycle if streamable else sse_cycle)(bridge, kind, end)
    return f"{kind}, {end}"


def sse_cycle(bridge: Bridge, kind: str, end: str) -> None:
    """Over HTTP+SSE."""
    with Stream(bridge.port) as stream:
        stream.begin()
        assert b'"initialize"' in stream.round_trip(request("initialize", 1))
        assert kind.encode() in stream.round_trip(request(kind, 2))
        if kind == "mute":
            # Until its pipe is full, and the queue behind it.
            while stream.post(request("unread", 3, text="x" * 60_000)).status == 202:
                pass
        getattr(stream, end)()
        if end == "half_close":
            stream.ended() if kind != "flood" else stream.reset()


def streamable_cycle(bridge: Bridge, kind: str, end: str) -> None:
    """Over Streamable HTTP."""
    client = Streamable(bridge.port)
    try:
        with client.call("initialize") as response:
            client.ident = response.headers["mcp-session-id"]
            assert response.answer()["result"] == {"was": "initialize"}
        # One whose backend floods is a client that does not read.
        stream = client.listen()
        assert stream.status == 200
        assert kind in client.call(kind).answer()["result"]["was"]
        if kind == "mute":
            while client.send("POST", UNREAD).status == 202:
                pass
        if end == "delete":
            # A backend that has crashed may have ended it first.
            assert client.delete() in ((200, 404) if kind == "crash" else (200,))
    finally:
        client.drop()


def run(bridge: Bridge, cycles: int) -> Counter[str]:
    """So many cycles, some at a time."""
    numbers, done = count(), Counter[str]()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not failures and (number := next(numbers)) < cycles:
                done[cycle(bridge, number)] += 1
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(AT_A_TIME)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE + cycles)
    if failures:
        raise failures[0]
    return done


def test_nothing_is_left_of_sessions_that_end_in_every_way() -> None:
    """Zero processes, zero permits taken, a flat descriptor count and flat memory."""
    options = ["--stop-grace", "0.2", "--kill-grace", "0.2", "--max-waiting-messages", "8"]
    # Longer than a thread here may stand still between two requests.
    options += ["--idle-timeout", "4"]
    # Sessions of before may still be ending while the next ones begin.
    limit = AT_A_TIME * 12
    command = ["/usr/bin/env", "python3", "-I", "-S", str(BACKENDS / "any.py")]
    with serving(*options, "--max-sessions", str(limit), command=command) as bridge:
        assert sum(run(bridge, WARM_UP).values()) == WARM_UP
        bridge.wait_until_empty()
        descriptors, memory = bridge.descriptors(), bridge.rss()

        done = run(bridge, CYCLES)

        assert sum(done.values()) == CYCLES
        assert len(done) == min(CYCLES, len(KINDS) * (len(ENDS) + len(STREAMABLE_ENDS)))
        bridge.wait_until_empty()
        until(lambda: bridge.log.count(" closed after ") == WARM_UP + CYCLES)
        until(lambda: bridge.descriptors() <= descriptors)
        assert bridge.rss() - memory < GROWTH_BYTES
        # Every permit is back: as many sessions as there may be, and no more.
        for _ in range(limit):
            bridge.open()
        assert bridge.knock().status == 429
        bridge.hang_up()
