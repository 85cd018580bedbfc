"""A backend's command: what is said where it is not there."""

import pytest

from mcpbridge.backend.command import find_program
from mcpbridge.errors import CannotStart


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("no-such-program", ""),
        ("no-such-program --with arguments", "; its arguments belong into `args`"),
        ("/no/such/program x", "; its arguments belong into `args`"),
    ],
)
def test_a_command_that_is_not_found(command: str, hint: str) -> None:
    with pytest.raises(CannotStart) as caught:
        find_program(command, {"PATH": "/bin"}, None)
    where = "" if "/" in command else " in the backend's PATH"
    assert str(caught.value) == f"cannot start {command!r}: it was not found{where}{hint}"
