"""
A real browser for tests: Chromium without a window, driven through a pipe.

It speaks the DevTools protocol: JSON with a null byte behind each message, on the
descriptors 3 and 4 of the browser.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.real.parts import command

#: Seconds before a wait fails.
PATIENCE = 60.0


class Page:
    """A tab: what it has asked for, and what its console complained of."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self._loaded = 0
        #: The URLs of all requests.
        self.requests: list[str] = []
        self.complaints: list[str] = []
        found = self.send("Target.createTarget", url="about:blank")
        attached = self.send("Target.attachToTarget", targetId=found["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        """Send a command; return its result."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == number:
                assert "error" not in found, f"{method}: {found['error']}"
                return found["result"]

    def open(self, url: str) -> None:
        """Open a URL, and wait until its page is loaded."""
        before = self._loaded
        self.send("Page.navigate", url=url)
        while self._loaded == before:
            self._receive()

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page, as after a click of its user."""
        found = self.send(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in found, f"{expression}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"not true after {PATIENCE} seconds: {expression}"
            time.sleep(0.05)

    def _receive(self) -> Any:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            left = end - time.monotonic()
            assert left > 0, "the browser does not answer"
            if select.select([self._from], [], [], left)[0]:
                data = os.read(self._from, 1 << 20)
                assert data, "the browser has ended"
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method"), message.get("params"))
        return message

    def _note(self, method: str | None, params: Any) -> None:
        if method == "Page.loadEventFired":
            self._loaded += 1
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(params))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(params["args"]))


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """Run a browser, with its files in a folder; yield an empty page."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()

    def place() -> None:
        # The four are 3 or more, and none may be closed before it is copied.
        high = [os.dup(each) for each in (to_read, from_write)]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    arguments = ["--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu"]
    # As root there is no sandbox; all that it opens is the bridge's.
    arguments += ["--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    browser = subprocess.Popen(
        [command("chromium"), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=place,
        close_fds=False,
        start_new_session=True,
    )
    os.close(to_read)
    os.close(from_write)
    try:
        page = Page(to_write, from_read)
        yield page
        page._session = None
        page.send("Browser.close")
        browser.wait(PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(browser.pid, 9)
        browser.wait(PATIENCE)
        os.close(to_write)
        os.close(from_read)
