"""YAML and command line to typed configuration: resolvers, structured sections, the experiment and its trial folder."""
import inspect
import os
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ..references import MAX_RESULT
from .registry import warn


def config_to_primitive(config: Any, resolve: bool = True) -> Any:
    """OmegaConf container to plain dict / list. Raises: ValueError for anything that is not a container."""
    return OmegaConf.to_container(config, resolve=resolve)


def schedule_knots(value: Any) -> list[tuple[float, float]]:
    """Corner points (step, value) of a schedule list.

    Forms: ``[v0, v1, end]`` = ``[0, v0, v1, end]``; ``[start, v0, v1, end]``; ``[start, v0, v1, s1, v2, s2, ...]``.

    Raises: ValueError if `value` is no OmegaConf container, TypeError if it is one but no list,
        AssertionError if its length fits no form.
    """
    numbers = config_to_primitive(value)
    if not isinstance(numbers, list):
        raise TypeError(f"A schedule must be a number or a list of numbers, got {type(numbers).__name__}: {numbers}.")
    if len(numbers) == 3:
        numbers = [0, *numbers]
    if len(numbers) < 4 or len(numbers) % 2:
        raise AssertionError(
            "A schedule must be [v0, v1, end] or [start, v0, v1, end] or [start, v0, v1, s1, v2, s2, ...], "
            f"got {numbers}."
        )
    return [(numbers[0], numbers[1])] + [(numbers[i + 1], numbers[i]) for i in range(2, len(numbers), 2)]


def C_max(value: Any) -> float:
    """Largest value that a number or a schedule takes."""
    if isinstance(value, int | float):
        return value
    return max(v for _, v in schedule_knots(value))


def _product(a: Any, b: Any) -> Any:
    """Of numbers: a text or a list times a number would be as long as a stranger likes."""
    if not all(isinstance(value, int | float) for value in (a, b)):
        raise TypeError(f"mul takes two numbers, got {type(a).__name__} and {type(b).__name__}")
    return _bounded(a * b)


def _replaced(text: Any, sub: Any) -> str:
    text, sub = str(text), str(sub)
    if len(text) + text.count(" ") * len(sub) > MAX_RESULT:
        raise ValueError(f"rmspace would give more than {MAX_RESULT} characters")
    return text.replace(" ", sub)


def _bounded(value: Any) -> Any:
    """A function's result; whole numbers beyond all floats and long texts and lists are refused."""
    if isinstance(value, int) and abs(value) > 10**308:
        raise OverflowError("the number is too large")
    if hasattr(value, "__len__") and len(value) > MAX_RESULT:
        raise ValueError(f"the result has more than {MAX_RESULT} characters or values")
    return value


_RESOLVERS = {
    "calc_exp_lr_decay_rate": lambda factor, n: factor ** (1.0 / n),
    "add": lambda a, b: _bounded(a + b),
    "sub": lambda a, b: _bounded(a - b),
    "mul": _product,
    "div": lambda a, b: a / b,
    "idiv": lambda a, b: a // b,
    "basename": lambda p: os.path.basename(p),
    "rmspace": _replaced,
    "tuple2": lambda s: [float(s), float(s)],
    "gt0": lambda s: s > 0,
    "not": lambda s: not s,
    "cmaxgt0": lambda s: C_max(s) > 0,
    "cmaxgt0orcmaxgt0": lambda a, b: C_max(a) > 0 or C_max(b) > 0,
}
RESOLVER_NAMES = frozenset(_RESOLVERS)


def register_resolvers() -> None:
    """Make ``${add:1,2}`` and the other twelve known to OmegaConf; names that exist are left alone."""
    # omegaconf 2.4 renamed register_new_resolver to register_resolver; 2.3's register_resolver is another function.
    modern = "use_cache" in inspect.signature(OmegaConf.register_resolver).parameters
    add = OmegaConf.register_resolver if modern else OmegaConf.register_new_resolver
    for name, function in _RESOLVERS.items():
        if not OmegaConf.has_resolver(name):
            add(name, function)


def parse_structured(fields: Any, cfg: Any = None) -> Any:
    """Fill the dataclass `fields` by keyword from the mapping `cfg` and let OmegaConf check the types.

    Raises: TypeError for an unknown key or ``cfg=None``, omegaconf.ValidationError for a wrong type.
    """
    return OmegaConf.structured(fields(**cfg))


@dataclass
class ExperimentConfig:
    """Top level of a run's configuration; parsing it creates the trial folder."""

    name: str = "default"  # folder below exp_root_dir
    description: str = ""
    tag: str = ""  # first part of the trial folder's name
    seed: int = 0
    use_timestamp: bool = True  # append @YYYYMMDD-HHMMSS to the tag
    timestamp: str | None = None  # given when a parsed configuration is read again
    exp_root_dir: str = "outputs"
    exp_dir: str = "outputs/default"  # derived: exp_root_dir/name
    trial_name: str = "exp"  # derived: tag + timestamp
    trial_dir: str = "outputs/default/exp"  # derived: exp_dir/trial_name
    n_gpus: int = 1
    resume: str | None = None  # checkpoint to continue from

    data_type: str = ""
    data: dict = field(default_factory=dict)
    system_type: str = ""
    system: dict = field(default_factory=dict)
    trainer: dict = field(default_factory=dict)  # arguments of pytorch_lightning.Trainer
    checkpoint: dict = field(default_factory=dict)  # arguments of ModelCheckpoint

    def __post_init__(self) -> None:
        if not self.tag and not self.use_timestamp:
            raise ValueError("Either tag must be given or use_timestamp must be true: the trial folder needs a name.")
        if self.timestamp is None:
            self.timestamp = ""
            if self.use_timestamp and self.n_gpus > 1:
                warn("The timestamp is dropped on several devices: their clocks would name different folders.")
            elif self.use_timestamp:
                self.timestamp = datetime.now().strftime("@%Y%m%d-%H%M%S")
        self.trial_name = self.tag + self.timestamp
        self.exp_dir = os.path.join(self.exp_root_dir, self.name)
        self.trial_dir = os.path.join(self.exp_dir, self.trial_name)
        os.makedirs(self.trial_dir, exist_ok=True)


def load_config(*yamls: str, cli_args: Any = (), from_string: bool = False, **kwargs: Any) -> Any:
    """Merge YAML files (or strings), then ``a.b=c`` arguments, then keywords, each over the former, and parse.

    Returns: a structured ExperimentConfig with all interpolations resolved; its trial folder exists.
    """
    register_resolvers()
    parts = [OmegaConf.create(y) if from_string else OmegaConf.load(y) for y in yamls]
    merged = OmegaConf.merge(*parts, OmegaConf.from_cli(list(cli_args)), kwargs)
    OmegaConf.resolve(merged)
    if not isinstance(merged, DictConfig) or isinstance(merged, ListConfig):
        raise TypeError("The top level of a configuration must be a mapping of keys to values.")
    return parse_structured(ExperimentConfig, merged)


def dump_config(path: str, config: Any) -> None:
    """Write a configuration as YAML; the file is complete or absent."""
    partial = f"{path}.part"
    with open(partial, "w", encoding="utf-8") as file:
        OmegaConf.save(config=config, f=file)
    os.replace(partial, path)
