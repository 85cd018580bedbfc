"""
Server cards: what they say, and how they are served.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from twisted.web.http_headers import Headers

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import NotFound
from mcpbridge.mcp.modern_request import MODERN_PROTOCOL_VERSIONS
from mcpbridge.mcp.revisions import HANDSHAKE_PROTOCOL_VERSIONS
from mcpbridge.mcp.server_card import (
    MAX_INFO_BYTES,
    MAX_NAME,
    MAX_TEXT,
    MAX_VERSION,
    SCHEMA,
    KnownServer,
    Place,
    as_json,
    card_name,
    catalog,
    info_of_discovery,
    matches,
    server_card,
)
from mcpbridge.web.root import Branch
from mcpbridge.web.server_card import CardUnknown, ServerCards

PLACE = Place("mcp.example.com", "https://mcp.example.com/a/mcp", "https://mcp.example.com/a/sse")
INFO = {"name": "weather", "version": "1.2"}


def raw(said: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(said).encode())


def known(info: Any = INFO, version: str = "2025-06-18") -> KnownServer:
    server = KnownServer()
    server.initialized(version, raw(info))
    return server


def card(info: Any, place: Place = PLACE) -> dict[str, Any]:
    made = server_card(known(info), place)
    assert made is not None
    return made


def test_a_card_describes_the_server_and_its_endpoints() -> None:
    info = {
        **INFO,
        "title": "Weather",
        "description": "Tells \n the weather",
        "websiteUrl": "https://example.com/",
        "icons": [{"src": "https://example.com/i.png"}],
        "command": "secret",
    }
    made = card(info)
    assert made == {
        "$schema": SCHEMA,
        "name": "com.example.mcp/weather",
        "version": "1.2",
        "description": "Tells the weather",
        "title": "Weather",
        "websiteUrl": "https://example.com/",
        "icons": [{"src": "https://example.com/i.png"}],
        "remotes": [
            {
                "type": "streamable-http",
                "url": PLACE.mcp,
                "supportedProtocolVersions": ["2025-06-18", *MODERN_PROTOCOL_VERSIONS],
            },
            {"type": "sse", "url": PLACE.sse},
        ],
    }
    assert json.loads(as_json(made)) == made


@pytest.mark.parametrize(
    ("more", "description", "title"),
    [
        ({}, "weather", "weather"),
        ({"title": "T"}, "T", "T"),
        ({"title": 5, "description": ""}, "weather", "weather"),
        ({"name": " "}, "MCP server", "MCP server"),
        ({"description": "x" * MAX_TEXT}, "x" * MAX_TEXT, "weather"),
        ({"description": "x" * (MAX_TEXT + 1)}, "x" * (MAX_TEXT - 1) + "…", "weather"),
        ({"websiteUrl": "javascript:1", "icons": [5]}, "weather", "weather"),
        ({"websiteUrl": 5, "icons": []}, "weather", "weather"),
        ({"icons": [{"src": 5}]}, "weather", "weather"),
        ({"icons": {}}, "weather", "weather"),
    ],
)
def test_values_that_the_schema_forbids_are_left_out(
    more: Any, description: str, title: str
) -> None:
    made = card({**INFO, **more})
    assert (made["description"], made["title"]) == (description, title)
    assert not {"websiteUrl", "icons"} & made.keys()


def test_a_long_version_is_cut() -> None:
    assert card({**INFO, "version": "1" * 300})["version"] == "1" * MAX_VERSION


@pytest.mark.parametrize(
    ("name", "host", "expected"),
    [
        ("com.example/weather", "x", "com.example/weather"),
        ("weather", "mcp.example.com", "com.example.mcp/weather"),
        ("My Weather (v2)", "localhost", "localhost/My-Weather-v2"),
        ("a/b/c", "127.0.0.1", "127.0.0.1/a-b-c"),
        ("Wetter \u2600", "::1", "1/Wetter"),
        ("\u2600", "", "localhost/server"),
        ("a/" + "b" * (MAX_NAME - 2), "h", "a/" + "b" * (MAX_NAME - 2)),
        ("a/" + "b" * (MAX_NAME - 1), "h", "h/a-" + "b" * (MAX_TEXT - 2)),
    ],
)
def test_a_name_is_one_of_reverse_dns(name: str, host: str, expected: str) -> None:
    assert card_name(name, host) == expected
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", card_name(name, host * 300))
    assert len(card_name(name, "x" * 300)) <= MAX_NAME


def test_a_long_host_leaves_room_for_the_name() -> None:
    """A host has 253 characters at most, a card's name 200."""
    assert card_name("weather", "a" * 253) == "a" * (MAX_NAME - len("/weather")) + "/weather"


