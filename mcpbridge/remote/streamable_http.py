"""
One session at a server of Streamable HTTP, of any revision (basic/transports).

A legacy server gives the session an id, and sends what belongs to no request on a stream
that is opened by GET.  A request of 2026-07-28 has no session: its POST says everything,
and to close its response is to cancel it.

Knows which requests are open; what becomes of a single one is for `calls`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.errors import HEADER_MISMATCH
from mcpbridge.jsonrpc.envelope import Envelope, JsonRpcId
from mcpbridge.jsonrpc.ids import is_answer_to
from mcpbridge.jsonrpc.members import cancellation_line, members_of, string_of
from mcpbridge.mcp.header_validation import annotated
from mcpbridge.mcp.posted_message import Kind, PostedMessage, read_posted
from mcpbridge.mcp.revisions import revision
from mcpbridge.remote.calls import Call
from mcpbridge.remote.context import Context, header_of, read_text
from mcpbridge.remote.deliveries import Delivery
from mcpbridge.remote.listening import Listening
from mcpbridge.remote.outbox import Outbox
from mcpbridge.remote.problems import status_text
from mcpbridge.remote.responses import PROBE, TRANSIENT, ErrorBody, fatal_error
from mcpbridge.remote.tool_headers import read_tools
from mcpbridge.timers import Timer

#: A session's id (2025-11-25, basic/transports, "Session Management"), of a bounded length.
_SESSION_ID = re.compile(r"[\x21-\x7e]{1,1024}")
_VERSION = re.compile(r"[\x21-\x7e]{1,64}")
#: Statuses with which an older server refuses a POST (2025-11-25, basic/transports, "Backwards
#: Compatibility").
_NOT_STREAMABLE = (400, 404, 405)


class StreamableHttp:
    """
    A session of Streamable HTTP.

    `fall_back` is called with `initialize` and the reason if the server may speak
    HTTP+SSE instead; None if that is not to be tried.
    """

    log = Logger()

    def __init__(
        self, context: Context, fall_back: Callable[[PostedMessage, str], None] | None
    ) -> None:
        self._context = context
        self._fall_back = fall_back
        settings = context.server.settings
        self.outbox = Outbox(
            self._post,
            settings.max_waiting_messages,
            settings.max_waiting_bytes,
            settings.concurrency,
        )
        self._calls: dict[Call, None] = {}
        self._deliveries: set[Delivery] = set()
        self._listening: Listening | None = None
        self._session_id: str | None = None
        #: The session that the server has opened, be it of use or not.
        self._to_delete: str | None = None
        self._version: str | None = None
        #: Whether any request was answered.
        self._is_answered = False

    # Transport.

    def put(self, message: PostedMessage) -> None:
        """Post a message in its turn; a cancellation of 2026-07-28 closes a response."""
        ident = message.cancels
        if not isinstance(ident, msgspec.UnsetType) and self._cancel(ident):
            return
        self.outbox.put(message)

    def splits_batches(self) -> bool:
        """Tell whether the negotiated revision has no batches."""
        return not revision(self._version or "0").batches

    def abandon(self) -> None:
        """Close everything."""
        self.outbox.close()
        for call in list(self._calls):
            call.drop()
        for delivery in list(self._deliveries):
            delivery.drop()
        if self._listening is not None:
            self._listening.drop()

    def leave(self, seconds: float) -> Deferred[None]:
        """End the session by DELETE, as well as that goes within this time."""
        self.abandon()
        if self._to_delete is None:
            return succeed(None)
        left: Deferred[None] = Deferred()
        headers = {**self.session_headers(), "Mcp-Session-Id": self._to_delete}
        asking = self._context.client.request("DELETE", self._context.server.target, headers)
        timer = Timer(self._context.clock)

        def over(_: object) -> None:
            timer.stop()
            asking.cancel()
            if not left.called:
                left.callback(None)

        def responded(response: Any) -> None:
            # Most servers answer 200, or 405 if they do not let clients end sessions.
            read_text(response, self._context, over)

        timer.start(seconds, over, None)
        asking.addCallback(responded)
        asking.addErrback(over)
        return left

    def _cancel(self, ident: JsonRpcId) -> bool:
        """Return True if nothing is to be sent to cancel this request."""
        if self.outbox.withdraw(ident):
            return True
        for call in self._calls:
            if any(is_answer_to(each, ident) for each in call.owed):
                if call.is_modern:
                    call.drop()
                elif len(call.owed) == 1:
                    call.cancelled()
                return call.is_modern
        # A server without a session has nothing to cancel.
        return self._version is None and self._session_id is None

    # Posting.

    def _post(self, message: PostedMessage) -> None:
        if message.is_request:
            call = Call(message, self, self._context)
            self._calls[call] = None
            call.post()
            return
        delivery = Delivery(message, self, self._context)
        self._deliveries.add(delivery)
        delivery.post()

    def headers_of(self, message: PostedMessage) -> dict[str, str]:
        """Return the headers of the POST of a message, but for its content type."""
        if message.version is not None:
            tool = message.tool
            known = () if tool is None else self._context.server.annotations.get(tool, ())
            return dict(message.headers(known))
        return self.session_headers()

    def session_headers(self) -> dict[str, str]:
        """Return the headers that name the session and its revision."""
        headers = {}
        if self._session_id is not None:
            headers["Mcp-Session-Id"] = self._session_id
        if self._version is not None:
            headers["MCP-Protocol-Version"] = self._version
        return headers

    # Calls.

    def responded(self, call: Call, response: Any) -> None:
        """
        Take the id of the session from the response to `initialize`.

        Some servers open a session for any request without one, which they refuse then.
        That is deleted at the end, too.
        """
        ident = header_of(response, b"Mcp-Session-Id")
        if not ident or self._session_id is not None:
            return
        opened = call.message.method == "initialize" and 200 <= response.code < 300
        if _SESSION_ID.fullmatch(ident):
            self._to_delete = ident
            self._session_id = ident if opened else None
        elif opened:
            self._context.reports.died("sent an id of a session with invalid characters")

    def answered(self, call: Call, envelope: Envelope, ident: JsonRpcId) -> None:
        """Note what an answer tells about the session, the server's era and its tools."""
        self._is_answered = True
        result = envelope.result
        if isinstance(result, msgspec.UnsetType):
            return
        method = call.message.method
        if method == "initialize" and not call.is_modern:
            version = string_of(members_of(result).get("protocolVersion"))
            if version is not None and _VERSION.fullmatch(version):
                self._version = version
            self._context.server.transport = "streamable-http"
        elif method == PROBE:
            self._context.server.is_modern = True
        elif method == "tools/list" and call.is_modern:
            self._context.server.learn(annotated(result)[0])

    def over(self, call: Call) -> None:
        """Post what has waited for the connection."""
        if self._calls.pop(call, self) is None:
            self.outbox.answered(call.message)

    def deferred(self, call: Call) -> bool:
        """Tell whether the answer may come on the GET stream."""
        return self._listening is not None and self._listening.is_open

    def from_listening(self, envelopes: list[Envelope]) -> bool:
        """Note answers that come on the GET stream; return False if nobody waits for one."""
        self._context.silence.server_sent(envelopes)
        for envelope in envelopes:
            if envelope.is_response and not any(
                is_answer_to(envelope.id, ident) and call.take([envelope])
                for call in list(self._calls)
                for ident in list(call.owed)
            ):
                return False
        for call in [each for each in self._calls if not each.owed]:
            call.finish()
        return True

    def refused(self, call: Call, error: ErrorBody, location: str) -> None:
        """Decide what is to be done about a response that is an error."""
        status, initialize = error.status, call.message.method == "initialize"
        opening = self._is_opening(call)
        if call.is_modern and not opening:
            # The others are of other clients, and need not fare alike.
            fatal = self._fatal_error(error, location)
            if fatal is not None:
                call.fail(fatal[0])
                return
        elif self._is_fatal(error, location, opening=opening):
            return
        refuses_posts = status in _NOT_STREAMABLE and not error.is_of_streamable_http
        if initialize and refuses_posts and self._fall_back is not None:
            self._fall_back(call.message, f"answered {status_text(status)} to a POST")
            return
        if error.code == HEADER_MISMATCH and call.message.tool and not call.is_repeated:
            Deferred.fromCoroutine(self._repeat(call, error)).addErrback(self._defect, call)
            return
        self._answer_refused(call, error)

    def _is_opening(self, call: Call) -> bool:
        """Return whether no other request of the session makes sense without this one."""
        method = call.message.method
        return method == "initialize" or (method == PROBE and not self._is_answered)

    def unusable(self, call: Call, what: str) -> bool:
        """
        End the session if this was the probe of a server that is known to be modern.

        An error in place of its answer would make a legacy server of it, for all clients.
        But it may have been replaced by one, so the next such response means just that.
        """
        server = self._context.server
        is_odd = self._is_opening(call) and call.is_modern and server.is_modern
        if is_odd:
            server.is_modern = False
            self._context.reports.died(what)
        return is_odd

    def _answer_refused(self, call: Call, error: ErrorBody) -> None:
        what = f"answered {status_text(error.status)}"
        if self._is_opening(call) and error.status in TRANSIENT:
            # That says nothing of the era, nor of the request.
            self._context.reports.died(what, status_text(error.status))
            return
        answers = [error.answer(ident) for ident in call.owed]
        lines = [each for each in answers if each is not None]
        if lines:
            call.answer(lines)
        elif call.message.method == "initialize":
            self._context.reports.died(what, status_text(error.status))
        elif not self.unusable(call, what):
            call.fail(what)

    def _fatal_error(
        self, error: ErrorBody, location: str, *, opening: bool = False
    ) -> tuple[str, str] | None:
        url = self._context.server.settings.url or ""
        in_session = self._session_id is not None
        return fatal_error(error, location, url, in_session=in_session, opening=opening)

    def _is_fatal(self, error: ErrorBody, location: str, *, opening: bool = False) -> bool:
        """End the session if no other request of it could succeed either; return whether."""
        fatal = self._fatal_error(error, location, opening=opening)
        if fatal is not None:
            if error.means_no_session:
                self._to_delete = None
            self._context.reports.died(*fatal)
        return fatal is not None

    def delivery_refused(self, delivery: Delivery, error: ErrorBody, location: str) -> None:
        """Decide what is to be done about a notification or an answer that is refused."""
        if self._is_fatal(error, location):
            return
        why = f": {error.text}" if error.text else ""
        what = f"the remote server refused {delivery.what} ({status_text(error.status)}){why}"
        self._context.reports.misbehaved("refused", what)
        delivery.done()

    def stream_refused(self, error: ErrorBody, location: str) -> bool:
        """End the session if a refused GET means that; return whether it does."""
        return self._is_fatal(error, location)

    def stream_unreachable(self, why: str) -> bool:
        """End the session, unless requests are connected; return whether it has ended."""
        if self.is_connected():
            return False
        self._context.reports.unreachable(why)
        return True

    def no_stream(self) -> None:
        """Fail the requests whose answers were to come on the GET stream."""
        for call in [each for each in self._calls if each.is_deferred]:
            call.fail("wants to answer on a stream that it does not have")

    def delivered(self, delivery: Delivery) -> None:
        """Post what follows; once the session is initialized, listen."""
        self._deliveries.discard(delivery)
        message = delivery.message
        if (
            message.kind is Kind.NOTIFICATION
            and message.method == "notifications/initialized"
            and self._session_id is not None
            and self._listening is None
        ):
            self._listening = Listening(self, self._context)
            self._listening.open()
        self.outbox.accepted()

    def lost(self, call: Call, why: str) -> None:
        """
        Fail a request whose response broke off, or end the session if the server is gone.

        A load balancer may have closed one connection, so the others need not be lost.
        """
        if self._is_opening(call):
            self._context.reports.died(why)
            return
        checking = self._context.client.prepare()
        checking.addCallbacks(
            lambda _: call.fail(why), lambda failure: self.cannot_connect(call, str(failure.value))
        )
        checking.addErrback(self._defect, call)

    def cannot_connect(self, call: Call, why: str) -> None:
        """
        End the session as there is no connection; only the call while others are connected.

        A server that restarts opens no connection, but may finish what it has begun.  If
        it is gone, those connections break at once, and the last one ends the session.
        """
        if self._is_opening(call) or not self.is_connected(call):
            self._context.reports.unreachable(why)
        else:
            call.fail(f"cannot be reached: {why}")

    def is_connected(self, apart_from: Call | None = None) -> bool:
        """Return whether any response is being received, or awaited on a connection."""
        if self._listening is not None and self._listening.is_connected:
            return True
        return any(each.is_connected for each in self._calls if each is not apart_from)

    def _defect(self, failure: Failure, call: Call) -> None:
        self.log.failure("a request to a remote server failed", failure)
        call.fail("could not be asked, by a defect of the bridge")

    def overdue(self, call: Call) -> None:
        """Fail a request without an answer, and have the server stop working on it."""
        seconds = self._context.server.settings.response_timeout
        what = f"has sent nothing for {seconds:g} s (response_timeout)"
        if self._is_opening(call):
            self._context.reports.died(what, "response timeout")
            return
        owed = list(call.owed)
        call.fail(what)
        if not call.is_modern:
            for ident in owed:
                self.outbox.put(read_posted(cancellation_line(ident, "response timeout")))

    async def _repeat(self, call: Call, error: ErrorBody) -> None:
        """Read the list of tools, which says what headers a call must have, and call again."""
        before = self.headers_of(call.message)
        await read_tools(self._context)
        if self.headers_of(call.message) == before:
            # That was not why.
            self._answer_refused(call, error)
        elif call in self._calls:
            call.repeat()
