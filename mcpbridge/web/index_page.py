"""
The index as a page for people: one document without outside resources, frameworks or a build.

Knows HTML, and what is listed; must not know who may see it.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from mcpbridge.processes.server_state import Condition
from mcpbridge.web.client_snippets import CLIENTS, Client, Credentials, Target, rendered
from mcpbridge.web.index_listing import ListedServer, Listing

#: With more servers than this, their snippets are folded away at first.
UNFOLDED_SERVERS = 3

_SHOWN = "\n".join(
    f"body:has(#as-{each.ident}:checked) .for-{each.ident} {{ display: block; }}"
    for each in CLIENTS
)

STYLE = (
    """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --text: #1b2330; --soft: #556070; --line: #d5dae2;
  --code: #f0f2f6; --accent: #1f5fbf; --on-accent: #fff;
  --good: #17693b; --good-back: #e0f4e8; --wait: #7a4c00; --wait-back: #fdf0d5;
  --bad: #a32118; --bad-back: #fde5e3; --idle: #4a5565; --idle-back: #e8ebf0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161d; --card: #1a202a; --text: #e6eaf0; --soft: #a3aebd; --line: #333c4a;
    --code: #10141a; --accent: #86b4ff; --on-accent: #0d1830;
    --good: #7fdba4; --good-back: #14351f; --wait: #f2c46d; --wait-back: #3a2b0b;
    --bad: #ff9d94; --bad-back: #451a17; --idle: #b5c0ce; --idle-back: #2a323e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