@pytest.mark.parametrize(
    "info", [None, 5, {}, {"name": "x"}, {"name": 5, "version": "1"}, {**INFO, "x": "y" * 70_000}]
)
def test_an_invalid_server_info_makes_no_card(info: Any) -> None:
    """MAX_INFO_BYTES is the last of these."""
    assert len(json.dumps({**INFO, "x": "y" * 70_000})) > MAX_INFO_BYTES
    server = known(info)
    server.discovered(raw(info))
    server.discovered(None)
    assert server_card(server, PLACE) is None


def test_a_server_info_of_max_info_bytes_makes_a_card() -> None:
    missing = MAX_INFO_BYTES - len(json.dumps({**INFO, "x": ""}))
    assert server_card(known({**INFO, "x": "y" * missing}), PLACE) is not None
    assert server_card(known({**INFO, "x": "y" * (missing + 1)}), PLACE) is None


def test_an_invalid_server_info_changes_nothing_that_is_known() -> None:
    server = known(INFO, "2025-06-18")
    server.initialized("2024-11-05", raw({"name": "x"}))
    server.discovered(raw({"name": "x"}))
    assert server.info == json.dumps(INFO).encode()
    assert server.versions == ("2025-06-18", *MODERN_PROTOCOL_VERSIONS)


@pytest.mark.parametrize(
    ("result", "versions"),
    [
        (
            {"protocolVersion": "2024-11-05", "serverInfo": INFO},
            ("2024-11-05", *MODERN_PROTOCOL_VERSIONS),
        ),
        ({"protocolVersion": "1999-01-01", "serverInfo": INFO}, ()),
        ({"serverInfo": INFO}, ()),
        ({"protocolVersion": "2024-11-05"}, ()),
        (5, ()),
    ],
)
def test_an_initialize_result_is_read(result: Any, versions: Any) -> None:
    server = KnownServer()
    server.initialize_result(raw(result))
    assert server.versions == versions


def test_versions_are_those_that_were_chosen_by_this_version_of_the_server() -> None:
    server = known()
    server.initialized("2024-11-05", raw(INFO))
    assert list(server.versions) == ["2024-11-05", "2025-06-18", *MODERN_PROTOCOL_VERSIONS]
    server.initialized("2024-11-05", raw({**INFO, "version": "2"}))
    assert list(server.versions) == ["2024-11-05", *MODERN_PROTOCOL_VERSIONS]
    server.discovered(raw(INFO))
    assert list(server.versions) == [*HANDSHAKE_PROTOCOL_VERSIONS, *MODERN_PROTOCOL_VERSIONS]


@pytest.mark.parametrize(
    ("result", "info"),
    [
        ({"_meta": {"io.modelcontextprotocol/serverInfo": INFO}}, INFO),
        ({"_meta": {}}, None),
        ({"_meta": 5}, None),
        ({}, None),
        (5, None),
    ],
)
def test_a_discover_result_is_read(result: Any, info: Any) -> None:
    found = info_of_discovery(raw(result))
    assert (None if found is None else json.loads(bytes(found))) == info


def test_a_catalog_has_an_identifier_for_each() -> None:
    one = card({"name": "com.example/weather", "version": "1"})
    listed = catalog([("u1", one), ("u2", one), ("u3", card(INFO))], "example.com")
    base = "urn:air:example.com:mcp:weather"
    assert listed["specVersion"] == "1.0"
    assert [each["identifier"] for each in listed["entries"]] == [base, f"{base}-2", f"{base}-3"]
    assert [each["url"] for each in listed["entries"]] == ["u1", "u2", "u3"]
    assert {each["type"] for each in listed["entries"]} == {"application/mcp-server-card+json"}
    assert catalog([("u", one)], "")["entries"][0]["identifier"].startswith("urn:air:localhost:")


