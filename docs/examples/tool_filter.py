"""
A filter that lets only some tools be seen and called, and logs who tried others.

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

#: How much of a tool's name is shown.
SHOWN_CHARS = 100


@implementer(IMessageFilter)
class ToolFilter:
    """
    Refuses a `tools/call` of any tool that is not named in
    `options.allowed_tools`, and takes it out of the answers to `tools/list`.
    """

    log = Logger()

    def __init__(self, settings: ServerSettings) -> None:
        allowed = settings.options.get("allowed_tools")
        if not isinstance(allowed, list):
            raise SettingError("options.allowed_tools", "a list of names", allowed)
        self._allowed = frozenset(allowed)

    def from_client(self, session: Any, line: bytes) -> bytes:
        """
        Judge one message, or each of an array.

        What passes is written anew: of a member that stands there twice a
        backend might read the one that was not judged.
        """
        message = json.loads(line)
        for each in _each(message):
            self._judge(session, each)
        return json.dumps(message, allow_nan=False).encode()

    def from_backend(self, session: Any, line: bytes) -> bytes:
        """
        Take the refused tools out of a list of tools.  All else passes as it is.

        Which request a message answers is not known here; a result with a
        list of `tools` is one of `tools/list`, whatever its id.
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

    def _judge(self, session: Any, message: Any) -> None:
        if not isinstance(message, dict) or message.get("method") != "tools/call":
            return
        params = message.get("params")
        name = params.get("name") if isinstance(params, dict) else None
        if not isinstance(name, str) or name not in self._allowed:
            tool = repr(name)[:SHOWN_CHARS]
            # Not the headers, which hold secrets.
            self.log.warn("{caller} may not call {tool}", caller=repr(session.caller), tool=tool)
            raise MessageRefused(f"the tool {tool} may not be called here")


def _each(message: Any) -> list[Any]:
    """The messages of a line: one, or those of an array."""
    return message if isinstance(message, list) else [message]
