"""
A stand-in for a browser and the person before it, with the standard library alone.

    browser.py URL

Waits two seconds, as a person takes longer than a machine, then opens the URL: follows
redirects, keeps cookies, and fills in and sends each form until a page has none, which
is that of the client that waits for its code.  Prints where it came to.
"""

import sys
import time
import urllib.parse
import urllib.request
from html.parser import HTMLParser
from http.cookiejar import CookieJar

#: Seconds before the person does anything.
PAUSE = 2
#: Seconds that a page may take to come.
PATIENCE = 30
#: Pages until it gives up: a form that comes again and again is refused.
MAX_PAGES = 8
#: What is filled in, by the type of the field.
FILLED_IN = {"text": "alice", "password": "the password of alice"}


class Form(HTMLParser):
    """The first form of a page: where it is sent, and its fields."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self._open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "form" and self.action is None:
            self.action, self._open = found.get("action", ""), True
        elif tag == "input" and self._open and "name" in found:
            kind = found.get("type", "text")
            self.fields[found["name"]] = found.get("value") or FILLED_IN.get(kind, "")

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag != "form"


def browse(url: str) -> str:
    """Open a URL and do what its pages ask for; return the URL of the last one."""
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(CookieJar())
    )
    sent = None
    for _ in range(MAX_PAGES):
        with opener.open(url, sent, timeout=PATIENCE) as response:
            at: str = response.geturl()
            form = Form(response.read().decode())
        if form.action is None:
            return at
        url = urllib.parse.urljoin(at, form.action)
        sent = urllib.parse.urlencode(form.fields).encode()
    raise RuntimeError(f"form after form, the last one at {url}")


if __name__ == "__main__":
    time.sleep(PAUSE)
    print(browse(sys.argv[1]), file=sys.stderr)
