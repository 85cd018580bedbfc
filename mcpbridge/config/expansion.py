"""
Variables in the values of a configuration file, such as `${NAME}`.

Knows text, mappings and files; must not know what a value is for.  Its errors show
neither values nor defaults, nor what a file contains, as all may be secrets.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Mapping

from mcpbridge.config.regular_file import read_regular_file
from mcpbridge.config.tuning import VALUE_FILE_BYTES

#: Two dollars, or what begins a variable.
_SPECIAL = re.compile(r"\$[$\{]")
#: Two dollars that were taken literally before they stood for one everywhere.
_ONCE_LITERAL = re.compile(r"\$\$+(?![${])")
_VARIABLE = re.compile(r"(?:env:)?(?P<name>[A-Za-z_]\w*)(?::-(?P<default>.*))?", re.DOTALL | re.A)
_INPUT = re.compile(r"(?:prompt(?:String)?|input):(?P<name>[\w.-]+)")
#: The part of an unknown form that an error may show.
_SHOWN = re.compile(r"\w*(?::\w+)?")
_FINAL_NEWLINE = re.compile(r"\r?\n\Z")
#: A variable as in a shell, which is not replaced.
_BARE = re.compile(r"\$[A-Za-z_]\w*", re.A)


def expand(
    text: str,
    environment: Mapping[str, str],
    predefined: Mapping[str, str],
    read_file: Callable[[str], str],
) -> tuple[str, list[str]]:
    """
    Replace the variables of a text; return the result and a list of errors.

    `predefined` holds further variables, which take precedence over the environment.
    `read_file` returns the contents of a file, or raises `LookupError` with a reason.
    """
    parts: list[str] = []
    problems: list[str] = []
    at = 0
    while (special := _SPECIAL.search(text, at)) is not None:
        parts.append(text[at : special.start()])
        at = special.end()
        if special[0] == "$$":
            parts.append("$")
            continue
        end = text.find("}", at)
        if end < 0:
            problems.append("`${` has no `}`; for a literal `${`, write `$${`")
            break
        try:
            parts.append(_value(text[at:end], environment, predefined, read_file))
        except LookupError as error:
            problems.append(str(error.args[0]))
        at = end + 1
    parts.append(text[at:])
    return "".join(parts), problems


def bare_variable(text: str) -> str | None:
    """Return the name if the whole text is a variable as in a shell: `$NAME`."""
    return text[1:] if _BARE.fullmatch(text) else None


def has_dollars_once_literal(text: str) -> bool:
    """Tell whether a text has two dollars that earlier versions passed as two."""
    return _ONCE_LITERAL.search(text) is not None


def read_value(path: str, shown: str, warn: Callable[[str], object]) -> str:
    """
    Return what a file contains, without the newline at its end.

    Raises `LookupError` that says what is wrong.  `shown` is how the errors name the
    file.  `warn` is called if every user of this machine can read it, which is only a
    warning: that is how containers get their secrets.
    """
    try:
        data, mode = read_regular_file(path, VALUE_FILE_BYTES)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "its path has a NUL character"
        raise LookupError(f"cannot read {shown}: {why}") from None
    if len(data) > VALUE_FILE_BYTES:
        raise LookupError(f"{shown} has more than {VALUE_FILE_BYTES} bytes (VALUE_FILE_BYTES)")
    if mode & stat.S_IWOTH:
        raise LookupError(f"every user of this machine can change {shown}; run `chmod o-w` on it")
    if mode & stat.S_IROTH:
        warn(f"every user of this machine can read {shown}; run `chmod o=` on it")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise LookupError(f"{shown} is not valid UTF-8") from None
    return _FINAL_NEWLINE.sub("", text)


def _value(
    body: str,
    environment: Mapping[str, str],
    predefined: Mapping[str, str],
    read_file: Callable[[str], str],
) -> str:
    """Return the value of `${body}`.  Raises `LookupError` that says what to do."""
    if body in predefined:
        return predefined[body]
    kind, _, path = body.partition(":")
    if kind == "file":
        if not path:
            raise LookupError("`${file:}` needs the path of a file")
        return read_file(path)
    asked = _INPUT.fullmatch(body)
    if asked is not None:
        name = re.sub(r"\W", "_", asked["name"]).upper()
        raise LookupError(
            f"`${{{body}}}` would ask the user of an editor; write `${{{name}}}`, and set that"
            " environment variable for mcpbridge"
        )
    variable = _VARIABLE.fullmatch(body)
    if variable is None:
        shown = _SHOWN.match(body)
        beginning = shown[0] if shown else ""
        dots = "" if beginning == body else "..."
        raise LookupError(
            f"`${{{beginning}{dots}}}` is not supported; write `${{NAME}}`, `${{NAME:-default}}` or"
            " `${file:PATH}`, or `$${` for a literal `${`"
        )
    name, default = variable["name"], variable["default"]
    if default is not None and "${" in default:
        raise LookupError(f"the default of `${{{name}}}` cannot contain a variable")
    value = environment.get(name)
    # As in shells, the default replaces an empty value too.
    if default is not None and not value:
        return str(default)
    if value is None:
        raise LookupError(
            f"the environment variable {name} is not set; set it for mcpbridge, or write"
            f" `${{{name}:-default}}`"
        )
    return value
