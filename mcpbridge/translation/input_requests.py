"""
Input requests: what a server asks of a client while it works on a request.

Until 2025-11-25 a server sends `elicitation/create`, `sampling/createMessage`
and `roots/list` as requests of its own.  2026-07-28 puts the same three into
the `inputRequests` of an `input_required` result, and the client sends its
request again with `inputResponses` (basic/patterns/mrtr).  Both directions of
the translation read them into an `InputRequest` and ask `InputCapabilities`
whether the client can take it.

Knows the three methods, their parameters and the capabilities that they need;
must not know which request they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from mcpbridge.errors import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    BridgeError,
    InvalidParams,
    MissingCapability,
)
from mcpbridge.jsonrpc.members import (
    Members,
    elements_of,
    encode,
    error_code_of,
    is_null,
    members,
    members_of,
    string_of,
)
from mcpbridge.mcp.modern_request import INPUT_REQUIRED_METHODS, ModernRequest
from mcpbridge.translation.to_modern import URL_ELICITATION_REQUIRED

ELICIT = "elicitation/create"
SAMPLE = "sampling/createMessage"
LIST_ROOTS = "roots/list"
#: The methods of input requests, in every revision.
INPUT_REQUEST_METHODS = frozenset({ELICIT, SAMPLE, LIST_ROOTS})

#: The most input requests of one call that may be open.
MAX_INPUT_REQUESTS = 64

#: Parameters of an input request that 2026-07-28 does not have.
_LEGACY_PARAMS = frozenset({"_meta", "task", "elicitationId"})


class CannotAsk(BridgeError):
    """
    The client cannot be asked for this input.

    `code` is that of the error with which a server's own request is answered.
    """

    def __init__(self, text: str, code: int = INTERNAL_ERROR) -> None:
        super().__init__(text)
        self.code = code


class InputRequest(NamedTuple):
    """One request for input; `params` is None where it has none."""

    method: str
    params: Members | None

    @property
    def mode(self) -> str | None:
        """The mode of an elicitation: `form`, which is the default, or `url`; None otherwise."""
        params = self.params or {}
        mode = string_of(params["mode"]) if "mode" in params else "form"
        return mode if mode in ("form", "url") else None

    @property
    def wants_tools(self) -> bool:
        """Whether a sampling request gives the model tools."""
        return not (self.params or {}).keys().isdisjoint(("tools", "toolChoice"))

    def entry(self) -> dict[str, object]:
        """Return the request as a value of `inputRequests`."""
        if self.method == LIST_ROOTS and not self.params:
            return {"method": self.method}
        return {"method": self.method, "params": self.params}


class InputCapabilities(msgspec.Struct, frozen=True):
    """
    The input that a client can be asked for, from its ClientCapabilities.

    An empty `elicitation` declares forms alone (client/elicitation,
    "Capabilities").  A null is as good as nothing.
    """

    forms: bool = False
    urls: bool = False
    sampling: bool = False
    sampling_tools: bool = False
    roots: bool = False

    def missing(self, request: InputRequest) -> dict[str, object] | None:
        """
        Return the capabilities that a request needs and the client lacks, as
        a ClientCapabilities object; None where nothing is missing.
        """
        if request.method == LIST_ROOTS:
            return None if self.roots else {"roots": {}}
        if request.method == SAMPLE:
            if request.wants_tools:
                return None if self.sampling_tools else {"sampling": {"tools": {}}}
            return None if self.sampling else {"sampling": {}}
        if request.mode == "url":
            return None if self.urls else {"elicitation": {"url": {}}}
        if self.forms:
            return None
        return {"elicitation": {"form": {}} if self.urls else {}}


def input_capabilities(declared: Mapping[str, msgspec.Raw]) -> InputCapabilities:
    """Read the members of a ClientCapabilities object; what is no object counts as missing."""
    elicitation = _object(declared, "elicitation")
    sampling = _object(declared, "sampling")
    urls = elicitation is not None and "url" in elicitation
    return InputCapabilities(
        forms=elicitation is not None and ("form" in elicitation or not urls),
        urls=urls,
        sampling=sampling is not None,
        sampling_tools=sampling is not None and _object(sampling, "tools") is not None,
        roots=_object(declared, "roots") is not None,
    )


def missing_capability(asked: InputRequest, request: ModernRequest) -> MissingCapability | None:
    """Return the refusal of a request whose client cannot take an input request; None if it can."""
    required = input_capabilities(members_of(request.capabilities)).missing(asked)
    if required is None:
        return None
    names = " and ".join(required)
    error = MissingCapability(
        f"the server needs a capability that the client has not declared: {names}", required
    )
    error.ident = request.id
    return error


def read_server_request(method: str, params: msgspec.Raw | None) -> InputRequest:
    """
    Read a request that a legacy server sends to its client.

    Raise `CannotAsk` for another method, and for parameters that no client
    could make sense of.
    """
    if method not in INPUT_REQUEST_METHODS:
        raise CannotAsk("a client of this bridge has no such method", METHOD_NOT_FOUND)
    given = {} if params is None else members(params)
    if given is None:
        raise CannotAsk("params is not an object", INVALID_PARAMS)
    asked = InputRequest(method, _without_legacy(given))
    if method == ELICIT and asked.mode is None:
        raise CannotAsk("the mode of an elicitation is form or url", INVALID_PARAMS)
    return asked


def read_url_elicitations(method: str, error: Members) -> list[InputRequest]:
    """
    Read the input requests of an error -32042, "URL elicitation required"
    (2025-11-25, client/elicitation).

    Return none for another error, for one that does not list URL elicitations
    alone, and for the answer to a method that may not ask for input.
    """
    if method not in INPUT_REQUIRED_METHODS or error_code_of(error) != URL_ELICITATION_REQUIRED:
        return []
    listed = elements_of(members_of(error.get("data")).get("elicitations")) or []
    found = [
        InputRequest(ELICIT, _without_legacy(members_of(each)))
        for each in listed[:MAX_INPUT_REQUESTS]
    ]
    return found if all(each.mode == "url" for each in found) else []


def read_input_responses(request: ModernRequest) -> Members:
    """
    Return the `inputResponses` of a retry; none where it has none.

    Raise `InvalidParams` where they, or one of them, are no objects.
    """
    raw = request.params.get("inputResponses")
    given = {} if raw is None else members(raw)
    if given is None or any(members(each) is None for each in given.values()):
        error = InvalidParams("params.inputResponses and its members must be objects")
        error.ident = request.id
        raise error
    return given


def input_requests(requests: Mapping[str, InputRequest]) -> msgspec.Raw:
    """Return the `inputRequests` of a result, by their keys."""
    return msgspec.Raw(encode({key: each.entry() for key, each in requests.items()}))


def _without_legacy(params: Members) -> Members:
    return {name: each for name, each in params.items() if name not in _LEGACY_PARAMS}


def _object(outer: Mapping[str, msgspec.Raw], name: str) -> Members | None:
    """Return the members of an object that are not null; None where it is no object."""
    found = members(outer[name]) if name in outer else None
    return None if found is None else {key: raw for key, raw in found.items() if not is_null(raw)}
