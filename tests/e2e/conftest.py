"""Fixtures of the end-to-end tests."""

from collections.abc import Iterator

import pytest

from tests.e2e import fork_server


@pytest.fixture(scope="session", autouse=True)
def running_fork_server() -> Iterator[None]:
    """Start the fork server before the first test, which has not left it behind then."""
    with fork_server.running():
        yield
