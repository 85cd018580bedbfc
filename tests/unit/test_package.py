"""The public names of the package, which are imported when they are first used."""

import pytest

import mcpbridge
from mcpbridge.bridge import Bridge
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.twisted_internals import dispatch_directly


def test_public_names_are_those_of_their_modules() -> None:
    assert {name: getattr(mcpbridge, name) for name in mcpbridge.__all__} == {
        "Bridge": Bridge,
        "BridgeSettings": BridgeSettings,
        "ServerSettings": ServerSettings,
        "__version__": mcpbridge.__version__,
        "dispatch_directly": dispatch_directly,
    }


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'mcpbridge' has no attribute 'Brigde'"):
        mcpbridge.Brigde  # type: ignore[attr-defined]  # noqa: B018
