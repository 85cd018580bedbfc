"""
Load the objects that extend the bridge, and check that they provide their interface.

An object that does not is reported at startup, with the setting that named it.
"""

from __future__ import annotations

from typing import Any

from twisted.python.reflect import namedAny
from zope.interface import Interface
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import Described, SettingError


def load(
    setting: str, interface: type[Interface], dotted_name: str | None, settings: ServerSettings
) -> Any:
    """
    Import a factory by its dotted name and call it with the server's settings.

    Returns the object that it makes; None without a name.  Raises
    `SettingError` if nothing has that name, if the factory raises, or if its
    object does not provide the interface.
    """
    if dotted_name is None:
        return None
    setting = f"mcpServers.{settings.name}.{setting}"
    expected = f"the dotted name of a factory of {interface.__name__}"
    try:
        made = namedAny(dotted_name)(settings)
    except SettingError:
        raise
    except Exception as error:
        raise SettingError(
            setting, expected, Described(f"{dotted_name}: {type(error).__name__}: {error}")
        ) from error
    try:
        return verified(setting, interface, made)
    except SettingError as error:
        got = Described(f"{dotted_name}: {error.got}")
        raise SettingError(setting, error.expected, got) from error


def verified(setting: str, interface: type[Interface], given: Any) -> Any:
    """
    Return the object if it provides the interface; None stays None.

    Raises `SettingError` with what is missing of the interface.
    """
    if given is None:
        return None
    try:
        verifyObject(interface, given)
    except Invalid as error:
        reason = " ".join(str(error).split())
        raise SettingError(
            setting, f"an object that provides {interface.__name__}", Described(reason)
        ) from error
    return given
