"""One flat table from a registered name to its class, with `main:a,b` mixins, and the host's log functions."""
import logging
from collections.abc import Callable

_modules: dict[str, type] = {}
logger = logging.getLogger("portrait_diffusion")

debug = logger.debug
info = logger.info
warn = logger.warning


def modules() -> dict[str, type]:
    """The table itself: registered name to class."""
    return _modules


def register(name: str) -> Callable[[type], type]:
    """Class decorator that enters the class in the table under `name`.

    Raises: ValueError if the name contains ':' (the mixin separator) or exists already.
    """
    if ":" in name:
        raise ValueError(f"The name '{name}' contains ':', which separates mixins in find(); choose a name without it.")

    def decorate(cls: type) -> type:
        if name in _modules:
            raise ValueError(f"Module {name} already exists! Names of extensions conflict!")
        _modules[name] = cls
        return cls

    return decorate


def find(name: str) -> type:
    """The class registered as `name`; ``main:a,b`` builds a new class with bases (a, b, main), mixins first.

    Raises: KeyError for an unknown name, ValueError for more than one ':'.
    """
    if ":" not in name:
        return _modules[name]
    main, mixins = name.split(":")
    bases = [_modules[mixin] for mixin in mixins.split(",")] + [_modules[main]]
    return type(f"{main}.{mixins}", tuple(bases), {})
