"""References ``${...}`` of a configuration: what they may name, and how large it grows once they are written out."""
import re
from collections.abc import Iterator
from typing import Any

from .errors import UsageError

FUNCTIONS = frozenset(
    "calc_exp_lr_decay_rate add sub mul div idiv basename rmspace tuple2 gt0 not cmaxgt0 cmaxgt0orcmaxgt0".split()
)
"""Names that every host offers; any other (such as oc.env, which reads the environment) is refused."""
MAX_EXPANDED = 10_000_000
"""Characters and values of a configuration whose references are written out; one may double what another doubled."""
MAX_RESULT = 10_000
"""Characters or values that a function may give."""
_START = re.compile(r"(?=\$\{\s*([^}]*))")
"""Every reference, those inside others, too; what it holds up to the first brace that closes."""


def references(text: str) -> Iterator[tuple[str, str, str]]:
    """(inside, function or "", name or "") of each reference in a text, inner ones too; both "" for anything else."""
    for inside in _START.findall(text):
        name, colon, _ = inside.partition(":")
        if colon:
            yield inside, name.strip(), ""
        else:
            yield inside, "", inside.strip() if re.fullmatch(r"[\w.\[\]]+\s*", inside) else ""


def check_growth(plain: Any, origin: str) -> None:
    """Refuse a configuration that references would blow up. Args: unresolved values; origin: what the error calls it.

    A reference counts as what it names, a function as `MAX_RESULT`; those that lead nowhere or in a circle count 0 and
    fail when they are resolved. Raises: UsageError.
    """
    known: dict[tuple, int] = {}
    running: set[tuple] = set()

    def size(value: Any, place: tuple) -> int:
        if place in known or place in running:
            return known.get(place, 0)
        running.add(place)
        if isinstance(value, dict | list):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            found = 1 + sum(size(child, (*place, str(key))) for key, child in pairs)
        else:
            found = 1 + len(value) if isinstance(value, str) else 1
            for _, function, name in references(value) if isinstance(value, str) else ():
                found += MAX_RESULT if function else named(name, place)
        running.discard(place)
        known[place] = found
        if found > MAX_EXPANDED:
            key = ".".join(place)
            raise UsageError(f"{origin}: key '{key}' is more than {MAX_EXPANDED} characters once its ${{...}} are "
                             "written out; say it without references to references.")  # fmt: skip
        return found

    def named(name: str, place: tuple) -> int:
        ups = len(name) - len(name.lstrip("."))
        parts = tuple(part for part in re.split(r"[.\[\]]+", name) if part)
        where = (*(place[: len(place) - ups] if ups else ()), *parts)
        value = plain
        for part in where:
            try:
                value = value[int(part)] if isinstance(value, list) else value[part]
            except (KeyError, IndexError, TypeError, ValueError):
                return 0
        return size(value, where)

    size(plain, ())


def check_resolved(value: Any, origin: str, path: str = "") -> None:
    """Refuse values that are references still: a function made them. Raises: UsageError."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in pairs:
            check_resolved(child, origin, f"{path}.{key}" if path else str(key))
    elif isinstance(value, str) and "${" in value:
        raise UsageError(f"{origin}: key '{path}': its ${{...}} gives another reference; write that one down itself.")
