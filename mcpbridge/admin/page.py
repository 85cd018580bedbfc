"""
The status page: an empty shell, its style and its scripts, which are files of the package.

Knows the files, under which paths they are served, and what a browser may do with them; must not
know the bridge.  All that the page shows, its scripts get as the status document.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable

#: Scripts, styles, requests and icons come from the admin listener alone, none of them is in the
#: page itself, and no script can make markup of a text.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}


def _read(folder: Traversable, path: str) -> Iterator[tuple[bytes, tuple[str, bytes]]]:
    """Yield the path, the content type and the content of each file below a folder."""
    for each in folder.iterdir():
        if each.is_dir():
            yield from _read(each, f"{path}{each.name}/")
        else:
            kind = _TYPES[each.name.rpartition(".")[2]]
            at = path if each.name == "page.html" else f"{path}{each.name}"
            yield at.encode("ascii"), (kind, each.read_bytes())


#: The content type and the content of each file, by the path at which it is served.
FILES: Mapping[bytes, tuple[str, bytes]] = dict(_read(files("mcpbridge.admin") / "static", "/"))
