"""
Says everything that is wrong with a value that msgspec cannot convert.

Msgspec stops at the first error.  Whoever reads the errors of a configuration file wants
all of them, so this walks over a shape and its value together.  Knows types; must not
know what a value is for.  No error shows a value but the name of an unknown key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec

from mcpbridge.config.checks import kind_of
from mcpbridge.errors import Described, SettingError

_PLACE = re.compile(r" - at (?:`key` in )?`\$.*`\Z", re.DOTALL)
_EXPECTED = re.compile("Expected (.+?)(?:, got (.+))?", re.DOTALL)
_TYPES = re.compile(r"`([\w |]+)`")
_WORDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "an integer",
    "object": "an object",
    "str": "a string",
}


def shape_errors(kind: Any, value: object, name: str) -> Iterator[SettingError]:
    """
    Yield an error for each part of a value that is not of its kind.

    `kind` is a struct, or made of structs, mappings, tuples, unions and what has no
    parts.  `name` is what the errors call the whole.
    """
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        found = False
        for each in _errors_of_parts(kind, value, name):
            found = True
            yield each
        if not found:
            yield _of_whole(kind, value, name, str(error))


def _errors_of_parts(kind: Any, value: object, name: str) -> Iterator[SettingError]:
    """Yield what is wrong with parts of a value; nothing if it has none of this kind."""
    if isinstance(value, Mapping):
        struct = _member(kind, _is_struct)
        mapping = _member(kind, _is_mapping)
        if struct is not None:
            yield from _of_struct(struct, value, name)
        elif mapping is not None:
            of_keys, of_values = get_args(mapping)
            yield from _of_mapping(of_keys, of_values, value, name)
    elif isinstance(value, (list, tuple)):
        items = _member(kind, _is_tuple)
        if items is not None:
            for at, each in enumerate(value):
                yield from shape_errors(get_args(items)[0], each, f"{name}[{at}]")


def _member(kind: Any, accepts: Callable[[Any], bool]) -> Any:
    """Return the first kind of a union, or of the one kind, that is accepted."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return next((each for each in kinds if each is not NoneType and accepts(each)), None)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _is_tuple(kind: Any) -> bool:
    origin: object = get_origin(kind)
    return origin is tuple


def _of_struct(kind: Any, value: Mapping[Any, Any], name: str) -> Iterator[SettingError]:
    kinds = get_type_hints(kind, include_extras=True)
    known = {each.name: each for each in msgspec.structs.fields(kind)}
    for key, each in value.items():
        if key in known:
            yield from shape_errors(kinds[key], each, f"{name}.{key}")
        else:
            shown = f"the key `{key}`" if isinstance(key, str) else "another key"
            yield SettingError(name, "keys that are known", Described(shown))
    for key, field in known.items():
        if field.required and key not in value:
            yield SettingError(f"{name}.{key}", "a value", Described("none"))


def _of_mapping(
    of_keys: Any, of_values: Any, value: Mapping[Any, Any], name: str
) -> Iterator[SettingError]:
    for key, each in value.items():
        wrong = [*shape_errors(of_keys, key, name)]
        yield from wrong or shape_errors(of_values, each, f"{name}.{key}")


def _of_whole(kind: Any, value: object, name: str, what: str) -> SettingError:
    """Make an error of one of msgspec's, which never shows a value."""
    described = _member(kind, lambda each: get_origin(each) is Annotated)
    if isinstance(value, str) and described is not None:
        meta = next(each for each in get_args(described) if isinstance(each, msgspec.Meta))
        if meta.description is not None:
            return SettingError(name, meta.description, kind_of(value))
    expected = _EXPECTED.fullmatch(_PLACE.sub("", what))
    if expected is None:
        return SettingError(name, "something else", Described(_PLACE.sub("", what)))
    return SettingError(name, _in_words(expected[1]), kind_of(value))


def _in_words(types: str) -> str:
    """Name types as the other errors do, instead of as msgspec does."""

    def words(found: re.Match[str]) -> str:
        named = [_WORDS.get(each, each) for each in found[1].split(" | ")]
        return " or ".join(dict.fromkeys(named))

    return _TYPES.sub(words, types)
