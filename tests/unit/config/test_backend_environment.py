"""What a backend gets of the bridge's own environment."""

import pytest

from mcpbridge.config.backend_environment import passed_environment
from mcpbridge.config.settings import ServerSettings
from mcpbridge.stdio.command import backend_environment

BY_DEFAULT = (
    "HOME PATH LANG LC_ALL LC_TIME TZ TMPDIR USER LOGNAME SHELL TERM"
    " HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy"
    " SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS"
    " UV_CACHE_DIR UV_INDEX_URL NPM_CONFIG_REGISTRY NPM_CONFIG_CACHE npm_config_registry"
    " npm_config_cache XDG_CONFIG_HOME XDG_CACHE_HOME XDG_DATA_DIRS XDG_RUNTIME_DIR"
)


@pytest.mark.parametrize("name", BY_DEFAULT.split())
def test_passes_by_default(name: str) -> None:
    assert passed_environment({name: "value"}, ()) == ({name: "value"}, [])


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "Http_Proxy",
        "HTTP_PROXY_PASSWORD",
        "MY_HTTP_PROXY",
        "NPM_CONFIG__AUTH",
        "NPM_CONFIG_//registry.example/:_authToken",
        "NPM_TOKEN",
        "UV_INDEX_CORP_PASSWORD",
        "UV_PUBLISH_TOKEN",
        "XDG_ACTIVATION_TOKEN",
        "XDG_AUTH",
        "XDG_PASSWORD",
        "xdg_config_home",
    ],
)
def test_does_not_pass(name: str) -> None:
    """No secret of the bridge's own environment reaches a backend."""
    assert passed_environment({name: "value"}, ()) == ({}, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_PROXY", "http://user:hush@proxy:3128"),
        ("https_proxy", "http://user@proxy:3128"),
        ("ALL_PROXY", "socks5h://user:hush@proxy"),
        ("HTTP_PROXY", "user:hush@proxy:3128"),
        ("HTTP_PROXY", "http:user:hush@proxy"),
        ("HTTP_PROXY", "http://user:hu/sh#?@proxy:3128"),
        ("HTTP_PROXY", "http://user:hush%40corp@proxy"),
        ("HTTP_PROXY", "http://one:3128, http://user:hush@two:3128"),
        ("HTTP_PROXY", "http://one:3128;user:hush@two:3128"),
        ("HTTP_PROXY", "http:\\\\user:hush@proxy"),
        ("NO_PROXY", "user:hush@host"),
        ("UV_INDEX_URL", "https://user:hush@index.example/simple"),
        ("UV_INDEX_URL", "https://__token__:@index.example/simple"),
        ("NPM_CONFIG_REGISTRY", "https://user:hu/sh@registry.example/"),
        ("npm_config_registry", "//user:hush@registry.example/"),
        ("NPM_CONFIG_REGISTRY", "https:/user:hush@registry.example/"),
        ("NPM_CONFIG_REGISTRY", "user:hush@registry.example/"),
        ("SSL_CERT_FILE", "https://user:hush@host/ca.pem"),
        ("XDG_CONFIG_HOME", "ftp://user@host/"),
    ],
)
def test_userinfo_passes_only_by_name(name: str, value: str) -> None:
    """A password in a proxy's URL reaches no backend that was not given it."""
    assert passed_environment({name: value}, ()) == ({}, [name])
    assert passed_environment({name: value}, (name,)) == ({name: value}, [])
    assert passed_environment({name: value}, (name[:3] + "*",)) == ({name: value}, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_PROXY", ""),
        ("HTTP_PROXY", "http://proxy:3128"),
        ("HTTPS_PROXY", "proxy:3128"),
        ("NO_PROXY", "localhost,127.0.0.1,.corp.example,[::1],10.0.0.0/8"),
        ("UV_INDEX_URL", "https://index.example:8443/simple"),
        ("NPM_CONFIG_REGISTRY", "https://feeds.example/corp/_packaging/feed@Local/npm/registry/"),
        ("NPM_CONFIG_REGISTRY", "https://[2001:db8::1]:4873/@scope/"),
        ("SSL_CERT_FILE", "/home/me@corp.example/ca.pem"),
        ("XDG_CACHE_HOME", "/home/me@corp.example/.cache"),
        ("HOME", "/home/me@corp.example"),
    ],
)
def test_a_url_without_userinfo_passes(name: str, value: str) -> None:
    assert passed_environment({name: value}, ()) == ({name: value}, [])


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("AWS_*", "AWS_ AWS_REGION"),
        ("*_REGION", "AWS_REGION"),
        ("A*_R*N", "AWS_REGION"),
        ("aws_*", "aws_region"),
        ("AWS", ""),
        ("AWS.REGION", ""),
        ("*", "AWS_ AWS_REGION XAWS_X aws_region"),
    ],
)
def test_patterns(pattern: str, names: str) -> None:
    """`*` stands for any characters, and case matters."""
    own = dict.fromkeys(["AWS_", "AWS_REGION", "XAWS_X", "aws_region"], "x")
    assert sorted(passed_environment(own, (pattern,))[0]) == names.split()


def test_env_takes_precedence() -> None:
    settings = ServerSettings(
        command="cat", env={"HTTP_PROXY": "http://mine", "AWS_A": "mine"}, pass_env=("AWS_*",)
    )
    own = {"HTTP_PROXY": "http://user:hush@proxy", "AWS_A": "own", "AWS_B": "own"}
    assert backend_environment(settings, own) == {
        "HTTP_PROXY": "http://mine",
        "AWS_A": "mine",
        "AWS_B": "own",
    }
