"""Which of several media types a client likes best."""

from __future__ import annotations

import pytest

from mcpbridge.web.content_negotiation import HTML, JSON, preferred


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("nonsense", None),
        ("text/html", HTML),
        ("text/*;q=0.5, application/json;q=0.4", HTML),
        ("text/html;q=0, */*", JSON),
        ("text/html, application/json", JSON),
        ("text/event-stream", None),
        ("*/*;q=0", None),
    ],
)
def test_preferred(header: str, expected: str | None) -> None:
    assert preferred(header, (JSON, HTML)) == expected
