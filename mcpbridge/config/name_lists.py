"""
The settings `tools`, `prompts` and `resources`: which of a server's there are for clients.

Knows shapes and patterns; must not know messages.  No error shows a value but a name of
the settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mcpbridge.config.checks import Check, kind_of
from mcpbridge.errors import Described, SettingError

_Name = Annotated[str, Meta(min_length=1, max_length=2048)]
_Names = tuple[_Name, ...]
_EXPECTED = "an object with `allow`, `deny` or both, which are lists of names, or a list to allow"
#: How many names and patterns a list may have, and how many identities may have lists.
LISTED_NAMES = 1000
LISTING_IDENTITIES = 1000


class NameList(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """
    Names, and patterns of names.  `deny` wins.

    In names of tools and prompts `*`, `?` and `[seq]` have the meaning that they have in
    `fnmatch`; in URIs `*` alone matches any characters.  Without `allow` all are allowed
    that are not denied; an empty one allows none.
    """

    allow: _Names | None = None
    deny: _Names = ()

    @property
    def restricts(self) -> bool:
        """False if it allows everything."""
        return bool(self.deny) or (self.allow is not None and "*" not in self.allow)


class NameLists(NameList, frozen=True):
    """
    What is there for all clients, and what, of that, for each identity.

    A key of `identities` is the name of an identity, `ISSUER#SUBJECT`, or a pattern of
    such names, in which `*` alone matches any characters.  The lists of all that match
    hold: what one of them denies, or does not allow, is not there.
    """

    identities: Mapping[_Name, NameList] = {}

    @property
    def restricts_anybody(self) -> bool:
        """False if it allows everything to everybody."""
        return self.restricts or any(each.restricts for each in self.identities.values())


def read_name_lists(value: object) -> NameLists:
    """Return the lists of a valid value: an object, a list of what is allowed, or None for all."""
    if value is None:
        return NameLists()
    if isinstance(value, NameLists):
        return value
    if isinstance(value, (list, tuple)):
        value = {"allow": value}
    return msgspec.convert(value, NameLists)


def _wrong(name: str, value: Any) -> Iterator[SettingError]:
    """Yield what is wrong with the lists."""
    if isinstance(value, (list, tuple)):
        value = {"allow": value}
    if not isinstance(value, Mapping):
        yield SettingError(name, _EXPECTED, kind_of(value))
        return
    shared = {key: each for key, each in value.items() if key != "identities"}
    yield from _wrong_list(name, shared)
    identities = value.get("identities", {})
    place = f"{name}.identities"
    if not isinstance(identities, Mapping) or not all(
        isinstance(key, str) and key for key in identities
    ):
        yield SettingError(place, "an object of identities and their lists", kind_of(identities))
        return
    if len(identities) > LISTING_IDENTITIES:
        expected = f"at most {LISTING_IDENTITIES} identities (LISTING_IDENTITIES)"
        yield SettingError(place, expected, len(identities))
    for identity, each in identities.items():
        yield from _wrong_list(f"{place}.{identity}", each)


def _wrong_list(name: str, value: Any) -> Iterator[SettingError]:
    if not isinstance(value, Mapping):
        yield SettingError(name, _EXPECTED, kind_of(value))
        return
    for key, names in value.items():
        place = f"{name}.{key}" if isinstance(key, str) else name
        if key not in ("allow", "deny"):
            yield SettingError(place, "`allow` or `deny`", Described("another key"))
        elif key == "allow" and names is None:
            continue
        elif not isinstance(names, (list, tuple)):
            yield SettingError(place, "a list of names", kind_of(names))
        elif len(names) > LISTED_NAMES:
            yield SettingError(place, f"at most {LISTED_NAMES} names (LISTED_NAMES)", len(names))
        else:
            for at, each in enumerate(names):
                if not isinstance(each, str) or not 0 < len(each) <= 2048:
                    expected = "a name of 1 to 2048 characters"
                    yield SettingError(f"{place}[{at}]", expected, kind_of(each))


NAME_LISTS = Check(
    _EXPECTED,
    lambda v: v is None or isinstance(v, NameLists) or next(_wrong("", v), None) is None,
    complain=_wrong,
    form="json",
    metavar="JSON",
    schema={
        "anyOf": [
            {"$ref": "#/$defs/NameLists"},
            {
                "type": "array",
                "items": {"type": "string", "minLength": 1, "maxLength": 2048},
                "maxItems": LISTED_NAMES,
            },
        ]
    },
)
