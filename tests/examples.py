"""
The number of examples of a property, scaled by the profile of hypothesis.
"""

from hypothesis import settings

#: The default number of examples of a property in the profiles `full` and `quick`.
FULL = 100
QUICK = 10


def examples(number: int) -> int:
    """Return this number of examples, scaled down in a profile with fewer than FULL."""
    assert settings.default is not None
    return max(1, number * settings.default.max_examples // FULL)
