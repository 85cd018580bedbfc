"""The files of the status page: they need nothing else, and their policy allows nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from posixpath import dirname, join, normpath

import pytest

import mcpbridge.admin
from mcpbridge.admin.page import CONTENT_SECURITY_POLICY, FILES
from mcpbridge.web.index_page import STYLE

STATIC = Path(mcpbridge.admin.__file__).parent / "static"
TEXTS = {path.decode(): body.decode("utf-8") for path, (_, body) in FILES.items()}
SCRIPTS = {path: text for path, text in TEXTS.items() if path.endswith(".js")}
SHELL = TEXTS["/"]
#: Bytes that a browser gets before the first status: all files, and each of them.
MOST_IN_ALL, MOST_OF_ONE = 100_000, 20_000


class Elements(HTMLParser):
    """The elements of a document: their names and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] in ("script", "style"):
            self.scripts += data.strip()


ELEMENTS = Elements(SHELL)
IDS = [attributes["id"] for _, attributes in ELEMENTS.found if "id" in attributes]


def test_every_file_is_served_with_its_type() -> None:
    files = {f"/{path.relative_to(STATIC).as_posix()}" for path in STATIC.rglob("*.*")}
    assert {path.decode() for path in FILES} == files - {"/page.html"} | {"/"}
    kinds = {path.rpartition(".")[2]: kind for path, (kind, _) in served().items()}
    assert kinds == {
        "/": "text/html; charset=utf-8",
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
    }
    assert {"/page.js", "/page.css"} <= set(served())


def served() -> dict[str, tuple[str, bytes]]:
    return {path.decode(): found for path, found in FILES.items()}


def test_files_are_small() -> None:
    sizes = [len(body) for _, body in FILES.values()]
    assert sum(sizes) < MOST_IN_ALL
    assert max(sizes) < MOST_OF_ONE


def test_all_that_a_file_names_is_served_relative_to_it() -> None:
    """So it works behind a proxy that serves the listener below a path of its own."""
    named = {
        normpath(join("/", value))
        for _, attributes in ELEMENTS.found
        for name in ("src", "href")
        if (value := attributes.get(name)) and not value.startswith("data:")
    }
    assert named == {"/page.js", "/page.css"}
    imported = set()
    for path, text in SCRIPTS.items():
        for target in re.findall(r'from "([^"]+)";', text):
            assert target.startswith("./")
            imported.add(normpath(join(dirname(path), target)))
        assert "import(" not in text
        assert all(
            not target.startswith("/") for target in re.findall(r'fetch\(["`]([^"`]+)', text)
        )
    assert imported == set(SCRIPTS) - {"/page.js"}


def test_the_shell_has_no_script_style_or_data_of_its_own() -> None:
    assert ELEMENTS.scripts == ""
    for tag, attributes in ELEMENTS.found:
        assert tag != "style"
        assert tag not in ("iframe", "object", "embed", "base", "a")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert "action" not in attributes
    assert "mcpbridge status" in SHELL.partition("<noscript>")[2].partition("</noscript>")[0]


def test_ids_are_unique_and_those_that_scripts_use_exist() -> None:
    assert len(IDS) == len(set(IDS))
    used = {each for text in SCRIPTS.values() for each in re.findall(r'byId\("([^"]+)"\)', text)}
    assert used <= set(IDS)
    labels = {
        value
        for _, attributes in ELEMENTS.found
        for name in ("for", "aria-labelledby")
        if (value := attributes.get(name))
    }
    assert labels <= set(IDS)


@pytest.mark.parametrize("path", SCRIPTS)
def test_scripts_make_no_markup_code_or_cookie_of_what_they_get(path: str) -> None:
    unsafe = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|document\.write|DOMParser|srcdoc"
        r"|createContextualFragment|\beval\b|\bFunction\(|javascript:|\.cookie|localStorage"
        r"|\.style\b|location\.|window\.open|console\."
    )
    assert not unsafe.search(SCRIPTS[path])
    # A timer that gets a text runs it.
    assert not re.search(r"set(Timeout|Interval)\(\s*[\"'`]", SCRIPTS[path])


@pytest.mark.parametrize("path", TEXTS)
def test_no_file_names_another_site(path: str) -> None:
    """The URL of SVG is a name, and nothing is asked there."""
    text = TEXTS[path].replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"[a-z]+://|\burl\(|@import", text)


def test_policy_allows_the_listener_alone() -> None:
    directives = dict(
        each.strip().partition(" ")[::2] for each in CONTENT_SECURITY_POLICY.split(";")
    )
    assert directives == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


def test_the_palette_is_that_of_the_index() -> None:
    colours = re.compile(r"(--(?:page|card|text|soft|line|accent|good|wait|bad|idle)): (#\w+);")
    ours = colours.findall(TEXTS["/page.css"])
    assert ours == colours.findall(STYLE)
    assert len(ours) == 20
