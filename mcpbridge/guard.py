"""
A step that may fail without keeping the next one from being taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger


def guarded(log: Logger, what: str, step: Callable[..., Any], *arguments: Any) -> Any:
    """
    Take a step of a teardown, or call an extension; what it raises is
    logged with `what`, and None returned.
    """
    try:
        return step(*arguments)
    except Exception:
        log.failure("{what} failed; going on", what=what)
        return None
