"""
A filter that lets only some tools be called.

In a configuration file: "filters": ["tool_filter.ToolFilter"], with
"options": {"allowed_tools": ["echo", "add"]}.
"""

import json
from typing import Any

from zope.interface import implementer

from mcpbridge import ServerSettings
from mcpbridge.errors import MessageRefused, SettingError
from mcpbridge.interfaces import IMessageFilter


@implementer(IMessageFilter)
class ToolFilter:
    """Refuses a `tools/call` of any tool that is not named in `options.allowed_tools`."""

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
        for each in message if isinstance(message, list) else [message]:
            self._judge(each)
        return json.dumps(message, allow_nan=False).encode()

    def from_backend(self, session: Any, line: bytes) -> bytes:
        """What the backend says passes as it is."""
        return line

    def _judge(self, message: Any) -> None:
        if not isinstance(message, dict) or message.get("method") != "tools/call":
            return
        params = message.get("params")
        name = params.get("name") if isinstance(params, dict) else None
        if not isinstance(name, str) or name not in self._allowed:
            raise MessageRefused(f"the tool {name!r} may not be called here")
