"""
What may be shown of values that may hold secrets: arguments, URLs, headers.

Knows how secrets are usually given; must not know where they are shown.  It errs on the
side of hiding: a value that is hidden in vain costs a look at the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

#: Stands for what is hidden.
MASK = "***"
#: Words in the name of what has a secret for its value.
_SECRET_NAME = re.compile(
    r"pass|pwd|secret|token|key|auth|cred|cookie|bearer|session|private|signature|\bpat\b|dsn",
    re.IGNORECASE,
)
#: A name and a value, as `--name=value`, `NAME=value` and `Name: value`.
_ASSIGNMENT = re.compile(r"(?P<name>[-\w./]+)(?P<sign>=|:[ ]*)(?P<value>.+)", re.DOTALL)
#: The same within a longer text, such as a command for a shell.
_INNER_ASSIGNMENT = re.compile(
    r"(?<![\w-])(?P<name>-*[A-Za-z][-\w.]*)(?P<sign>[=:]\s*| +)(?P<value>\S+)"
)
#: What begins like a path is hardly a secret.
_OF_PATHS = ("/", "./", "../", "~/")
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*:)//(?P<rest>[^\s]*)")
#: A user and a password without a scheme before them.
_USERINFO = re.compile(r"[^\s/@:]+:[^\s@]+@(?=[\w.[-])")
_SCHEME_OF_CREDENTIALS = re.compile(r"\b(Bearer|Basic|Token)\s+\S+", re.IGNORECASE)
#: What looks random: long, of letters and digits.
_RANDOM = re.compile(r"(?=[A-Za-z_+=-]*[0-9])(?=[0-9_+=-]*[A-Za-z])[A-Za-z0-9_+=-]{16,}")
#: What tokens of well-known services begin with.
_PREFIXED = re.compile(
    r"\b(?:sk|pk|rk|ghp|gho|ghs|ghu|github_pat|glpat|xox[a-z]|mcpb|AKIA|ATATT|npm|pypi|hf|eyJ)"
    r"[-_]?[A-Za-z0-9_.=-]{6,}"
)
#: A digest or a version of a package is no secret.
_OF_PACKAGE = re.compile(r"@?[\w.-]+(?:/[\w.-]+)*(?:@[\w.^~-]+)?@sha256:[0-9a-f]{64}")


def masked_arguments(arguments: Iterable[str]) -> Iterator[str]:
    """Yield arguments of a command line, without what may be a secret."""
    of_secret = False
    for each in arguments:
        if of_secret and not each.startswith("-"):
            yield MASK
            of_secret = False
            continue
        yield masked_text(each)
        # The value of `--api-key VALUE` is the next one.
        option = each.lstrip("-")
        of_secret = each.startswith("-") and bool(_SECRET_NAME.search(option))
        of_secret = of_secret and "=" not in each


def masked_text(text: str) -> str:
    """Return a text without what may be a secret in it."""
    if _OF_PACKAGE.fullmatch(text):
        return text
    if _URL.search(text):
        # The rest is judged without the URLs, which stand in their places afterwards.
        text = text.replace("\0", " ")
        urls = [masked_url(found[0]) for found in _URL.finditer(text)]
        numbers = iter(range(len(urls)))
        rest = masked_text(_URL.sub(lambda _: f"\0{next(numbers)}\0", text))
        return re.sub("\0([0-9]+)\0", lambda found: urls[int(found[1])], rest)
    assigned = _ASSIGNMENT.fullmatch(text)
    if assigned is not None and _SECRET_NAME.search(assigned["name"]):
        return f"{assigned['name']}{assigned['sign']}{MASK}"
    if text.lstrip().startswith(("{", "[")) and _SECRET_NAME.search(text):
        return MASK
    if text.startswith(_OF_PATHS):
        return _PREFIXED.sub(MASK, text)
    text = _INNER_ASSIGNMENT.sub(_masked_assignment, text)
    text = _SCHEME_OF_CREDENTIALS.sub(_masked_credentials, text)
    text = _USERINFO.sub(f"{MASK}@", text)
    return _RANDOM.sub(MASK, _PREFIXED.sub(MASK, text))


def _masked_assignment(found: re.Match[str]) -> str:
    if _SECRET_NAME.search(found["name"]):
        return f"{found['name']}{found['sign']}{MASK}"
    return found[0]


def _masked_credentials(found: re.Match[str]) -> str:
    return f"{found[1]} {MASK}"


def masked_url(url: str) -> str:
    """Return a URL without its user, its query, its fragment, and what looks random."""
    found = _URL.fullmatch(url)
    if found is None:
        return masked_text(url) if "://" not in url else MASK
    rest, hash_sign, _ = found["rest"].partition("#")
    rest, question, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    if "@" in rest:
        # A password may have a slash.
        authority, slash, path = rest.rpartition("@")[2].partition("/")
        authority = f"{MASK}@{authority}"
    shown = _RANDOM.sub(MASK, _PREFIXED.sub(MASK, path))
    names = "&".join(map(_masked_parameter, query.split("&")))
    return (
        f"{found['scheme']}//{authority}{slash}{shown}{question}{names if question else ''}"
        f"{f'#{MASK}' if hash_sign else ''}"
    )


def _masked_parameter(text: str) -> str:
    """Return a parameter of a query; what looks random is no name."""
    name, equals, _ = text.partition("=")
    if not equals or not re.fullmatch(r"[\w.-]{1,40}", name) or _RANDOM.search(name):
        return MASK
    return f"{name}={MASK}"


def printable(text: str) -> str:
    """Return a text in which everything that a terminal does not print is escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
