"""
An admin listener that says what a test wants: the status page, a scripted status, and control.

`python -m tests.e2e.scripted_admin PORT` prints its port; 0 means any.  A test changes what it
says with `PUT /test`, an object with some of the members of `Script`, and reads all requests with
`GET /test`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from mcpbridge.admin.page import CONTENT_SECURITY_POLICY, FILES


class Script:
    """
    What is said: the status document, the token that is needed, and the answers to `end`.

    Answers are pairs of a status and an object, by the id of a session.  With `silent` True a new
    stream gets no event.
    """

    document: Mapping[str, Any] | None = None
    token = ""
    answers: Mapping[str, tuple[int, Mapping[str, Any]]] = {}
    silent = False


class ScriptedAdmin(Resource):
    """Serves the page to everybody, and the rest to those with the token."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self._script = Script()
        self._streams: list[Any] = []
        self._seen: list[Any] = []

    def render(self, request: Any) -> Any:
        """Answer a request."""
        path = request.path
        if path == b"/test":
            return self._test(request)
        headers = {
            name.decode().lower(): values[0].decode("latin-1")
            for name, values in request.requestHeaders.getAllRawHeaders()
        }
        self._seen.append(
            {"method": request.method.decode(), "uri": request.uri.decode(), "headers": headers}
        )
        if path in FILES:
            kind, body = FILES[path]
            request.setHeader("Content-Type", kind)
            request.setHeader("Content-Security-Policy", CONTENT_SECURITY_POLICY)
            request.setHeader("X-Content-Type-Options", "nosniff")
            return body
        token = self._script.token
        if token and headers.get("authorization") != f"Bearer {token}":
            return self._json(request, 401, {"error": "a token is needed"})
        if path == b"/events":
            return self._events(request)
        status, answer = self._script.answers.get(
            path.split(b"/")[2].decode(), (404, {"error": "there is no such session"})
        )
        return self._json(request, status, answer)

    def _json(self, request: Any, status: int, value: object) -> bytes:
        request.setResponseCode(status)
        request.setHeader("Content-Type", "application/json")
        return json.dumps(value).encode()

    def _events(self, request: Any) -> Any:
        request.setHeader("Content-Type", "text/event-stream")
        request.setHeader("Cache-Control", "no-store")
        self._streams.append(request)
        request.notifyFinish().addBoth(lambda _: self._streams.remove(request))
        request.write(b": hello\n\n")
        if not self._script.silent:
            self._send(request)
        return NOT_DONE_YET

    def _send(self, request: Any) -> None:
        data = json.dumps(self._script.document)
        request.write(f"event: status\ndata: {data}\n\n".encode())

    def _test(self, request: Any) -> bytes:
        if request.method == b"PUT":
            said = json.load(request.content)
            for name, value in said.items():
                setattr(self._script, name, value)
            for each in list(self._streams):
                if "document" in said:
                    self._send(each)
                elif "token" in said:
                    each.finish()
        return self._json(request, 200, self._seen)


def main() -> None:
    """Serve until the process is ended."""
    from twisted.internet import reactor

    clock: Any = reactor
    endpoint = serverFromString(clock, f"tcp:{sys.argv[1]}:interface=127.0.0.1")
    endpoint.listen(Site(ScriptedAdmin())).addCallback(
        lambda port: print(port.getHost().port, flush=True)
    )
    clock.run()


if __name__ == "__main__":
    main()
