"""
Variables in the values of a configuration file, such as `${NAME}`.

Knows text and a mapping; must not know what a value is for.  Its errors show
neither values nor defaults, as both may be secrets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_OPENING = re.compile(r"(\$+)\{")
_VARIABLE = re.compile(r"(?:env:)?(?P<name>[A-Za-z_]\w*)(?::-(?P<default>.*))?", re.DOTALL | re.A)
_INPUT = re.compile(r"(?:prompt(?:String)?|input):(?P<name>[\w.-]+)")
#: The part of an unknown form that an error may show.
_SHOWN = re.compile(r"\w*(?::\w+)?")
#: A variable as in a shell, which is not replaced.
_BARE = re.compile(r"\$[A-Za-z_]\w*", re.A)


def expand(
    text: str, environment: Mapping[str, str], predefined: Mapping[str, str]
) -> tuple[str, list[str]]:
    """
    Replace the variables of a text; return the result and a list of errors.

    `predefined` holds further variables, which take precedence over the environment.
    """
    parts: list[str] = []
    problems: list[str] = []
    at = 0
    while (opening := _OPENING.search(text, at)) is not None:
        dollars = len(opening[1])
        # Two dollars before a brace stand for one.
        parts += text[at : opening.start()], "$" * (dollars // 2)
        at = opening.end()
        if dollars % 2 == 0:
            parts.append("{")
            continue
        end = text.find("}", at)
        if end < 0:
            problems.append("`${` has no `}`; for a literal `${`, write `$${`")
            break
        try:
            parts.append(_value(text[at:end], environment, predefined))
        except LookupError as error:
            problems.append(str(error.args[0]))
        at = end + 1
    parts.append(text[at:])
    return "".join(parts), problems


def bare_variable(text: str) -> str | None:
    """Return the name if the whole text is a variable as in a shell: `$NAME`."""
    return text[1:] if _BARE.fullmatch(text) else None


def _value(body: str, environment: Mapping[str, str], predefined: Mapping[str, str]) -> str:
    """Return the value of `${body}`.  Raises `LookupError` that says what to do."""
    if body in predefined:
        return predefined[body]
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
            f"`${{{beginning}{dots}}}` is not supported; write `${{NAME}}` or `${{NAME:-default}}`,"
            " or `$${` for a literal `${`"
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
