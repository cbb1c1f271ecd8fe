"""Texts of strangers: characters that a screen hides, obeys or writes backwards are found, or shown by their codes."""
import unicodedata
from collections.abc import Iterator

import yaml

from .errors import UsageError

HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's control (escape sequences begin with one) and format characters (directions of writing, zero width,
joiners, byte order mark), surrogates, and separators of lines and paragraphs, which YAML takes for ends of lines."""
BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters and marks that show nothing, or only a space."""


def is_hidden(character: str) -> bool:
    """Whether a character shows nothing of itself, or changes how others are shown; also newline and tab."""
    return unicodedata.category(character) in HIDDEN_CATEGORIES or character in BLANK


def code(character: str) -> str:
    """Unicode's name of a character's number, such as ``U+202E``."""
    return f"U+{ord(character):04X}"


def escaped(text: str) -> str:
    """The text on one line, with each hidden character written as ``<U+202E>``."""
    return "".join(f"<{code(c)}>" if is_hidden(c) else c for c in text)


def find_hidden(text: str, allowed: str = "\n\t") -> int:
    """Index of the first hidden character that is not among the `allowed` ones; -1 where there is none."""
    return next((i for i, c in enumerate(text) if c not in allowed and is_hidden(c)), -1)


def check_visible(text: str, origin: str) -> None:
    """Refuse YAML that may not be what it looks like: hidden characters, as such or written as escapes.

    Allowed are newline, tab, a carriage return before a newline, and a byte order mark in front of everything. Escapes
    are found in what they mean: in keys, values and tags (``"\\u202e"``, ``!<%1B>``).

    Args: origin: what errors call the file.
    Raises: UsageError naming line, column and character; yaml.YAMLError where the text is no YAML.
    """
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    for number, line in enumerate(lines, 1):
        if (column := find_hidden(line)) >= 0:
            _refuse(line[column], origin, number, column + 1, "has")
    for mark, part in _parts(text):
        if (place := find_hidden(part)) >= 0:
            _refuse(part[place], origin, mark.line + 1, mark.column + 1, "begins a text that holds")


def _parts(text: str) -> Iterator[tuple[yaml.Mark, str]]:
    """Scalars, tags, anchors and directives of a YAML text with their places, escapes resolved."""
    if "\\" not in text and "%" not in text:
        return  # no escapes
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        value = getattr(token, "value", None)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, str):
                yield token.start_mark, part


def _refuse(character: str, origin: str, line: int, column: int, what: str) -> None:
    name = unicodedata.name(character, "control character").lower()
    raise UsageError(
        f"{origin}, line {line}, column {column} {what} {code(character)} ({name}), which can hide what a "
        "configuration says; ask its author to take it out, or look at it, and if you trust it save it as a file and "
        "give that."
    )
