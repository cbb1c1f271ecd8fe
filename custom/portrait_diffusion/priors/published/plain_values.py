"""What a file says, as values that are plain and bounded and as text that is fit to be shown."""
from itertools import islice
from typing import Any

DEEPEST = 32
"""Levels of dictionaries, lists or modules that are followed."""
MOST_VALUES = 1000
LONGEST_TEXT = 1000
LARGEST_NUMBER = 2**63


def shown(text: str, most: int) -> str:
    """The first `most` characters on one line, without any that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text[:most])


def plain(value: Any) -> Any:
    """Numbers, texts, lists and dictionaries copied; anything else, and what exceeds the bounds above, as None.

    A pickle of a hundred bytes can hold a list that is a billion long when its repeated parts are copied one by one.
    """
    left = MOST_VALUES

    def copied(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > DEEPEST or left < 0:
            return None
        if isinstance(value, dict):
            items = islice(value.items(), left)
            return {key[:LONGEST_TEXT]: copied(item, depth + 1) for key, item in items if isinstance(key, str)}
        if isinstance(value, list | tuple):
            return [copied(item, depth + 1) for item in islice(value, left)]
        if isinstance(value, str):
            return value[:LONGEST_TEXT]
        if isinstance(value, int):
            return value if abs(value) < LARGEST_NUMBER else None
        return value if isinstance(value, float) else None

    return copied(value, 0)
