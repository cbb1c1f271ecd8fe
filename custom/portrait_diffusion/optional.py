"""One place that imports optional packages and says how to get a missing one, and finds files that packages bring."""
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from .errors import EnvironmentProblem


def require(module: str, extra: str, package: str = "") -> ModuleType:
    """Import an optional module lazily.

    Args:
        module: import name, for example ``"anny"``.
        extra: the extra of this project that installs it, for example ``"synthetic"``.
        package: name on PyPI when it differs from the import name.

    Returns: the imported module.
    Raises: EnvironmentProblem naming the missing package and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise EnvironmentProblem(
            f"The package '{package or module}' is needed here but not installed; "
            f"run: pip install '{package or module}' (or: pip install -e '.[{extra}]')."
        ) from error


def file_in_package(package: str, *parts: str) -> Path | None:
    """A file inside an installed package, which is not imported. Args: package: import name; parts: of the path in it.

    Returns: its path, or None where package or file is missing.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders if (path := Path(folder, *parts)).is_file()), None)
