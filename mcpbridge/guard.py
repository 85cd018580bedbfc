"""
Run a step whose failure must not prevent the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger


def guarded(log: Logger, what: str, step: Callable[..., Any], *arguments: Any) -> Any:
    """
    Call a step of a teardown, or a method of an extension, and return its result.

    An exception is logged with `what`, a short name of the step, and None returned.
    """
    try:
        return step(*arguments)
    except Exception:
        log.failure("{what} failed; going on", what=what)
        return None