header, main, footer { max-width: 54rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
footer { padding-bottom: 2.5rem; color: var(--soft); font-size: .875rem; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.25; letter-spacing: -.01em; }
h2 { margin: 0; font-size: 1.125rem; line-height: 1.4; overflow-wrap: anywhere; }
p { margin: .25rem 0 0; }
header p, .about, .where, dt { color: var(--soft); }
.note { margin: 1.25rem 0 0; padding: .75rem 1rem; border-left: 4px solid var(--accent);
  border-radius: 4px; background: var(--card); }
section, .clients { margin: 1.25rem 0; padding: 1.25rem; border: 1px solid var(--line);
  border-radius: 10px; background: var(--card); }
.clients { padding: .75rem 1.25rem 1rem; min-width: 0; }
legend { padding: 0 .375rem; color: var(--soft); font-size: .875rem; }
.clients div { display: flex; flex-wrap: wrap; gap: .5rem; }
.clients input { position: absolute; opacity: 0; }
.clients label { padding: .25rem .75rem; border: 1px solid var(--line); border-radius: 999px;
  cursor: pointer; }
.clients input:checked + label { background: var(--accent); border-color: var(--accent);
  color: var(--on-accent); }
.clients input:focus-visible + label, a:focus-visible, button:focus-visible,
input:focus-visible, summary:focus-visible, pre:focus-visible {
  outline: 3px solid var(--accent); outline-offset: 2px; }
.title { display: flex; flex-wrap: wrap; align-items: baseline; gap: .25rem .75rem; }
.state { padding: .0625rem .625rem; border-radius: 999px; font-size: .8125rem; font-weight: 600;
  background: var(--idle-back); color: var(--idle); }
.state.ready { background: var(--good-back); color: var(--good); }
.state.starting { background: var(--wait-back); color: var(--wait); }
.state.failing { background: var(--bad-back); color: var(--bad); }
.why { color: var(--bad); overflow-wrap: anywhere; }
dl { margin: .75rem 0 0; display: grid; grid-template-columns: max-content 1fr;
  gap: .375rem 1rem; align-items: center; }
dt { font-size: .875rem; }
dd { margin: 0; display: flex; gap: .5rem; align-items: center; min-width: 0; }
code { font: .875rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
dd code { overflow-wrap: anywhere; min-width: 0; }
details { margin-top: .875rem; }
summary { cursor: pointer; width: fit-content; color: var(--accent); border-radius: 4px; }
.snippet { display: none; position: relative; margin-top: .5rem; }
.snippet .where { font-size: .875rem; padding: .125rem 5rem .125rem 0; margin: 0; }
.snippet > button { position: absolute; top: 0; right: 0; }
pre { margin: .375rem 0 0; padding: .75rem 1rem; overflow-x: auto; border: 1px solid var(--line);
  border-radius: 8px; background: var(--code); }
button, form input { font: inherit; font-size: .8125rem; padding: .125rem .625rem; color: inherit;
  border: 1px solid var(--line); border-radius: 6px; background: var(--card); }
button { cursor: pointer; white-space: nowrap; }
button:hover { border-color: var(--accent); }
form { margin-top: 1rem; display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; }
form[hidden], button[hidden] { display: none; }
form label { font-size: .875rem; color: var(--soft); }
form input, form button { font-size: .9375rem; padding: .25rem .75rem; }
form input { width: 18rem; max-width: 100%; }
.spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media (max-width: 32rem) {
  header, main, footer { padding-left: .875rem; padding-right: .875rem; }
  header { padding-top: 1.5rem; }
  section { padding: 1rem; }
  dl { grid-template-columns: minmax(0, 1fr); gap: .125rem; }
  dd { margin-bottom: .375rem; justify-content: space-between; }
}
@supports not selector(:has(*)) { .snippet { display: block; } }
"""
    + _SHOWN
    + "\n"
)

SCRIPT = """
"use strict";
(() => {
  const spoken = document.getElementById("spoken");
  const copy = async (text) => {
    if (window.isSecureContext && navigator.clipboard) {
      try { await navigator.clipboard.writeText(text); return true; } catch { /* as below */ }
    }
    const field = document.createElement("textarea");
    field.className = "spoken";
    field.value = text;
    document.body.append(field);
    field.select();
    try { return document.execCommand("copy"); } catch { return false; } finally { field.remove(); }
  };
  const show = () => {
    for (const each of document.querySelectorAll("button[hidden], form[hidden]")) {
      each.hidden = false;
    }
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const done = await copy(button.parentElement.querySelector("code").textContent);
    const said = done ? "Copied" : "Select it and copy";
    button.textContent = spoken.textContent = said;
    button.focus();
    setTimeout(() => { button.textContent = "Copy"; spoken.textContent = ""; }, 2000);
  });
  document.addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target;
    const chosen = document.querySelector(".clients input:checked");
    const token = form.elements.token.value.trim();
    const headers = { Accept: "text/html" };
    if (token) headers.Authorization = `Bearer ${token}`;
    spoken.textContent = "Asking the bridge";
    try {
      const response = await fetch(location.pathname, { headers, cache: "no-store" });
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      for (const part of ["#count", "main", "footer"]) {
        document.querySelector(part).replaceWith(document.adoptNode(page.querySelector(part)));
      }
      const same = chosen && document.getElementById(chosen.id);
      if (same) same.checked = true;
      show();
      spoken.textContent = "The list of servers is up to date";
    } catch {
      spoken.textContent = form.querySelector("output").textContent = "The bridge did not answer";
    }
  });
  show();
})();
"""

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M1 12V9a7 7 0 0 1 14 0v3' fill='none' stroke='%231f5fbf' stroke-width='2.5'/%3E"
    "%3C/svg%3E"
)


def _source(text: str) -> str:
    """Return a style or a script as a source of the Content-Security-Policy."""
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


#: Everything is forbidden but what is in the page itself, and to ask for the page again.
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src {_source(STYLE)}; script-src {_source(SCRIPT)};"
    " img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)


def page(listing: Listing) -> bytes:
    """Return the page of a listing, in UTF-8."""
    servers = listing.servers
    version = f" {escape(listing.version)}" if listing.version else ""
    form = _FORM if listing.protected else ""
    body = "".join(
        (
            _note(listing.note),
            _clients() if servers else "",
            _together(servers) if len(servers) > 1 else "",
            *(_server(each, unfolded=len(servers) <= UNFOLDED_SERVERS) for each in servers),
        )
    )
    text = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>MCP servers at {escape(listing.origin)}</title>\n"
        f'<link rel="icon" href="{_ICON}">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>MCP servers</h1>\n<p id="count">{_count(len(servers))} at'
        f" <code>{escape(listing.origin)}</code></p>\n{form}</header>\n"
        f"<main>\n{body}</main>\n"
        f"<footer><p>Served by mcpbridge{version}. Programs get the same as JSON.</p></footer>\n"
        '<p id="spoken" class="spoken" role="status"></p>\n'
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
    return text.encode("utf-8", "replace")


_FORM = (
    '<form hidden><label for="token">Your token</label>'
    '<input id="token" name="token" type="password" autocomplete="off" spellcheck="false">'
    "<button>Show my servers</button><output></output></form>\n"
)


def _count(number: int) -> str:
    return "1 server" if number == 1 else f"{number} servers"


def _note(note: str) -> str:
    if not note:
        return ""
    text = re.sub("`([^`]*)`", r"<code>\1</code>", escape(note))
    return f'<p class="note">{text}</p>\n'


def _clients() -> str:
    choices = "".join(
        f'<span><input type="radio" name="client" id="as-{each.ident}"'
        f'{"" if number else " checked"}><label for="as-{each.ident}">{escape(each.title)}</label>'
        "</span>\n"
        for number, each in enumerate(CLIENTS)
    )
    return (
        f'<fieldset class="clients"><legend>Show how to connect</legend>\n<div>{choices}</div>'
        "</fieldset>\n"
    )


def _together(servers: Sequence[ListedServer]) -> str:
    """Return what connects a client to all of the servers."""
    targets = [each.target for each in servers]
    found = "".join(
        _snippet(each, each.render(targets))
        if each.takes_several
        else f'<div class="snippet for-{each.ident}"><p class="where">'
        "A program connects to each server on its own.</p></div>\n"
        for each in CLIENTS
    )
    return (
        '<section><div class="title"><h2>All servers</h2></div>\n'
        f"<details><summary>Connect to all of them</summary>\n{found}</details></section>\n"
    )


def _server(server: ListedServer, *, unfolded: bool) -> str:
    condition = server.state.condition
    badge = condition.name.lower()
    about = ": ".join(each for each in (server.title, server.description) if each)
    found = "".join(_snippet(client, text) for client, text in rendered(server.target))
    return (
        f'<section>\n<div class="title"><h2>{escape(server.target.name)}</h2>'
        f'<span class="state {badge}">{condition.value}</span></div>\n'
        + (f'<p class="about">{escape(about)}</p>\n' if about else "")
        + _why(server)
        + "<dl>\n"
        + _url("Streamable HTTP", server.target.mcp)
        + _url("HTTP+SSE", server.sse)
        + "</dl>\n"
        + _needs(server.target)
        + f"<details{' open' if unfolded else ''}><summary>Connect</summary>\n{found}</details>\n"
        "</section>\n"
    )


def _why(server: ListedServer) -> str:
    """Return what more there is to say of a state than one word."""
    state = server.state
    if not state.text or state.condition is Condition.NOT_STARTED:
        return ""
    kind = "why" if state.condition is Condition.FAILING else "about"
    found = f'<p class="{kind}">{_sentence(state.text)}</p>\n'
    if state.since is not None:
        at = datetime.fromtimestamp(state.since, UTC)
        found += (
            f'<p class="about">Since <time datetime="{at:%Y-%m-%dT%H:%M:%SZ}">'
            f"{at:%Y-%m-%d %H:%M:%S} UTC</time></p>\n"
        )
    return found


def _sentence(text: str) -> str:
    return escape(f"{text[:1].upper()}{text[1:]}")


def _url(title: str, url: str) -> str:
    return (
        f"<dt>{title}</dt><dd><code>{escape(url)}</code>"
        f'<button class="copy" type="button" aria-label="Copy the URL for {title}" hidden>Copy'
        "</button></dd>\n"
    )


def _needs(target: Target) -> str:
    """Return a sentence on what clients have to send."""
    said = {
        Credentials.NONE: "",
        Credentials.TOKEN: "Needs a token; your operator gives you one.",
        Credentials.OAUTH: "Clients ask you to log in.",
        Credentials.OTHER: "Needs credentials; your operator tells you which.",
    }[target.credentials]
    if target.headers:
        said += f" Needs values of your own in: {', '.join(target.headers)}."
    return f'<p class="about">{escape(said.strip())}</p>\n' if said else ""


def _snippet(client: Client, text: str) -> str:
    label = f"Copy what is for {client.title}"
    return (
        f'<div class="snippet for-{client.ident}"><p class="where">{escape(client.where)}</p>'
        f'<button class="copy" type="button" aria-label="{escape(label)}" hidden>Copy</button>'
        f'<pre tabindex="0"><code>{escape(text)}</code></pre></div>\n'
    )
