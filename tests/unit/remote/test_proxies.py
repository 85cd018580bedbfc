"""Which proxy the environment names for a remote server."""

from __future__ import annotations

import pytest

from mcpbridge.config.oauth import origin_of
from mcpbridge.remote.proxies import PROXY_PORT, BadProxy, Proxy, proxy_for


def found(url: str, **environment: str) -> Proxy | None:
    return proxy_for(origin_of(url), environment)


def test_there_is_none_by_default() -> None:
    assert found("http://a.test/") is None
    assert found("http://a.test/", http_proxy="", HTTPS_PROXY="http://p:1") is None


@pytest.mark.parametrize(
    ("value", "proxy"),
    [
        ("http://p.test:3128", Proxy("p.test", 3128, False, None)),
        ("p.test:3128/", Proxy("p.test", 3128, False, None)),
        ("http://p.test", Proxy("p.test", PROXY_PORT, False, None)),
        ("https://p.test", Proxy("p.test", 443, True, None)),
        ("http://me:se%20cret@p.test:1", Proxy("p.test", 1, False, "Basic bWU6c2UgY3JldA==")),
        ("http://me@p.test:1", Proxy("p.test", 1, False, "Basic bWU6")),
        ("http://[::1]:1", Proxy("::1", 1, False, None)),
    ],
)
def test_its_url(value: str, proxy: Proxy) -> None:
    assert found("https://a.test/", HTTPS_PROXY=value) == proxy
    assert found("http://a.test/", http_proxy=value) == proxy
    assert found("http://a.test/", ALL_PROXY=value) == proxy
    shown = "[::1]:1" if proxy.host == "::1" else f"{proxy.host}:{proxy.port}"
    assert proxy.shown == shown


def test_small_letters_count_first() -> None:
    proxy = found("http://a.test/", http_proxy="small:1", HTTP_PROXY="large:2", all_proxy="all:3")
    assert proxy is not None
    assert proxy.host == "small"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("socks5://me:secret@p.test:1", "neither http nor https"),
        ("http://p.test:port", "is not the URL"),
        ("http://me:secret@", "without a host"),
    ],
)
def test_one_that_cannot_be_used(value: str, text: str) -> None:
    with pytest.raises(BadProxy, match=text) as caught:
        found("http://a.test/", HTTP_PROXY=value)
    assert "HTTP_PROXY" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "exceptions", "excepted"),
    [
        ("http://a.test/", "*", True),
        ("http://a.test/", "b.test, *", True),
        ("http://a.test/", "a.test", True),
        ("http://a.test/", "A.TEST", True),
        ("http://a.test/", "b.test,a.test", True),
        ("http://a.test/", "b.test a.test", True),
        ("http://x.a.test/", "a.test", True),
        ("http://x.a.test/", ".a.test", True),
        ("http://a.test/", ".a.test", True),
        ("http://xa.test/", "a.test", False),
        ("http://a.test:81/", "a.test:81", True),
        ("http://a.test/", "a.test:81", False),
        ("http://a.test/", ".", False),
        ("http://a.test./", "a.test", True),
        ("http://10.1.2.3/", "10.1.2.3", True),
        ("http://10.1.2.3:81/", "10.1.2.3:81", True),
        ("http://10.1.2.3/", "10.0.0.0/8", True),
        ("http://10.1.2.3/", "11.0.0.0/8,x", False),
        ("http://[2001:db8::1]/", "2001:db8::/32", True),
        ("http://[2001:db8::1]/", "[2001:db8::1]", True),
        ("http://[2001:db8::1]:81/", "[2001:db8::1]:81", True),
        ("http://a.test/", "", False),
        ("http://localhost/", "", True),
        ("http://127.0.0.1/", "", True),
        ("http://[::1]/", "", True),
    ],
)
def test_exceptions(url: str, exceptions: str, excepted: bool) -> None:
    proxy = found(url, http_proxy="p.test:1", NO_PROXY=exceptions)
    assert (proxy is None) is excepted
