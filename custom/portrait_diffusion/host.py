"""The host behind this package: threestudio where it loaded us, else our own small one. Import host names only here.

The choice is made once, at import: threestudio's launcher imports threestudio before any extension, so it is in
``sys.modules`` then; it is never imported to find out. `BaseSystem` and `BaseLift3DSystem` of the own host need
pytorch-lightning (several seconds), so they are loaded when first asked for.
"""
import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

IN_THREESTUDIO = "threestudio" in sys.modules
REGISTERS_SYSTEMS = IN_THREESTUDIO
"""Whether importing the package registers systems and data modules too: threestudio's launcher finds them by name. On
our own host those who train import them, since they need pytorch-lightning."""

if IN_THREESTUDIO:
    import threestudio as _threestudio
    from threestudio import debug, find, info, warn
    from threestudio.models.background.base import BaseBackground
    from threestudio.models.exporters.base import Exporter, ExporterOutput
    from threestudio.models.geometry.base import (
        BaseExplicitGeometry,
        BaseGeometry,
        BaseImplicitGeometry,
        contract_to_unisphere,
    )
    from threestudio.models.materials.base import BaseMaterial
    from threestudio.models.mesh import Mesh
    from threestudio.models.renderers.base import Rasterizer, Renderer, VolumeRenderer
    from threestudio.systems.base import BaseLift3DSystem, BaseSystem
    from threestudio.systems.utils import parse_optimizer, parse_scheduler
    from threestudio.utils.base import (
        BaseModule,
        BaseObject,
        Updateable,
        update_end_if_possible,
        update_if_possible,
    )
    from threestudio.utils.config import (
        C_max,
        ExperimentConfig,
        config_to_primitive,
        dump_config,
        load_config,
        parse_structured,
    )
    from threestudio.utils.misc import C, cleanup, find_last_path, get_device, get_rank, load_module_weights
    from threestudio.utils.saving import SaverMixin

    _modules = _threestudio.__modules__
    _register = _threestudio.register
else:
    from ._standalone.base import (
        BaseModule,
        BaseObject,
        Updateable,
        update_end_if_possible,
        update_if_possible,
    )
    from ._standalone.config import (
        C_max,
        ExperimentConfig,
        config_to_primitive,
        dump_config,
        load_config,
        parse_structured,
    )
    from ._standalone.mesh import Mesh
    from ._standalone.misc import C, cleanup, find_last_path, get_device, get_rank, load_module_weights
    from ._standalone.models import (
        BaseBackground,
        BaseExplicitGeometry,
        BaseGeometry,
        BaseImplicitGeometry,
        BaseMaterial,
        Exporter,
        ExporterOutput,
        Rasterizer,
        Renderer,
        VolumeRenderer,
        contract_to_unisphere,
    )
    from ._standalone.optimization import parse_optimizer, parse_scheduler
    from ._standalone.registry import debug, find, info, warn
    from ._standalone.registry import modules as _get_modules
    from ._standalone.registry import register as _register
    from ._standalone.saving import SaverMixin

    _modules = _get_modules()

__all__ = [
    "C", "IN_THREESTUDIO", "REGISTERS_SYSTEMS", "BaseBackground", "BaseExplicitGeometry", "BaseGeometry",
    "BaseImplicitGeometry", "BaseLift3DSystem", "BaseMaterial", "BaseModule", "BaseObject", "BaseSystem", "C_max",
    "ExperimentConfig", "Exporter", "ExporterOutput", "Mesh", "Rasterizer", "Renderer", "SaverMixin", "Updateable",
    "VolumeRenderer", "announce_copy", "cleanup", "config_to_primitive", "contract_to_unisphere", "debug", "describe",
    "dump_config", "find", "find_last_path", "get_device", "get_rank", "info", "load_config", "load_module_weights",
    "parse_optimizer", "parse_scheduler", "parse_structured", "prepare_resolvers", "register", "registered_names",
    "run_config", "set_device", "update_end_if_possible", "update_if_possible", "warn",
]  # fmt: skip

