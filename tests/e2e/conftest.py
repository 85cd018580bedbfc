"""Fixtures of the end-to-end tests."""

import pytest

from tests.e2e import fork_server


@pytest.fixture(scope="session", autouse=True)
def running_fork_server() -> None:
    """Start the fork server before the first test, which has not left it behind then."""
    fork_server.ensure_running()
