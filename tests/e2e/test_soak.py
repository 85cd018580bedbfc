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

from tests.e2e.harness import BACKENDS, PATIENCE, Bridge, Stream, request, serving, until

CYCLES = int(os.environ.get("MCPBRIDGE_SOAK", "84"))
AT_A_TIME = 8
#: Sessions before the first look at memory: caches fill once.
WARM_UP = 28

KINDS = ("plain", "crash", "deaf", "children", "daemon", "flood", "mute")
ENDS = ("close", "reset", "half_close")

#: What may grow however flat memory is: an arena of the allocator.
GROWTH_BYTES = 6 * 1024 * 1024

pytestmark = pytest.mark.slow


def cycle(bridge: Bridge, number: int) -> str:
    """connect - initialize - call - abort, in one of the ways; which one it was."""
    kind = KINDS[number % len(KINDS)]
    end = ENDS[number // len(KINDS) % len(ENDS)]
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
    return f"{kind}, {end}"


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
    options = ("--stop-grace", "0.2", "--kill-grace", "0.2", "--max-waiting-messages", "8")
    # Sessions of before may still be ending while the next ones begin.
    limit = AT_A_TIME * 6
    command = ["/usr/bin/env", "python3", "-I", "-S", str(BACKENDS / "any.py")]
    with serving(*options, "--max-sessions", str(limit), command=command) as bridge:
        assert sum(run(bridge, WARM_UP).values()) == WARM_UP
        bridge.wait_until_empty()
        descriptors, memory = bridge.descriptors(), bridge.rss()

        done = run(bridge, CYCLES)

        assert sum(done.values()) == CYCLES
        assert len(done) == min(CYCLES, len(KINDS) * len(ENDS))
        bridge.wait_until_empty()
        until(lambda: bridge.log.count(" closed after ") == WARM_UP + CYCLES)
        until(lambda: bridge.descriptors() <= descriptors)
        assert bridge.rss() - memory < GROWTH_BYTES
        # Every permit is back: as many sessions as there may be, and no more.
        for _ in range(limit):
            bridge.open()
        assert bridge.knock().status == 429
        bridge.hang_up()