PREFIX = "portrait-diffusion-"
_ORIGIN = "_portrait_diffusion_origin"  # class attribute: (source file, qualified name)
_copies: dict[str, str] = {}  # folder of each copy of this package that was imported, and its version


def register(name: str) -> Callable[[type], type]:
    """Class decorator: make the class available to configurations as `name`.

    The same class (same source file and qualified name) may come again, as after a failed import, and replaces itself.

    Raises: ValueError if the name lacks the prefix ``portrait-diffusion-``, contains ':', or belongs to another class.
    """
    if not name.startswith(PREFIX) or ":" in name:
        raise ValueError(f"The registered name '{name}' must start with '{PREFIX}' and must not contain ':'.")

    def decorate(cls: type) -> type:
        source = getattr(sys.modules.get(cls.__module__), "__file__", None) or "<interactive>"
        origin = (str(Path(source).resolve()), cls.__qualname__)
        existing = _modules.get(name)
        if existing is not None and vars(existing).get(_ORIGIN) == origin:
            _modules[name] = cls
        else:
            _register(name)(cls)
        setattr(cls, _ORIGIN, origin)
        return cls

    return decorate


def registered_names() -> list[str]:
    """All names that `find` knows, sorted."""
    return sorted(_modules)


def prepare_resolvers() -> None:
    """Make the configuration resolvers (``${add:1,2}`` ...) known to OmegaConf; threestudio has done it itself."""
    if not IN_THREESTUDIO:
        from ._standalone.config import register_resolvers

        register_resolvers()


def set_device(device: str | None) -> None:
    """Choose the device of modules made from now on (own host only); None chooses by availability.

    Raises: UsageError inside threestudio, whose ``--gpu`` flag decides.
    """
    from .errors import UsageError

    if IN_THREESTUDIO:
        raise UsageError("Inside threestudio the device is chosen by launch.py's --gpu flag.")
    from ._standalone import misc

    misc.set_device(device)


def run_config(trainer: Any) -> dict[str, Any] | None:
    """The configuration that threestudio's launcher trains with, as plain values without those that are defaults.

    It is with the callback that writes it to the run's folder; None on our own host, and where the launcher only
    tests or exports.
    """
    for callback in trainer.callbacks:
        config = getattr(callback, "config", None)
        if isinstance(getattr(callback, "config_path", None), str) and config is not None:
            given = config_to_primitive(config)
            defaults = {f.name: f.default for f in dataclasses.fields(ExperimentConfig)}
            return {key: value for key, value in given.items() if value != defaults[key] and value != {}}
    return None


def describe() -> str:
    """Which host runs this package, and whether threestudio could be found: by metadata, it isn't imported."""
    if IN_THREESTUDIO:
        return f"threestudio {getattr(_threestudio, '__version__', '(unknown version)')} loaded this package"
    spec = importlib.util.find_spec("threestudio")
    found = f"threestudio is importable from {spec.origin}" if spec else "threestudio is not on the path (not needed)"
    return f"own host; {found}"


def announce_copy(init_file: str, version: str) -> None:
    """Called by the package's `__init__` each time it runs: notes this copy and reports what cannot work together.

    Raises: ImportError if the own host was chosen and threestudio was imported afterwards.
    """
    if not IN_THREESTUDIO and "threestudio" in sys.modules:
        raise ImportError(
            "portrait_diffusion was imported before threestudio and runs on its own host, so threestudio cannot see "
            "its classes; import threestudio first, or start through threestudio's launch.py."
        )
    folder = str(Path(init_file).resolve().parent)
    for other, other_version in _copies.items():
        if other != folder and other_version != version:
            warn(
                f"Two copies of portrait_diffusion are installed: {other_version} in {other} (in use) and {version} in "
                f"{folder}; remove one of them."
            )
    _copies.setdefault(folder, version)


def __getattr__(name: str) -> Any:
    if name in ("BaseSystem", "BaseLift3DSystem"):
        from ._standalone import systems

        return getattr(systems, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
