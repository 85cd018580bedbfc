"""What a check of this machine finds about remote servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcpbridge.check.machine import ServerCheck
from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import CERTIFICATE_FILE_BYTES


def troubles(environment: dict[str, str], ca_file: str | None = None) -> list[tuple[str, str]]:
    settings = ServerSettings(name="r", command="", url="https://remote.test/mcp", ca_file=ca_file)
    found = ServerCheck(settings, environment).troubles()
    return [(each.name, each.text) for each in found]


@pytest.mark.parametrize("value", ["socks5://p:1", "http://[", "http://"])
def test_proxy_that_cannot_be_used_is_found(value: str) -> None:
    [(name, text)] = troubles({"HTTPS_PROXY": value})
    assert name == "mcpServers.r.url"
    assert "cannot be reached: the variable HTTPS_PROXY" in text


def test_proxy_that_can_be_used_is_no_trouble() -> None:
    assert not troubles({"HTTPS_PROXY": "http://user:pw@proxy:3128"})
    assert not troubles({"HTTPS_PROXY": "socks5://p:1", "NO_PROXY": "remote.test"})


def test_file_of_authorities_that_is_too_large_is_found(tmp_path: Path) -> None:
    """As it would refuse each session."""
    file = tmp_path / "ca.pem"
    file.write_bytes(b"#" * (CERTIFICATE_FILE_BYTES + 1))
    assert f"has more than {CERTIFICATE_FILE_BYTES} bytes" in troubles({}, str(file))[0][1]
