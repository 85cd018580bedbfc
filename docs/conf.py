"""
Configure Sphinx; `make docs` builds the site in `build/docs`.

The source directory is the checkout itself, not `docs/`: README.md,
CONTRIBUTING.md and the rest are pages of the site where they stand.  There is
no second copy of any text, and a link between two files works on a forge and
in the site alike.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from mcpbridge import BridgeSettings, ServerSettings, __version__
from mcpbridge.errors import Refused

# the extension beside this file
sys.path.append(str(Path(__file__).parent))

project = "mcpbridge"
author = "the mcpbridge authors"
project_copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinxcontrib.mermaid",
    "zope_interfaces",
]

# Pages.

root_doc = "README"
source_suffix = {".md": "markdown"}
#: The pages and their order, by caption; a page that is missing here is an error of the build.
CONTENTS = {
    "Use": [
        "docs/quickstart",
        "docs/configuration",
        "docs/remote-servers",
        "docs/authentication",
        "docs/operating",
        "docs/monitoring",
        "docs/metrics",
        "docs/tracing",
        "docs/deploying",
        "docs/eras",
        "docs/compatibility",
        "docs/security",
        "docs/migrating-from-apisix",
        "NEWS",
    ],
    "Build on": ["docs/embedding", "docs/extending", "docs/api/README"],
    "Take part": [
        "CONTRIBUTING",
        "SECURITY",
        "docs/architecture",
        "docs/decisions/README",
        "docs/hot-path",
        "docs/releasing",
        "docs/benchmarks",
        "How it is measured </benchmarks/README>",
    ],
}
#: Tables of contents by the page that has them.  They are here and not in the pages, where
#: a forge would show them as code.
TOCTREES = {
    root_doc: CONTENTS,
    "docs/api/README": {
        "": [f"docs/api/{n}" for n in ("bridge", "interfaces", "auth", "errors", "testing")]
    },
    "docs/decisions/README": {"": ["docs/decisions/0*"]},
}
include_patterns = ["*.md", "docs/**.md", "benchmarks/*.md"]
# what make builds in the checkout; Sphinx would walk through all of it
exclude_patterns = [".*", "build", "dist", "htmlcov", "env", "venv", "newsfragments", "tests"]
templates_path = ["_templates"]

# Markdown.

myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
mermaid_height = "auto"
mermaid_fullscreen = False
# a block that names no language has none
highlight_language = "none"

# Docstrings.

autodoc_member_order = "bysource"
# shows `environment=os.environ` as it is written, not the environment of the build
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
add_module_names = False
toc_object_entries_show_parents = "hide"
# `name` in a docstring is code; it is a link where it names a documented object
default_role = "py:obj"

# References.

nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", r".*"),
    # No inventories: a build needs no network, and these packages ship none.
    (r"py:.*", r"(collections|logging|os|pathlib|typing)\..*"),
    (r"py:.*", r"(automat|httptools|klein|msgspec|twisted|zope)\..*"),
    # What settings that are objects are made of; the pages about them describe their keys.
    (r"py:class", r"mcpbridge\.config\..*|EnvironmentRule|NameLists|ResourceLimits"),
    # What an application sees of a server is its place in `Bridge.servers`.
    (r"py:class", r"mcpbridge\.server\.Server"),
    # The admin listener is its reader.
    (r"py:class", r"mcpbridge\.process_usage\.Usages?"),
]

# HTML.

html_theme = "furo"
html_title = f"mcpbridge {release}"
html_additional_pages = {"index": "index.html"}
html_copy_source = False

#: How autodoc shows an annotation that is a zope interface.
_INTERFACE = re.compile(r"<InterfaceClass ([\w.]+)>")


def add_toctrees(app: Any, docname: str, source: list[str]) -> None:
    """Append its tables of contents to a page."""
    for caption, pages in TOCTREES.get(docname, {}).items():
        entries = [page if "<" in page else f"/{page}" for page in pages]
        options = [":hidden:", ":glob:", *([f":caption: {caption}"] if caption else [])]
        source[0] += "\n".join(["", "```{toctree}", *options, "", *entries, "```", ""])


def amend_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: Any, returns: Any
) -> tuple[str, str | None] | None:
    """Leave out the fields of settings, which have entries; name interfaces, not their repr."""
    if _is_settings(obj):
        return "(**settings)", None
    if signature is None:
        return None
    return _INTERFACE.sub(r"\1", signature), returns and _INTERFACE.sub(r"\1", returns)


def describe_class(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Add to a docstring what the code says in data: settings, statuses and error codes."""
    if _is_settings(obj):
        for field in dataclasses.fields(obj):
            lines += _setting_lines(field)
    elif isinstance(obj, type) and issubclass(obj, Refused) and obj is not Refused:
        lines += ["", f"HTTP status {obj.status}, JSON-RPC error code {obj.code}."]


def resolve_class(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Link the bare name of a class in a docstring to the one documented class of that name."""
    kinds = ("class", "exception", "interface")
    domain, name = env.domains.python_domain, node.get("reftarget")
    found = [
        full
        for full, entry in domain.objects.items()
        if entry.objtype in kinds and full.rpartition(".")[2] == name
    ]
    if node.get("reftype") != "obj" or len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, content)


def _is_settings(obj: Any) -> bool:
    return obj is BridgeSettings or obj is ServerSettings


def _setting_lines(field: dataclasses.Field[Any]) -> list[str]:
    lines = ["", f".. py:attribute:: {field.name}", f"   :type: {field.type}"]
    if field.default is not dataclasses.MISSING:
        lines.append(f"   :value: {field.default!r}")
    # the text is Markdown, as the tables of settings are
    text = re.sub(r"`([^`]+)`", r"``\1``\\ ", field.metadata.get("text", ""))
    return [*lines, "", f"   {text}", ""]


def setup(app: Any) -> None:
    """Register what is defined above."""
    app.connect("source-read", add_toctrees)
    app.connect("autodoc-process-signature", amend_signature)
    app.connect("autodoc-process-docstring", describe_class)
    app.connect("missing-reference", resolve_class)
