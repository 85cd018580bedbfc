"""
The number of examples of a property, scaled by the profile of hypothesis.
"""

from hypothesis import settings

#: The examples of a property in the profiles `full` and `quick`, where it asks for no other number.
FULL = 100
QUICK = 10


def examples(number: int) -> int:
    """Return that number of examples, or its part in a profile with fewer than FULL."""
    assert settings.default is not None
    return max(1, number * settings.default.max_examples // FULL)