@pytest.mark.parametrize(
    ("tags", "same"),
    [
        ([], False),
        (['"a"'], True),
        (['W/"a"'], True),
        (['"b", "a"'], True),
        (['"b"', '"a"'], True),
        (["*"], True),
        (['"b"'], False),
        (["a"], False),
    ],
)
def test_a_tag_matches(tags: list[str], same: bool) -> None:
    assert matches(tags, '"a"') is same


# How they are served.


class FakeRequest:
    """A GET of a path below a site."""

    def __init__(self, *path: bytes, secure: bool = False, **headers: str) -> None:
        self.method = b"GET"
        self.requestHeaders = Headers(
            {name.replace("_", "-"): [value] for name, value in headers.items()}
        )
        self.prepath = list(path)
        self.postpath: list[bytes] = []
        self.channel: Any = self
        self.code = 200
        self.headers: dict[bytes, bytes] = {}
        self._secure = secure

    def isSecure(self) -> bool:
        return self._secure

    def getPeer(self) -> str:
        return "peer"

    def setResponseCode(self, code: int, phrase: bytes = b"") -> None:
        self.code = code

    def setHeader(self, name: bytes, value: bytes) -> None:
        self.headers[name] = value


class ServerEra:
    def __init__(self, known: KnownServer) -> None:
        self.known = known


class Served:
    """A server, as far as its card goes."""

    def __init__(self, known: KnownServer, **settings: Any) -> None:
        self.settings = ServerSettings(command="secret", **settings)
        self.era = ServerEra(known)
        self.is_open = True


def cards(*servers: Any, proxy: bool = False) -> ServerCards:
    return ServerCards(servers, lambda address: proxy)


def url_of(cards: ServerCards, request: FakeRequest, server: Any, mount: Any = ()) -> str:
    made = json.loads(cards.card(request, server, mount))
    url: str = made["remotes"][0]["url"]
    return url


def test_no_card_shows_what_the_process_of_one_caller_has_said() -> None:
    server: Any = Served(known(), env_from={"KEY": {"header": "X-Key"}})
    with pytest.raises(NotFound, match="env_from"):
        cards(server).card(FakeRequest(host="mcp.example.com"), server, ())
    with pytest.raises(NotFound):
        cards(server).catalog(FakeRequest(host="mcp.example.com"), ())


def test_a_card_over_http() -> None:
    server: Any = Served(known())
    request = FakeRequest(host="mcp.example.com:8808")
    body = cards(server).card(request, server, ())
    made = json.loads(body)
    assert made["name"] == "com.example.mcp/weather"
    assert [each["url"] for each in made["remotes"]] == [
        "http://mcp.example.com:8808/mcp",
        "http://mcp.example.com:8808/sse",
    ]
    assert b"secret" not in body
    etag = request.headers.pop(b"ETag")
    assert request.headers == {
        b"Content-Type": b"application/mcp-server-card+json",
        b"Content-Length": b"%d" % len(body),
        b"Cache-Control": b"public, max-age=3600",
        b"X-Content-Type-Options": b"nosniff",
        b"Access-Control-Allow-Origin": b"*",
        b"Access-Control-Allow-Methods": b"GET",
        b"Access-Control-Allow-Headers": b"Content-Type, If-None-Match",
        b"Access-Control-Expose-Headers": b"ETag",
    }
    again = FakeRequest(host="mcp.example.com:8808", if_none_match=etag.decode())
    assert (cards(server).card(again, server, ()), again.code) == (b"", 304)
    assert again.headers[b"ETag"] == etag
    other = FakeRequest(host="other", if_none_match=etag.decode())
    assert cards(server).card(other, server, ())
    assert other.code == 200


@pytest.mark.parametrize(
    ("host", "name"),
    [("[::1]:80", "1/weather"), ("localhost", "localhost/weather"), (None, "localhost/weather")],
)
def test_hosts(host: str | None, name: str) -> None:
    server: Any = Served(known())
    request = FakeRequest() if host is None else FakeRequest(host=host)
    made = json.loads(cards(server).card(request, server, ()))
    assert made["name"] == name
    assert made["remotes"][0]["url"] == f"http://{host or 'localhost'}/mcp"


