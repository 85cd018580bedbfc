"""
The JSON Schema of a configuration file (draft 2020-12), for editors.

Made of the metadata of the settings.  Knows what a file may hold; must not know how one
is read.  What is right for the bridge is right for the schema; some of what is wrong, such
as two servers of one path, no schema can say.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from mcpbridge.config.admin import AdminToken
from mcpbridge.config.auth import Auth
from mcpbridge.config.checks import Check
from mcpbridge.config.env_from import EnvironmentRule
from mcpbridge.config.file import DEFAULT_KEYS
from mcpbridge.config.foreign import SERVER_KEYS, URLS
from mcpbridge.config.name_lists import NameLists
from mcpbridge.config.options import default_text
from mcpbridge.config.server_entries import BRIDGE_KEYS, BRIDGE_NAMES
from mcpbridge.config.settings import BridgeSettings, ServerSettings

#: A text with a variable, whose value the schema cannot know.
_VARIABLE = {"type": "string", "pattern": r"\$\{"}
_NAMES = {"type": ["array", "null"], "items": {"type": "string"}}
_FALSE: dict[str, Any] = {
    "description": "Not supported: a server with it is skipped.",
    "enum": [False, None, {}],
}
_LISTED = "Tools that clients may see, as other programs list them; see `tools`."
_HIDDEN = "Tools that clients may not see, as other programs list them; see `tools`."


def config_schema() -> dict[str, Any]:
    """Return the schema."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mcpbridge configuration file",
        "description": "MCP servers, as in the files of MCP clients, and settings of the bridge.",
        "type": "object",
        "properties": {
            "$schema": {"type": "string", "description": "This schema, for editors."},
            "mcpServers": _servers("Servers by their names."),
            "servers": _servers("The same, as VS Code calls it."),
            "context_servers": _servers("The same, as Zed calls it."),
            "mcp": {"type": "object", "properties": {"servers": _servers("Servers by name.")}},
            "bridge": {"$ref": "#/$defs/bridge"},
            "disabledMcpServers": {**_NAMES, "description": "Servers that are not served."},
            "disabledMcpjsonServers": {**_NAMES, "description": "Servers that are not served."},
        },
        "anyOf": [
            {"required": [key]} for key in ("mcpServers", "servers", "context_servers", "mcp")
        ],
        "$defs": {
            "server": _server(),
            "enabledServer": _enabled_server(),
            "bridge": _bridge(),
            **_structs(),
        },
    }


def schema_text() -> str:
    """Return the schema as the text of a file."""
    return json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n"


def _servers(text: str) -> dict[str, Any]:
    return {
        "description": text,
        "type": "object",
        "additionalProperties": {"$ref": "#/$defs/server"},
    }


def _server() -> dict[str, Any]:
    """Return the schema of a server; of one that is disabled nothing is read."""
    off = [
        {"properties": {"disabled": {"const": True}}, "required": ["disabled"]},
        {"properties": {"enabled": {"const": False}}, "required": ["enabled"]},
    ]
    return {
        "type": "object",
        "if": {"anyOf": off},
        "then": True,
        "else": {"$ref": "#/$defs/enabledServer"},
    }


def _enabled_server() -> dict[str, Any]:
    properties = _properties(ServerSettings, SERVER_KEYS)
    tools = properties["tools"]
    properties["tools"] = {**tools, "anyOf": [*tools["anyOf"], {"const": "*"}]}
    for key in URLS[1:]:
        properties[key] = {**properties["url"], "description": "The same as `url`."}
    properties["envFile"] = {
        "description": "File of environment variables; `env` takes precedence.",
        "type": ["string", "null"],
        "minLength": 1,
    }
    for key in ("disabled", "enabled"):
        properties[key] = {"type": "boolean", "description": "Whether the server is served."}
    for key in ("type", "transport"):
        properties[key] = {
            "description": "How the server is reached, as other programs say it.",
            "type": ["string", "null"],
            "pattern": "^(?:" + "|".join(map(_any_case, _WORDS)) + ")$",
        }
    for key in BRIDGE_NAMES.keys() - SERVER_KEYS:
        properties[key] = False
    return {
        "type": "object",
        "properties": dict(sorted(properties.items())),
        "patternProperties": {
            _any_case_key("include", "included", "enabled", "allowed", "allow"): {
                **_NAMES,
                "description": _LISTED,
            },
            _any_case_key("exclude", "excluded", "disabled", "denied", "deny", "blocked"): {
                **_NAMES,
                "description": _HIDDEN,
            },
            "^sandbox(Enabled)?$": _FALSE,
        },
        "anyOf": [{"required": ["command"]}, *({"required": [key]} for key in URLS)],
        "not": {
            "properties": {"url": {"type": "string"}},
            "required": ["command", "url"],
        },
    }


