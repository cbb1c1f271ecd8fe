"""Check a configuration before any model loads: file, key path, what is wrong, the nearest valid name.

A schema is a dataclass. A section is checked against

* the dataclass that its field is annotated with, or
* where a field ``x: dict`` has a partner ``x_type: str``, the ``Config`` of the class registered under that name
  (a class without a ``Config`` dataclass takes any keys); the name is checked also where the section is not given, or
* nothing, for any other ``dict`` field.
"""
import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from . import host
from .errors import UsageError
from .references import FUNCTIONS, check_growth, check_resolved, references
from .visible import check_visible

MAX_BYTES = 1_000_000  # size of a configuration file
MAX_NODES = 100_000  # YAML values after expanding aliases
MAX_DEPTH = 50  # nested sections


def validate(source: Any, schema: type, overrides: Iterable[str] = ()) -> DictConfig:
    """Read a configuration, apply overrides, resolve ``${...}`` and check every key and value that the schema knows.

    Nothing is created: `__post_init__` of each section's dataclass runs (range checks), but not that of the host's
    ExperimentConfig, which would make the trial folder.

    Args:
        source: path of a YAML file (str or Path), or a dict.
        schema: dataclass of the top level, for example ``host.ExperimentConfig``.
        overrides: ``a.b=c`` texts, see `parse_overrides`.

    Returns: the merged and resolved configuration, unstructured.
    Raises: UsageError naming file, key path, what was found, what was expected; what the overrides alone brought is
        told of them.
    """
    origin = os.fspath(source) if isinstance(source, str | Path) else "the configuration"
    config = read_yaml(source) if isinstance(source, str | Path) else _create(source, origin)
    changes = parse_overrides(overrides)
    try:
        return _merged(config, changes, schema, origin)
    except UsageError as error:
        if changes and _is_valid(config, schema, origin):
            told = str(error).removeprefix(f"{origin}: ")
            raise UsageError(f"The given key=value (on top of {origin}): {told}") from None
        raise


def _is_valid(config: DictConfig, schema: type, origin: str) -> bool:
    """Whether a configuration passes without any overrides."""
    try:
        _merged(config, parse_overrides(()), schema, origin)
    except UsageError:
        return False
    return True


