"""
Variables in the values of a configuration file: `${NAME}` and its kin.

Knows text and a mapping; must not know what a value is for.  What it says of a
text shows no value, and no default, which may be a secret as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_OPENING = re.compile(r"(\$+)\{")
_VARIABLE = re.compile(r"(?:env:)?(?P<name>[A-Za-z_]\w*)(?::-(?P<default>.*))?", re.DOTALL | re.A)
_INPUT = re.compile(r"(?:prompt(?:String)?|input):(?P<name>[\w.-]+)")
#: What may be shown of what is not understood.
_SHOWN = re.compile(r"\w*(?::\w+)?")
#: A variable as shells have it, which is left as it stands.
_BARE = re.compile(r"\$[A-Za-z_]\w*", re.A)


def expand(
    text: str, environment: Mapping[str, str], predefined: Mapping[str, str]
) -> tuple[str, list[str]]:
    """
    The text with its variables replaced, and what is wrong with them.

    `predefined` holds names that are not of the environment, and come first.
    """
    parts: list[str] = []
    problems: list[str] = []
    at = 0
    while (opening := _OPENING.search(text, at)) is not None:
        dollars = len(opening[1])
        # Of the dollars before a brace two are one of the text.
        parts += text[at : opening.start()], "$" * (dollars // 2)
        at = opening.end()
        if dollars % 2 == 0:
            parts.append("{")
            continue
        end = text.find("}", at)
        if end < 0:
            problems.append("`${` has no `}`; for a `${` of the text itself write `$${`")
            break
        try:
            parts.append(_value(text[at:end], environment, predefined))
        except LookupError as error:
            problems.append(str(error.args[0]))
        at = end + 1
    parts.append(text[at:])
    return "".join(parts), problems


def bare_variable(text: str) -> str | None:
    """The name, where all of a text is a variable as shells have it: `$NAME`."""
    return text[1:] if _BARE.fullmatch(text) else None


def _value(body: str, environment: Mapping[str, str], predefined: Mapping[str, str]) -> str:
    """What stands for `${body}`.  Raises `LookupError` with what is to be done."""
    if body in predefined:
        return predefined[body]
    asked = _INPUT.fullmatch(body)
    if asked is not None:
        name = re.sub(r"\W", "_", asked["name"]).upper()
        raise LookupError(
            f"`${{{body}}}` is asked of the user by an editor; write `${{{name}}}`"
            " and set that variable where mcpbridge runs"
        )
    variable = _VARIABLE.fullmatch(body)
    if variable is None:
        shown = _SHOWN.match(body)
        beginning = shown[0] if shown else ""
        dots = "" if beginning == body else "..."
        raise LookupError(
            f"`${{{beginning}{dots}}}` is not understood; write `${{NAME}}`, `${{NAME:-default}}`"
            " or, for a `${` of the text itself, `$${`"
        )
    name, default = variable["name"], variable["default"]
    if default is not None and "${" in default:
        raise LookupError(f"the default of `${{{name}}}` may not hold a variable itself")
    value = environment.get(name)
    # As in shells: an empty one takes the default too.
    if default is not None and not value:
        return str(default)
    if value is None:
        raise LookupError(
            f"the variable {name} is not set; set it where mcpbridge runs,"
            f" or write `${{{name}:-default}}`"
        )
    return value