def test_a_card_s_urls_are_those_that_the_client_sees() -> None:
    server: Any = Served(known(), base_uri="/a/b")
    assert (
        url_of(cards(server), FakeRequest(host="h"), server, [b"m n"]) == "http://h/m%20n/a/b/mcp"
    )
    public: Any = Served(known(), base_uri="/a/b", public_path="/p")
    assert url_of(cards(public), FakeRequest(host="h"), public, [b"m"]) == "http://h/p/mcp"


@pytest.mark.parametrize(
    ("secure", "proxy", "said", "scheme"),
    [
        (True, False, "http", "https"),
        (False, True, "https", "https"),
        (False, True, "http", "http"),
        (False, False, "https", "http"),
    ],
)
def test_the_scheme_is_that_of_the_client(
    secure: bool, proxy: bool, said: str, scheme: str
) -> None:
    """`X-Forwarded-Proto` counts where a trusted proxy has written it."""
    server: Any = Served(known())
    request = FakeRequest(host="h", secure=secure, x_forwarded_proto=said)
    assert url_of(cards(server, proxy=proxy), request, server) == f"{scheme}://h/mcp"
    request.channel = None
    assert url_of(cards(server, proxy=proxy), request, server).startswith("http")


def test_an_unknown_server_has_no_card() -> None:
    server: Any = Served(KnownServer(), name="x")
    with pytest.raises(CardUnknown, match="'x' has not said yet") as caught:
        cards(server).card(FakeRequest(host="h"), server, ())
    assert caught.value.status == 404
    assert (b"Cache-Control", b"no-store") in caught.value.headers()


def test_the_well_known_card_is_that_of_the_root_or_the_only_server() -> None:
    one: Any = Served(known({"name": "one", "version": "1"}), base_uri="/one")
    two: Any = Served(known({"name": "two", "version": "1"}), base_uri="/two")
    root: Any = Served(known({"name": "root", "version": "1"}))
    request = FakeRequest(host="h")
    assert json.loads(cards(one).only(request, ()))["name"] == "h/one"
    assert json.loads(cards(one, root, two).only(request, ()))["name"] == "h/root"
    with pytest.raises(NotFound, match="ai-catalog"):
        cards(one, two).only(request, ())


def test_the_catalog_has_what_is_known() -> None:
    one: Any = Served(known({"name": "one", "version": "1"}), base_uri="/one")
    two: Any = Served(KnownServer(), base_uri="/two")
    request = FakeRequest(host="h")
    listed = json.loads(cards(one, two).catalog(request, [b"m"]))
    assert [each["url"] for each in listed["entries"]] == ["http://h/m/one/mcp/server-card"]
    assert request.headers[b"Content-Type"] == b"application/ai-catalog+json"
    assert request.headers[b"Cache-Control"] == b"no-cache"
    two.era.known = known()
    cards(one, two).catalog(request, ())
    assert request.headers[b"Cache-Control"] == b"public, max-age=3600"
    with pytest.raises(CardUnknown, match="no server has"):
        cards(Served(KnownServer())).catalog(request, ())


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ((b"ai-catalog.json",), 200),
        ((b"mcp", b"server-card"), 200),
        ((b"mcp", b"server-card.json"), 200),
        ((b"ai-catalog.json", b""), 404),
        ((b"mcp", b"other"), 404),
        ((b"mcp",), 404),
        ((b"other",), 404),
    ],
)
def test_what_is_served_below_well_known(path: tuple[bytes, ...], code: int) -> None:
    site = Branch()
    cards(Served(known())).serve_well_known(site)
    request = FakeRequest(host="h")
    request.postpath = [b".well-known", *path]
    resource: Any = site
    while request.postpath and not resource.isLeaf:
        request.prepath.append(request.postpath.pop(0))
        resource = resource.getChildWithDefault(request.prepath[-1], request)
    body = json.loads(resource.render(request))
    assert request.code == code
    if code == 200 and path[0] == b"mcp":
        assert body["remotes"][0]["url"] == "http://h/mcp"