def _merged(config: DictConfig, changes: DictConfig, schema: type, origin: str) -> DictConfig:
    """Both together, resolved and checked."""
    try:
        merged = OmegaConf.merge(config, changes)
    except (OmegaConfBaseException, TypeError) as error:
        raise UsageError(f"{origin}: the overrides don't fit it: {_first_line(error)}.") from error
    plain = OmegaConf.to_container(merged, resolve=False)
    _check_leaves(plain, origin, "")
    check_growth(plain, origin)
    host.prepare_resolvers()
    try:
        OmegaConf.resolve(merged)
    except (OmegaConfBaseException, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        key = _first_unresolvable(merged, "")
        reason = _first_line(error)
        raise UsageError(f"{origin}: key '{key}': a reference ${{...}} can't be resolved: {reason}.") from error
    check_resolved(OmegaConf.to_container(merged, resolve=False), origin)
    _check_section(merged, schema, origin, "")
    return merged


def read_yaml(path: str | Path) -> DictConfig:
    """Load a configuration file without trusting it: plain YAML only, limited in size, nesting and alias expansion.

    Raises: UsageError if it can't be read, is too large, is no valid YAML or no mapping.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: the configuration can't be read: {error.strerror or error}.") from error
    return parse_yaml(data, str(path))


def parse_yaml(data: bytes, origin: str, shared: bool = False) -> DictConfig:
    """The content of a configuration file as `read_yaml` reads it.

    Args: origin: what errors call it.  shared: it comes from a stranger and is shown before it is used, so refuse
        characters that hide something, see `visible.check_visible`.
    Raises: UsageError, see there.
    """
    path = origin
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path}: a configuration may have at most {MAX_BYTES} bytes; this file is larger.")
    try:
        text = data.decode("utf-8")
        if shared:
            check_visible(text, path)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise UsageError(f"{path}: the top level must be a mapping of keys to values.")
        _check_tree(root, str(path))
        return _create(text, str(path))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file in UTF-8 (byte {error.start}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or _first_line(error)
        raise UsageError(f"{path}{line}: no valid YAML: {problem}.") from error
    except RecursionError as error:
        raise UsageError(f"{path}: sections are nested deeper than {MAX_DEPTH} levels.") from error


def parse_overrides(overrides: Iterable[str]) -> DictConfig:
    """Turn ``["a.b=c", ...]`` into a nested configuration; values are YAML, later entries win.

    Raises: UsageError for a missing '=', an empty or malformed key, a leading '--', '+' or '~', or a value that is no
        plain YAML.
    """
    entries = list(overrides)
    for entry in entries:
        key, equals, value = entry.partition("=")
        if entry.startswith(("-", "+", "~")):
            raise UsageError(f"Override '{entry}' starts with '{entry[0]}'; write it plainly: {entry.lstrip('-+~')}.")
        if not equals:
            raise UsageError(f"Override '{entry}' has no '='; write it as key.path=value, for example {key}=VALUE.")
        if not all(re.fullmatch(r"[A-Za-z_]\w*|\d+", part) for part in key.split(".")):
            raise UsageError(f"Override '{entry}' has the malformed key '{key}'; write it as key.path=value.")
        if re.search(r"\{[^{}]*:[^\s{}][^{}]*\}", value) and "${" not in value and '"' not in value:
            raise UsageError(f"Override '{entry}': a mapping needs a space after each colon: {{a: 1}}.")
        try:
            _check_tree(yaml.compose(value, Loader=yaml.SafeLoader), f"Override '{entry}'")
        except (yaml.YAMLError, RecursionError) as error:
            raise UsageError(f"Override '{entry}': the value is no valid YAML; quote it: {key}='\"...\"'.") from error
    try:
        return OmegaConf.from_cli(entries)
    except (OmegaConfBaseException, yaml.YAMLError, TypeError, ValueError) as error:
        raise UsageError(f"The overrides {entries} contradict each other: {_first_line(error)}.") from error


def _create(content: Any, origin: str) -> DictConfig:
    try:
        config = OmegaConf.create(content)
    except OmegaConfBaseException as error:
        raise UsageError(f"{origin}: {_first_line(error)}.") from error
    if not isinstance(config, DictConfig):
        raise UsageError(f"{origin}: the top level must be a mapping of keys to values.")
    return config


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _check_tree(root: yaml.Node | None, origin: str) -> None:
    """Refuse tags that mean code, and count values as if aliases were written out (they may multiply exponentially)."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise UsageError(f"{origin}: sections are nested deeper than {MAX_DEPTH} levels.")
        if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
            raise UsageError(f"{origin}, line {node.start_mark.line + 1}: the tag {node.tag!a} isn't allowed.")
        if id(node) not in sizes:
            children = node.value if isinstance(node, yaml.SequenceNode) else []
            if isinstance(node, yaml.MappingNode):
                children = [child for pair in node.value for child in pair]
            sizes[id(node)] = 1 + sum(size(child, depth + 1) for child in children)
        if sizes[id(node)] > MAX_NODES:
            raise UsageError(f"{origin}: more than {MAX_NODES} values once its aliases are written out.")
        return sizes[id(node)]

    if root is not None:
        size(root, 0)


def _check_leaves(value: Any, origin: str, path: str) -> None:
    """Refuse required values that are not given, and references that are more than a name or a known function."""
    if isinstance(value, dict):
        for key, child in value.items():
            _check_leaves(child, origin, _join(path, key))
    elif isinstance(value, list | tuple):
        for i, child in enumerate(value):
            _check_leaves(child, origin, f"{path}[{i}]")
    elif value == MISSING:
        raise UsageError(f"{origin}: key '{path}' is required ('???'): set it in the file or with {path}=VALUE.")
    elif isinstance(value, str):
        for inside, function, name in references(value):
            if function not in FUNCTIONS and not name:
                near = _nearest(function, FUNCTIONS) if function and "$" not in function else ""
                shown = f"${{{inside}}}"
                raise UsageError(f"{origin}: key '{path}': '{shown}' is no plain reference or known function{near}.")


def _first_unresolvable(node: Any, path: str) -> str | None:
    """Path of the first value whose reference leads nowhere."""
    keys = node.keys() if isinstance(node, DictConfig) else range(len(node)) if OmegaConf.is_list(node) else ()
    for key in keys:
        place = _join(path, key)
        try:
            child = node[key]
        except Exception:  # a function in ${...} may raise anything
            return place
        found = _first_unresolvable(child, place)
        if found is not None:
            return found
    return None


def _check_section(section: DictConfig, schema: type, origin: str, path: str) -> None:
    """One section against one dataclass: names first, then each value, then the dataclass's own checks."""
    annotations = typing.get_type_hints(schema)
    fields = {f.name: annotations[f.name] for f in dataclasses.fields(schema) if f.init}
    for key in section:
        if key not in fields:
            raise UsageError(f"{origin}: unknown key '{_join(path, key)}'{_nearest(str(key), fields)}.")
    for key in section:
        place = _join(path, key)
        value, annotation = section[key], fields[key]
        nested = _dataclass_of(annotation)
        if nested is not None and value is not None:
            if not isinstance(value, DictConfig):
                raise UsageError(f"{origin}: key '{place}' must be a section with keys, got {_show(value)}.")
            _check_section(value, nested, origin, place)
            continue
        _check_value(value, annotation, origin, place)
    for key, annotation in fields.items():
        named = f"{key}_type" in fields and _takes_keys(annotation)
        if named and (key in section or f"{key}_type" in section):
            _check_typed_section(section, schema, key, origin, path)
    if schema is not host.ExperimentConfig:
        _run_post_init(section, schema, origin, path)


def _check_typed_section(section: DictConfig, schema: type, key: str, origin: str, path: str) -> None:
    """The class that ``{key}_type`` names must be registered, and section `key`, where given, must fit its Config.

    The name may be empty only where that is the schema's default, and only for a section without keys.
    """
    type_place, place = _join(path, f"{key}_type"), _join(path, key)
    default = next(default_of(field) for field in dataclasses.fields(schema) if field.name == f"{key}_type")
    name = section[f"{key}_type"] if f"{key}_type" in section else default
    values = section[key] if key in section else None
    if not name:
        if default:
            raise UsageError(f"{origin}: key '{type_place}' is empty; the default is '{default}'.")
        if values:
            raise UsageError(f"{origin}: section '{place}' has keys but '{type_place}' is empty; name its class there.")
        return
    check_class(name, values, origin, type_place, place)


def check_class(name: Any, values: DictConfig | None, origin: str, type_place: str, place: str) -> None:
    """A class that a configuration names must be registered, and its section, where given, must fit its Config.

    Args: name: of the class, said at the key `type_place`.  values: the section at the key `place`, None is none.
        origin: what errors call the configuration.
    Raises: UsageError.
    """
    try:
        config = getattr(host.find(str(name)), "Config", None)
    except (KeyError, ValueError) as error:
        near = _nearest(str(name), host.registered_names())
        raise UsageError(f"{origin}: key '{type_place}': no class is registered as '{name}'{near}.") from error
    except TypeError as error:  # mixins that can't be combined
        raise UsageError(f"{origin}: key '{type_place}': '{name}' makes no class: {_first_line(error)}.") from error
    if values is not None and dataclasses.is_dataclass(config):
        _check_section(values, config, origin, place)


def _check_value(value: Any, annotation: Any, origin: str, place: str) -> None:
    """Let OmegaConf convert the one value as the host will.

    The host passes nodes, of which OmegaConf doesn't check the contents; plain values are checked throughout. A list of
    numbers for a float is a schedule, which the host's own classes take in such fields.
    """
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if annotation is float and isinstance(plain, list) and len(plain) in (3, 4, 6, 8, 10):
        if all(isinstance(number, int | float) for number in plain):
            return
    single = dataclasses.make_dataclass("Single", [("value", annotation)])
    try:
        OmegaConf.structured(single(value=plain))
    except OmegaConfBaseException as error:
        expected = _type_name(annotation)
        raise UsageError(f"{origin}: key '{place}' must be of type {expected}, got {_show(value)}.") from error


def _run_post_init(section: DictConfig, schema: type, origin: str, path: str) -> None:
    needed = [
        f.name
        for f in dataclasses.fields(schema)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    for name in needed:
        if name not in section:
            raise UsageError(f"{origin}: key '{_join(path, name)}' is required but missing.")
    try:
        schema(**section)
    except (ValueError, TypeError, AssertionError, UsageError) as error:
        where = f"section '{path}'" if path else "the top level"
        raise UsageError(f"{origin}: {where}: {_first_line(error)}.") from error


def _dataclass_of(annotation: Any) -> type | None:
    """The dataclass in ``X`` or ``Optional[X]``, else None."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = [a for a in typing.get_args(annotation) if a is not type(None)]
        annotation = options[0] if len(options) == 1 else None
    return annotation if isinstance(annotation, type) and dataclasses.is_dataclass(annotation) else None


def _takes_keys(annotation: Any) -> bool:
    """Whether a field is annotated ``dict`` or ``dict[...]``, optional or not."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return any(dict in (a, typing.get_origin(a)) for a in (typing.get_args(annotation) if union else (annotation,)))


def default_of(field: dataclasses.Field) -> Any:
    """Default value of a dataclass field, made anew where it has a factory; None when there is none."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def _nearest(name: str, valid: Iterable[str]) -> str:
    """End of a sentence: the nearest valid name, or all of them if none is near."""
    options = sorted(map(str, valid))
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if near:
        return f"; the nearest valid name is '{near[0]}'"
    return f"; valid here: {', '.join(options) if options else 'no keys at all'}"


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _show(value: Any) -> str:
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    text = repr(plain)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(plain).__name__})"


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)
