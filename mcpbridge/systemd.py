"""
What the bridge tells systemd, or any service manager that speaks its protocol: when it is
ready, reloads, stops, and that it lives (sd_notify(3)).

Knows the variables and the datagrams of the protocol; must not know sessions.  No error of
it ever harms the bridge.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Self

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.timers import Timer

#: What systemd sets for this process alone: a backend that had them could speak for the bridge.
VARIABLES = (
    *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"),
    *("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"),
)
_MICROSECONDS = 1_000_000


class ServiceManager:
    """
    Sends datagrams to the `address` of a service manager; nothing if that is empty.

    Its `watchdog` wants to hear from this process within so many seconds again and again, 0
    for never, if its pid is `watchdog_pid`, or that is None.  `pid` returns that of this
    process, which changes as it becomes a daemon.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        address: str = "",
        watchdog: float = 0.0,
        watchdog_pid: int | None = None,
        *,
        pid: Callable[[], int] = os.getpid,
    ) -> None:
        self._address = address
        self._watchdog = watchdog
        self._watchdog_pid = watchdog_pid
        self._pid = pid
        self._timer = Timer(clock)
        #: True once a datagram could not be sent.
        self._failed = False

    @classmethod
    def of(cls, environment: MutableMapping[str, str], clock: IReactorTime) -> Self:
        """Make that of this process, and remove its variables."""
        found = {name: environment.pop(name, "") for name in VARIABLES}
        address, pid = found["NOTIFY_SOCKET"], found["WATCHDOG_PID"]
        if not address.startswith(("/", "@")):
            # One of another kind, such as `vsock:`.
            address = ""
        microseconds = found["WATCHDOG_USEC"]
        seconds = int(microseconds) / _MICROSECONDS if microseconds.isdecimal() else 0.0
        return cls(clock, address, seconds, int(pid) if pid.isdecimal() else None)

    def ready(self, status: str) -> None:
        """Tell that the listeners are open, also after a reload; go on to tell that it lives."""
        self._send("READY=1", f"MAINPID={self._pid()}", f"STATUS={status}")
        if self._watchdog and self._watchdog_pid in (None, self._pid()):
            self._live()

    def reloading(self) -> None:
        """Tell that the settings are being read again; `ready` is to follow."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}", "STATUS=reading the settings again")

    def stopping(self, status: str, seconds: float) -> None:
        """Tell that it stops, which takes so many seconds at most."""
        longest = int(seconds * _MICROSECONDS)
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={longest}", f"STATUS={status}")

    def stop(self) -> None:
        """Tell no longer that it lives."""
        self._timer.stop()

    def _live(self) -> None:
        self._timer.start(self._watchdog / 2, self._live)
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # An abstract name, which begins with NUL, is written with `@`.
        name = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        text = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(text.encode(), name)
        except OSError as error:
            if not self._failed:
                self._failed = True
                self.log.warn(
                    "the service manager cannot be told of the bridge: {error}",
                    error=error.strerror,
                )
