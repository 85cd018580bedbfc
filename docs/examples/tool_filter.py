"""
A filter that hides all but some tools, and logs who tried to call a hidden one.

In a configuration file: "filters": ["tool_filter.ToolFilter"], with
"options": {"allowed_tools": ["echo", "add"]}.
"""

import json
from typing import Any

from twisted.logger import Logger
from zope.interface import implementer

from mcpbridge import ServerSettings
from mcpbridge.errors import MessageRefused, SettingError
from mcpbridge.interfaces import IMessageFilter

#: How much of a tool's name appears in the log and in the error.
SHOWN_CHARS = 100


@implementer(IMessageFilter)
class ToolFilter:
    """
    Allows only the tools in `options.allowed_tools`: refuses a `tools/call` of
    any other, and removes it from the results of `tools/list`.
    """

    log = Logger()

    def __init__(self, settings: ServerSettings) -> None:
        allowed = settings.options.get("allowed_tools")
        if not isinstance(allowed, list):
            raise SettingError("options.allowed_tools", "a list of names", allowed)
        self._allowed = frozenset(allowed)

    def from_client(self, session: Any, line: bytes) -> bytes:
        """
        Check a message, or each message of an array.

        Return the message as this filter has read it, serialized again.  If
        the original holds a member twice, a backend might read the one that
        was not checked.
        """
        message = json.loads(line)
        for each in _each(message):
            self._check(session, each)
        return json.dumps(message, allow_nan=False).encode()

    def from_backend(self, session: Any, line: bytes) -> bytes:
        """
        Remove the tools that are not allowed from a list of tools.

        Every other message passes unchanged.  A filter cannot tell which
        request a message answers, so any result with a list of `tools` counts
        as one of `tools/list`, whatever its id.
        """
        if b"tools" not in line and b"\\u" not in line:
            return line
        message = json.loads(line)
        lists = [each for each in map(self._list_of_tools, _each(message)) if each is not None]
        if not lists:
            return line
        for tools in lists:
            tools[:] = [tool for tool in tools if self._is_allowed(tool)]
        return json.dumps(message, allow_nan=False).encode()

    def _list_of_tools(self, message: Any) -> list[Any] | None:
        result = message.get("result") if isinstance(message, dict) else None
        tools = result.get("tools") if isinstance(result, dict) else None
        return tools if isinstance(tools, list) else None

    def _is_allowed(self, tool: Any) -> bool:
        name = tool.get("name") if isinstance(tool, dict) else None
        return isinstance(name, str) and name in self._allowed

    def _check(self, session: Any, message: Any) -> None:
        if not isinstance(message, dict) or message.get("method") != "tools/call":
            return
        params = message.get("params")
        name = params.get("name") if isinstance(params, dict) else None
        if not isinstance(name, str) or name not in self._allowed:
            tool = repr(name)[:SHOWN_CHARS]
            # The repr leaves out the headers, which may hold secrets.
            self.log.warn("{caller} may not call {tool}", caller=repr(session.caller), tool=tool)
            raise MessageRefused(f"the tool {tool} may not be called here")


def _each(message: Any) -> list[Any]:
    """Return the messages of a line: one, or those of an array."""
    return message if isinstance(message, list) else [message]
