"""
Extensions: objects that provide an interface, loaded by dotted name.

Fails loudly: what does not provide its interface is an error at the start.
"""

from __future__ import annotations

from typing import Any

from twisted.python.reflect import namedAny
from zope.interface import Interface
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import SettingError


def load(
    setting: str, interface: type[Interface], dotted_name: str | None, settings: ServerSettings
) -> Any:
    """
    Call what the name stands for with the server's settings; None without a
    name.  Raises `SettingError` where there is no such thing, where it
    raises, and where the result does not provide the interface.
    """
    if dotted_name is None:
        return None
    setting = f"mcpServers.{settings.name}.{setting}"
    expected = f"the name of something that gives an {interface.__name__}"
    try:
        made = namedAny(dotted_name)(settings)
    except SettingError:
        raise
    except Exception as error:
        raise SettingError(
            setting, expected, f"<{dotted_name}: {type(error).__name__}: {error}>"
        ) from error
    try:
        return verified(setting, interface, made)
    except SettingError as error:
        got = str(error.got)[1:-1]
        raise SettingError(setting, error.expected, f"<{dotted_name}: {got}>") from error


def verified(setting: str, interface: type[Interface], given: Any) -> Any:
    """The object, if it provides the interface (or is None).  Raises `SettingError`."""
    if given is None:
        return None
    try:
        verifyObject(interface, given)
    except Invalid as error:
        reason = " ".join(str(error).split())
        raise SettingError(
            setting, f"an object that provides {interface.__name__}", f"<{reason}>"
        ) from error
    return given
