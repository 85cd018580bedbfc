"""What a revision means for the transport."""

import pytest

from mcpbridge.mcp.revisions import (
    DEFAULT_PROTOCOL_VERSION,
    HANDSHAKE_PROTOCOL_VERSIONS,
    Revision,
    is_accepted,
    revision,
)


@pytest.mark.parametrize(
    ("negotiated", "primes", "batches"),
    [
        ("2024-11-05", False, False),
        ("2025-03-26", False, True),
        ("2025-06-18", False, False),
        ("2025-11-25", True, False),
        # never heard of: as the newest one before it
        ("2024-10-07", False, False),
        ("2025-04-01", False, True),
        ("2025-09-09", False, False),
        ("2026-01-01", True, False),
        ("DRAFT-2026-v1", True, False),
        ("", False, False),
    ],
)
def test_features_of_each_revision(negotiated: str, primes: bool, batches: bool) -> None:
    """promise: priming for 2025-11-25 on, batches for 2025-03-26."""
    assert revision(negotiated) == Revision(negotiated, primes, batches)


def test_an_unknown_revision_is_2025_03_26() -> None:
    assert (
        revision(None) == revision(DEFAULT_PROTOCOL_VERSION) == Revision("2025-03-26", batches=True)
    )


@pytest.mark.parametrize("header", [None, *HANDSHAKE_PROTOCOL_VERSIONS, "2024-10-07"])
def test_versions_that_are_served(header: str | None) -> None:
    """Any supported one, whatever was negotiated, and what the backend itself has chosen."""
    assert is_accepted(header, "2024-10-07")


@pytest.mark.parametrize("header", ["", "2024-10-07", "2026-07-28", "2025-11-25 ", "x"])
@pytest.mark.parametrize("negotiated", [None, *HANDSHAKE_PROTOCOL_VERSIONS])
def test_versions_that_are_not(header: str, negotiated: str | None) -> None:
    """promise: a version that is not supported gets a 400."""
    assert not is_accepted(header, negotiated)


def test_supported_versions_are_in_order() -> None:
    """The search for one that was never heard of relies on it."""
    assert sorted(HANDSHAKE_PROTOCOL_VERSIONS) == list(HANDSHAKE_PROTOCOL_VERSIONS)
    assert HANDSHAKE_PROTOCOL_VERSIONS == ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