#: The words of `type` and `transport`.
_WORDS = ("stdio", "local", "http", "remote", "auto", "streamable", "streamable-http", "sse")


def _any_case(word: str) -> str:
    """Return a pattern of a word in any case; a separator may be another, or missing."""
    letters = [f"[{each}{each.upper()}]" if each.isalpha() else "[-_]?" for each in word]
    return "".join(letters)


def _any_case_key(*verbs: str) -> str:
    """Return a pattern of the keys that list tools."""
    return f"^(?:{'|'.join(map(_any_case, verbs))})[-_]?{_any_case('tools')}$"


def _bridge() -> dict[str, Any]:
    properties = _properties(BridgeSettings, BRIDGE_KEYS)
    properties["defaults"] = {
        "description": "Settings of all servers that do not set them themselves.",
        "type": "object",
        "properties": _properties(ServerSettings, DEFAULT_KEYS),
        "additionalProperties": False,
    }
    return {
        "description": "Settings of the bridge.",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _properties(kind: type[Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return the schemas of settings, by all names that they have."""
    found: dict[str, Any] = {}
    for each in dataclasses.fields(kind):
        if each.name not in keys:
            continue
        found[each.name] = _setting(each)
        former = each.metadata["renamed_from"]
        if former:
            text = f"Now `{each.name}`."
            found[former] = {**found[each.name], "description": text, "deprecated": True}
    return found


def _setting(field: dataclasses.Field[Any]) -> dict[str, Any]:
    check: Check = field.metadata["check"]
    text = field.metadata["text"]
    unset = field.metadata["unset"]
    schema: dict[str, Any] = {"description": f"{text} Default: {default_text(field)}."}
    if not unset:
        schema["description"] = text
    if field.name not in ("command", "url", "base_uri"):
        default = field.default
        if default is dataclasses.MISSING:
            default = {}
        schema["default"] = list(default) if isinstance(default, tuple) else default
    rule = _with_variables(check.schema)
    alternatives = [*rule["anyOf"]] if rule.keys() == {"anyOf"} else [rule]
    if check.accepts(None):
        alternatives.append({"type": "null"})
    return {**schema, **(alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives})}


def _with_variables(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Accept a text with a variable wherever a value must be something else than any text."""
    found = dict(schema)
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), Mapping):
            found[key] = _with_variables(found[key])
    if "properties" in found:
        found["properties"] = {
            key: _with_variables(each) for key, each in found["properties"].items()
        }
    if found.keys() == {"anyOf"}:
        scalar = any(each.get("type") in ("string", "integer") for each in found["anyOf"])
        return {"anyOf": [*found["anyOf"], _VARIABLE]} if scalar else found
    types = found.get("type")
    is_plain = types == "string" and not {"pattern", "minLength"} & found.keys()
    if types in ("array", "object") or is_plain or "$ref" in found:
        return found
    return {"anyOf": [found, _VARIABLE]}


def _structs() -> dict[str, Any]:
    """Return the schemas of objects within settings."""
    _, structs = msgspec.json.schema_components(
        [AdminToken, Auth, EnvironmentRule, NameLists], ref_template="#/$defs/{name}"
    )
    return {name: _portable(each) for name, each in sorted(structs.items())}


def _portable(schema: Any, *, is_key: bool = False) -> Any:
    """
    Return a schema whose patterns every language reads, and accept variables in values.

    `\\Z` is Python's alone.
    """
    if isinstance(schema, list):
        return [_portable(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _portable(each, is_key=key == "propertyNames") for key, each in schema.items()}
    if isinstance(found.get("pattern"), str):
        found["pattern"] = found["pattern"].replace("\\Z", "$")
        if not is_key:
            found["pattern"] = rf"(?:{found['pattern']})|\$\{{"
            found.pop("maxLength", None)
    if isinstance(found.get("description"), str):
        found["description"] = re.sub(r"\s+", " ", found["description"]).strip()
    return found
